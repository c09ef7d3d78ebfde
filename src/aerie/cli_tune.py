# SPDX-License-Identifier: Apache-2.0
"""`aerie tune` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from aerie.artefacts import REPOSITORY

DEMO = REPOSITORY / "checkpoints/clinic-demo"
LEVELS = ("1,2,4,8,16,32",)
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", exists=True, dir_okay=False, help="JSONL of chats.", show_default="held-out patients"),
]
Work = Annotated[Path, typer.Option("--work", file_okay=False, help="Keeps what is measured, to go on from.")]


def tune(
    model: Annotated[
        Path, typer.Option("--model", exists=True, file_okay=False, help="Main model.", show_default="the demo's")
    ] = DEMO / "main",
    draft: Annotated[
        Path, typer.Option("--draft", exists=True, file_okay=False, help="Its draft.", show_default="the demo's")
    ] = DEMO / "draft",
    *,
    tuning: Annotated[
        Path | None,
        typer.Option("--tuning", dir_okay=False, help="File to write.", show_default="where `aerie serve` looks"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", dir_okay=False, help="Result file.")] = Path("tuned-speculation.json"),
    prove: Annotated[bool, typer.Option(help="Compare the schedule with every K and none, over HTTP.")] = True,
    draft_tokens: Annotated[int, typer.Option("--draft-tokens", min=1, max=16, help="Largest K that is tried.")] = 7,
    concurrency: Annotated[
        list[str] | None,
        typer.Option("--concurrency", help="Requests at once, such as 1,2,4.", show_default="1,2,4,8,16,32"),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Repeats of the proof.")] = 3,
    finals: Annotated[int, typer.Option("--finals", min=0, help="More repeats, of the schedule and the fastest.")] = 6,
    study_rounds: Annotated[int, typer.Option("--study-rounds", min=1, help="Repeats of the step times.")] = 2,
    trial_rounds: Annotated[int, typer.Option("--trial-rounds", min=0, help="Repeats of likely Ks under load.")] = 5,
    count: Annotated[int, typer.Option("--count", min=2, help="Least prompts of a turn under load.")] = 16,
    acceptance_count: Annotated[int, typer.Option("--acceptance-count", min=2, help="Prompts for acceptance.")] = 48,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=8, help="Longest answer.")] = 48,
    prompts: Prompts = None,
    serve_option: Annotated[
        list[str] | None, typer.Option("--serve-option", help="For all servers, as `--name=value`. Repeat it.")
    ] = None,
    work: Work = Path("runs/tune"),
    seed: Annotated[int, typer.Option("--seed", help="Of the prompts.")] = 0,
) -> int:
    """Find the fastest number of drafted tokens for each load on this machine, store it for `aerie serve`, prove it.

    Takes an hour and a half on two idle cores, most of it the proof. Ctrl-C keeps what was measured; the same command
    goes on from there.
    """
    from aerie.benchmarks.serving.chosen import numbers
    from aerie.benchmarks.tune.run import Options, run

    chosen = Options(
        model=model,
        draft=draft,
        most=draft_tokens,
        concurrencies=numbers("--concurrency", concurrency or LEVELS, 1),
        rounds=rounds,
        finals=finals,
        count=count,
        max_tokens=max_tokens,
        study_rounds=study_rounds,
        trial_rounds=trial_rounds,
        acceptance_count=acceptance_count,
        prompts=prompts,
        serve_options=tuple(serve_option or ()),
        proves=prove,
        work=work,
        seed=seed,
    )
    return run(chosen, tuning, out)
