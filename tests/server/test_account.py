# SPDX-License-Identifier: Apache-2.0
"""Accounts without a home, without a name, and with few open files."""

import getpass
import os
import pwd
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from aerie.server.account import ENGINE_FILES, check_home, check_open_files
from aerie.server.errors import BadOption

SOON = 60.0  # a loaded machine


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account that has no entry in the system's list, and variables that say nothing of it."""

    def no_entry(_: int) -> NoReturn:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("unknown")
def test_an_account_without_a_home_is_told_what_to_set() -> None:
    with pytest.raises(BadOption, match=r"^HOME: user \d+ has no home folder, .*; set HOME to a folder"):
        check_home({})


@pytest.mark.usefixtures("unknown")
def test_an_account_without_a_name_gets_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "")
    with pytest.raises(KeyError):
        getpass.getuser()
    check_home(os.environ)
    assert getpass.getuser().startswith("user")
    check_home(os.environ)


def test_a_known_account_keeps_its_name() -> None:
    environ: dict[str, str] = {}
    check_home(environ)
    assert environ == {}


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """`limits(soft, hard)` pretends those; the list holds the soft one, and what it is set to."""

    def pretend(soft: int, hard: int) -> list[int]:
        limit = [soft]
        monkeypatch.setattr(resource, "getrlimit", lambda _: (limit[0], hard))
        monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limit.append(pair[0]))
        return limit

    return pretend


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (64, 4096, [64, ENGINE_FILES + 100]),
        (1024, 1024, [1024]),
        (1024, resource.RLIM_INFINITY, [1024]),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, [resource.RLIM_INFINITY]),
        (256, ENGINE_FILES + 100, [256, ENGINE_FILES + 100]),
    ],
)
def test_the_limit_of_open_files_is_raised(
    limits: Callable[[int, int], list[int]], soft: int, hard: int, then: list[int]
) -> None:
    limit = limits(soft, hard)
    check_open_files(100)
    assert limit == then


def test_too_few_open_files_are_refused_at_once_with_the_number() -> None:
    limited = 'ulimit -n 64 && exec "$@"'
    command = ["bash", "-c", limited, "bash", sys.executable, "-P", "-m", "aerie", "serve", "--max-connections", "100"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SOON)
    expected = "aerie: error: ulimit -n: 64 open files are allowed, and --max-connections 100 needs 356; "
    assert (done.returncode, done.stderr.startswith(expected)) == (2, True), done.stderr
    assert done.stderr.count("\n") == 1
