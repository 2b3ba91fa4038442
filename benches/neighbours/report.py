"""Turns the figures of one run into the page that is committed."""

# Experiments of the study that have no row of their own.
NOT_TRIED = """
## Not tried here

- T20, the end of a child process: there are no children.
- T25, a tenant that is alone: T23 compares what it gets done with and without fair shares, and T4 says how busy the core is. One worker,
  since the load has the other core.
- T26, the scheduler's bound: a test of its crate.
- Envoy in T15, T16 and T17: Cilium's filter, which reads policies, is not in the Envoy that can be installed here; it gets its rules with
  its configuration, once. In T18, since Cilium's access log is that filter's, too. In T19 and T22: it has no defect on demand, and no
  accounts.
"""
HEADER = (
    "| proxy | alone p50 / p99 | with neighbours p50 / p99 (best p99) | errors | neighbours get | CPU of core | waited for core |"
)


def markdown(result):
    machine, rows, lines = result["machine"], result["rows"], []
    lines.append("# Neighbours\n\n")
    lines.append(
        "What bad neighbours behind the same proxy do to a victim that asks 500 times a second. Written by "
        f"`benches/neighbours/run`, whose head says how it is measured. One machine, {runs(result)}.\n\n"
    )
    lines.append(f"{machine['date']}, commit {machine['commit']}, {machine['cpu']}, Linux {machine['kernel']}; ")
    lines.append(f"{result['repetitions']} or more batches of {result['seconds']:g} s for each proxy, in turns; medians. ")
    lines.append(
        "Latencies in ms, of served requests, counted from when each was due. Left out are those during which the "
        "victim, which has a real-time priority, was not let on its own core for 0.3 ms or more: at most "
        f"{most_left_out(rows):.1%} of a batch that counts. ~: no batch was quiet (the victim alone within 1 ms, at most 5 % left out, the "
        "proxy's core free for a real-time thread 99.7 % of the time, "
        "neighbours at 95 % of their best), so the latencies are worth little, and no latency target counts as met; errors and shares count anyway. *Waited for core*: "
        "how long the proxy's threads were ready while somebody else had the core: noise from outside, and its own threads that "
        "write logs.\n"
    )
    lines.append(
        "\n*fairness-off* is Tollgate with `fairness: off`. *(2 of 4)*: so many batches count, of so many. *Neighbours get*: what they get done "
        "meanwhile, all together. *Jain*: the index of Jain, 1 when all shares are alike, and 1/n when one of n has everything. "
        "*CPU of core*: of all threads of the proxy.\n"
    )
    if machine["load"] > 0.5:
        lines.append(
            f"\nIn the five minutes before it began, {machine['load']:.1f} processes wanted to run on average: the machine may do other "
            "things, too. Batches are judged one by one, as above.\n"
        )
    if not result["first"]:
        lines.append("\nThe victim had no real-time priority here: its latencies contain the load generator's.\n")
    lines.append(overview(rows))
    lines.append(price(rows))
    for name in dict.fromkeys(row["name"] for row in rows):
        lines.append(section([row for row in rows if row["name"] == name]))
    lines.append(NOT_TRIED)
    return "".join(lines)


def most_left_out(rows):
    return max((row["left_out"] for row in rows if row["clean"]), default=0)


def runs(result):
    parts = result.get("parts", 1)
    return "one run" if parts == 1 else f"one build, {parts} runs one after the other"


def overview(rows):
    """One line for each experiment: what each proxy adds to the victim's p99, and how many of its requests fail."""
    names = list(dict.fromkeys(row["proxy"] for row in rows))
    lines = ["\n## All at a glance\n\n| | neighbours | " + " | ".join(f"{name}: p99 added, failed" for name in names)]
    lines.append(" | target |\n|---|---|" + "---|" * len(names) + "---|\n")
    for name in dict.fromkeys(row["name"] for row in rows):
        same = {row["proxy"]: row for row in rows if row["name"] == name}
        some = next(iter(same.values()))
        cells = [glance(same[proxy]) if proxy in same else "" for proxy in names]
        lines.append(f"| {name} | {some['title']} | " + " | ".join(cells) + f" | {some['target']} |\n")
    return "".join(lines)


def glance(row):
    noisy = "" if row["clean"] else "~"
    mark = " **met**" if row["met"] else ""
    failed = sum(row["errors"].values())
    died = "" if row["alive"] else ", died"
    if failed == row["requests"]:
        return f"all failed{died}"
    return f"{noisy}{row['added_p99'] / 1000:+.2f} ms, {failed / max(1, row['requests']):.1%}{died}{mark}"


def price(rows):
    """What fair shares cost: the same load with and without them, from batches that took turns."""
    both = {row["name"] for row in rows if row["proxy"] == "fairness-off"}
    lines = [
        f"| {row['name']} | {row['kept']:.3f} | {row['cpu_kept']:.3f} |\n"
        for row in rows if row["proxy"] == "tollgate" and row["name"] in both and row["steady"]
    ]
    head = "\n## What fair shares cost\n\nWith them, of what it is without them; medians of the pairs.\n\n"
    table = "| | neighbours get | CPU per answer |\n|---|---|---|\n"
    return head + table + "".join(lines) if lines else ""


def section(rows):
    some = rows[0]
    extra = "".join(f" {heading} |" for _, heading in some["columns"])
    lines = [f"\n## {some['name']}: {some['title']}\n\nTarget: {some['target']}.\n\n{HEADER}{extra}\n"]
    lines.append("|" + "---|" * (7 + len(some["columns"])) + "\n")
    for row in rows:
        noisy = "" if row["clean"] else "~"
        errors = ", ".join(f"{what}: {count}" for what, count in sorted(row["errors"].items())) or "0"
        failed = sum(row["errors"].values()) == row["requests"]
        loud = "none served" if failed else f"{noisy}{ms(row['p50'])} / {ms(row['p99'])} ({ms(row['p99_min'])})"
        further = "".join(f" {figure(row[key])} |" for key, _ in some["columns"])
        lines.append(
            f"| {row['proxy']} ({row['chosen']} of {row['batches']}) | {noisy}{ms(row['alone_p50'])} / {ms(row['alone_p99'])} "
            f"| {loud} | {errors} of {row['requests']} "
            f"| {count(row['rate'])} {row['unit']} | {row['cpu_share']:.0%} | {row['run_delay_ms']:.0f} ms |{further}\n"
        )
    return "".join(lines)


def ms(microseconds):
    return f"{microseconds / 1000:.2f}"


def count(number):
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def figure(number):
    return f"{number:.3f}" if 0 < abs(number) < 10 else f"{number:.0f}"
