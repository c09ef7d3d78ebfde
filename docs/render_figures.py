# SPDX-License-Identifier: Apache-2.0
"""Put the measured figures of benchmarks/results/first-light.json into README.md; `--check` only compares."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/first-light.json"
README = ROOT / "README.md"
SECTION = re.compile(r"(<!-- figures: begin[^\n]*-->\n).*?(<!-- figures: end -->)", re.DOTALL)
# figure -> what it says, how it is written, and which figure is its spread over seeds or repeats.
ROWS = {
    "speedup_c1": ("Output tokens per second with the draft, against none (concurrency 1)", "{:.2f}×"),
    "acceptance_length": ("Mean acceptance length of the shipped draft", "{:.2f}"),
    "acceptance_length_gated": ("Gates compared, three seeds, short training: element-wise", "{:.2f}"),
    "acceptance_length_headwise": ("Gates compared: head-wise", "{:.2f}"),
    "acceptance_length_plain": ("Gates compared: none (plain EAGLE-3)", "{:.2f}"),
    "parse_rate": ("Greedy answers on held-out patients that parse as the expected turn", "{:.1%}"),
}


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table, with the machine and the commit they were measured on."""
    figures, provenance = result["figures"], result["provenance"]
    lines = ["| figure | value |", "| --- | --- |"]
    for name, (title, form) in ROWS.items():
        value = form.format(figures[name])
        spread = figures.get(f"{name}_std")
        lines.append(f"| {title} | {value}{'' if spread is None else ' ± ' + form.format(spread)} |")
    machine = provenance["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['isa']}"
    return "\n".join(
        [*lines, "", f"Measured on {where}; commit `{provenance['commit']}`; ± is the standard deviation.", ""]
    )


def rendered(readme: str, result: dict[str, Any]) -> str:
    """The README with its figures section replaced."""
    return SECTION.sub(lambda match: match[1] + table(result) + match[2], readme)


def main() -> int:
    """Write, or with `--check` compare; 1 when the README is not what the result file says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the README differs")
    arguments = parser.parse_args()
    if not RESULT.exists():
        print("benchmarks/results/first-light.json is missing; benchmarks/serving/first_light.py writes it")
        return 1
    before = README.read_text()
    after = rendered(before, json.loads(RESULT.read_text()))
    if before == after:
        return 0
    if arguments.check:
        print("README.md: figures differ from benchmarks/results/first-light.json; run docs/render_figures.py")
        return 1
    README.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
