# SPDX-License-Identifier: Apache-2.0
"""The entry point of `aerie` and of `python -m aerie`."""

import sys


def main() -> None:
    """Run the command line; `aerie serve` can be stopped in order from here on, while it imports too."""
    if sys.argv[1:2] == ["serve"]:
        from aerie.server.signals import end_at_once

        end_at_once()
    from aerie.cli import main as run

    run()


if __name__ == "__main__":
    main()
