# SPDX-License-Identifier: Apache-2.0
"""What a trial is asked and answers. Imports nothing heavy: the server reads it before it loads an engine."""

from typing import Literal, NamedTuple

Kind = Literal["json", "regex", "ebnf", "lark", "tag"]
"""What a grammar is written as; `tag` is a structural tag."""
Outcome = Literal["fine", "unparsable", "endless", "uncompilable", "slow", "costly", "lost"]


class Verdict(NamedTuple):
    """What came of a trial.

    `slow` is of matching and `costly` of compiling; `lost` says nothing of the grammar, as the process ended with
    another. `detail` is the compiler's message, or the rule that cannot end.
    """

    outcome: Outcome
    detail: str = ""
