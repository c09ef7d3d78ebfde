# SPDX-License-Identifier: Apache-2.0
"""`aerie bench acceptance`, `quality` and `check`: whether what is served is still as good as it was."""

from pathlib import Path
from typing import Annotated

import typer

checks = typer.Typer()

_FOLDER = {"exists": True, "file_okay": False}
Out = Annotated[Path, typer.Option("--out", dir_okay=False, help="Result file.")]
Work = Annotated[Path, typer.Option("--work", file_okay=False, help="Where measured points are kept; may be removed.")]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        exists=True,
        dir_okay=False,
        help="Chats, or a file of ShareGPT, Spec-Bench, SPEED-Bench, MT-Bench, GSM8K, HumanEval or HealthBench.",
        show_default="the clinic's held-out patients",
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Of prompts and sampling.")]
DraftTokens = Annotated[int, typer.Option("--draft-tokens", min=1, help="K: tokens drafted per step.")]


@checks.command("acceptance")
def bench_acceptance(
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant", metavar="NAME=MODEL,DRAFT", help="A pair to measure; repeat it.", show_default="shipped demo"
        ),
    ] = None,
    out: Out = Path("acceptance.json"),
    draft_tokens: DraftTokens = 4,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: greedy.")] = 0.0,
    count: Annotated[int, typer.Option("--count", min=1, help="Prompts of each domain.")] = 16,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Of an answer.")] = 256,
    seed: Seed = 0,
    prompts: Prompts = None,
    work: Work = Path("runs/acceptance"),
) -> None:
    """Mean acceptance length by domain and by position, of one or several pairs of main model and draft.

    Ctrl-C keeps what was measured; the same command goes on from there.
    """
    from aerie.benchmarks.acceptance.by_domain import Settings, run

    settings = Settings(
        draft_tokens=draft_tokens,
        temperature=temperature,
        count=count,
        max_tokens=max_tokens,
        seed=seed,
        prompts=prompts,
    )
    run(out, variant or [], settings, work)


@checks.command("quality")
def bench_quality(
    out: Out = Path("quality.json"),
    model: Annotated[
        Path | None, typer.Option("--model", **_FOLDER, help="Main model.", show_default="the demo's")
    ] = None,
    draft: Annotated[Path | None, typer.Option("--draft", **_FOLDER, help="Draft.", show_default="the demo's")] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", **_FOLDER, help="16-bit model that --model was made of.")
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="About a tenth of everything, to see that it works.")] = False,
    draft_tokens: DraftTokens = 4,
    seed: Seed = 0,
    prompts: Prompts = None,
    work: Work = Path("runs/quality"),
) -> None:
    """Whether the draft changes the output, at temperatures 0 and 1, and whether INT4 does.

    --prompts are those of the first; quality is measured on the clinic's held-out patients. Ctrl-C keeps what was
    measured; the same command goes on from there.
    """
    from aerie.benchmarks.options import DEMO_DRAFT, DEMO_MODEL
    from aerie.benchmarks.quality.whole import SMALL, Amount, Subject, run

    subject = Subject(
        model=model or DEMO_MODEL,
        draft=draft or DEMO_DRAFT,
        reference=reference,
        draft_tokens=draft_tokens,
        seed=seed,
        prompts=prompts,
    )
    run(out, subject, SMALL if small else Amount(), work)


@checks.command("check")
def bench_check(
    model: Annotated[
        Path | None, typer.Option("--model", **_FOLDER, help="Main model.", show_default="the demo's")
    ] = None,
    draft: Annotated[Path | None, typer.Option("--draft", **_FOLDER, help="Draft.", show_default="the demo's")] = None,
    floors: Annotated[
        Path | None, typer.Option("--floors", dir_okay=False, help="Bounds.", show_default="the committed ones")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", dir_okay=False, help="Result file, if one is wanted.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="Put the bounds around what is measured now, with the same margins.")
    ] = False,
) -> None:
    """Whether acceptance and INT4 quality of the shipped demo are still above their floors; about a minute.

    Exits with 1 and names what fell below, and by how much. No time is measured.
    """
    from aerie.benchmarks.options import DEMO_DRAFT, DEMO_MODEL
    from aerie.benchmarks.regression.floors import COMMITTED
    from aerie.benchmarks.regression.run import run

    run(model or DEMO_MODEL, draft or DEMO_DRAFT, floors or COMMITTED, out, record=record)
