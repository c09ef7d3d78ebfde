# SPDX-License-Identifier: Apache-2.0
"""The acceptance of a draft over a set of prompts, in the real engine, with checked counts. Terms: acceptance.py."""

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, JsonValue

from aerie.draft_models.acceptance import AcceptanceCounts, pool
from aerie.draft_models.offline import Answer, OfflineEngine, Sampling


class Acceptance(BaseModel):
    """The acceptance of one draft over a set of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pooled: AcceptanceCounts
    per_request: tuple[AcceptanceCounts, ...]
    """Requests with at least one verification step; a one-token answer has none."""
    generated: int

    @property
    def length_std(self) -> float:
        """Standard deviation of the requests' own acceptance lengths; 0 for a single one."""
        lengths = [one.length for one in self.per_request]
        return statistics.stdev(lengths) if len(lengths) > 1 else 0.0

    def figures(self) -> dict[str, float]:
        """Flat figures; `_std` is over requests."""
        figures = {
            "acceptance_length": self.pooled.length,
            "acceptance_length_request_mean": statistics.fmean(one.length for one in self.per_request),
            "acceptance_length_request_std": self.length_std,
            "acceptance_rate": self.pooled.rate,
        }
        shares = enumerate(self.pooled.per_position, 1)
        figures |= {f"acceptance_position_{position}": share for position, share in shares}
        return {name: round(value, 4) for name, value in figures.items()}

    def raw(self) -> dict[str, JsonValue]:
        """The counts, pooled and for each request."""
        histograms: list[JsonValue] = [list(one.histogram) for one in self.per_request]
        return {
            "histogram": list(self.pooled.histogram),
            "steps": self.pooled.steps,
            "drafted": self.pooled.drafted,
            "accepted": self.pooled.accepted,
            "generated_tokens": self.generated,
            "requests": len(self.per_request),
            "histogram_by_request": histograms,
        }


def acceptance_of(answers: Sequence[Answer]) -> Acceptance:
    """Pool the answers' statistics; raises AcceptanceError when they contradict the tokens generated."""
    counted = [(one, one.acceptance) for one in answers if one.acceptance is not None and one.acceptance.steps]
    pooled = pool(counts for _, counts in counted)
    generated = sum(len(answer.token_ids) for answer, _ in counted)
    pooled.check_tokens(generated, len(counted))
    return Acceptance(pooled=pooled, per_request=tuple(counts for _, counts in counted), generated=generated)


def answer_all(
    engine: OfflineEngine, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]
) -> list[Answer]:
    """One answer for each prompt; raises AcceptanceError unless their statistics add up to the engine's counters."""
    before = engine.counters()
    answers = [one for (one,) in engine.generate(prompts, sampling)]
    after = engine.counters()
    pooled = acceptance_of(answers).pooled
    pooled.check_totals({name: after[name] - before[name] for name in after})
    return answers


def evaluate(
    engine: OfflineEngine, prompts: Sequence[Sequence[int]], sampling: Sampling | Sequence[Sampling]
) -> Acceptance:
    """The acceptance over one answer to each prompt. Prompts are token ids; raises AcceptanceError."""
    return acceptance_of(answer_all(engine, prompts, sampling))
