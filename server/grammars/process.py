# SPDX-License-Identifier: Apache-2.0
"""The process in which grammars are tried: forks for each, and tells what came of it. Run by `checker.py`.

A line of JSON in, `[number, kind, text, seconds]`; a line out, `[number, outcome, detail]`. The first line in has the
tokens and the limits, and is answered by an empty line. A fork that takes more CPU time than it may, or more memory,
is ended by the kernel, or by xgrammar's failing. This process itself compiles nothing, so a fork starts in
milliseconds from a clean state; it ends when its input does, and the forks end with it.
"""

import json
import os
import resource
import signal
import sys
from types import FrameType
from typing import BinaryIO

from xgrammar import TokenizerInfo

from aerie.server.children import die_with_parent
from aerie.server.grammars.trial import judge
from aerie.server.grammars.verdict import Verdict

PAGE = resource.getpagesize()
MOST_DETAIL = 512
"""Characters. An answer is written at once, shorter than a pipe's atomic 4 KiB."""


def main() -> None:
    """Serve until the input ends."""
    die_with_parent(os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server alone
    lines = sys.stdin.buffer
    vocabulary, whitespace, memory = json.loads(lines.readline())
    tokens = TokenizerInfo.deserialize_json(vocabulary)
    numbers: dict[int, int] = {}

    def reap(_signal: int, _frame: FrameType | None) -> None:
        """Answer for forks that could not."""
        while numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            number = numbers.pop(pid)
            if status != 0:
                _tell(number, Verdict("costly"))

    signal.signal(signal.SIGCHLD, reap)
    os.write(1, b"\n")
    _serve(lines, tokens, numbers, whitespace=whitespace, memory=memory)


def _serve(lines: BinaryIO, tokens: TokenizerInfo, numbers: dict[int, int], *, whitespace: bool, memory: int) -> None:
    while line := lines.readline():
        number, kind, text, seconds = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                die_with_parent(parent)
                _limit(seconds, memory)
                _tell(number, judge(kind, text, tokens, whitespace=whitespace))
                status = 0
            finally:
                os._exit(status)
        numbers[pid] = number
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _limit(seconds: float, memory: int) -> None:
    """Bound this fork, whatever it calls; SIGPROF ends a process by default. xgrammar's warnings go nowhere."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.setitimer(signal.ITIMER_PROF, seconds)
    with open("/proc/self/statm", encoding="ascii") as counts:  # noqa: PTH123 - no object more than needed
        most = int(counts.read().split()[0]) * PAGE + memory
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)


def _tell(number: int, verdict: Verdict) -> None:
    detail = verdict.detail.encode("ascii", "replace").decode()[:MOST_DETAIL]
    os.write(1, json.dumps([number, verdict.outcome, detail]).encode() + b"\n")


if __name__ == "__main__":
    main()
