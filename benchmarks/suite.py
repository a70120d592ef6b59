"""Puts the summary of a test run into RESULTS.md.

    python benchmarks/suite.py REPORT.xml...

The reports are pytest's (``--junitxml``); `make test-all` calls this.
"""

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import machine
import report

SLOWEST = 5
"""Tests named in the summary."""


def summary(reports: Sequence[Path]) -> dict[str, Any]:
    """Counts, seconds and the slowest tests over all reports."""
    suites = [suite for path in reports for suite in ElementTree.parse(path).iter("testsuite")]
    counts = {
        kind: sum(int(suite.get(kind, 0)) for suite in suites)
        for kind in ("tests", "failures", "errors", "skipped")
    }
    cases = sorted(
        (case for suite in suites for case in suite.iter("testcase")),
        key=lambda case: float(case.get("time", 0)),
        reverse=True,
    )
    return {
        **counts,
        "seconds": round(sum(float(suite.get("time", 0)) for suite in suites)),
        "slowest": [
            [str(case.get("name")), round(float(case.get("time", 0)))] for case in cases[:SLOWEST]
        ],
        "not_checked": sorted(
            {
                str(skip.get("message"))
                for case in cases
                for skip in case.iter("skipped")
                if skip.get("message")
            }
        ),
        "machine": machine.describe_machine(),
    }


def section(numbers: Mapping[str, Any]) -> str:
    """The summary as text."""
    failed = numbers["failures"] + numbers["errors"]
    lines = [
        "## The whole suite",
        "",
        f"`make test-all`: {numbers['tests']} tests, {failed} failed, {numbers['skipped']} skipped, in "
        f"{numbers['seconds']} s. The slowest:",
        "",
        "| test | seconds |",
        "| --- | --- |",
        *(f"| `{name}` | {seconds} |" for name, seconds in numbers["slowest"]),
        "",
        *(f"- skipped: {message}" for message in numbers["not_checked"]),
        "",
        f"Run on {numbers['machine']['date']}: {numbers['machine']['processor']}, "
        f"python {numbers['machine']['python']}, torch {numbers['machine']['torch']}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    (report.HERE / "suite.json").write_text(
        json.dumps(summary([Path(word) for word in sys.argv[1:]]), indent=1) + "\n"
    )
    report.write()
