# SPDX-License-Identifier: Apache-2.0
"""`aerie bench serving`, a command of cli_bench.py whose options take a screen of their own."""

from pathlib import Path
from typing import Annotated

import typer

FOLDER = {"exists": True, "file_okay": False}
Out = Annotated[Path, typer.Option("--out", dir_okay=False, help="Result file to write.")]
Model = Annotated[
    Path | None,
    typer.Option(
        "--model", **FOLDER, help="Main model; of a URL its tokenizer and chat template.", show_default="the demo's"
    ),
]
Draft = Annotated[
    Path | None, typer.Option("--draft", **FOLDER, help="Draft of the kN.", show_default="the demo's, or MODEL/draft")
]
DraftTokens = Annotated[
    list[str] | None,
    typer.Option(
        "--draft-tokens",
        help="K of the variants kN, such as 1,2,4; `none` is beside them.",
        show_default="4, and with URLs alone neither",
    ),
]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        metavar="NAME=URL|OPTIONS",
        help="A running server, ours or another engine's, or options of an `aerie serve` to start. Repeat it.",
    ),
]
ModelName = Annotated[
    str | None,
    typer.Option("--model-name", help="What servers of a URL call the model.", show_default="the first one they list"),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        metavar="[NAME=]FILE",
        help="Chats, or a file of a known set as `aerie bench acceptance` takes it; each is measured. Repeat it.",
        show_default="the clinic's held-out consultations",
    ),
]
Concurrency = Annotated[
    list[str] | None, typer.Option("--concurrency", help="Requests at once.", show_default="1,2,4,8")
]
Temperature = Annotated[
    list[str] | None, typer.Option("--temperature", help="Such as 0,0.7; each is measured.", show_default="0")
]
ServeOption = Annotated[
    list[str] | None,
    typer.Option("--serve-option", help="For every server that is started, as `--name=value`. Repeat it."),
]


def bench_serving(
    out: Out,
    model: Model = None,
    draft: Draft = None,
    draft_tokens: DraftTokens = None,
    variant: Variants = None,
    model_name: ModelName = None,
    prompts: Prompts = None,
    concurrency: Concurrency = None,
    temperature: Temperature = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Every variant runs in each.")] = 3,
    count: Annotated[
        int,
        typer.Option("--count", min=1, help="Prompts of a measurement; twice the requests at once if that is more."),
    ] = 32,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer; most end before.")] = 256,
    goodput_ttft_ms: Annotated[
        float | None,
        typer.Option("--goodput-ttft-ms", min=0, help="Longest time to the first token of a good request."),
    ] = None,
    goodput_tpot_ms: Annotated[
        float | None, typer.Option("--goodput-tpot-ms", min=0, help="Longest time per token after it.")
    ] = None,
    serve_option: ServeOption = None,
    work: Annotated[
        Path, typer.Option("--work", file_okay=False, help="Where finished measurements and logs are kept.")
    ] = Path("runs/bench-serving"),
    seed: Annotated[int, typer.Option("--seed", help="Of the prompts.")] = 0,
) -> int:
    """Compare servers under load, in turns: tokens/s, latency, goodput, acceptance, over requests at once.

    Without options: the demo without a draft and with it. Ctrl-C keeps what was measured, and the same command goes on.
    docs/benchmarks.md tells how to point it at a server of yours.
    """
    from aerie.benchmarks.options import DEMO_MODEL
    from aerie.benchmarks.serving.bench import Command, run
    from aerie.benchmarks.serving.chosen import Servers, decimals, numbers
    from aerie.benchmarks.serving.sweep import SweepOptions

    model = model or DEMO_MODEL
    goodput = {"ttft": goodput_ttft_ms, "tpot": goodput_tpot_ms}
    options = SweepOptions(
        model=model,
        concurrencies=numbers("--concurrency", concurrency or ["1,2,4,8"], 1),
        temperatures=decimals("--temperature", temperature or ["0"]),
        rounds=rounds,
        count=count,
        max_tokens=max_tokens,
        goodput={name: most for name, most in goodput.items() if most is not None},
        seed=seed,
    )
    servers = Servers(
        model=model,
        draft=draft,
        draft_tokens=numbers("--draft-tokens", draft_tokens, 0) if draft_tokens else None,
        variants=tuple(variant or ()),
        model_name=model_name,
        serve_options=tuple(serve_option or ()),
    )
    return run(Command(out, servers, tuple(prompts or ()), options, work))
