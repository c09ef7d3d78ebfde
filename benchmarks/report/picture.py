# SPDX-License-Identifier: Apache-2.0
"""A picture of a real streamed chat, each token in the colour of the model that proposed it.

`python -m aerie.benchmarks.report.picture --out docs/assets/first-light.svg`, against a server started with
`aerie serve --speculation-statistics detailed`.
"""

import io
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.terminal_theme import MONOKAI
from rich.text import Text

from aerie.artefacts import write_atomic
from aerie.benchmarks import options
from aerie.benchmarks.report.svg import FORMAT
from aerie.benchmarks.report.transcript import Origin, Transcript, read_stream, transcript
from aerie.benchmarks.results_file import ResultFile

WIDTH = 100
QUESTION = "I have a heavy squeezing pain in the middle of my chest. Should I worry?"
STYLES: dict[Origin, str] = {"main": "bold white", "draft": "green"}


def ask(url: str, question: str, max_tokens: int) -> tuple[str, Transcript]:
    """Stream one chat at temperature 0; the name of the model and the transcript."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    model = client.models.list().data[0].id
    started = time.monotonic()
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=max_tokens,
        logprobs=True,
        stream=True,
        stream_options={"include_usage": True},
    )
    tokens, statistics = read_stream(stream)
    return model, transcript(tokens, statistics, time.monotonic() - started)


def answer_text(told: Transcript) -> Text:
    """The answer in two colours."""
    text = Text()
    for token, origin in told.tokens:
        if not token.startswith("<|"):
            text.append(token, STYLES[origin])
    return text


def statistics_text(told: Transcript) -> Text:
    """What the request cost: tokens, steps, mean acceptance length, and a bar for each histogram entry."""
    counts = told.acceptance
    text = Text.assemble(
        (f"{len(told.tokens)} tokens in {counts.steps + 1} steps of the main model", "bold"),
        f" · mean acceptance length {counts.length:.2f} · {counts.rate:.0%} of drafts accepted\n",
    )
    for accepted, count in enumerate(counts.histogram):
        bar = "█" * round(40 * count / max(counts.histogram))
        text.append(f"{accepted} of {counts.draft_tokens} accepted ", "dim").append(f"{bar} {count}\n", "green")
    return text


def measured_text(results: ResultFile) -> Text:
    """The committed figures over many prompts, since one answer is an anecdote."""
    figures = results.figures
    return Text.assemble(
        "over held-out consultations: acceptance length ",
        (f"{figures['acceptance_length']:.2f}", "bold cyan"),
        ", ",
        (f"{figures['speedup_c1']:.2f}× ± {figures['speedup_c1_std']:.2f}", "bold cyan"),
        " the tokens/s of no draft",
    )


def draw(model: str, question: str, told: Transcript, results: ResultFile | None) -> str:
    """The terminal as SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("$ aerie serve --speculation-statistics detailed", "dim"))
    console.print(Text.assemble(("you  ", "bold cyan"), question))
    legend = Text.assemble(("■ drafted and accepted", "green"), "   ", ("■ main model", "bold white"))
    console.print(Panel(answer_text(told), title=model, subtitle=legend, border_style="bright_black"))
    parts = [statistics_text(told)] + ([measured_text(results)] if results else [])
    console.print(Group(*parts))
    return console.export_svg(title="aerie", theme=MONOKAI, code_format=FORMAT, unique_id="aerie")


def main(
    out: Annotated[Path, typer.Option(dir_okay=False, help="SVG file to write.")],
    url: Annotated[str, typer.Option(help="A running server.")] = "http://127.0.0.1:8000",
    question: Annotated[str, typer.Option(help="What to ask.")] = QUESTION,
    max_tokens: options.MaxTokens = 256,
    results: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Result file with `speedup_c1` and `acceptance_length`, shown too."
        ),
    ] = None,
) -> None:
    """Stream a chat from a running server and draw it."""
    model, told = ask(url, question, max_tokens)
    write_atomic(out, draw(model, question, told, ResultFile.read(results) if results else None))
    Console().print(answer_text(told), statistics_text(told))


if __name__ == "__main__":
    options.run(main)
