# SPDX-License-Identifier: Apache-2.0
"""How many tokens will be drafted, and why: what `--speculation` and `--draft-tokens` amount to here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aerie.server.errors import BadOption
from aerie.server.settings import AUTO, NGRAM, ServeSettings
from aerie.server.tuning import Range, Setup, Tuning, TuningError, default_path, describe
from aerie.server.vllm_options import base

FIXED = "fixed"
OPTION = "--speculation"
TUNE_AGAIN = "run `aerie tune` here, or choose auto or fixed"


@dataclass(frozen=True)
class Speculation:
    """What the engine is told."""

    draft_tokens: int
    """The largest K; 0 for no draft at all."""
    schedule: tuple[Range, ...] | None
    """K by the number of requests in a step, where it is not the same for all."""
    text: str
    """What was chosen and why, for the log and `/aerie/status`."""
    warning: str | None = None

    @classmethod
    def fixed(cls, draft_tokens: int, why: str, warning: str | None = None) -> "Speculation":
        """The same K for every step."""
        return cls(draft_tokens, None, f"{why}; fixed K = {draft_tokens}", warning)

    @classmethod
    def tuned(cls, tuning: Tuning) -> "Speculation":
        """As a tuning has it."""
        text = f"tuned on {tuning.measured.isoformat()}: {describe(tuning.schedule)}"
        return cls(max(draft_tokens for _, _, draft_tokens in tuning.schedule), tuning.schedule, text)


NO_DRAFT = Speculation(0, None, "no draft")


def choose(settings: ServeSettings, here: Callable[[], Setup]) -> Speculation:
    """Decide for a model with a draft; `here` reads parts of both checkpoints, and is called only where it matters.

    Raises:
        BadOption: the file that `--speculation` names cannot be used here.
    """
    typed = "draft_tokens" in settings.model_fields_set
    if settings.speculation == FIXED:
        return Speculation.fixed(settings.draft_tokens, "no tuning is looked for")
    parallel = _data_parallel(settings)
    if settings.speculation != AUTO:
        if typed:
            raise BadOption(OPTION, "--draft-tokens is given too, and a tuning file tells K", "leave one of them out")
        if parallel:
            raise BadOption(OPTION, "vLLM has no schedules with data parallelism", "choose fixed")
        return _named(Path(settings.speculation).expanduser(), here())
    if typed:
        return Speculation.fixed(settings.draft_tokens, "--draft-tokens is given, and wins over a stored tuning")
    if parallel:
        return Speculation.fixed(settings.draft_tokens, "vLLM has no schedules with data parallelism")
    return _stored(settings.draft_tokens, here())


def no_draft(settings: ServeSettings) -> Speculation:
    """For a model without a draft, which may still draft n-grams.

    Raises:
        BadOption: `--speculation` names a file.
    """
    if settings.speculation not in {AUTO, FIXED}:
        raise BadOption(OPTION, "a tuning file is named, and there is no draft", "name the draft by --draft")
    return Speculation.fixed(settings.draft_tokens, "n-grams") if settings.draft == NGRAM else NO_DRAFT


def _named(path: Path, here: Setup) -> Speculation:
    try:
        tuning = Tuning.read(path)
    except TuningError as error:
        raise BadOption(OPTION, str(error), f"name a file that `aerie tune` wrote; {TUNE_AGAIN}") from error
    if differences := tuning.setup.differences(here):
        raise BadOption(OPTION, f"{path} was tuned for something else: {', '.join(differences)}", TUNE_AGAIN)
    return Speculation.tuned(tuning)


def _stored(draft_tokens: int, here: Setup) -> Speculation:
    """Whatever lies in the folder of tunings, the server starts."""
    path = default_path(here)
    missing = "no tuning for this machine and these checkpoints; run `aerie tune`"
    try:
        if not path.exists():
            return Speculation.fixed(draft_tokens, missing)
        tuning = Tuning.read(path)
    except (OSError, TuningError) as error:
        return Speculation.fixed(draft_tokens, "the stored tuning is damaged; run `aerie tune`", f"ignored: {error}")
    if differences := tuning.setup.differences(here):
        ignored = f"ignored: {path} was tuned for something else: {', '.join(differences)}"
        return Speculation.fixed(draft_tokens, missing, ignored)
    return Speculation.tuned(tuning)


def _data_parallel(settings: ServeSettings) -> bool:
    named = {base(name): value for name, value in settings.engine_options.items()}
    return named.get("data_parallel_size", 1) not in {1, "1"}
