# SPDX-License-Identifier: Apache-2.0
"""Mean acceptance length of one draft on held-out prompts, greedy, in the real engine.

`python -m aerie.benchmarks.acceptance.evaluate --out FILE`. Figures: `acceptance_length`, `acceptance_rate`,
`acceptance_position_N`, pooled over requests; definitions in `counts.py`.
"""

import statistics
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.acceptance.counts import AcceptanceCounts, pool
from aerie.benchmarks.engine import Answer, EngineOptions, OfflineEngine, Sampling, offline_engine
from aerie.benchmarks.prompts import Prompt, held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run

NAME = "acceptance.evaluate"


class Acceptance(BaseModel):
    """The acceptance of one draft over a set of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pooled: AcceptanceCounts
    per_request: tuple[AcceptanceCounts, ...]
    """Requests with at least one verification step; a one-token answer has none."""
    generated: int

    def figures(self) -> dict[str, float]:
        """Flat figures; `_std` is over requests."""
        lengths = [one.length for one in self.per_request]
        figures = {
            "acceptance_length": self.pooled.length,
            "acceptance_length_request_mean": statistics.fmean(lengths),
            "acceptance_length_request_std": statistics.stdev(lengths) if len(lengths) > 1 else 0.0,
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


def evaluate(engine: OfflineEngine, prompts: Sequence[Prompt], max_tokens: int) -> Acceptance:
    """Answer all prompts greedily; the requests' statistics must add up to the engine's own counters."""
    before = engine.counters()
    answers = [one for (one,) in engine.generate([prompt.token_ids for prompt in prompts], Sampling(max_tokens))]
    after = engine.counters()
    acceptance = acceptance_of(answers)
    acceptance.pooled.check_totals({name: after[name] - before[name] for name in after})
    return acceptance


def main(
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    draft: options.Draft = options.DEMO_DRAFT,
    draft_tokens: options.DraftTokens = 4,
    count: options.Count = 64,
    max_tokens: options.MaxTokens = 256,
    seed: options.Seed = 0,
    prompts: options.Prompts = None,
) -> None:
    """Measure how many drafted tokens the main model accepts."""
    arguments = options.recorded(locals())
    rendered = render(model, held_out(count, seed, prompts))
    engine_options = EngineOptions(model=model, draft=draft, draft_tokens=draft_tokens, seed=seed)
    with offline_engine(engine_options) as engine:
        acceptance = evaluate(engine, rendered, max_tokens)
    ResultFile(
        provenance=Provenance.now(arguments, [seed], options.inputs(model=model, draft=draft, prompts=prompts)),
        runs=[Run(benchmark=NAME, measured=acceptance.raw())],
        figures=acceptance.figures(),
    ).write(out)
    options.show(acceptance.figures())


if __name__ == "__main__":
    options.run(main)
