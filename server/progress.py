# SPDX-License-Identifier: Apache-2.0
"""Whether the engine still makes steps, and what its drafts were worth over the last minutes."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

WINDOW_SECONDS = 300.0
BUCKET_SECONDS = 10.0


@dataclass(frozen=True)
class Step:
    """What one step of the engine tells."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    drafts: int = 0
    drafted: tuple[int, ...] = ()
    """Drafted tokens by position."""
    accepted: tuple[int, ...] = ()
    """Accepted ones by position."""
    queued_seconds: tuple[float, ...] = ()
    """Of the requests that finished in it: the time they waited to be scheduled."""


class Progress:
    """Watches the engine's steps against the requests it was given.

    Work is owed from the moment a request goes in until the engine's next step, and again while it has requests. A
    request that ends unanswered (the client left, a deadline) leaves that debt: only a step shows that the engine
    lives.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.in_flight = 0
        self.last = Step()
        self.last_at = clock()
        self._owed_since: float | None = None

    def began(self) -> None:
        """The engine was given a request."""
        self.in_flight += 1
        if self._owed_since is None:
            self._owed_since = self._clock()

    def ended(self, *, answered: bool) -> None:
        """A request is over; `answered` by the engine, or given up."""
        self.in_flight -= 1
        if answered and not self.in_flight:
            self._owed_since = None

    def stepped(self, step: Step) -> None:
        """The engine made a step."""
        self.last, self.last_at = step, self._clock()
        self._owed_since = self.last_at if self.in_flight else None

    def reset(self) -> None:
        """Another engine."""
        self.in_flight, self._owed_since, self.last, self.last_at = 0, None, Step(), self._clock()

    @property
    def owed_seconds(self) -> float:
        """How long the engine has owed a step; 0 when it owes none."""
        return 0.0 if self._owed_since is None else self._clock() - self._owed_since

    @property
    def idle_seconds(self) -> float:
        """Seconds since the last step."""
        return self._clock() - self.last_at


@dataclass
class Bucket:
    """Drafting within a few seconds."""

    began: float
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0


@dataclass
class Window:
    """Drafting over the last five minutes, to ten seconds."""

    clock: Callable[[], float] = time.monotonic
    buckets: deque[Bucket] = field(default_factory=deque)

    def stepped(self, step: Step) -> None:
        """Count a step's drafts."""
        if not step.drafts:
            return
        now = self._forget()
        if not self.buckets or now - self.buckets[-1].began >= BUCKET_SECONDS:
            self.buckets.append(Bucket(now))
        bucket = self.buckets[-1]
        bucket.drafts += step.drafts
        bucket.drafted += sum(step.drafted)
        bucket.accepted += sum(step.accepted)

    def total(self) -> Bucket:
        """The sum over the window."""
        told = Bucket(self._forget())
        for bucket in self.buckets:
            told.drafts += bucket.drafts
            told.drafted += bucket.drafted
            told.accepted += bucket.accepted
        return told

    def _forget(self) -> float:
        """Drop what is older than the window; the time now."""
        now = self.clock()
        while self.buckets and now - self.buckets[0].began >= WINDOW_SECONDS:
            self.buckets.popleft()
        return now
