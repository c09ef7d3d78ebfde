# SPDX-License-Identifier: Apache-2.0
"""The command line. Rooms are imported by the command that needs them, so that `--help` answers at once."""

import contextlib
import inspect
import itertools
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic.fields import FieldInfo
from rich.text import Text
from typer.core import TyperCommand
from typer.exceptions import TyperException

import aerie
from aerie.artefacts import OccupiedError
from aerie.benchmarks.errors import BenchmarkError
from aerie.cli_bench import bench
from aerie.cli_tune import tune
from aerie.quant.errors import QuantError
from aerie.server import account, settings
from aerie.server.errors import BadOption, EngineFailed
from aerie.server.settings import Dtype
from aerie.trainer.errors import TrainerError

app = typer.Typer(name="aerie", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
train = typer.Typer(no_args_is_help=True, help="Train the main model or a draft from a recipe.")
app.add_typer(train, name="train")
draft = typer.Typer(no_args_is_help=True, help="Look at a trained draft.")
app.add_typer(draft, name="draft")
app.add_typer(bench, name="bench")
app.command()(tune)

SOURCES = (
    ("MODEL", "The main model, as --model names it; before any option of vLLM's."),
    ("--config FILE", "YAML file of the options below, such as `draft_tokens: 4`; also AERIE_CONFIG."),
    ("OPTION of vLLM", "Any other option of `vllm serve`, such as `--tool-call-parser hermes`; its --help lists them."),
    ("--no-draft", "Serve without speculation: the same as `--draft none`."),
    ("--help", "Show this page."),
)

RENAMED_FLAGS = {"--most": "--draft-tokens", "--scenario": "--prompts", "--target": "--model"}
"""Earlier names -> what every command calls it."""
SHORT_FLAGS = {"tensor_parallel_size": ("-tp",)}
"""Of vLLM, for options that are ours as well."""

Recipe = Annotated[Path, typer.Option("--recipe", help="YAML recipe; `trainer/recipes/` holds those of the demo.")]
OptionalRecipe = Annotated[Path | None, typer.Option("--recipe", help="YAML recipe.", show_default="group 64, RTN")]


def main() -> None:
    """Entry point. Every mistake of the user's is one line on stderr and exit status 2, what fails ends with 1."""
    try:
        status = app(standalone_mode=False)
    except (BadOption, BenchmarkError, EngineFailed, OccupiedError, QuantError, TrainerError, TyperException) as error:
        status = _complain(error)
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    sys.exit(status)


def _complain(error: Exception) -> int:
    """Say it in one line; returns the exit status."""
    message = error.format_message() if isinstance(error, TyperException) else str(error)
    if (renamed := RENAMED_FLAGS.get(getattr(error, "option_name", ""))) is not None:
        message = f"{error.option_name} is now {renamed}"  # type: ignore[attr-defined]  # click's, private to typer
    with contextlib.suppress(OSError):  # the status tells, where a full disk keeps the line
        print(" ".join(("aerie: error:", *message.split())), file=sys.stderr, flush=True)
    return 1 if isinstance(error, BenchmarkError | EngineFailed) else 2


def _leave(status: int) -> NoReturn:
    """End a process that ran vLLM. Its own processes are gone, and nothing is left to save.

    The interpreter's shutdown would wait for an import that a loading thread is in, and print the leak reports of
    libraries that vLLM brings.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"aerie {aerie.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serve INT4 models with gated Eagle-3 drafting on vLLM, and train the drafts."""
    account.check_home(os.environ)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """The command-line option of one field of the schema."""
    long = settings.flag(name)
    switch = settings.is_boolean(field)
    option = typer.Option(f"{long}/--no-{long[2:]}" if switch else long, *SHORT_FLAGS.get(name, ()))
    kind = bool if switch else str
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _with_settings(command: Callable[..., NoReturn]) -> Callable[..., NoReturn]:
    """Give a command the options of the settings schema."""
    own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "values"]
    generated = [_parameter(name, field) for name, field in settings.fields().items()]
    command.__signature__ = inspect.Signature([*own, *generated])  # type: ignore[attr-defined]  # typer reads it
    return command


class ServeCommand(TyperCommand):
    """`aerie serve`, with a help page whose names are never cut: rich's panels cut them at 80 columns."""

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - their classes are private to typer
        """Print the usage, then the options by group, each with its variable and default."""
        from rich.console import Console
        from rich.table import Table

        from aerie.server.reference import rows

        console = Console()
        console.print(f"Usage: {ctx.command_path} [MODEL] [OPTIONS]\n\n{self.help}\n", markup=False, highlight=False)
        listed = [("Sources", usage, text, "") for usage, text in SOURCES]
        listed += [(row.group, row.usage, row.text, f"{row.variable}, default {row.default}") for row in rows()]
        for group, options in itertools.groupby(listed, key=lambda entry: entry[0]):
            table = Table.grid(padding=(0, 2, 0, 2))
            table.add_column(no_wrap=True, style="bold cyan", min_width=26)
            table.add_column(overflow="fold")
            for _, usage, text, note in options:
                table.add_row(Text(usage), Text.assemble(text, "\n" if note else "", (note, "dim")))
            console.print(group, style="bold")
            console.print(table)


@app.command(cls=ServeCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@_with_settings
def serve(
    context: typer.Context,
    *,
    config: Annotated[Path | None, typer.Option("--config", envvar="AERIE_CONFIG")] = None,
    no_draft: Annotated[bool, typer.Option("--no-draft")] = False,
    **values: str | bool | None,
) -> NoReturn:
    """Serve a model over the OpenAI API; without options the shipped demo.

    A flag wins over its AERIE_* variable, the variable over the YAML file, the file over the default. Options that are
    not listed here go to vLLM, whose parser judges them.
    """
    from aerie.server.run import run
    from aerie.server.sources import load

    typed = {name: value for name, value in values.items() if _typed(context, name)}
    if no_draft:
        if typed.get("draft", settings.NONE) != settings.NONE:
            raise BadOption("--no-draft", "--draft is given too", "leave one of them out")
        typed["draft"] = settings.NONE
    chosen = load(typed, os.environ, config, context.args)
    try:
        run(chosen)
    except (BadOption, EngineFailed) as error:
        _leave(_complain(error))
    _leave(0)


def _typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.command()
def doctor(
    json_output: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Checkpoint, of a model or a draft: tell which kernel serves which layers."),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option("--dtype", help="For --model: type of the activations; auto as `aerie serve` has it.")
    ] = "auto",
) -> int:
    """Tell what this machine can run, what is off and why; exits non-zero with the fix when something is missing."""
    from aerie.server.doctor import examine, safely, show

    findings = examine()
    if model is not None:
        from aerie.server.doctor_checkpoint import checkpoint

        findings += safely(partial(checkpoint, model, None if dtype == "auto" else dtype))
    return show(findings, as_json=json_output)


@app.command()
def key(name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is; the log says it.")]) -> None:
    """Make an API key: the key itself, shown this once, and its line for the file of --api-key-file."""
    from aerie.server.keys import make_key

    made, line = make_key(name)
    print(f"The key, for {name} alone; it is not kept anywhere:", file=sys.stderr)
    print(made, flush=True)
    print("The line for the file of keys:", file=sys.stderr)
    print(line)


@train.command("main")
def train_main(recipe: Recipe) -> None:
    """Train a main model from nothing on the embedded clinic."""
    from aerie.trainer.main.run import run

    print(run(recipe))


@train.command("draft")
def train_draft(
    recipe: Recipe,
    *,
    prepare: Annotated[bool, typer.Option("--prepare", help="Only make the answers and captured states.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print sizes and times, and run nothing.")] = False,
    device: Annotated[str, typer.Option("--device", help="For --plan: h100, h200 or h20.")] = "h100",
    devices: Annotated[int, typer.Option("--devices", help="For --plan: how many of them.")] = 1,
) -> None:
    """Train an Eagle-3 head for an INT4 model: prompts, answers, capture, training, export."""
    if plan:
        from aerie.trainer.draft.plan import show

        show(recipe, device, devices)
        return
    from aerie.trainer.draft.run import run

    print(run(recipe, prepare_only=prepare))


@draft.command("verify")
def draft_verify(
    draft: Annotated[str, typer.Argument(metavar="DRAFT", help="Folder of the draft, or its name on the hub.")],
    model: Annotated[str, typer.Option("--model", help="The main model that it is served with.")],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="JSONL of chats.", show_default="made-up tokens")
    ] = None,
    draft_tokens: Annotated[int, typer.Option("--draft-tokens", min=2, help="K: tokens drafted per step.")] = 4,
    engine: Annotated[bool, typer.Option(help="Compare logits in vLLM; without, only the files are checked.")] = True,
) -> NoReturn:
    """Check that DRAFT fits its target, and that vLLM computes the logits that the trainer does.

    Exits with 0 when all holds, with 1 and the reason when not, with 2 when there is nothing to check.
    """
    from aerie.draft_models.verify import verify
    from aerie.server.plan import find_checkpoint, read_config
    from aerie.server.trust import check_folder

    folders = [find_checkpoint("DRAFT", draft), find_checkpoint("--model", model)]
    for option, folder in zip(("DRAFT", "--model"), folders, strict=True):
        read_config(option, folder)
        check_folder(option, folder)
    rendered = None
    if prompts is not None:
        from aerie.draft_models.offline import render
        from aerie.trainer.draft.prompts import load_prompts
        from aerie.trainer.draft.recipe import JsonlPrompts

        rendered = [ids for _, ids in render(folders[1], load_prompts(JsonlPrompts(path=prompts)))]
    _leave(verify(*folders, prompts=rendered, draft_tokens=draft_tokens, engine=engine))


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="16-bit checkpoint: a folder or its name on the hub.")],
    out: Path,
    recipe: OptionalRecipe = None,
) -> None:
    """Write the INT4 twin of the 16-bit checkpoint MODEL to the folder OUT."""
    from aerie.server.plan import find_checkpoint
    from aerie.trainer.quantise import Recipe, run

    report = run(find_checkpoint("MODEL", model), out, Recipe() if recipe is None else Recipe.from_yaml(recipe))
    sizes = f"{report.bytes_before / 1e6:.1f} MB became {report.bytes_after / 1e6:.1f} MB ({report.ratio:.0%})"
    print(f"{out}: {sizes}, relative error of the weights {report.relative_error:.4f}")
    if report.quality is not None:
        quality = report.quality
        print(
            f"held-out text: perplexity {quality.perplexity_before:.4f} became {quality.perplexity_after:.4f} "
            f"({quality.perplexity_loss:+.2%}), same first token for {quality.top1_agreement:.2%}"
        )
    if report.acceptance is not None:
        drafted = report.acceptance
        print(f"{drafted.draft}: mean acceptance length {drafted.before:.3f} became {drafted.after:.3f}")
