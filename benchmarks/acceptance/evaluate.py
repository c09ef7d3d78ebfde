# SPDX-License-Identifier: Apache-2.0
"""Mean acceptance length of one draft on held-out prompts, greedy, in the real engine.

`python -m aerie.benchmarks.acceptance.evaluate --out FILE`. Figures: `acceptance_length`, `acceptance_rate`,
`acceptance_position_N`, pooled over requests; definitions in `aerie.draft_models.acceptance`.
"""

from aerie.benchmarks import options
from aerie.benchmarks.prompts import held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.measure import evaluate
from aerie.draft_models.offline import EngineOptions, Sampling, offline_engine

NAME = "acceptance.evaluate"


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
        acceptance = evaluate(engine, [one.token_ids for one in rendered], Sampling(max_tokens))
    ResultFile(
        provenance=Provenance.now(arguments, [seed], options.inputs(model=model, draft=draft, prompts=prompts)),
        runs=[Run(benchmark=NAME, measured=acceptance.raw())],
        figures=acceptance.figures(),
    ).write(out)
    options.show(acceptance.figures())


if __name__ == "__main__":
    options.run(main)
