# SPDX-License-Identifier: Apache-2.0
"""Put measured figures of benchmarks/results/ into the pages that state them; `--check` only compares."""

import sys

from aerie.benchmarks.pages.render import main

if __name__ == "__main__":
    sys.exit(main())
