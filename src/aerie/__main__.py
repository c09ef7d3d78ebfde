# SPDX-License-Identifier: Apache-2.0
"""`python -m aerie`, the same as `aerie`."""

from aerie.cli import main

if __name__ == "__main__":
    main()
