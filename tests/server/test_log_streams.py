# SPDX-License-Identifier: Apache-2.0
"""Streams that a full disk cannot break; the server's own, in all its processes, in tests/engine/test_faults.py."""

import subprocess
import sys
from pathlib import Path

FLUSHED_BEFORE_A_PROCESS_STARTS = """
import sys
from multiprocessing.util import _flush_std_streams
from aerie.server.log_streams import keep_writable
if sys.argv[1:]:
    keep_writable()
    keep_writable()
print("lost", "x" * 100_000)
print("lost", file=sys.stderr)
_flush_std_streams()
assert sys.stdout.fileno() == 1 and not sys.stdout.isatty()
"""


def ended_with(*arguments: str) -> int:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-P", "-c", FLUSHED_BEFORE_A_PROCESS_STARTS, *arguments]
        return subprocess.run(command, stdout=full, stderr=full, check=False).returncode


def test_writing_to_a_full_disk_fails_no_process() -> None:
    assert ended_with("keep writable") == 0
    assert ended_with() != 0
