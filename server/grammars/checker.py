# SPDX-License-Identifier: Apache-2.0
"""Grammars are held against limits in a process beside the server, each once.

What compiles soon does not wait for what does not: a first try is short, and a second one, of which there is one at a
time, has the whole limit. So the engine, which compiles the same again without a limit, has one slow grammar at a time.
"""

import asyncio
import contextlib
import json
import logging
import sys
from collections import Counter
from hashlib import sha256
from typing import Self

from aerie.server.grammars.verdict import Kind, Verdict

REMEMBERED = 4096
"""Grammars whose verdict is kept: a digest and a few words each."""
SHORT_SECONDS = 0.5
SHORT_AT_ONCE = 2
WALL_FACTOR, WALL_SECONDS = 20, 30
"""A process that had no chance to use its CPU time within this many times that, and so many seconds, hangs."""
START_SECONDS = 120.0
log = logging.getLogger(__name__)


class GrammarChecker:
    """Asks the process; starts it when it is first needed and again when it ended."""

    def __init__(self, vocabulary: str, *, whitespace: bool, seconds: float, memory: int) -> None:
        """`vocabulary` is a serialised `TokenizerInfo`; limits are in CPU seconds and bytes for each grammar."""
        self.whitespace = whitespace
        self._head = json.dumps([vocabulary, whitespace, memory]).encode() + b"\n"
        self._seconds = seconds
        self._short, self._long = asyncio.Semaphore(SHORT_AT_ONCE), asyncio.Semaphore(1)
        self._starting = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._asked: dict[int, asyncio.Future[Verdict]] = {}
        self._number = 0
        self._verdicts: dict[bytes, asyncio.Task[Verdict]] = {}
        self._waiting: Counter[bytes] = Counter()

    async def __aenter__(self) -> Self:
        """Start the process, so that no request waits for it."""
        await self._started()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it."""
        self._end()
        if self._process is not None:
            await self._process.wait()

    async def check(self, kind: Kind, text: str) -> Verdict:
        """The verdict about a grammar; a second request for the same waits for the first."""
        key = _key(kind, text)
        if (known := self._verdicts.pop(key, None)) is None:
            known = asyncio.create_task(self._try(key, kind, text))
        self._verdicts[key] = known  # the last used is the last forgotten
        while len(self._verdicts) > REMEMBERED:
            del self._verdicts[next(iter(self._verdicts))]
        self._waiting[key] += 1
        try:
            verdict = await asyncio.shield(known)
        except OSError as error:  # the process could not be started
            log.warning("a grammar could not be tried: %s", error)
            verdict = Verdict("lost")
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        if verdict.outcome == "lost":
            self._verdicts.pop(key, None)
        return verdict

    def refuse(self, kind: Kind, text: str) -> None:
        """Remember a grammar that the engine had to stop matching, which the walks here had not shown."""

        async def slow() -> Verdict:
            return Verdict("slow")

        key = _key(kind, text)
        self._verdicts[key] = asyncio.create_task(slow())

    async def _try(self, key: bytes, kind: Kind, text: str) -> Verdict:
        async with self._short:
            verdict = await self._ask_for(key, kind, text, min(SHORT_SECONDS, self._seconds))
        if verdict.outcome == "costly" and self._seconds > SHORT_SECONDS:
            async with self._long:
                verdict = await self._ask_for(key, kind, text, self._seconds)
        return verdict

    async def _ask_for(self, key: bytes, kind: Kind, text: str, seconds: float) -> Verdict:
        """Ask, unless every client left meanwhile: what nobody waits for is not to hold up the others."""
        if self._waiting[key]:
            return await self._ask(kind, text, seconds)
        self._verdicts.pop(key, None)
        return Verdict("lost")

    async def _ask(self, kind: Kind, text: str, seconds: float) -> Verdict:
        process = await self._started()
        self._number += 1
        number = self._number
        answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            async with asyncio.timeout(WALL_FACTOR * seconds + WALL_SECONDS):
                await self._write(process, json.dumps([number, kind, text, seconds]).encode() + b"\n")
                return await answer
        except TimeoutError:
            self._end()
            return Verdict("costly")
        finally:
            self._asked.pop(number, None)

    async def _started(self) -> asyncio.subprocess.Process:
        async with self._starting:
            if self._process is not None and self._process.returncode is None and self._reader is not None:
                if not self._reader.done():
                    return self._process
                self._end()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "aerie.server.grammars.process",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            await self._write(self._process, self._head)
            assert self._process.stdout is not None
            async with asyncio.timeout(START_SECONDS):
                await self._process.stdout.readline()
            self._reader = asyncio.create_task(self._read(self._process.stdout))
            return self._process

    async def _write(self, process: asyncio.subprocess.Process, line: bytes) -> None:
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it ended: the reader answers
            process.stdin.write(line)
            await process.stdin.drain()

    async def _read(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            number, outcome, detail = json.loads(line)
            if (answer := self._asked.get(number)) is not None and not answer.done():
                answer.set_result(Verdict(outcome, detail))
        for answer in self._asked.values():  # whatever was tried ended the whole process
            if not answer.done():
                answer.set_result(Verdict("lost"))

    def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


def _key(kind: Kind, text: str) -> bytes:
    return sha256(f"{kind}\0{text}".encode("utf-8", "surrogatepass")).digest()
