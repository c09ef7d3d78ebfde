# SPDX-License-Identifier: Apache-2.0
"""Acceptance arithmetic, in one place.

    length = 1 + accepted / steps     the mean acceptance length, bonus token included
    rate   = accepted / drafted       the share of drafted tokens that were accepted

A step is one verification by the main model; `histogram[i]` counts the steps that accepted exactly i drafted tokens,
so that sum(histogram) = steps and sum(i * histogram[i]) = accepted.
"""

from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, NonNegativeInt, model_validator


class AcceptanceError(Exception):
    """Counts that contradict each other or cannot be pooled."""


class AcceptanceCounts(BaseModel):
    """What was drafted and accepted in one request, or in many pooled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    histogram: tuple[NonNegativeInt, ...]
    drafted: NonNegativeInt

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.histogram) < 2:
            raise ValueError("histogram must have an entry for 0 and for each draft position")
        if self.accepted > self.drafted:
            raise ValueError(f"accepted {self.accepted} of {self.drafted} drafted tokens")
        if self.drafted > self.steps * self.draft_tokens:
            raise ValueError(f"drafted {self.drafted} tokens in {self.steps} steps of {self.draft_tokens}")
        return self

    @property
    def draft_tokens(self) -> int:
        """K: tokens drafted per step, at most."""
        return len(self.histogram) - 1

    @property
    def steps(self) -> int:
        """Verification steps."""
        return sum(self.histogram)

    @property
    def accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return sum(count * accepted for accepted, count in enumerate(self.histogram))

    @property
    def length(self) -> float:
        """Mean acceptance length; raises AcceptanceError where nothing was verified."""
        if not self.steps:
            raise AcceptanceError("no verification step: the acceptance length is undefined")
        return 1 + self.accepted / self.steps

    @property
    def rate(self) -> float:
        """Accepted share of the drafted tokens; raises AcceptanceError where nothing was drafted."""
        if not self.drafted:
            raise AcceptanceError("nothing was drafted: the acceptance rate is undefined")
        return self.accepted / self.drafted

    @property
    def per_position(self) -> list[float]:
        """For each draft position, the share of steps that accepted the token there (hence all before it)."""
        if not self.steps:
            raise AcceptanceError("no verification step: acceptance per position is undefined")
        return [sum(self.histogram[position:]) / self.steps for position in range(1, len(self.histogram))]

    def check_totals(self, totals: Mapping[str, int]) -> None:
        """Compare with totals counted elsewhere (`steps`, `drafted`, `accepted`); raises AcceptanceError."""
        ours = {"steps": self.steps, "drafted": self.drafted, "accepted": self.accepted}
        if ours != dict(totals):
            raise AcceptanceError(f"requests add up to {ours}, the engine counted {dict(totals)}")

    def check_tokens(self, generated: int, requests: int) -> None:
        """Each request starts with one token of the main model, each step adds its accepted tokens and one more.

        The last step of a request may overshoot its end, by at most K tokens. Raises AcceptanceError.
        """
        produced = requests + self.steps + self.accepted
        if not generated <= produced <= generated + requests * self.draft_tokens:
            raise AcceptanceError(f"{self.steps} steps of {requests} requests make {produced} tokens, not {generated}")


def pool(counts: Iterable[AcceptanceCounts]) -> AcceptanceCounts:
    """Add up; every step weighs the same. Raises AcceptanceError for none, or for different K."""
    chosen = list(counts)
    if not chosen:
        raise AcceptanceError("no request carries speculation statistics")
    if len({one.draft_tokens for one in chosen}) > 1:
        raise AcceptanceError("requests with different numbers of drafted tokens per step cannot be pooled")
    return AcceptanceCounts(
        histogram=tuple(sum(column) for column in zip(*(one.histogram for one in chosen), strict=True)),
        drafted=sum(one.drafted for one in chosen),
    )
