# SPDX-License-Identifier: Apache-2.0
"""What every file must hold, and what none may: licence line, size, names of machines, code that loads code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SPDX = "SPDX-License-Identifier: Apache-2.0"
# Functions should have 40 lines or fewer; this is where it stops being a matter of taste.
FILE_LINES, FUNCTION_LINES = 300, 60
# path -> why one idea takes more than a screen there.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MEBIBYTE = 2**20
SHIPPED_MIB = 24
# Paths of one machine and hosts of package registries: what is committed must work anywhere. Each pattern has a
# character class, so that this file does not match itself.
FORBIDDEN = re.compile(r"/[w]ork/|/[f]arm/|/[o]pt/|/[r]oot/|/[h]ome/|[f]ile:///|[p]ypi\.org|[p]ythonhosted")
BINARY = {".safetensors", ".png", ".jpg", ".gif", ".ico", ".woff2"}


def carries_licence(path: Path) -> bool:
    return path.suffix in {".py", ".sh", ".cu", ".cpp", ".h"} or path.name == "Makefile" or path.parts[0] == ".ci"


def test_licence_line_comes_first(root: Path, tracked: list[Path]) -> None:
    missing = []
    for path in filter(carries_licence, tracked):
        lines = (root / path).read_text().splitlines()
        first = lines[1] if lines and lines[0].startswith("#!") else (lines or [""])[0]
        if not first.endswith(SPDX):
            missing.append(str(path))
    assert missing == []


def test_one_screen_per_idea(root: Path, modules: list[Path]) -> None:
    long = {str(path): n for path in modules if (n := len((root / path).read_text().splitlines())) > FILE_LINES}
    assert {name: n for name, n in long.items() if name not in LONG_FILES} == {}
    assert set(LONG_FILES) - set(long) == set(), "no longer long: take it off the list"


def functions(root: Path, modules: list[Path]) -> Iterator[tuple[str, int]]:
    for path in modules:
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                yield f"{path}:{node.name}", node.end_lineno - node.lineno + 1


def test_functions_fit_a_screen(root: Path, modules: list[Path]) -> None:
    long = {name: n for name, n in functions(root, modules) if n > FUNCTION_LINES}
    assert {name: n for name, n in long.items() if name not in LONG_FUNCTIONS} == {}
    assert set(LONG_FUNCTIONS) - set(long) == set(), "no longer long: take it off the list"


def test_no_file_names_a_machine_or_a_registry(root: Path, tracked: list[Path]) -> None:
    found = []
    for path in tracked:
        if path.suffix in BINARY:
            continue
        for number, line in enumerate((root / path).read_text(errors="replace").splitlines(), 1):
            if match := FORBIDDEN.search(line):
                found.append(f"{path}:{number} {match[0]}")
    assert found == []


def unsafe_loads(tree: ast.AST) -> Iterator[int]:
    """Lines that read a pickle, openly or through torch or numpy; ruff's S rules do not know these two."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True":
            yield node.lineno
        if keywords.get("allow_pickle", "False") != "False" or keywords.get("trust_remote_code", "False") != "False":
            yield node.lineno


def test_nothing_runs_code_from_a_checkpoint(root: Path, modules: list[Path]) -> None:
    found = [f"{path}:{line}" for path in modules for line in unsafe_loads(ast.parse((root / path).read_text()))]
    assert found == []


def test_no_weights_in_a_format_that_holds_code(tracked: list[Path]) -> None:
    assert [str(path) for path in tracked if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt", ".npy"}] == []


def test_the_shipped_checkpoint_stays_small(root: Path, tracked: list[Path]) -> None:
    sizes = [(root / path).stat().st_size for path in tracked if path.parts[0] == "checkpoints"]
    assert sum(sizes) <= SHIPPED_MIB * MEBIBYTE
