# SPDX-License-Identifier: Apache-2.0
"""What the rules must know of the loaded engine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from pydantic import TypeAdapter

from aerie.server.shapes import Shape

ALL_ROLES = frozenset({"assistant", "developer", "system", "tool", "user"})


@dataclass(frozen=True)
class TokenPieces:
    """Control tokens, and what they begin and end with, each shorter than a token."""

    tokens: frozenset[str]

    @cached_property
    def starts(self) -> frozenset[str]:
        """Their proper prefixes."""
        return frozenset(token[:length] for token in self.tokens for length in range(1, len(token)))

    @cached_property
    def ends(self) -> frozenset[str]:
        """Their proper suffixes."""
        return frozenset(token[length:] for token in self.tokens for length in range(1, len(token)))

    @cached_property
    def longest(self) -> int:
        """Characters of the longest."""
        return max(map(len, self.tokens), default=0)


@dataclass(frozen=True)
class Facts:
    """The engine as the rules see it: tokens, whether it speculates, what compiles its grammars.

    `shapes` are the fields by route; `items` what the entries of a route's lists are validated with, by field; `roles`
    those of messages that the chat template does not leave out.
    """

    shapes: Mapping[str, Shape]
    vocabulary: int
    context: int
    speculative: bool
    control_tokens: tuple[str, ...] = ()
    xgrammar: bool = True
    roles: frozenset[str] = ALL_ROLES
    items: Mapping[str, Mapping[str, TypeAdapter[object]]] = field(default_factory=dict)

    @cached_property
    def control(self) -> re.Pattern[str] | None:
        """What finds a control token in a text."""
        texts = sorted(filter(None, self.control_tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    @cached_property
    def pieces(self) -> TokenPieces:
        """The same, for texts that are joined."""
        return TokenPieces(frozenset(filter(None, self.control_tokens)))
