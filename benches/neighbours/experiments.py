"""What is tried, and what must hold. The names are those of the study of tenants that the project began with."""

import dataclasses
import itertools
import time
from collections.abc import Callable

import batches
import disturb
import load
from load import group
from proxies import PANIC, Setup
from world import OTHERS_PORT, VICTIM_PORT

ALL = ("tollgate", "fairness-off", "envoy")
TOLLGATE = ("tollgate", "fairness-off")
FEW_US, SOME_US = 300, 500
# Of a tenant's load while it is alone.
SOLO_SECONDS = 2
# Until Tollgate looks at a directory that has changed.
NOTICE_MS = 50
# Rules of which no request of the load matches one.
TEN_THOUSAND_RULES = [("GET", f"/api/v1/svc{index:05}/items/[0-9]+") for index in range(10_000)]
# Endpoints that have not asked for anything before, more than an experiment has batches.
NEWCOMERS = range(2, 42)
# An automaton that is built while it reads gets a new state for each letter of a path made of its two letters.
SLOW_RULES = [("GET", "/x.*-.{36}")]
FLOODS = (
    "rapid-reset", "made-you-reset", "continuation", "ping", "settings", "empty-data", "window-update", "priority",
)


@dataclasses.dataclass
class Experiment:
    """One kind of bad neighbour.

    `loads` gives the arguments of the generators; `check` says of the figures of one proxy whether the target is met;
    `invariant` likewise,
    of what does not depend on how fast the machine is. `steady`: whether the load is a closed loop, so
    that what it gets done tells a disturbed batch."""

    name: str
    title: str
    target: str
    loads: Callable
    check: Callable
    invariant: Callable
    setup: Setup = dataclasses.field(default_factory=Setup)
    victim: tuple = ()
    victim_port: int = VICTIM_PORT
    proxies: tuple = ALL
    unit: str = "requests/s"
    steady: bool = True
    # The victim is measured from the moment that the load begins.
    from_the_start: bool = False
    # Requests or connections without which nothing was tried.
    least: int = 1
    # Whether the target is a latency, which only a quiet machine can tell.
    timed: bool = True
    # So many times the batches: what it is about is smaller than the noise of one.
    often: int = 1
    # Takes `--soak` seconds where that is given.
    long: bool = False
    before: Callable | None = None
    disturb: Callable | None = None
    extra: Callable | None = None
    # Why the invariant does not hold yet, so that CI goes on.
    not_yet: str = ""
    # Further figures for the report: (key, heading).
    columns: tuple = ()


def served(row):
    """Nothing of the victim's failed."""
    return not row["errors"] and row["alive"]


def within(microseconds):
    return lambda row: served(row) and row["added_p99"] <= microseconds


def unstopped(row):
    """Within a millisecond, and the kernel has not stopped the proxy for having used up its quota of processor time."""
    return within(1000)(row) and row["throttled"] == 0


def closed(*groups, **options):
    arguments = ["closed"]
    for item in groups:
        arguments += item
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}"] + ([] if value is True else [value])
    return arguments


def cheap(connections):
    return lambda proxy: [closed(group(proxy, 2, connections), path="/cheap")]


def experiments():
    """All of them, in the order in which they are run."""
    return [*cpu(), *shares(), *upstreams(), *floods(), *connections(), *memory(), *policies(), *panics(), *remotes(), *costs(), *soak()]


def cpu():
    """Threats 1 to 3: time on the worker."""
    bound = "p99 + 0.3 ms, no errors"
    slow = Setup(rules={2: SLOW_RULES})
    return [
        Experiment("T1", "256 connections, cheap requests", bound, cheap(256), within(FEW_US), served),
        Experiment(
            "T1-h2", "8 HTTP/2 connections x 100 streams, cheap requests", bound,
            lambda proxy: [["streams", *group(proxy, 2, 8), "--streams", 100]], within(FEW_US), served,
        ),
        Experiment(
            "T2-heads", "64 connections, heads of 48 KiB", bound,
            lambda proxy: [closed(group(proxy, 2, 64), fields=56, field_bytes=850)], within(FEW_US), served,
        ),
        Experiment(
            "T2-denied", "64 connections, denied by 10,000 rules", bound,
            lambda proxy: [closed(group(proxy, 2, 64), path="/nothing/here")], within(FEW_US), served,
            setup=Setup(rules={2: TEN_THOUSAND_RULES}), columns=(("records_lost", "share of the records lost"),),
        ),
        Experiment(
            "T3", "16 connections, rules and paths that are as slow to match as they can be", bound,
            lambda proxy: [closed(group(proxy, 2, 16), path="/x", hostile=3000)], within(FEW_US), served, setup=slow,
            extra=moves, columns=(("to_lane", "moves to a lane"),),
        ),
        # Each batch has another aggressor, which is not in a lane yet.
        Experiment(
            "T3-first", "T3 by a tenant that did nothing before, looked at from its first millisecond",
            "p99 + 0.3 ms from 1 s after its start, no errors", newcomers(16, path="/x", hostile=3000),
            lambda row: served(row) and row["recovered_ms"] <= 1000, served,
            setup=Setup(rules={endpoint: SLOW_RULES for endpoint in NEWCOMERS}, endpoints=max(NEWCOMERS)),
            from_the_start=True, extra=recovery(1.5),
            columns=(("recovered_ms", "ms to + 0.3 ms"),),
        ),
    ]


def newcomers(connections, **options):
    """The next of `NEWCOMERS` of the same proxy, each time."""
    turns = {}

    def load_of(proxy):
        endpoint = next(turns.setdefault(proxy.name, itertools.cycle(NEWCOMERS)))
        return [closed(group(proxy, endpoint, connections), **options)]

    return load_of


def moves(proxy, _found, _victim, _before):
    """How often a tenant went to a lane since the proxy started; the aggressor stays there while its batches follow each other."""
    if proxy.name == "envoy":
        return {"to_lane": 0}
    counts = [
        count for (name, labels), count in proxy.metrics().items()
        if name == "tollgate_tenant_lane_moves_total" and 'to="lane"' in (labels or "")
    ]
    return {"to_lane": sum(counts)}


def shares():
    """Threat 4: connections must not buy a share."""
    slow = {endpoint: SLOW_RULES for endpoint in range(2, 12)}

    def ten(counts):
        return lambda proxy: [
            closed(*(group(proxy, endpoint, count) for endpoint, count in zip(range(2, 12), counts)), path="/x", hostile=100)
        ]

    # What is shared is time. Answers cost a tenant with a thousand connections more than one with two, which has to open fewer,
    # so they are told beside it, and stand for it where a proxy does not count time.
    def parts(found, prefix, endpoints):
        answers = [batches.answers(part["counts"]) for part in found["results"][0]["groups"]]
        return [found["tenant_seconds"].get(f"{prefix}{endpoint}", 0) for endpoint in endpoints], answers

    def fair(_proxy, found, _victim, _before):
        seconds, done = parts(found, "endpoint-", range(2, 12))
        measured = seconds if any(seconds) else done
        return {
            "jain": batches.jain(measured), "smallest_share": min(measured) / max(1e-9, sum(measured)),
            "jain_answers": batches.jain(done),
        }

    def weighted(_proxy, found, _victim, _before):
        def off(parts):
            per_weight = [part / weight for part, weight in zip(parts, (1, 2, 4))]
            return batches.jain(per_weight), max(per_weight) / max(1e-9, min(per_weight)) - 1

        seconds, done = parts(found, "tenant-", (2, 3, 4))
        (jain, off_time), (_, off_answers) = off(seconds), off(done)
        return {"jain": jain, "off": off_time, "off_answers": off_answers}

    return [
        Experiment(
            "T4", "10 tenants with 2, 4, … 1,024 connections",
            "Jain of processor time >= 0.99, the core busy for 98 % of the time, p99 + 0.3 ms, no errors",
            ten([2 << exponent for exponent in range(10)]),
            lambda row: within(FEW_US)(row) and row["jain"] >= 0.99 and row["busy"] >= 0.98,
            lambda row: served(row) and row["jain"] >= 0.9 and row["busy"] >= 0.9,
            setup=Setup(rules=slow), extra=fair,
            columns=(
                ("jain", "Jain"), ("smallest_share", "smallest share"), ("jain_answers", "Jain of answers"),
                ("busy", "busy or waiting for the core"),
            ),
            least=2000,
        ),
        Experiment(
            "T4-weights", "3 tenants with weights 1, 2 and 4", "shares of processor time within 3 %",
            lambda proxy: [closed(*(group(proxy, endpoint, 32) for endpoint in (2, 3, 4)), path="/x", hostile=100)],
            lambda row: served(row) and row["off"] <= 0.03, lambda row: served(row) and row["off"] <= 0.1,
            setup=Setup(rules=slow, weights={2: 1, 3: 2, 4: 4}), extra=weighted, proxies=("tollgate",),
            columns=(("jain", "Jain by weight"), ("off", "off by"), ("off_answers", "answers off by")),
            timed=False,
        ),
        Experiment(
            # A hundredth of the core is 9 ms a second, for which the usual victim asks too much: it would wait for itself.
            "T5", "109 tenants with 4 connections each, and a victim that asks 100 times a second", "p99 <= 12 ms, no errors",
            lambda proxy: [closed(*(group(proxy, endpoint, 4) for endpoint in range(2, 111)), path="/cheap")],
            lambda row: served(row) and row["p99"] <= 12_000, served, setup=Setup(endpoints=110), victim=("--rate", 100),
        ),
    ]


def upstreams():
    """Threat 9: somebody else's slow upstream."""
    return [
        Experiment(
            "T8-h2", "11 HTTP/2 connections x 100 streams to an upstream that does not answer", "no errors",
            lambda proxy: [["streams", *group(proxy, 2, 11), "--streams", 100, "--path", "/slow/60000"]],
            served, served, steady=False,
            timed=False, least=1100,
        ),
        Experiment(
            "T8-h1", "2,200 connections to an upstream that does not answer", "no errors",
            lambda proxy: [closed(group(proxy, 2, 2200), path="/slow/60000")], served, served, steady=False,
            timed=False, least=2200,
        ),
        Experiment(
            "T9", "a client of the same endpoint that cancels thousands of HTTP/2 requests a second", "no errors",
            lambda proxy: [[
                "streams", *group(proxy, 1, 8), "--streams", 100, "--cancel-after", 50, "--path", "/slow/2000",
            ]],
            served, served, victim=("--http2",), victim_port=OTHERS_PORT, steady=False,
            timed=False,
        ),
        Experiment(
            "T14", "8 downloads as fast as they go", "p99 + 0.3 ms, no errors",
            lambda proxy: [["bulk", *group(proxy, 2, 8)]], within(FEW_US), served, unit="bytes/s",
        ),
    ]


def floods():
    """Threats 11 and 12: frames that are cheap to send."""
    def cut(_proxy, found, _victim, _before):
        waits = [wait for result in found["results"] for wait in result["until_goaway_ms"]]
        return {"opened": found["counts"].get("opened", 0), "goaway_ms": load.percentile(waits, 0.5)}

    return [
        Experiment(
            f"T10-{kind}", f"8 HTTP/2 connections that flood: {kind}", "p99 + 0.3 ms, no errors",
            lambda proxy, kind=kind: [["flood", kind, *group(proxy, 2, 8)]], within(FEW_US), served,
            unit="frames", steady=False, extra=cut, columns=(("opened", "connections"), ("goaway_ms", "ms to GOAWAY")),
        )
        for kind in FLOODS
    ] + [
        Experiment(
            f"T10-rapid-reset-{connections}", f"{said} that flood{ends}: rapid-reset", "p99 + 0.3 ms, no errors",
            lambda proxy, connections=connections: [["flood", "rapid-reset", *group(proxy, 2, connections)]], within(FEW_US), served,
            unit="frames", steady=False, extra=cut, columns=(("opened", "connections"), ("goaway_ms", "ms to GOAWAY")),
        )
        for connections, said, ends in ((1, "1 HTTP/2 connection", "s"), (50, "50 HTTP/2 connections", ""))
    ]


def connections():
    """Threats 5 to 8: connections themselves."""
    def held(_proxy, found, _victim, _before):
        # At the end: meanwhile the kernel opens connections that no proxy has seen yet.
        return {"held": found["results"][0]["held"]}

    fresh = ("--fresh", "--rate", 100)
    return [
        Experiment(
            "T6", "10,000 new connections per second", "no errors, connect and answer p99 <= 20 ms",
            lambda proxy: [["connect", "--target", f"{proxy.address(2)}:8080", "--source", proxy.source(2), "--rate", 10_000]],
            lambda row: served(row) and row["p99"] <= 20_000, served, victim=fresh, unit="connections", steady=False,
        ),
        Experiment(
            "T6-churn", "64 connections, a new one for each request", "p99 + 0.5 ms, no errors",
            lambda proxy: [closed(group(proxy, 2, 64), churn=True)], within(SOME_US), served,
        ),
        Experiment(
            "T7", "4,000 silent connections where 2,000 have room", "no errors, the hoarder holds at most half",
            lambda proxy: [[
                "connect", "--target", f"{proxy.address(2)}:8080", "--source", proxy.source(2),
                "--rate", 8000, "--keep", 4000,
            ]],
            lambda row: served(row) and row["held"] <= 1000, served,
            setup=Setup(max_connections=2000), victim=fresh, unit="connections", steady=False, extra=held, timed=False,
            columns=(("held", "held in the end"),),
            least=2000,
        ),
    ]


def memory():
    """Threats 13 to 19: memory, and time that the kernel takes away."""
    def limits(proxy, _found, _victim, before):
        throttled, kills = proxy.group.throttled()
        return {"throttled": throttled - before[0], "kills": kills - before[1]}

    limit_columns = (("peak_mib", "peak MiB"), ("kills", "killed"))
    return [
        Experiment(
            "T11", "1,000 HTTP/2 connections x 100 streams that ask for 1 MiB each and never read, in 512 MiB",
            "alive, RSS within 512 MiB, no errors",
            lambda proxy: [["bulk", *group(proxy, 2, 1000), "--bytes", 1 << 20, "--unread-streams", 100]],
            served, served, setup=Setup(memory_mib=512), unit="bytes/s", steady=False,
            before=lambda proxy, _generators: proxy.group.throttled(), extra=limits, columns=limit_columns,
            timed=False, least=1000,
        ),
        Experiment(
            "T12", "64 connections, 16 pipelined heads of 48 KiB each", "p99 + 0.3 ms, no errors",
            lambda proxy: [closed(group(proxy, 2, 64), fields=56, field_bytes=850, pipeline=16)], within(FEW_US), served,
            columns=(("peak_mib", "peak MiB"),),
        ),
        Experiment(
            "T12-bombs", "64 HTTP/2 connections whose heads name a field of 4,000 bytes 10,000 times (HPACK bombs)",
            "p99 + 0.3 ms, no errors",
            lambda proxy: [["flood", "hpack-bomb", *group(proxy, 2, 64)]], within(FEW_US), served, unit="frames", steady=False,
            columns=(("peak_mib", "peak MiB"),),
        ),
        *(
            Experiment(
                f"T13{name}", f"T1 with {int(quota * 100)} % of a core (CFS quota{more})", target,
                cheap(256), check, served, setup=Setup(cpu_quota=quota, paced=paced), proxies=able,
                before=lambda proxy, _generators: proxy.group.throttled(), extra=limits,
                columns=(("throttled", "periods throttled"),),
            )
            for name, quota, more, paced, able, target, check in (
                ("", 0.5, "", True, ALL, "p99 + 1 ms, the kernel stops nobody, no errors", unstopped),
                ("-quarter", 0.25, "", True, ("tollgate",), "p99 + 1 ms, the kernel stops nobody, no errors", unstopped),
                # Nothing is promised where the kernel stops it: what the neighbours get then is what it is compared with.
                ("-unpaced", 0.5, ", limits: { cpu_quota: off }", False, ("tollgate",), "no errors", served),
                ("-quarter-unpaced", 0.25, ", limits: { cpu_quota: off }", False, ("tollgate",), "no errors", served),
                ("-tenth", 0.1, ", too little to be kept to", True, ("tollgate",), "no errors", served),
            )
        ),
    ]


def policies():
    """Threats 24 to 29: the policy plane and the log."""
    return [
        Experiment(
            "T15", "policies with a pattern of 120 KB, 40,000 classes, 10,000 patterns",
            "another endpoint's update in force 10 ms after its file is noticed, p99 + 0.3 ms",
            lambda _proxy: [], lambda row: within(FEW_US)(row) and row["update_ms"] <= NOTICE_MS + 10, served,
            proxies=("tollgate",), steady=False, disturb=disturb.bombs,
            columns=(
                ("nested_ms", f"ms from writing the other update ({NOTICE_MS} of them until it is noticed) to in force, beside 120 KB"), ("classes_ms", "40,000 classes"),
                ("many_ms", "10,000 patterns"), ("peak_mib", "peak MiB"),
            ),
            least=0,
        ),
        Experiment(
            "T16", "one bad policy of 200, from an agent that sends it again when it is refused",
            "at most 1 refusal a second, the other 199 in force, p99 + 0.3 ms",
            lambda _proxy: [], lambda row: within(FEW_US)(row) and row["nacks"] <= 1 and row["update_ms"] < 1000,
            lambda row: served(row) and row["nacks"] <= 1,
            setup=Setup(agent=True, endpoints=disturb.MANY), proxies=("tollgate",), steady=False, disturb=disturb.refused,
            columns=(("nacks", "NACKs/s"), ("update_ms", "ms to another's update")),
            least=0,
        ),
        Experiment(
            "T17", "10,000 rules swapped ten times a second",
            "one of them in force within 5 s, whatever comes after it; p99 + 0.5 ms, no errors",
            lambda _proxy: [], lambda row: within(SOME_US)(row) and row["in_force_ms"] <= 5000,
            lambda row: served(row) and row["in_force_ms"] < disturb.PATIENCE_SECONDS * 1e3,
            proxies=("tollgate",), steady=False, disturb=disturb.churn,
            columns=(("peak_mib", "peak MiB"), ("swaps", "swaps"), ("in_force_ms", "ms to one in force")),
            least=0,
        ),
        *(
            Experiment(
                f"T18{name}", f"a log {whose}, requests with heads of 48 KiB", "p99 + 0.3 ms, no errors",
                lambda proxy: [closed(group(proxy, 2, 64), fields=56, field_bytes=850)], within(FEW_US), served,
                setup=Setup(log=log), proxies=TOLLGATE,
            )
            for name, whose, log in (
                ("", "whose reader reads nothing", "stalled"), ("-gone", "that has no reader", "gone"),
                ("-read", "whose reader keeps up", "read"),
            )
        ),
    ]


def panics():
    """Threat 31: a defect of the proxy that requests of one tenant set off."""
    def count(proxy, *_):
        total = sum(value for (name, _), value in proxy.metrics().items() if name == "tollgate_connection_panics_total")
        return total, time.monotonic()

    def panicked(proxy, _found, _victim, before):
        (now, at), (earlier, since) = count(proxy), before
        return {"panics": (now - earlier) / (at - since)}

    return [
        Experiment(
            f"T19{name}", f"64 connections, a new one for each request, which panics{more}", "p99 + 0.3 ms, no errors",
            lambda proxy: [closed(group(proxy, 2, 64), churn=True, path=PANIC)],
            lambda row, least=least: within(FEW_US)(row) and row["panics"] >= least, lambda row: served(row) and row["panics"] > 0,
            setup=Setup(faulty=True, shadow=shadow), proxies=("tollgate",), steady=False, before=count, extra=panicked,
            columns=(("panics", "panics/s"),),
        )
        for name, more, shadow, least in (
            ("", ", of a tenant that is kept apart for it", (), 1), ("-let-in", ", of a tenant in shadow", (2,), 1000),
        )
    ]


def remotes():
    """Threat 33: the victim and the aggressor are clients of the same endpoint."""
    return [
        Experiment(
            "T21", "another client of the victim's endpoint, 256 connections", "p99 + 0.3 ms, no errors",
            lambda proxy: [closed(group(proxy, 1, 256), path="/cheap")], within(FEW_US), served,
        ),
        Experiment(
            "T21-churn", "another client of the victim's endpoint, 64 connections, a new one for each request", "p99 + 0.5 ms, no errors",
            lambda proxy: [closed(group(proxy, 1, 64), churn=True)], within(SOME_US), served, victim=("--fresh", "--rate", 100),
        ),
        Experiment(
            "T21-places", "another client of the victim's endpoint, 2,200 requests to an upstream that does not answer", "no errors",
            lambda proxy: [closed(group(proxy, 1, 2200), path="/slow/60000")], served, served,
            setup=Setup(in_flight=2000), steady=False,
            timed=False, least=2200,
        ),
        Experiment(
            "T24", "T1, looked at from its first millisecond", "p99 + 0.3 ms from 5 ms after its start",
            cheap(256), lambda row: served(row) and row["recovered_ms"] <= 5, served, from_the_start=True,
            extra=recovery(1.0), columns=(("recovered_ms", "ms to + 0.3 ms"),),
        ),
    ]


def costs():
    """Who used what: the sum must be the whole, and each tenant's share its own."""
    def mixed(proxy):
        return [
            closed(group(proxy, 2, 32), group(proxy, 3, 8), path="/cheap"),
            closed(group(proxy, 4, 8), fields=56, field_bytes=850),
            closed(group(proxy, 5, 16), path="/x", hostile=300),
            closed(group(proxy, 6, 8), churn=True),
            ["streams", *group(proxy, 7, 2), "--streams", 20],
            ["bulk", *group(proxy, 8, 1)],
        ]

    def account(proxy, _generators):
        return proxy.metrics(), proxy.times()

    def compare(proxy, found, _victim, before):
        time.sleep(1)  # The proxy learns that its clients are gone.
        metrics, (earlier, times) = proxy.metrics(), before
        gained = {key: value - earlier.get(key, 0) for key, value in metrics.items()}

        def total(metric, endpoint=None):
            label = "" if endpoint is None else f'tenant="endpoint-{endpoint}"'
            return sum(value for (name, labels), value in gained.items() if name == metric and label in labels)

        off = 0.0
        for part in (part for result in found["results"] for part in result.get("groups", [])):
            endpoint = int(part["target"].split(":")[0].split(".")[3])
            answered = batches.answers(part["counts"])
            counted = total("tollgate_tenant_requests_total", endpoint)
            # What was under way when the load ended may or may not have been answered.
            off = max(off, max(0, answered - counted, counted - part["asked"]) / max(1, answered))
        accounts = ("tollgate_tenant_cpu_seconds_total", "tollgate_tenant_policy_compile_seconds_total", "tollgate_overhead_cpu_seconds_total")
        attributed = sum(map(total, accounts))
        return {"requests_off": off, "cpu_off": abs(attributed / proxy.since(times)[0] - 1)}

    # Endpoint to what is asked of it, one request after the other.
    askers = {2: {"path": "/cheap"}, 4: {"fields": 56, "field_bytes": 850}, 5: {"path": "/x", "hostile": 300}, 6: {"churn": True}}

    def ask(proxy, endpoint):
        return closed(group(proxy, endpoint, 8), **askers[endpoint])

    def price(metrics, earlier, endpoint):
        """Processor time of a tenant for each of its answers."""
        def gained(metric):
            label = f'tenant="endpoint-{endpoint}"'
            return sum(
                value - earlier.get(key, 0) for key, value in metrics.items() if key[0] == metric and label in key[1]
            )

        return gained("tollgate_tenant_cpu_seconds_total") / max(1, gained("tollgate_tenant_requests_total"))

    def alone(proxy, generators):
        """What each pays when it is the only one, and the metrics from which the mix is counted."""
        prices, earlier = {}, proxy.metrics()
        for endpoint in askers:
            load.finish(generators.start(ask(proxy, endpoint), SOLO_SECONDS))
            time.sleep(1)
            metrics = proxy.metrics()
            prices[endpoint] = price(metrics, earlier, endpoint)
            earlier = metrics
        return prices, earlier

    def apart(proxy, generators):
        """What each pays behind a proxy of its own, all at the same time on the same core. Alone, a request costs something else, whoever
        counts: how much of the caches the neighbours take and whether who is written to sleeps, and has to be woken, is different. Here
        that is as in the mix, and the kernel is who tells the tenants' time apart."""
        folder = f"own-{time.monotonic_ns()}"
        own = {endpoint: proxy.another(f"own-{endpoint}", f"{folder}-{endpoint}") for endpoint in askers}
        try:
            earlier = {endpoint: own[endpoint].metrics() for endpoint in askers}
            for running in [generators.start(ask(own[endpoint], endpoint), SOLO_SECONDS) for endpoint in askers]:
                load.finish(running)
            time.sleep(1)
            prices = {endpoint: price(own[endpoint].metrics(), earlier[endpoint], endpoint) for endpoint in askers}
        finally:
            for one in own.values():
                one.stop()
        return prices, proxy.metrics()

    def against(proxy, _found, _victim, before):
        time.sleep(1)
        prices, earlier = before
        metrics = proxy.metrics()
        ratios = {endpoint: price(metrics, earlier, endpoint) / prices[endpoint] for endpoint in askers}
        return {"solo_off": max(abs(ratio - 1) for ratio in ratios.values()), **{f"ratio_{key}": value for key, value in ratios.items()}}

    common = {
        "setup": Setup(rules={5: SLOW_RULES}), "proxies": ("tollgate",), "steady": False, "timed": False, "unit": "",
    }
    prices = {
        **common, "extra": against,
        "columns": (
            ("solo_off", "off by"), ("ratio_2", "cheap"), ("ratio_4", "heads of 48 KiB"), ("ratio_5", "slow rules"),
            ("ratio_6", "a connection each"),
        ),
    }
    # Next to nothing of a victim, which is there for the harness only.
    saturated = {
        "check": lambda row: served(row) and row["kept"] >= 0.985 and row["cpu_kept"] <= 1.02, "invariant": served,
        "victim": ("--rate", 10), "proxies": TOLLGATE, "timed": False, "often": 4,
        "columns": (("kept", "of the answers without"), ("cpu_kept", "of the CPU of an answer without")),
    }
    bound = "98.5 % of the answers there are without fair shares and accounts, 102 % of the CPU of each"
    return [
        Experiment("T23", "a tenant alone, 64 connections, cheap requests", bound, cheap(64), **saturated),
        Experiment(
            "T23-h2", "a tenant alone, 8 HTTP/2 connections x 100 streams, cheap requests", bound,
            lambda proxy: [["streams", *group(proxy, 2, 8), "--streams", 100]], **saturated,
        ),
        Experiment(
            "T22-solo", "4 tenants at once, each of which was alone before", "a request costs a tenant what it costs alone, within 5 %",
            lambda proxy: [ask(proxy, endpoint) for endpoint in askers],
            lambda row: served(row) and row["solo_off"] <= 0.05, served, before=alone, **prices,
        ),
        Experiment(
            "T22-apart", "4 tenants at once, each of which had a proxy of its own before, beside the others",
            "a request costs a tenant what it costs behind a proxy of its own, within 5 %",
            lambda proxy: [ask(proxy, endpoint) for endpoint in askers],
            lambda row: served(row) and row["solo_off"] <= 0.05, served, before=apart, **prices,
        ),
        Experiment(
            "T22-requests", "7 tenants that use different things", "each answer is charged to whom it was given",
            mixed, lambda row: served(row) and row["requests_off"] == 0,
            lambda row: served(row) and row["requests_off"] == 0,
            before=account, extra=compare, columns=(("requests_off", "requests off by"),), **common,
        ),
        Experiment(
            "T22-cpu", "7 tenants that use different things", "98 % of the CPU time accounted for",
            mixed, lambda row: served(row) and row["cpu_off"] <= 0.02, lambda row: served(row) and row["cpu_off"] <= 0.02,
            before=account, extra=compare, columns=(("cpu_off", "CPU off by"),), **common,
        ),
    ]


def recovery(seconds):
    """How long after the load began the victim's 99th percentile was within the bound, from there to the end of the first
    `seconds`: what comes later is not the beginning any more. One late request in a hundred is what a 99th percentile allows, so the
    last late one would say something else. Twice as long is for never."""
    def look(_proxy, found, victim, _before):
        begun = found["results"][0]["begun"] - victim["first_due"]
        bound = found["alone"]["p99"] + FEW_US
        first = sorted((due - begun, outcome != 200 or latency > bound) for due, latency, outcome in load.undisturbed(victim))
        first = [(after, late) for after, late in first if 0 <= after <= seconds]
        return {"recovered_ms": within_from(first, 2 * seconds) * 1e3}

    return look


def within_from(samples, never):
    """From which moment on at most one in a hundred of the rest is late, of (moment, late) in the order of time; `never` if from
    none. A rest of fewer than fifty says nothing."""
    found, late = never, 0
    for seen, (moment, is_late) in enumerate(reversed(samples), 1):
        late += is_late
        if late * 100 <= seen and seen >= 50:
            found = moment
    return found


def soak():
    """Everybody at once."""
    def everybody(proxy):
        return [
            closed(group(proxy, 2, 256), path="/cheap"),
            closed(group(proxy, 3, 16), path="/x", hostile=3000),
            closed(group(proxy, 4, 16), fields=56, field_bytes=850),
            ["streams", *group(proxy, 5, 11), "--streams", 100, "--path", "/slow/60000"],
            ["bulk", *group(proxy, 6, 4)],
            ["flood", "rapid-reset", *group(proxy, 7, 2)],
            ["flood", "ping", *group(proxy, 8, 2)],
            closed(group(proxy, 9, 32), churn=True),
        ]

    return [
        Experiment(
            "T27", "all of them at once", "no errors, memory flat", everybody,
            lambda row: served(row) and row["growth_mib"] <= 0.1 * row["peak_mib"], served,
            setup=Setup(rules={3: SLOW_RULES}), unit="", steady=False, long=True,
            columns=(("peak_mib", "peak MiB"), ("growth_mib", "MiB more in the last quarter than in the second")),
            timed=False,
        ),
    ]
