# SPDX-License-Identifier: Apache-2.0
"""`aerie bench`: the benchmarks as commands. Each imports its room when it runs, so that `--help` answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from aerie.cli_checks import checks
from aerie.cli_report import reports
from aerie.cli_serving import bench_serving

bench = typer.Typer(no_args_is_help=True, help="Measure on this machine, into files that say how.")
bench.add_typer(checks)
bench.add_typer(reports)
bench.command("serving")(bench_serving)


@bench.command("cost")
def bench_cost(
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="Result file to write.")],
    model: Annotated[
        Path | None, typer.Option("--model", exists=True, file_okay=False, show_default="the demo's")
    ] = None,
    draft: Annotated[
        Path | None, typer.Option("--draft", exists=True, file_okay=False, show_default="the demo's, or MODEL/draft")
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option("--batch", help="Requests in a step.", show_default="1,2,4,8,16,32")
    ] = None,
    draft_tokens: Annotated[
        list[str] | None, typer.Option("--draft-tokens", help="K; 0 is added.", show_default="1,2,3,4,5,6,7")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Every point is measured in each.")] = 3,
    work: Annotated[Path, typer.Option("--work", file_okay=False, help="Where finished points are kept.")] = Path(
        "runs/bench-cost"
    ),
    seed: Annotated[int, typer.Option("--seed", help="Of prompts and engine.")] = 0,
) -> int:
    """Tell what a drafted token and a verified row cost, whatever the draft is worth; on a CPU, in one engine."""
    from aerie.benchmarks.options import DEMO_MODEL
    from aerie.benchmarks.serving.chosen import draft_beside, numbers
    from aerie.benchmarks.serving.cost import CostOptions, run
    from aerie.server.errors import BadOption

    model = model or DEMO_MODEL
    found = draft_beside(model, draft)
    if found is None:
        raise BadOption("--draft", f"none is named, and {model} has none in the folder `draft`", "name one")
    chosen = CostOptions(
        model=model,
        draft=found,
        batches=numbers("--batch", batch or ["1,2,4,8,16,32"], 1),
        draft_tokens=tuple(sorted({0, *numbers("--draft-tokens", draft_tokens or ["1,2,3,4,5,6,7"], 0)})),
        rounds=rounds,
        seed=seed,
    )
    return run(out, chosen, work)


@bench.command("kernels")
def bench_kernels(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", dir_okay=False, help="Result file; the picture goes beside it.", show_default="kernels-GPU.json"
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=5, help="Of each point, fewer where time is short.")] = 30,
    budget: Annotated[float, typer.Option("--budget", min=10, help="Seconds for checks and times.")] = 420,
    tune: Annotated[bool, typer.Option("--tune", help="Search for cuts first, and write this GPU's table.")] = False,
    tune_budget: Annotated[float, typer.Option("--tune-budget", min=10, help="Further seconds, for --tune.")] = 600,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, activations and routing.")] = 0,
) -> int:
    """Check and time our Triton kernels on this GPU, beside cuBLAS and vLLM's, in less than eight minutes.

    Ctrl-C ends it early and keeps what was measured. docs/benchmarks.md tells how to read the result.
    """
    from aerie.benchmarks.kernels.gpu.run import Options, run

    return run(out, Options(rounds, budget, tune, tune_budget, seed))
