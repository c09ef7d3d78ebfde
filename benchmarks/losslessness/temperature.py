# SPDX-License-Identifier: Apache-2.0
"""Whether speculation leaves the distribution of an answer's first tokens at temperature 1 as it was.

`python -m aerie.benchmarks.losslessness.temperature --out FILE`. Figures: `t1_total_variation` between engines with and
without the draft, `t1_p_value` of a permutation test, `t1_detectable` (the true distance it would find; see
`total_variation.py`). The first token of an answer comes without speculation, so the answers' tokens from the second on
are compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.losslessness.total_variation import Samples_nL, TotalVariationTest, compare
from aerie.benchmarks.prompts import Prompt, held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.offline import EngineOptions, Sampling, offline_engine

NAME = "losslessness.temperature"
ENDED = -1


def first_tokens(answers: Sequence[tuple[int, ...]], length: int) -> Samples_nL:
    """Tokens 2 to `length` + 1 of each answer; ENDED after its end, which is an outcome like any other."""
    rows = [(*tokens[1 : length + 1], *[ENDED] * (length + 1 - len(tokens))) for tokens in answers]
    return np.array([row[:length] for row in rows], dtype=np.int64)


def sample(engine_options: EngineOptions, prompts: Sequence[Prompt], count: int, length: int) -> list[Samples_nL]:
    """`count` samples per prompt at temperature 1, from an engine of its own."""
    drawing = Sampling(max_tokens=length + 1, temperature=1.0, count=count)
    with offline_engine(engine_options) as engine:
        by_prompt = engine.generate([prompt.token_ids for prompt in prompts], drawing)
    return [first_tokens([one.token_ids for one in answers], length) for answers in by_prompt]


def figures_of(test: TotalVariationTest) -> dict[str, float]:
    """Flat figures; `t1_detectable` is left out where the test finds none of the distances tried."""
    figures = {
        "t1_total_variation": test.statistic,
        "t1_total_variation_null": test.null_mean,
        "t1_p_value": test.p_value,
    }
    return figures if test.detectable is None else figures | {"t1_detectable": test.detectable}


def measure(
    model: Path, draft: Path, draft_tokens: int, prompts: Sequence[Prompt], samples: int, length: int, seed: int
) -> dict[str, JsonValue]:
    """Sample without and with the draft, and test whether both sample alike."""
    plain_options = EngineOptions(model=model, draft_tokens=draft_tokens, max_num_seqs=32, seed=seed)
    # Another seed: with the same one the first tokens would be coupled, and the engines look more alike than chance.
    drafted_options = plain_options.model_copy(update={"draft": draft, "seed": seed + 1})
    plain = sample(plain_options, prompts, samples, length)
    drafted = sample(drafted_options, prompts, samples, length)
    test = compare(plain, drafted, seed)
    return {**test.model_dump(mode="json"), "prompts": len(prompts), "samples": samples}


def figures_of_record(measured: Mapping[str, JsonValue]) -> dict[str, float]:
    """Flat figures of what `measure` returned."""
    fields = {name: value for name, value in measured.items() if name in TotalVariationTest.model_fields}
    return figures_of(TotalVariationTest.model_validate(fields))


def main(
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    draft: options.Draft = options.DEMO_DRAFT,
    draft_tokens: options.DraftTokens = 4,
    count: options.Count = 8,
    samples: Annotated[int, typer.Option(min=50, help="Samples for each prompt and engine.")] = 500,
    length: Annotated[int, typer.Option(min=1, help="Tokens compared, from an answer's second on.")] = 6,
    seed: options.Seed = 0,
    prompts: options.Prompts = None,
) -> None:
    """Compare what engines with and without the draft sample at temperature 1."""
    arguments = options.recorded(locals())
    rendered = render(model, held_out(count, seed, prompts))
    measured = measure(model, draft, draft_tokens, rendered, samples, length, seed)
    figures = figures_of_record(measured)
    inputs = options.inputs(model=model, draft=draft, prompts=prompts)
    ResultFile(
        provenance=Provenance.now(arguments, [seed, seed + 1], inputs),
        runs=[Run(benchmark=NAME, measured=measured)],
        figures=figures,
    ).write(out)
    options.show(figures)


if __name__ == "__main__":
    options.run(main)
