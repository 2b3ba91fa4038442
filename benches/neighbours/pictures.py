"""The pictures of the report, as SVG by hand: bars on a logarithmic axis need no library."""

import math
from html import escape

COLOURS = {"tollgate": "#1f77b4", "fairness-off": "#9ecae1", "envoy": "#d62728"}
ROW, GAP, LEFT, RIGHT, TOP = 14, 10, 330, 120, 60
WIDTH = 940


def write(result, folder):
    """`latency.svg`: the victim's p99 with each kind of neighbour; `failed.svg`: the share of its requests that failed."""
    folder.mkdir(exist_ok=True)
    rows = result["rows"]
    latency = bars(
        [row for row in rows if row["p99"] > 0], "The victim's p99 with bad neighbours (ms, logarithmic)", lambda row: row["p99"] / 1000,
        lambda value: f"{value:.2f} ms", logarithmic=True,
    )
    (folder / "latency.svg").write_text(latency, encoding="utf-8")
    failing = {row["name"] for row in rows if row["errors"]}
    failed = bars(
        [row for row in rows if row["name"] in failing], "The victim's requests that failed (%)",
        lambda row: 100 * sum(row["errors"].values()) / max(1, row["requests"]), lambda value: f"{value:.1f} %",
    )
    (folder / "failed.svg").write_text(failed, encoding="utf-8")


def bars(rows, title, value_of, text_of, logarithmic=False):
    """Groups of horizontal bars, one for each experiment, one bar for each proxy."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    groups = [[row for row in rows if row["name"] == name] for name in names]
    height = TOP + sum(len(group) * ROW + GAP for group in groups) + 10
    most = max((value_of(row) for row in rows), default=1) or 1
    low = 0.1

    def length(value):
        room = WIDTH - LEFT - RIGHT
        if not logarithmic:
            return room * value / most
        span = math.log10(max(most, 1) / low)
        return room * max(0.0, math.log10(max(value, low) / low)) / span

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="10" y="20" font-size="15">{escape(title)}</text>',
    ]
    for index, proxy in enumerate(dict.fromkeys(row["proxy"] for row in rows)):
        left = 10 + index * 130
        parts.append(f'<rect x="{left}" y="32" width="12" height="12" fill="{COLOURS[proxy]}"/>')
        parts.append(f'<text x="{left + 18}" y="42">{escape(proxy)}</text>')
    top = TOP
    for group in groups:
        title = f"{group[0]['name']}: {group[0]['title']}"
        shown = title if len(title) <= 54 else title[:53] + "…"
        parts.append(f'<text x="10" y="{top + 11}"><title>{escape(title)}</title>{escape(shown)}</text>')
        for row in group:
            value = value_of(row)
            wide = length(value)
            noisy = "" if row["clean"] else "~"
            parts.append(
                f'<rect x="{LEFT}" y="{top}" width="{wide:.1f}" height="{ROW - 3}" fill="{COLOURS[row["proxy"]]}"/>'
            )
            parts.append(f'<text x="{LEFT + wide + 5:.1f}" y="{top + 10}">{noisy}{escape(text_of(value))}</text>')
            top += ROW
        top += GAP
    return "\n".join([*parts, "</svg>\n"])
