# SPDX-License-Identifier: Apache-2.0
"""The process that an engine runs in: what it raises is raised here, and no orphan is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 60
SCRIPT = """
import multiprocessing, time
from contextlib import contextmanager
from aerie.trainer.draft.child import Child

@contextmanager
def opened():
    yield time.sleep

if __name__ == "__main__":
    child = Child(opened)
    child.ask(0.0)
    print(multiprocessing.active_children()[0].pid, flush=True)
    child.ask(600.0)
"""


def test_a_busy_engine_dies_with_who_asked_it(tmp_path: Path) -> None:
    script = tmp_path / "asks.py"
    script.write_text(SCRIPT)
    asker = subprocess.Popen([sys.executable, "-P", str(script)], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    engine = int(asker.stdout.readline())
    assert _alive(engine)
    asker.send_signal(signal.SIGKILL)
    asker.communicate()
    deadline = time.monotonic() + SECONDS
    while _alive(engine) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(engine)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
