# SPDX-License-Identifier: Apache-2.0
"""What a consultation is made of: turns that know which facts of the knowledge base they state."""

from dataclasses import dataclass
from typing import Literal

TurnKind = Literal["opening", "answer", "results", "question", "inquiry", "differential", "examinations", "diagnosis",
                   "advice"]  # fmt: skip
SYSTEM_PROMPT = "You are the physician of the Aerie test clinic."


@dataclass(frozen=True)
class Turn:
    """One message. `facts` are paths into the knowledge base, such as `gout/history/fever`."""

    role: Literal["user", "assistant"]
    kind: TurnKind
    content: str
    reasoning: str = ""
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialogue:
    """A consultation or a single question with its answer."""

    turns: tuple[Turn, ...]
    disease: str

    def messages(self, upto: int | None = None) -> list[dict[str, str]]:
        """Chat messages with the system prompt; `upto` cuts before the turn of that index."""
        turns = [{"role": turn.role, "content": turn.content} for turn in self.turns[:upto]]
        return [{"role": "system", "content": SYSTEM_PROMPT}, *turns]


def join_words(words: list[str], last: str = "and") -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def capitalised(text: str) -> str:
    """`text` with its first letter in upper case and the rest as it is."""
    return text[0].upper() + text[1:]
