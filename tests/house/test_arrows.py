# SPDX-License-Identifier: Apache-2.0
"""Who may import whom. The doors of the house, and how light the two entrances are."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# room -> what of ours it may import. The command line and the plugin open every door.
DOORS: dict[str, set[str]] = {
    "kernels": set(),
    "quant": {"kernels", "artefacts", "chart", "json_items", "progress"},
    "draft_models": {"kernels", "artefacts"},
    "server": {"kernels", "quant", "draft_models", "artefacts"},
    "trainer": {"kernels", "quant", "draft_models", "artefacts", "chart", "json_items", "progress"},
    "benchmarks": {"kernels", "quant", "draft_models", "server", "trainer", "artefacts", "chart", "json_items"},
}
ENTRANCES = ("cli", "plugin")
HEAVY = ("torch", "vllm", "transformers", "triton", "accelerate")
OURS = re.compile(rf"aerie\.({'|'.join(sorted({*DOORS, *ENTRANCES}.union(*DOORS.values())))})\b")


def imports(path: Path, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, by statement or by name in a string."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"aerie[\w.:]+", node.value)
        ):
            yield node.lineno, node.value


def test_every_room_has_its_doors(root: Path) -> None:
    rooms = {link.name for link in (root / "src/aerie").iterdir() if link.is_symlink()}
    assert rooms == set(DOORS)


@pytest.mark.parametrize("room", DOORS)
def test_a_room_imports_only_through_its_doors(root: Path, modules: list[Path], room: str) -> None:
    wrong = []
    for path in (path for path in modules if path.parts[0] == room):
        for line, name in imports(root / path, ["aerie", *path.parent.parts]):
            match = OURS.match(name)
            if match and match[1] not in DOORS[room] | {room}:
                wrong.append(f"{path}:{line} imports {name}")
    assert wrong == []


def test_rooms_are_imported_by_their_full_name(root: Path, modules: list[Path]) -> None:
    """`import kernels` would find the package of that name on the Python Package Index, or nothing."""
    wrong = [
        f"{path}:{line} imports {name}"
        for path in modules
        for line, name in imports(root / path, ["aerie", *path.parent.parts])
        if name.split(".")[0] in DOORS
    ]
    assert wrong == []


@pytest.mark.parametrize("entrance", ["aerie", "aerie.plugin", "aerie.cli"])
def test_entrances_are_light(entrance: str) -> None:
    """vLLM loads the plugin in every process; `aerie --help` must not wait for torch."""
    script = f"import json, sys, {entrance}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout) == []
