"""Turns the figures of one run into the page that is committed."""


def markdown(result):
    machine, lines = result["machine"], []
    lines.append("# Side by side\n\n")
    lines.append(
        "Written by `benches/side-by-side/run`, whose head says what is measured and how. One machine, one run: the "
        "ratios are what counts.\n\n"
    )
    lines.append(f"{machine['date']}, commit {machine['commit']}, {machine['cpu']}, Linux {machine['kernel']}; ")
    lines.append(f"{result['rounds']} rounds of {result['seconds']} s, medians. ~n: in n rounds somebody else took more ")
    lines.append("than 5 % of the proxy's core, several times in a row.")
    for protocol, title in (
        ("http1", "HTTP/1.1, 64 keep-alive connections"),
        ("http2", "HTTP/2, 8 connections x 8 streams"),
    ):
        rows = [row for row in result["rows"] if row["protocol"] == protocol]
        if rows:
            lines.append(f"\n\n## {title}\n")
            lines.append(requests(rows))
    lines.append("\n\n## Nobody talks to it\n\n| proxy | resident MiB | context switches |\n|---|---|---|\n")
    lines += [f"| {name} | {mib:.1f} | {switches} |\n" for name, (mib, switches) in result["idle"].items()]
    if result["bulk"]:
        lines.append(f"\n## A body of {result['body_gib']:g} GiB, HTTP/1.1\n\n")
        lines.append("| proxy | resident MiB before | peak of upload | peak of download |\n|---|---|---|---|\n")
        for name, figures in result["bulk"].items():
            lines.append(f"| {name} | " + " | ".join(f"{mib:.1f}" for mib in figures) + " |\n")
    return "".join(lines)


def requests(rows):
    table = "\n| proxy | rules | answer | CPU us/request | min-max | of bare hyper | requests/s | resident MiB |\n"
    table += "|---|---|---|---|---|---|---|---|\n"
    for row in rows:
        low, high = row["spread_us"]
        noisy = f" ~{row['noisy_rounds']}" if row["noisy_rounds"] else ""
        answer = {"served": "200", "hit": "200, last rule", "miss": "403"}[row["kind"]]
        table += (
            f"| {row['name']} | {row['rules'] or ''} | {answer} | {row['cpu_us']:.2f}{noisy} | {low:.2f}-{high:.2f} "
            f"| {row['ratio']:.2f} | {row['requests_per_second'] / 1000:.1f}k | {row['resident_mib']:.1f} |\n"
        )
    return table.rstrip("\n")
