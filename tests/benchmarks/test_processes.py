# SPDX-License-Identifier: Apache-2.0
"""Servers as processes: one that waits for its turn does not run."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from aerie.benchmarks.serving.processes import Server, launched_server

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
