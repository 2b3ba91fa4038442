"""Prints what junitparser reads from a JUnit file, as JSON: for each suite its counts and what became of its cases.

usage: read_junit.py FILE
"""

import json
import sys

import junitparser


def outcome(case):
    """The kind of the case's only result and its message; a case without one has passed."""
    results = case.result
    if not results:
        return ["passed", None]
    (result,) = results
    return [type(result).__name__, result.message]


def main():
    report = junitparser.JUnitXml.fromfile(sys.argv[1])
    suites = []
    for suite in report:
        results = [outcome(case) for case in suite]
        suites.append({
            "name": suite.name,
            "tests": suite.tests,
            "failures": suite.failures,
            "errors": suite.errors,
            "results": results,
        })
    total = sum(len(suite["results"]) for suite in suites)
    assert report.tests == total, f"{report.tests} cases announced, {total} there"
    print(json.dumps(suites))


if __name__ == "__main__":
    main()
