# SPDX-License-Identifier: Apache-2.0
"""Output tokens per second with the draft against without, on the same INT4 model, in one interleaved run.

`python -m aerie.benchmarks.serving.first_light --out FILE`. Figures: `speedup_c1` and its spread over rounds.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from aerie.benchmarks import options
from aerie.benchmarks.prompts import Prompt, held_out, render
from aerie.benchmarks.results_file import Provenance, ResultFile, Run
from aerie.benchmarks.serving.load import LoadOptions
from aerie.benchmarks.serving.processes import NO_PROBES, Server, aerie_server
from aerie.benchmarks.serving.rounds import Round, idle_cores, measure_round, warm_up
from aerie.benchmarks.serving.speedup import check_same_texts, speedup_figures

NAME = "serving.first_light"


def start(stack: ExitStack, name: str, arguments: list[str], logs: Path) -> Server:
    """Start `aerie serve` with `arguments` until `stack` closes."""
    return stack.enter_context(aerie_server(name, arguments, logs / f"{name}.log"))


def measure(
    servers: tuple[Server, Server], by_round: list[list[Prompt]], levels: list[int], load: LoadOptions, work: Path
) -> list[Round]:
    """Every round at every concurrency, both servers on the same prompts, the order of the two swapped each round."""
    warm_up(servers, by_round[0], load, work)
    done = []
    for index, prompts in enumerate(by_round):
        for concurrency in levels:
            at_level = load.model_copy(update={"concurrency": concurrency})
            order = servers if index % 2 == 0 else servers[::-1]
            for server in order:
                directory = work / f"{server.name}-c{concurrency}-{index}"
                others = tuple(other for other in servers if other is not server)
                done.append(measure_round(server, others, index, prompts, at_level, directory))
                typer.echo(done[-1].summary())
    return done


def main(
    out: options.Out,
    model: options.Model = options.DEMO_MODEL,
    draft: options.Draft = options.DEMO_DRAFT,
    draft_tokens: options.DraftTokens = 4,
    rounds: Annotated[int, typer.Option(min=3, help="Repeats; both servers run in each.")] = 3,
    count: Annotated[int, typer.Option(min=4, help="Prompts per round; each round has its own.")] = 32,
    concurrency: Annotated[list[int] | None, typer.Option(help="Requests in flight; repeat it. [default: 1]")] = None,
    max_tokens: options.MaxTokens = 256,
    seed: options.Seed = 0,
    prompts: options.Prompts = None,
    serve_option: Annotated[list[str] | None, typer.Option(help="Passed to both servers, as `--name=value`.")] = None,
) -> None:
    """Measure the speed-up that the draft gives."""
    levels = sorted(set(concurrency or [1]))
    arguments = options.recorded(locals(), levels=levels, environment=options.environment())
    rendered = render(model, held_out(count * rounds, seed, prompts))
    by_round = [rendered[index * count : (index + 1) * count] for index in range(rounds)]
    load = LoadOptions(tokenizer=model, max_tokens=max_tokens, concurrency=levels[0])
    shared = [*NO_PROBES, "--model", str(model), *(serve_option or [])]
    drafting = [*shared, "--draft", str(draft), "--draft-tokens", str(draft_tokens)]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = Path(name)
        servers = start(stack, "draft", drafting, work), start(stack, "no_draft", [*shared, "--no-draft"], work)
        idle = {server.name: idle_cores(server) for server in servers}
        measured = measure(servers, by_round, levels, load, work)
    identical = check_same_texts(measured)
    conditions: dict[str, JsonValue] = {"idle_cores": {**idle}, "identical_texts": {**identical}}
    raw = [Run(benchmark=NAME, measured=one) for one in (conditions, *(one.raw() for one in measured))]
    figures = speedup_figures(measured)
    provenance = Provenance.now(arguments, [seed], options.inputs(model=model, draft=draft, prompts=prompts))
    ResultFile(provenance=provenance, runs=raw, figures=figures).write(out)
    options.show(figures)


if __name__ == "__main__":
    options.run(main)
