"""Runs an experiment: interleaved batches, which of them count, and what they say together."""

import statistics
import threading
import time

import disturb
import load

# A batch counts when the victim alone was served well, the others got what they can get, and neither core was taken from everybody
# on it for long: the victim's for this share of its requests, the proxy's for this share of the time. With 0.44 % of it the 99th
# percentile of a proxy that had nothing else to do (T8-h1) was 1.0 ms and not 0.3. Otherwise somebody else had the machine.
QUIET_P99_US = 1_000
FULL_LOAD = 0.95
MOST_LEFT_OUT = 0.05
MOST_TAKEN = 0.003
# Before the victim is looked at under load.
SETTLE_SECONDS = 0.5
# How long the victim has asked before the others begin, where their first milliseconds are looked at.
BEFORE_SECONDS = 0.3
# Until a proxy with a quota of processor time has got over having started, or having been asked for its metrics.
QUOTA_SECONDS = 1.0


def batch(experiment, proxy, generators, timing):
    """The victim alone, then with its neighbours."""
    if experiment.disturb:
        disturb.prepare(proxy)
    rest = QUOTA_SECONDS if experiment.setup.cpu_quota else 0
    time.sleep(rest)
    alone = summary(generators.victim(proxy, timing.alone, experiment).finish())
    before = experiment.before(proxy, generators) if experiment.before else None
    until_end = SETTLE_SECONDS + rest + timing.loud + 0.5
    victim = None
    if experiment.from_the_start:
        victim = generators.victim(proxy, timing.loud, experiment)
        time.sleep(BEFORE_SECONDS)
    others = [generators.start(arguments, until_end) for arguments in experiment.loads(proxy)]
    peak, done = [proxy.resident_mib()], threading.Event()
    sampler = threading.Thread(target=sample_memory, args=(proxy, peak, done))
    sampler.start()
    if not experiment.from_the_start:
        time.sleep(SETTLE_SECONDS)
    lost = proxy.records_lost()
    times, tenants, begun = proxy.times(), proxy.tenant_seconds(), time.monotonic()
    serving = proxy.serving()
    time.sleep(rest)
    victim = victim or generators.victim(proxy, timing.loud, experiment)
    disturbed = experiment.disturb(proxy, timing.loud) if experiment.disturb else {}
    loud_result = victim.finish()
    (cpu, waited), elapsed = proxy.since(times), time.monotonic() - begun
    kept_busy = busy(serving, proxy.serving(), elapsed)
    tenants = {name: seconds - tenants.get(name, 0) for name, seconds in proxy.tenant_seconds().items()}
    results = [load.finish(other) for other in others]
    done.set()
    sampler.join()
    found = {
        "alone": alone,
        "loud": summary(loud_result),
        "arrived": sum(arrived(result) for result in results),
        "rate": sum(rate(result) for result in results),
        "counts": counts(results),
        # Of the answers to the neighbours while the victim was measured; its own are a few.
        "cpu_us": cpu * 1e6 / max(1.0, rate_of_answers(results) * elapsed),
        "cpu_share": cpu / elapsed,
        "busy": kept_busy,
        # What each tenant had of it, where the proxy says so.
        "tenant_seconds": tenants,
        "run_delay_ms": waited * 1e3,
        "victim_delay_ms": loud_result["run_delay_ms"],
        "records_lost": (proxy.records_lost() - lost) / max(1, sum(answered(result) for result in results)),
        "peak_mib": max(peak),
        "growth_mib": growth(peak),
        "alive": proxy.alive(),
        "results": results,
        **disturbed,
    }
    if experiment.extra:
        found.update(experiment.extra(proxy, found, loud_result, before))
    found["results"] = [{key: value for key, value in result.items() if key != "until_goaway_ms"} for result in results]
    return found


def busy(before, after, elapsed):
    """For which share of the time whoever serves traffic was at work, or would have been had it got its core."""
    gained = [(run - before[thread][0], wait - before[thread][1]) for thread, (run, wait) in after.items() if thread in before]
    return min(1.0, (sum(run for run, _ in gained) + max((wait for _, wait in gained), default=0)) / elapsed)


def sample_memory(proxy, peak, done):
    while not done.wait(0.02):
        peak.append(proxy.resident_mib())


def growth(samples):
    """How much more memory there was in the last quarter than in the second."""
    quarter = len(samples) // 4
    if quarter == 0:
        return 0.0
    return statistics.mean(samples[-quarter:]) - statistics.mean(samples[quarter:2 * quarter])


def summary(result):
    """Percentiles of what was served while it was not held up itself, and what was not served."""
    samples = result["samples"]
    judged = load.undisturbed(result)
    served = [latency for _, latency, outcome in judged if outcome == 200]
    errors = {}
    for _, _, outcome in samples:
        if outcome != 200:
            errors[str(outcome)] = errors.get(str(outcome), 0) + 1
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        "count": len(samples),
        "errors": errors,
        "core_taken": result["core_taken"],
        "left_out": 1 - len(judged) / max(1, len(samples)),
        **{name: load.percentile(served, share) for name, share in shares.items()},
    }


def arrived(result):
    """Requests that one generator sent, or connections that it opened: whether there were neighbours at all."""
    if "groups" in result:
        return sum(group["asked"] for group in result["groups"])
    counts = result["counts"]
    # Of connections that are to be kept, those count that are sent away at once.
    return counts.get("opened", 0) + (counts.get("reset", 0) if "held" in result else 0)


def answers(counts):
    return sum(count for what, count in counts.items() if what.isdigit())


def answered(result):
    return sum(answers(group["counts"]) for group in result.get("groups", ()))


def rate(result):
    """What one generator got done per second: answers, bytes, frames or connections."""
    if "groups" in result:
        return sum(answers(group["counts"]) for group in result["groups"]) / result["seconds"]
    if "bytes" in result:
        return result["bytes"] / result["seconds"]
    return result.get("frames", result["counts"].get("opened", 0))


def rate_of_answers(results):
    return sum(
        answers(group["counts"]) / result["seconds"] for result in results if "groups" in result for group in result["groups"]
    )


def counts(results):
    total = {}
    for result in results:
        for part in result.get("groups", [result]):
            for what, count in part["counts"].items():
                total[what] = total.get(what, 0) + count
    return total


def clean(found, best_rate, experiment):
    """Whether a batch counts."""
    alone, both = found["alone"], (found["alone"], found["loud"])
    ours = all(part["left_out"] <= MOST_LEFT_OUT and part["core_taken"] <= MOST_TAKEN for part in both)
    quiet = ours and alone["p99"] < QUIET_P99_US and not alone["errors"]
    return quiet and (not experiment.steady or found["rate"] >= FULL_LOAD * best_rate)


def valid(found, experiment):
    """Whether the neighbours came at all. On a busy machine they may have got no core, and nothing was tried."""
    return found["arrived"] >= experiment.least


def choose(batches, experiment):
    """(the batches that count, whether they are clean). Without a clean one all count, and the report says so."""
    best = max(found["rate"] for found in batches)
    good = [found for found in batches if clean(found, best, experiment)]
    return (good, True) if good else (batches, False)


def together(batches, experiment):
    """What the batches of one proxy say: medians, and the best p99."""
    chosen, is_clean = choose(batches, experiment)

    def median(get):
        return statistics.median(get(found) for found in chosen)

    errors = {}
    for found in batches:  # An error is an error, also in a noisy batch.
        for what, count in found["loud"]["errors"].items():
            errors[what] = errors.get(what, 0) + count
    numbers = [key for key, value in chosen[0].items() if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return {
        "batches": len(batches),
        "chosen": len(chosen),
        "clean": is_clean,
        "requests": sum(found["loud"]["count"] for found in batches),
        "errors": errors,
        "alone_p50": median(lambda found: found["alone"]["p50"]),
        "alone_p99": median(lambda found: found["alone"]["p99"]),
        "p50": median(lambda found: found["loud"]["p50"]),
        "p99": median(lambda found: found["loud"]["p99"]),
        "p99_min": min(found["loud"]["p99"] for found in chosen),
        "max": median(lambda found: found["loud"]["max"]),
        "added_p99": median(lambda found: found["loud"]["p99"] - found["alone"]["p99"]),
        "left_out": max(max(found["alone"]["left_out"], found["loud"]["left_out"]) for found in chosen),
        "alive": all(found["alive"] for found in batches),
        **{key: median(lambda found, key=key: found.get(key, 0)) for key in numbers},
    }


def beside(samples, others):
    """What one proxy gets done, and what an answer costs it, of what another does in the batches that took turns with these."""
    pairs = [(one, other) for one, other in zip(samples, others) if one["rate"] and other["rate"]]
    if not pairs:
        return {"kept": 0.0, "cpu_kept": 0.0}
    return {
        "kept": statistics.median(one["rate"] / other["rate"] for one, other in pairs),
        "cpu_kept": statistics.median(one["cpu_us"] / max(1e-3, other["cpu_us"]) for one, other in pairs),
    }


def jain(shares):
    """1 when all have the same, 1/n when one has all (Jain, Chiu and Hawe 1984)."""
    total = sum(shares)
    return total * total / (len(shares) * sum(share * share for share in shares)) if total else 0.0
