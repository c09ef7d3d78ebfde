# SPDX-License-Identifier: Apache-2.0
"""What `aerie serve` costs on top of the `vllm serve` it is made of: same model, draft and flags, interleaved.

`python -m aerie.benchmarks.serving.overhead --out FILE`. The bare server gets the very arguments that ours hands to
vLLM, and loads the same plugin. Figures, for each concurrency C: `throughput_ratio_cC`, output tokens per second of
ours over vLLM's, pooled over rounds; `ttft_ratio_cC`, ours over vLLM's median time to the first token, as the median of
the rounds' ratios; and the spread of both over rounds.
"""

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from aerie.benchmarks import options
from aerie.benchmarks.engine import vllm_command
from aerie.benchmarks.prompts import held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.serving.first_light import measure
from aerie.benchmarks.serving.load import LoadOptions
from aerie.benchmarks.serving.processes import NO_PROBES, Server, free_port, running_server, serve_command
from aerie.benchmarks.serving.rounds import Round
from aerie.benchmarks.serving.speedup import levels, pairs, pooled_rate
from aerie.server.engine import own_arguments
from aerie.server.plan import make_plan
from aerie.server.settings import ServeSettings

NAME = "serving.overhead"
OURS, BARE = "aerie", "vllm"


def start(stack: ExitStack, settings: ServeSettings, logs: Path) -> tuple[Server, Server]:
    """Both servers, until `stack` closes."""
    ports = {OURS: free_port(), BARE: free_port()}
    ours = [*NO_PROBES, "--model", settings.model, "--draft", settings.draft]
    ours += ["--draft-tokens", str(settings.draft_tokens)]
    bare = own_arguments(make_plan(settings.model_copy(update={"port": ports[BARE]})))
    commands = {OURS: serve_command(ports[OURS], ours), BARE: vllm_command("serve", bare)}
    first, second = (
        stack.enter_context(running_server(name, commands[name], ports[name], logs / f"{name}.log"))
        for name in (OURS, BARE)
    )
    return first, second


def figures(rounds: Sequence[Round]) -> dict[str, float]:
    """Ratios by concurrency."""
    found: dict[str, float] = {}
    for concurrency in levels(rounds):
        both = pairs(rounds, concurrency, OURS, BARE)
        ours, bare = zip(*both, strict=True)
        throughput = [a.report.output_tokens_per_s / b.report.output_tokens_per_s for a, b in both]
        first = [a.report.median_ttft_ms / b.report.median_ttft_ms for a, b in both]
        found |= {
            f"throughput_ratio_c{concurrency}": pooled_rate(ours) / pooled_rate(bare),
            f"throughput_ratio_c{concurrency}_std": statistics.stdev(throughput),
            f"ttft_ratio_c{concurrency}": statistics.median(first),
            f"ttft_ratio_c{concurrency}_std": statistics.stdev(first),
            f"ttft_ms_aerie_c{concurrency}": statistics.median(one.report.median_ttft_ms for one in ours),
            f"ttft_ms_vllm_c{concurrency}": statistics.median(one.report.median_ttft_ms for one in bare),
        }
    return {name: round(value, 4) for name, value in found.items()}


def main(
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    draft: options.Draft = options.DEMO_DRAFT,
    draft_tokens: options.DraftTokens = 4,
    rounds: Annotated[int, typer.Option(min=3, help="Repeats; both servers run in each.")] = 6,
    count: Annotated[int, typer.Option(min=4, help="Prompts per round; each round has its own.")] = 32,
    concurrency: Annotated[list[int] | None, typer.Option(help="Requests in flight; repeat it. [1, 16]")] = None,
    max_tokens: options.MaxTokens = 128,
    seed: options.Seed = 0,
    prompts: options.Prompts = None,
) -> None:
    """Measure our server against vLLM's."""
    chosen = sorted(set(concurrency or [1, 16]))
    arguments = options.recorded(locals(), levels=chosen)
    settings = ServeSettings(model=str(model), draft=str(draft), draft_tokens=draft_tokens)
    rendered = render(model, held_out(count * rounds, seed, prompts))
    by_round = [rendered[index * count : (index + 1) * count] for index in range(rounds)]
    load = LoadOptions(tokenizer=model, max_tokens=max_tokens, concurrency=chosen[0])
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        measured = measure(start(stack, settings, Path(name)), by_round, chosen, load, Path(name))
    raw = [Run(benchmark=NAME, measured=one.raw()) for one in measured]
    provenance = Provenance.now(arguments, [seed], options.inputs(model=model, draft=draft, prompts=prompts))
    result = ResultFile(provenance=provenance, runs=raw, figures=figures(measured))
    result.write(out)
    options.show(result.figures)


if __name__ == "__main__":
    options.run(main)
