# SPDX-License-Identifier: Apache-2.0
"""One streamed chat, and which of its tokens came from the draft."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from aerie.benchmarks.errors import BenchmarkError
from aerie.draft_models.acceptance import AcceptanceCounts

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionChunk

Origin = Literal["main", "draft"]
FIX = "serve with --speculation-statistics detailed and a draft"


class TranscriptError(BenchmarkError):
    """The stream does not tell what the picture needs."""


@dataclass(frozen=True)
class Transcript:
    """Tokens as text in order, each with the model that proposed it, and the request's statistics."""

    tokens: tuple[tuple[str, Origin], ...]
    acceptance: AcceptanceCounts
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens over the time from request to last chunk."""
        return len(self.tokens) / self.seconds


def origins(per_step_accepted: Sequence[int], count: int) -> list[Origin]:
    """Who proposed each of `count` tokens: the main model the first, then in each step the draft and the main model.

    The last step may have run past the end of the answer. Raises TranscriptError when the steps make too few tokens.
    """
    made: list[Origin] = ["main"]
    for accepted in per_step_accepted:
        made += ["draft"] * accepted
        made.append("main")
    if len(made) < count:
        raise TranscriptError(f"{len(per_step_accepted)} steps explain {len(made)} of {count} tokens")
    return made[:count]


def read_stream(chunks: Iterable["ChatCompletionChunk"]) -> tuple[list[str], dict[str, Any]]:
    """Every token's text, from the log-probabilities that each chunk carries, and the last chunk's statistics."""
    tokens: list[str] = []
    statistics: dict[str, Any] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            if choice.logprobs is not None:
                tokens += [one.token for one in choice.logprobs.content or []]
        statistics = ((chunk.model_extra or {}).get("metrics") or {}).get("speculative_decoding") or statistics
    return tokens, statistics


def transcript(tokens: Sequence[str], statistics: dict[str, Any], seconds: float) -> Transcript:
    """Join tokens and statistics; raises TranscriptError when the server does not tell each step."""
    if "per_step_accepted" not in statistics:
        raise TranscriptError(f"the server tells no statistics of each step; {FIX}")
    acceptance = AcceptanceCounts(
        histogram=tuple(statistics["acceptance_histogram"]), drafted=statistics["num_draft_tokens"]
    )
    origin = origins(statistics["per_step_accepted"], len(tokens))
    return Transcript(tuple(zip(tokens, origin, strict=True)), acceptance, seconds)
