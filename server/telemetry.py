# SPDX-License-Identifier: Apache-2.0
"""What the engine tells of itself while it works, passed on to those who keep it."""

import time
from collections.abc import Callable, Sequence

from aerie.server.metrics import Metrics
from aerie.server.progress import Progress, Step, Window

PROBE = "aerie-probe"
"""The id of the requests that only look whether the engine lives."""


class Telemetry:
    """The one listener that an engine has. It outlives engines."""

    def __init__(self, positions: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`positions` is K; 0 without a draft."""
        self.metrics = Metrics(positions)
        self.progress = Progress(clock)
        self.window = Window(clock)
        self.draft_length = positions
        """K, the tokens drafted in the last step that drafted."""
        self.deaths = 0
        self.requests: set[str] = set()
        """Ids of the requests in the engine."""

    def began(self, request: str) -> None:
        """The engine was given a request."""
        self.requests.add(request)
        self.progress.began()

    def ended(self, request: str, *, answered: bool) -> None:
        """A request is over: `answered`, or given up."""
        self.requests.discard(request)
        self.progress.ended(answered=answered)

    def stepped(self, step: Step) -> None:
        """The engine made a step."""
        self.progress.stepped(step)
        self.window.stepped(step)
        if step.drafts:
            self.draft_length = sum(1 for drafted in step.drafted if drafted)
        self.metrics.stepped(step, self.draft_length)

    def accepted(self, histogram: Sequence[int]) -> None:
        """A request finished; `histogram[i]` of its steps accepted i drafted tokens."""
        self.metrics.accepted(histogram)

    def died(self) -> list[str]:
        """The engine died: the ids of the requests it had."""
        lost = sorted(self.requests - {PROBE})
        self.deaths += 1
        self.metrics.engine_deaths.inc()
        self.metrics.lost.inc(len(lost))
        self.requests.clear()
        self.progress.reset()
        return lost
