# SPDX-License-Identifier: Apache-2.0
"""What the rules must know of the loaded engine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from aerie.server.shapes import Shape


@dataclass(frozen=True)
class Facts:
    """The engine as the rules see it: `shapes` by route, tokens, whether it speculates, what compiles its grammars."""

    shapes: Mapping[str, Shape]
    vocabulary: int
    context: int
    speculative: bool
    control_tokens: tuple[str, ...] = ()
    xgrammar: bool = True

    @cached_property
    def control(self) -> re.Pattern[str] | None:
        """What finds a control token in a text."""
        texts = sorted(filter(None, self.control_tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None
