# SPDX-License-Identifier: Apache-2.0
"""Where a result comes from: commit, versions, machine, arguments, seeds, inputs; whole."""

import json
from collections.abc import Mapping

from pydantic import JsonValue

from aerie.benchmarks.report.document import Block, Folded, Table
from aerie.benchmarks.results_file import Provenance, ResultFile


def described(provenance: Provenance) -> str:
    """The machine and the commit in a sentence's middle."""
    return f"{machine(provenance.machine)}, commit {commits(provenance.commit)}"


def machine(found: Mapping[str, JsonValue]) -> str:
    """Such as `AMD EPYC, 2 cores, AVX512`; with a GPU its name."""
    words = [str(found.get("cpu") or "an unknown processor")]
    if found.get("cores"):
        words.append(f"{found['cores']} cores")
    words += [str(found[name]) for name in ("isa", "accelerator") if found.get(name)]
    return ", ".join(words)


def commits(commit: str) -> str:
    """Each in code."""
    return " and ".join(f"`{one}`" for one in commit.split("+"))


def blocks(result: ResultFile) -> list[Block]:
    """The table of a file, and of each part of a merged one."""
    provenance = result.provenance
    counted: dict[str, int] = {}
    for run in result.runs:
        counted[run.benchmark] = counted.get(run.benchmark, 0) + 1
    runs = ", ".join(f"{count} of `{name}`" for name, count in counted.items())
    found: list[Block] = [_table(provenance, runs)]
    if provenance.inputs:
        hashes = Table(
            ["input", "SHA-256"], [[f"`{name}`", f"`{digest}`"] for name, digest in provenance.inputs.items()], 2
        )
        found.append(Folded(f"{len(provenance.inputs)} inputs", [hashes]))
    for name, part in (provenance.parts or {}).items():
        found.append(Folded(f"Part {name}", [_table(part)]))
    return found


def _table(provenance: Provenance, runs: str = "") -> Table:
    rows = [["commit", commits(provenance.commit)]]
    rows += [["runs", runs]] if runs else []
    rows += [
        ["machine", _pairs(provenance.machine)],
        ["versions", _pairs(provenance.versions)],
        ["arguments", _pairs(provenance.arguments)],
        ["seeds", ", ".join(map(str, provenance.seeds)) or "none"],
    ]
    return Table(["provenance", ""], rows, words=2)


def _pairs(values: Mapping[str, JsonValue] | Mapping[str, str]) -> str:
    said = [f"{name} `{value if isinstance(value, str) else json.dumps(value)}`" for name, value in values.items()]
    return ", ".join(said) or "none"


def remarks(provenance: Provenance) -> list[str]:
    """What of it makes a result less certain."""
    found = []
    if "dirty" in provenance.commit:
        found.append(f"The tree differed from commit {commits(provenance.commit)}: nobody can run this code again.")
    if provenance.commit == "unknown":
        found.append("The commit is unknown: it ran outside a checkout.")
    return found
