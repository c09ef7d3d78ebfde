# SPDX-License-Identifier: Apache-2.0
"""What the processes of a server hold: descriptors, threads, memory of their own; from Linux's /proc."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own

from aerie.benchmarks.serving.cpu_time import PROC
from aerie.benchmarks.serving.processes import Server

ROLES = {"EngineCore": "engine", "Worker": "worker"}
"""By the titles that vLLM gives its processes."""
FRONT, OTHERS = "front", "others"
_FIELD = re.compile(r"^(RssAnon|VmSwap|Threads):\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Usage:
    """What one process holds, or several together."""

    fds: int
    threads: int
    memory_mib: float
    """Anonymous memory, resident or swapped out. Resident memory as such falls when a leak is swapped, and contains
    files' pages, which the kernel takes back."""

    @classmethod
    def of(cls, pid: int, proc: Path = PROC) -> Self:
        """Read it now; raises OSError when the process is gone."""
        told = dict(_FIELD.findall((proc / str(pid) / "status").read_text()))
        kib = int(told.get("RssAnon", 0)) + int(told.get("VmSwap", 0))
        fds = sum(1 for _ in (proc / str(pid) / "fd").iterdir())
        return cls(fds, int(told.get("Threads", 0)), round(kib / 1024, 3))

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.fds + other.fds, self.threads + other.threads, self.memory_mib + other.memory_mib)


def role(command: str) -> str:
    """What a process below the server is."""
    return next((name for title, name in ROLES.items() if title in command), OTHERS)


def usage(server: Server) -> dict[str, Usage]:
    """By role: the front end that was started, the engine core, its workers, and helpers of Python's."""
    held = {FRONT: Usage.of(server.process.pid)}
    for child in psutil.Process(server.process.pid).children(recursive=True):
        with suppress(psutil.Error, OSError):  # gone meanwhile
            name = role(" ".join(child.cmdline()))
            one = Usage.of(child.pid)
            held[name] = held[name] + one if name in held else one
    return held
