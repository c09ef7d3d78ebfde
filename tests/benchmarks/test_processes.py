# SPDX-License-Identifier: Apache-2.0
"""Servers as processes: one that waits for its turn does not run."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from aerie.benchmarks.serving.processes import Server, ended_in_order, launched_server

WORKING = "import os; os.fork()\nwhile True: pass"
WINDOW_S = 0.3


def used(server: Server) -> float:
    """CPU seconds over a while."""
    before = server.cpu_seconds()
    time.sleep(WINDOW_S)
    return server.cpu_seconds() - before


def test_a_halted_server_stands_still_with_its_children_and_goes_on_after(tmp_path: Path) -> None:
    with launched_server("busy", [sys.executable, "-c", WORKING], 0, tmp_path / "log") as server:
        while used(server) == 0:
            assert server.process.poll() is None
        with suppress(KeyboardInterrupt), server.halted():
            assert used(server) == 0
            raise KeyboardInterrupt
        assert used(server) > 0


def test_a_server_that_is_gone_is_no_trouble(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    process.wait()
    with Server("gone", 0, process, tmp_path / "log").halted():
        pass


def test_a_stop_continues_what_it_ends(tmp_path: Path) -> None:
    with launched_server("halted", ["sleep", "600"], 0, tmp_path / "log") as server:
        os.killpg(server.process.pid, signal.SIGSTOP)
    assert server.process.returncode == -signal.SIGINT, "not killed after a wait"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_process_starts_ends_the_process_too(number: signal.Signals) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "600"], start_new_session=True))
        signal.raise_signal(number)
        return started[0]

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ended_in_order(start):
        pytest.fail("the block is not entered")
    assert started[0].returncode == -signal.SIGINT
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_sigterm_ends_a_measurement_like_ctrl_c_and_leaves_no_server(tmp_path: Path) -> None:
    measuring = f"""
import sys, time
from pathlib import Path
from aerie.benchmarks.serving.processes import launched_server
sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
with launched_server("idle", sleeping, 0, Path({str(tmp_path / "log")!r})) as up:
    print(up.process.pid, flush=True)
    with up.halted():
        time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", measuring], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        assert one.stdout is not None
        server = int(one.stdout.readline())
        one.terminate()
        _, errors = one.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    assert not Path(f"/proc/{server}").exists()
