# SPDX-License-Identifier: Apache-2.0
"""Who used the processor during a measurement, from Linux's /proc."""

import os
import time
from pathlib import Path

PROC = Path("/proc")
# Fields of /proc/PID/stat counted from after the command's closing bracket (proc_pid_stat(5)).
_SESSION, _UTIME, _STIME = 3, 11, 12
# Fields of /proc/stat's first line that are time spent working: user, nice, system, irq, softirq.
_BUSY = (0, 1, 2, 5, 6)


def session_seconds(session: int, proc: Path = PROC) -> float:
    """CPU seconds of all living processes of a session: a server started in one, with its children."""
    ticks = 0
    for path in proc.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[_SESSION]) == session:
            ticks += int(fields[_UTIME]) + int(fields[_STIME])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds(proc: Path = PROC) -> float:
    """CPU seconds that all cores have spent working since the machine started."""
    fields = (proc / "stat").read_text().splitlines()[0].split()[1:]
    return sum(int(fields[index]) for index in _BUSY) / os.sysconf("SC_CLK_TCK")


class Bystanders:
    """Cores kept busy by everything but this process, from when it was made: what disturbs its measurement."""

    def __init__(self) -> None:
        self.started, self.busy, self.own = time.monotonic(), busy_seconds(), time.process_time()

    def cores(self) -> float:
        """On average, until now."""
        elapsed, own = time.monotonic() - self.started, time.process_time() - self.own
        return round(max(0.0, busy_seconds() - self.busy - own) / elapsed, 3)
