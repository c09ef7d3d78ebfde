# SPDX-License-Identifier: Apache-2.0
"""How many requests and tokens the engine has taken on, what it may take on more, and how fast it gets rid of them.

Tokens are estimated before anything is tokenised: a quarter of the body's bytes for the prompts, their own number where
they are token ids; and for each answer the largest of `max_tokens`, `max_completion_tokens` and `max_output_tokens`,
1024 without one; at most `max_model_len` a sequence. Sequences are the prompts times the larger of `n` and `best_of`.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aerie.server.errors import Overloaded
from aerie.server.front_settings import LimitSettings
from aerie.server.rules.sampling import ANSWER_TOKENS

BYTES_PER_TOKEN = 4
ASSUMED_ANSWER_TOKENS = 1024
MOST = 1 << 32
"""Of any count, for sums that stay small: a body is weighed before it is held against the rules."""
RATE_SECONDS = 60.0
"""The drain rate is that of the last minute."""
RETRY_SECONDS = (1, 60)


@dataclass(frozen=True)
class Weight:
    """What a request occupies: sequences of the engine, and tokens of them together."""

    sequences: int
    tokens: int


LEAST = Weight(sequences=1, tokens=0)
"""Of any request."""


@dataclass(frozen=True)
class Capacity:
    """What the engine works on at once; what is above it waits in its queue."""

    sequences: int
    tokens: int
    longest: int
    """Tokens of the longest sequence."""


def weigh(body: dict[str, Any], size: int, longest: int, limits: LimitSettings) -> Weight:
    """Estimate what a request will occupy from its body, whose fields may be of any type, and its length in bytes.

    One with more prompts or choices than the rules allow will occupy nothing, and must reach them to be told so.
    """
    lengths = _prompts(body.get("prompt"))
    choices = max(_number(body.get(name)) or 1 for name in ("n", "best_of"))
    if len(lengths) > limits.max_prompts or choices > limits.max_choices:
        return LEAST
    answer = max(_number(body.get(name)) for name in ANSWER_TOKENS) or ASSUMED_ANSWER_TOKENS
    sequences = choices * len(lengths)
    prompts = sum(lengths) or size // BYTES_PER_TOKEN
    return Weight(sequences, min(choices * prompts + sequences * answer, sequences * longest))


def _prompts(prompt: object) -> list[int]:
    """The lengths of a completion's prompts, in tokens; 0 for what is text."""
    if not isinstance(prompt, list) or not prompt:
        return [0]
    if isinstance(prompt[0], int):
        return [len(prompt)]
    return [len(inner) if isinstance(inner, list) else 0 for inner in prompt]


def _number(value: object) -> int:
    """A count; 0 for anything else."""
    return min(max(value, 0), MOST) if type(value) is int else 0


class Occupancy:
    """Admits requests up to the engine's capacity and a queue of a bounded length beyond it."""

    def __init__(
        self, queued_requests: int | None, queued_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`None` for `queued_requests` is half of what the engine works on at once.

        Answers take as long as there are requests in the house, divided by the answers a second, which a full engine
        cannot raise (Little's law): half as many again in the queue is half as long again on average, and leaves room
        for what chance adds up to twice.
        """
        self.capacity = Capacity(0, 0, 1 << 20)
        """The engine's, once it is loaded."""
        self.sequences = 0
        self.tokens = 0
        self._queued_requests = queued_requests
        self._queued_tokens = queued_tokens
        self._clock = clock
        self._began = clock()
        self._finished: deque[tuple[float, Weight]] = deque()
        self._finished_sequences = 0
        self._finished_tokens = 0

    @property
    def queued(self) -> int:
        """Sequences beyond what the engine works on at once."""
        return max(0, self.sequences - self.capacity.sequences)

    @property
    def most(self) -> Weight:
        """Where refusals begin: what the engine works on at once, and the queue."""
        half = math.ceil(self.capacity.sequences / 2)
        queued = half if self._queued_requests is None else self._queued_requests
        return Weight(self.capacity.sequences + queued, self.capacity.tokens + self._queued_tokens)

    def check(self, weight: Weight) -> None:
        """Refuse what would overflow the queue. One that is alone is always let in, however long.

        Raises:
            Overloaded: with the time that the queue takes to drain, as measured.
        """
        if not self.sequences:
            return
        most = self.most
        if self.sequences + weight.sequences > most.sequences:
            told = f"The server's queue is full: {self.queued} requests wait."
            raise Overloaded("overloaded_requests", told, self.retry_after_s())
        if self.tokens + weight.tokens > most.tokens:
            told = "The server's queue is full: the requests in it are as long as they may be together."
            raise Overloaded("overloaded_tokens", told, self.retry_after_s())

    @contextlib.contextmanager
    def holding(self, weight: Weight) -> Iterator[None]:
        """Occupy `weight` for the time of the block.

        Raises:
            Overloaded: there is no room.
        """
        self.check(weight)
        self._add(weight, 1)
        try:
            yield
        finally:
            self._add(weight, -1)
            self._finished.append((self._clock(), weight))
            self._finished_sequences += weight.sequences
            self._finished_tokens += weight.tokens
            self._forget()

    def retry_after_s(self) -> int:
        """Whole seconds until what waits now has drained at the rate of the last minute, within bounds."""
        self._forget()
        seconds = min(RATE_SECONDS, max(self._clock() - self._began, 1.0))
        by_count = _times(self.sequences - self.capacity.sequences, self._finished_sequences)
        by_length = _times(self.tokens - self.capacity.tokens, self._finished_tokens)
        least, most = RETRY_SECONDS
        return math.ceil(min(most, max(least, seconds * max(by_count, by_length))))

    def _add(self, weight: Weight, sign: int) -> None:
        self.sequences += sign * weight.sequences
        self.tokens += sign * weight.tokens

    def _forget(self) -> None:
        """Drop what finished more than a minute ago."""
        while self._finished and self._finished[0][0] < self._clock() - RATE_SECONDS:
            _, weight = self._finished.popleft()
            self._finished_sequences -= weight.sequences
            self._finished_tokens -= weight.tokens


def _times(waiting: int, finished: int) -> float:
    """How often as long as measured the queue takes."""
    if waiting <= 0:
        return 0.0
    return waiting / finished if finished else math.inf
