# SPDX-License-Identifier: Apache-2.0
"""Whether greedy answers with the draft are the same tokens as without.

`python -m aerie.benchmarks.losslessness.greedy --out FILE`. Figure: `greedy_identical`, the share of held-out prompts
whose answers are token-identical. Requests run one at a time, so that batches are the same in both engines.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.prompts import Prompt, held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.draft_models.offline import EngineOptions, Sampling, offline_engine

NAME = "losslessness.greedy"
Tokens = tuple[int, ...]


def greedy_tokens(engine_options: EngineOptions, prompts: Sequence[Prompt], max_tokens: int) -> list[Tokens]:
    """The greedy answer to each prompt, from an engine of its own."""
    with offline_engine(engine_options) as engine:
        answers = engine.generate([prompt.token_ids for prompt in prompts], Sampling(max_tokens))
    return [one.token_ids for (one,) in answers]


def first_difference(ours: Tokens, theirs: Tokens) -> int | None:
    """Index of the first token that differs; None when the answers are identical."""
    if ours == theirs:
        return None
    same = (a == b for a, b in zip(ours, theirs, strict=False))
    return next((index for index, equal in enumerate(same) if not equal), min(len(ours), len(theirs)))


def compare(drafted: Sequence[Tokens], plain: Sequence[Tokens]) -> dict[str, JsonValue]:
    """How many answers are identical, and where the others part."""
    places = [first_difference(a, b) for a, b in zip(drafted, plain, strict=True)]
    differing: list[JsonValue] = [
        {"prompt": index, "first_difference": place} for index, place in enumerate(places) if place is not None
    ]
    return {
        "prompts": len(places),
        "identical": len(places) - len(differing),
        "tokens": sum(len(tokens) for tokens in plain),
        "differing": differing,
    }


def measure(
    model: Path, draft: Path, draft_tokens: int, prompts: Sequence[Prompt], max_tokens: int
) -> dict[str, JsonValue]:
    """Answer all prompts without and with the draft, and compare."""
    base = EngineOptions(model=model, draft_tokens=draft_tokens, max_num_seqs=1)
    plain = greedy_tokens(base, prompts, max_tokens)
    drafted = greedy_tokens(base.model_copy(update={"draft": draft}), prompts, max_tokens)
    return compare(drafted, plain)


def main(
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    draft: options.Draft = options.DEMO_DRAFT,
    draft_tokens: options.DraftTokens = 4,
    count: options.Count = 64,
    max_tokens: options.MaxTokens = 128,
    seed: options.Seed = 0,
    prompts: options.Prompts = None,
) -> None:
    """Compare greedy answers with and without the draft, token by token."""
    arguments = options.recorded(locals())
    rendered = render(model, held_out(count, seed, prompts))
    compared = measure(model, draft, draft_tokens, rendered, max_tokens)
    figures = {"greedy_identical": round(float(str(compared["identical"])) / count, 4)}
    provenance = Provenance.now(arguments, [seed], options.inputs(model=model, draft=draft, prompts=prompts))
    ResultFile(provenance=provenance, runs=[Run(benchmark=NAME, measured=compared)], figures=figures).write(out)
    options.show(figures)


if __name__ == "__main__":
    options.run(main)
