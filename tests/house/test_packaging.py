# SPDX-License-Identifier: Apache-2.0
"""The rooms reach the wheel through their links: every module and every data file of theirs is in it."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOMS = ("benchmarks", "draft_models", "kernels", "quant", "server", "trainer")
DATA = {".yaml", ".jinja"}
BUILD = "from setuptools import build_meta; print(build_meta.{hook}({folder!r}))"


def build(source: Path, hook: str, out: Path) -> Path:
    """Run one hook of the build backend in a process of its own, in `source`."""
    command = [sys.executable, "-c", BUILD.format(hook=hook, folder=str(out))]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(root: Path, tracked: list[Path], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in the wheel that is built from the sdist that is built from a copy of the tree."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("out")
    for path in tracked:
        if path.parts[0] not in {"checkpoints", "tests"}:
            (copy / path.parent).mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / path, copy / path)
    for room in ROOMS:
        (copy / "src/aerie" / room).symlink_to(f"../../{room}")
    with tarfile.open(build(copy, "build_sdist", out)) as archive:
        archive.extractall(out, filter="data")
    unpacked = next(path for path in out.iterdir() if path.is_dir())
    with zipfile.ZipFile(build(unpacked, "build_wheel", out)) as archive:
        return set(archive.namelist())


def test_every_module_and_data_file_is_in_the_wheel(wheel: set[str], tracked: list[Path]) -> None:
    wanted = {
        f"aerie/{path.as_posix()}" for path in tracked if path.parts[0] in ROOMS and path.suffix in DATA | {".py"}
    }
    assert wanted - wheel == set()
    assert {"aerie/py.typed", "aerie/plugin.py", "aerie/cli.py", "aerie/artefacts.py"} <= wheel


def test_nothing_else_is_in_the_wheel(wheel: set[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"aerie"}


def test_the_wheel_has_its_licence(wheel: set[str]) -> None:
    assert [name for name in wheel if name.endswith("licenses/LICENSE")]
