"""octavo doctor: what this machine has, which backends work here, and why the others do not.

The first run may build the C++ kernels, because whether they build is what it wants to know.
Exit code 1 if no backend works.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from octavo.cli.findings import SECTIONS, Finding
from octavo.cli.parser import CommandParser


def add_arguments(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    found: dict[str, list[Finding]] = {}
    for section, look in SECTIONS.items():
        found[section] = list(look())
        if not args.json:
            _print_section(section, found[section])
    works = any(backend.problem is None for backend in found["backends"])
    if args.json:
        sections = {section: [asdict(finding) for finding in findings] for section, findings in found.items()}
        print(json.dumps({"works": works, **sections}, indent=2))
    elif not works:
        print("\nNo backend works here; the reasons above say what to do.")
    return 0 if works else 1


def _print_section(section: str, findings: list[Finding]) -> None:
    """Facts aligned, a problem on the line below its fact."""
    width = max(len(finding.name) for finding in findings)
    print(f"\n{section}")
    for finding in findings:
        mark = " " if finding.problem is None else "!"
        print(f"{mark} {finding.name:<{width}}  {finding.value}")
        for line in (finding.problem or "").splitlines():
            print(f"  {'':<{width}}  {line}")
