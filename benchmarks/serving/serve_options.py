# SPDX-License-Identifier: Apache-2.0
"""Options of an `aerie serve` that is to be started: what they say, and whether it would take them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from aerie.server.errors import BadOption
from aerie.server.plan import Plan, make_plan
from aerie.server.settings import NONE, fields, flag, is_boolean
from aerie.server.sources import load

OURS = ("--host", "--port")
"""The benchmark gives them itself."""


def told(arguments: Sequence[str], name: str) -> str | None:
    """The value of an option, given as `--flag value` or `--flag=value`; the last one wins, as for their parser."""
    found = [word.partition("=")[2] for word in arguments if word.startswith(f"{name}=")]
    found += [value for word, value in pairwise(arguments) if word == name]
    return found[-1] if found else None


def told_k(arguments: Sequence[str]) -> int | None:
    """K as the options tell it; `None` where they do not."""
    if "--no-draft" in arguments or told(arguments, "--draft") == NONE:
        return 0
    value = told(arguments, "--draft-tokens") or ""
    return int(value) if value.isdecimal() else None


@dataclass(frozen=True)
class CommandLine:
    """Arguments of `aerie serve`, as its command line takes them apart."""

    typed: dict[str, object]
    """Values by field, as text."""
    config: Path | None
    of_vllm: list[str]

    @classmethod
    def read(cls, arguments: Sequence[str]) -> Self:
        """Take them apart.

        Raises:
            BadOption: the benchmark gives one itself, or one has no value.
        """
        known, typed, config, left = {flag(name): name for name in fields()}, dict[str, object](), None, list(arguments)
        of_vllm: list[str] = []
        switches = {word: name for word, name in known.items() if is_boolean(fields()[name])}
        while left:
            word, equals, value = left.pop(0).partition("=")
            if word in switches:
                typed[switches[word]] = True
            elif word.startswith("--no-") and (name := switches.get(word.replace("--no-", "--", 1))) is not None:
                typed[name] = False
            elif word == "--no-draft":
                typed["draft"] = NONE
            elif word in OURS:
                raise BadOption(word, "it is given by the benchmark", "leave it out")
            elif not word.startswith("-"):
                raise BadOption(word, "it stands behind no option", "write it as --name=value")
            elif word not in {*known, "--config"}:
                of_vllm.append(word + equals + value)
                while left and not left[0].startswith("--"):
                    of_vllm.append(left.pop(0))
            elif not equals and not left:
                raise BadOption(word, "it has no value", f"give one: {word}=VALUE")
            elif word == "--config":
                config = Path(value if equals else left.pop(0))
            else:
                typed[known[word]] = value if equals else left.pop(0)
        return cls(typed, config, of_vllm)

    def plan(self, **more: object) -> Plan:
        """What a server with these options would serve; raises BadOption."""
        return make_plan(load({**self.typed, **more}, os.environ, self.config, self.of_vllm))


def check(variant: str, arguments: Sequence[str]) -> None:
    """Plan the server as it would itself, in a moment, rather than have it refuse after others were started.

    Raises:
        BadOption: it would not start.
    """
    try:
        CommandLine.read(arguments).plan()
    except BadOption as error:
        raise BadOption("--variant", f"{variant}: {error.option}: {error.problem}", error.fix) from error
