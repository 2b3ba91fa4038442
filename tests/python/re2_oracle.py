#!/usr/bin/env python3
"""Asks RE2 what expressions match in full, and prints its answers.

    re2_oracle.py SEED COUNT [SYNTAX]

Answers for the expressions of the file SYNTAX, if one is given, and then for COUNT expressions that SEED generates. The
answers that are checked in are made so:

    $(tests/python/venv) tests/python/re2_oracle.py 1 2500 proxy/policy/tests/policy/re2/syntax.txt \
        >proxy/policy/tests/policy/re2/answers.txt

Output, one line each; `%XX` is a byte, and a lone `%` the empty string:
    inputs VALUE...          what the expressions below are matched with
    match BITS EXPRESSION    RE2 accepts it; bit i of the hexadecimal number says whether it matches value i
    refuse EXPRESSION        RE2 does not accept it
"""

import random
import sys

import re2

INPUTS = [
    b"", b"a", b"b", b"c", b"ab", b"ba", b"aa", b"aaa", b"aaaa", b"aaaaaa", b"abab", b"abc", b"A", b"B", b"AB", b"aB",
    b"K", b"k", b"\xe2\x84\xaa", b"s", b"S", b"\xc5\xbf", b"\xc3\xa9", b"\xc3\x89", b"a\xc3\xa9", b"\xc3\xa9a", b"\xff",
    b"\x80", b"\xc3", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xed\x9f\xbf", b"\xef\xbf\xbd", b"\xf0\x90\x80\x80",
    b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xc1\x81", b"\n", b"a\n", b"\na", b"a\nb", b"\n\n", b"\x0b", b"\t", b"\r",
    b"\x0c", b"\x07", b"\x00", b"a\x00", b"1", b"11", b"9", b"\xd9\xa3", b"\xce\xb1", b"_", b"-", b"--", b".", b"..", b"a.b",
    b".*", b"ab*", b"]", b"[", b"a]", b"b]", b"&", b"a&", b"^", b"$", b"\\", b"{", b"}", b"{,2}", b"a{,2}", b"a{1", b"{1}",
    b"/", b"/hello", b"/hello3", b"/hello?x=1", b"/hello/x", b"/api/v1/users/7", b"GET", b"get", b" ", b"a b", b"z", b"Z", b"n",
    b"l", b"x", b"y", b"xy", b"b{start}", b"a" * 60, b"a" * 1000, b"ab" * 500, b"public", b"/maybe/public", b"|", b"(", b")",
    b"u0061", b"%", b"\"'", b"Q", b"E", b":", b"p", b"\\n", b"a\\",
]

# What generated expressions are made of: operands, and what may be put around or behind them.
ATOMS = [
    "a", "b", "c", "A", "k", "1", "_", "/", "-", ".", "é", "٣", "[ab]", "[^a]", "[a-c]", "[^/]", "[]a]", "[^\\n]", "[a-é]", "\\d",
    "\\D", "\\w", "\\W", "\\s", "\\S", "\\C", "[[:alpha:]]", "[[:^word:]]", "[\\W_]", "\\x61", "\\x{e9}", "\\n", "\\.", "\\Qa.\\E",
    "\\141", "()", "(?:)", "^", "$", "\\b", "\\B", "\\A", "\\z", "\\v", "\\t", "\\_", "[^é]", "[k-s]", "\\Q\\E",
]
SUFFIXES = ["*", "+", "?", "*?", "+?", "??", "{2}", "{0}", "{1,2}", "{2,}", "{0,3}?", "{,2}", "{30}"]
PREFIXES = ["(?i)", "(?s)", "(?m)", "(?is)", "(?i-s)", "(?U)", "(?-i)", "(?-s)"]
GROUPS = ["(", "(?:", "(?i:", "(?s:", "(?m:", "(?-i:", "(?P<n>", "(?<m>", "(?i-m:"]
SCRAPS = [
    "(", ")", "[", "]", "{", "}", "*", "+", "?", "|", "^", "$", "\\", "(?", "(?i", "-", ",", "{2", "[^", "[:", ":]", "\\Q", "\\E", "\\x",
    "\\p", "&&", "a-", "(?P<", "(?=", "\\8", "{1,", "[[:alpha:]", "\\pN", "(?<",
]
LETTERS = [b"a", b"a", b"a", b"b", b"b", b"c", b"A", b"k", b"1", b"_", b"/", b"-", b".", b"\n", b" ", b"\xc3\xa9", b"\xff", b"\t"]


def main():
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    syntax = read(sys.argv[3]) if len(sys.argv) > 3 else []
    if syntax:
        answer(INPUTS, syntax)
    rng = random.Random(seed)
    while count > 0:
        inputs = sorted({text(rng) for _ in range(40)})
        answer(inputs, sorted({pattern(rng, syntax) for _ in range(min(count, 250))}))
        count -= 250


def read(path):
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    return [unescape(line).decode() for line in lines if line and not line.startswith(b"#")]


def unescape(line):
    if line == b"%":
        return b""
    first, *rest = line.split(b"%")
    return first + b"".join(bytes([int(part[:2], 16)]) + part[2:] for part in rest)


def escape(text):
    plain = range(0x21, 0x7F)
    return "".join(chr(byte) if byte in plain and byte != ord("%") else f"%{byte:02X}" for byte in text) or "%"


def answer(inputs, patterns):
    print("inputs", *map(escape, inputs))
    options = re2.Options()
    options.log_errors = False
    for pattern in patterns:
        written = pattern.encode()
        try:
            compiled = re2.compile(written, options=options)
        except re2.error:
            print("refuse", escape(written))
            continue
        bits = sum(1 << i for i, text in enumerate(inputs) if compiled.fullmatch(text))
        print("match", f"{bits:x}", escape(written))
    # Compiled expressions are kept by the library.
    re2.purge()


def text(rng):
    return b"".join(rng.choice(LETTERS) for _ in range(rng.randrange(8)))


def pattern(rng, syntax):
    kind = rng.randrange(10)
    if kind < 6:
        return (rng.choice(PREFIXES) if rng.randrange(4) == 0 else "") + expression(rng, 3)
    pieces = [rng.choice(rng.choice([ATOMS, SUFFIXES, SCRAPS])) for _ in range(rng.randrange(1, 7))]
    if kind < 8 or not syntax:
        return "".join(pieces)
    some = list(rng.choice(syntax) + (rng.choice(syntax) if kind == 9 else ""))[:40]
    at = rng.randrange(len(some) + 1)
    some[at:at + rng.randrange(2)] = [rng.choice(pieces)]
    return "".join(some)


def expression(rng, depth):
    branches = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        parts = []
        for _ in range(rng.choice([0, 1, 1, 2, 2, 3])):
            grouped = depth and rng.randrange(4) == 0
            part = rng.choice(GROUPS) + expression(rng, depth - 1) + ")" if grouped else rng.choice(ATOMS)
            parts.append(part + (rng.choice(SUFFIXES) if rng.randrange(3) == 0 else ""))
            if rng.randrange(16) == 0:
                parts.append(rng.choice(PREFIXES))
        branches.append("".join(parts))
    return "|".join(branches)


if __name__ == "__main__":
    main()
