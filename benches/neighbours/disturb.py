"""Neighbours that misbehave by their policies, not by their requests. For Tollgate only, which watches a directory."""

import http.client
import time

import proxies
from world import OTHERS_PORT

# Endpoints that get the bad policies, and the one whose update must not wait for them.
BOMB, CHURN, INNOCENT = 9, 10, 11
PATIENCE_SECONDS = 60


def bombs(proxy, _seconds):
    """Bad policies, and at once a good one of somebody else. How long until that one is in force, in milliseconds."""
    patterns = [
        [("GET", "/" + "(a|b)*c" * 17_000)],
        [("GET", r"/" + r"\pL" * 40_000)],
        [("GET", f"/{index}.*x.{{50}}") for index in range(10_000)],
    ]
    slowest = 0.0
    for turn, rules in enumerate(patterns):
        proxies.write_policy(proxy.folder, proxy.place, BOMB, rules)
        # A rename that the proxy sees before the other one.
        time.sleep(0.02)
        path = f"/only/{turn}-{time.monotonic_ns()}"
        begun = time.monotonic()
        proxies.write_policy(proxy.folder, proxy.place, INNOCENT, [("GET", path)])
        slowest = max(slowest, wait_until_served(proxy, path) - begun)
    return {"update_ms": slowest * 1e3}


def wait_until_served(proxy, path):
    """When the path was served for the first time."""
    connection = http.client.HTTPConnection(proxy.address(INNOCENT), OTHERS_PORT, timeout=PATIENCE_SECONDS)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status == 200:
            connection.close()
            return time.monotonic()
        time.sleep(0.001)
    connection.close()
    return time.monotonic()


def churn(proxy, seconds):
    """Swaps ten thousand rules for ten thousand others, ten times a second. How often that was done."""
    sets = [[("GET", f"/{word}{index:05}/[0-9]+") for index in range(10_000)] for word in ("a", "b")]
    end, swaps = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        next_swap = time.monotonic() + 0.1
        proxies.write_policy(proxy.folder, proxy.place, CHURN, sets[swaps % 2])
        swaps += 1
        time.sleep(max(0.0, next_swap - time.monotonic()))
    return {"swaps": swaps}
