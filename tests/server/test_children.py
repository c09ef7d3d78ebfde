# SPDX-License-Identifier: Apache-2.0
"""Processes that end with their parent, and exceptions that outlive the process they ended."""

import copy
import logging
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
from vllm.config import VllmConfig

from aerie.server import failure
from aerie.server.children import EndsWithParent
from aerie.server.engine import bind

PATIENCE = 60.0  # a loaded machine
CHILD = """
import os, sys, time
from aerie.server.children import die_with_parent
die_with_parent(int(sys.argv[1]))
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-c", {CHILD!r}, str(os.getpid())])
"""


SPAWNING = """
import multiprocessing, time
from aerie.server.children import EndsWithParent
process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
process.binding = EndsWithParent()
process.start()
print(process.pid, flush=True)
process.join()
"""


@pytest.mark.parametrize("parent_source", [PARENT, SPAWNING], ids=["asked to", "bound by what it is started with"])
def test_a_killed_parent_leaves_no_child(parent_source: str) -> None:
    with subprocess.Popen([sys.executable, "-c", parent_source], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(PATIENCE)
    assert not child.is_running()


def test_what_binds_a_process_leaves_others_alone() -> None:
    binding = EndsWithParent()
    assert copy.deepcopy([binding]) == [binding]
    rebuild, arguments = binding.__reduce__()
    assert isinstance(rebuild(*arguments), EndsWithParent)  # as in a process that was not spawned


def test_a_parent_that_died_before_its_child_looked_is_noticed() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    child = subprocess.run([sys.executable, "-c", CHILD, str(dead.pid)], timeout=PATIENCE, check=False)
    assert child.returncode == 1


FAILING = """
import logging, sys
from aerie.server import failure
failure.watch()
log = logging.getLogger(sys.argv[1])
try:
    raise {raised}
except Exception:
    log.exception("it failed to start")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a server shares with its engine."""
    monkeypatch.setenv(failure.FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def fail(logger: str, raised: str) -> None:
    """Have another process log that exception."""
    command = [sys.executable, "-c", FAILING.format(raised=raised), logger]
    subprocess.run(command, stderr=subprocess.DEVNULL, check=True, timeout=PATIENCE)


VANISHED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


@pytest.mark.usefixtures("folder")
def test_the_first_process_that_fails_says_why_the_engine_did_not_start() -> None:
    worker, core = failure.LOGGERS[1], failure.LOGGERS[0]
    fail("vllm.v1.engine.async_llm", "ValueError('of no engine')")
    fail(worker, "ValueError('no parameter d2t\\nin the draft')")
    fail(core, "RuntimeError('a worker failed')")
    assert failure.explain(VANISHED) == "ValueError: no parameter d2t in the draft"
    failure.forget()
    fail(core, "KeyError('layers')")
    assert failure.explain(VANISHED) == "KeyError: 'layers'"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (VANISHED, "a process of it ended without an error, as when the system kills it for want of memory"),
        (KeyError("added_tokens"), "KeyError: 'added_tokens'"),
        (MemoryError(), "MemoryError"),
        (ValueError("x" * 1000), f"ValueError: {'x' * (failure.LONGEST - 12)}…"),
    ],
)
def test_without_a_failure_of_the_engine_s_the_server_s_own_error_is_told(error: Exception, expected: str) -> None:
    assert failure.explain(error) == expected


def test_a_full_disk_or_no_folder_only_loses_the_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(failure.FOLDER_VARIABLE, raising=False)
    failure.forget()
    assert failure.explain(ValueError("no")) == "ValueError: no"
    record = logging.makeLogRecord({"exc_info": (ValueError, ValueError("no"), None)})
    failure.FailureHandler(tmp_path / "gone").emit(record)
    assert list(tmp_path.iterdir()) == []


def test_the_engine_s_processes_are_handed_what_binds_them() -> None:
    config = VllmConfig()
    bind(config)
    assert vars(config).keys() <= {field.name for field in fields(config)}  # vLLM copies it by its fields for a draft
    assert isinstance(vars(config.scheduler_config)["ends_with_parent"], EndsWithParent)
