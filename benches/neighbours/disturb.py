"""Neighbours that misbehave by their policies, not by their requests. For Tollgate only, which watches a directory."""

import functools
import http.client
import time

import proxies
from world import OTHERS_PORT

# Endpoints that get the bad policies, and the one whose update must not wait for them.
BOMB, CHURN, INNOCENT = 9, 10, 11
# Policies of an agent's node.
MANY = 200
PATIENCE_SECONDS = 60
# Becomes another number each time, so that no policy is one that was compiled before.
SALT = "SALT"


@functools.cache
def bomb_policies(place):
    """Written once, so that writing takes no time from what is measured."""
    patterns = {
        "nested_ms": [("GET", f"/{SALT}" + "(a|b)*c" * 17_000)],
        "classes_ms": [("GET", f"/{SALT}" + r"\pL" * 40_000)],
        "many_ms": [("GET", f"/{SALT}{index}.*x.{{50}}") for index in range(10_000)],
    }
    return {name: proxies.policy(place, BOMB, rules) for name, rules in patterns.items()}


@functools.cache
def churn_policies(place):
    sets = [[("GET", f"/{SALT}/{word}{index:05}/[0-9]+") for index in range(10_000)] for word in ("a", "b")]
    return [proxies.policy(place, CHURN, rules) for rules in sets]


def prepare(proxy):
    """Before anything is measured."""
    bomb_policies(proxy.place)
    churn_policies(proxy.place)


def bombs(proxy, _seconds):
    """Bad policies, and at once a good one of somebody else. How long until that one is in force, in milliseconds."""
    found = {}
    for name, text in bomb_policies(proxy.place).items():
        proxies.put_policy(proxy.folder, BOMB, text.replace(SALT, str(time.monotonic_ns())))
        # The proxy is at this file when the other one comes.
        time.sleep(0.15)
        path = f"/only/{name}-{time.monotonic_ns()}"
        begun = time.monotonic()
        proxies.put_policy(proxy.folder, INNOCENT, proxies.policy(proxy.place, INNOCENT, [("GET", path)]))
        found[name] = (wait_until_served(proxy, path) - begun) * 1e3
    return {**found, "update_ms": max(found.values())}


def refused(proxy, seconds):
    """200 policies of which one has a pattern that no proxy takes, from an agent that sends them again at once when they are
    refused. How often they were, each second, and how long until somebody else's update is in force, in milliseconds."""
    path = f"/only/{time.monotonic_ns()}"
    good = {INNOCENT: [("GET", path)], BOMB: [("GET", f"/{time.monotonic_ns()}" + "(a|b)*c" * 17_000)]}
    sender = proxy.sender
    texts = [
        proxies.policy(proxy.place, endpoint, good.get(endpoint, proxies.EVERYTHING)) for endpoint in range(1, MANY + 1)
    ]
    before, begun = sender.refusals, time.monotonic()
    sender.resend = True
    sender.send(texts)
    update_ms = (wait_until_served(proxy, path) - begun) * 1e3
    time.sleep(max(0.0, begun + seconds - time.monotonic()))
    sender.resend = False
    return {"nacks": (sender.refusals - before) / seconds, "update_ms": update_ms}


def wait_until_served(proxy, path):
    """When the path was served for the first time."""
    connection = http.client.HTTPConnection(proxy.address(INNOCENT), OTHERS_PORT, timeout=PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if is_served(connection, path):
            connection.close()
            return time.monotonic()
        time.sleep(0.001)
    connection.close()
    return time.monotonic()


def churn(proxy, seconds):
    """Swaps ten thousand rules for ten thousand others, ten times a second, and until one of these is in force. How often that was
    done, and when the first one was in force, in milliseconds."""
    salt = str(time.monotonic_ns())
    texts = [text.replace(SALT, salt) for text in churn_policies(proxy.place)]
    connection = http.client.HTTPConnection(proxy.address(CHURN), OTHERS_PORT, timeout=PATIENCE_SECONDS)
    begun, swaps, in_force_ms = time.monotonic(), 0, None
    while (passed := time.monotonic() - begun) < seconds or (in_force_ms is None and passed < PATIENCE_SECONDS):
        next_swap = time.monotonic() + 0.1
        proxies.put_policy(proxy.folder, CHURN, texts[swaps % 2])
        swaps += 1
        if in_force_ms is None and serves_one_of_these(connection, salt):
            in_force_ms = (time.monotonic() - begun) * 1e3
        time.sleep(max(0.0, next_swap - time.monotonic()))
    connection.close()
    return {"swaps": swaps, "in_force_ms": in_force_ms if in_force_ms is not None else PATIENCE_SECONDS * 1e3}


def serves_one_of_these(connection, salt):
    """Before, everything is served, or what was swapped before."""
    return not is_served(connection, f"/{salt}/else") and any(
        is_served(connection, f"/{salt}/{word}00000/1") for word in ("a", "b")
    )


def is_served(connection, path):
    """An endpoint that denies until its policy is compiled resets its connections; the next request opens another."""
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return False
    return answer.status == 200
