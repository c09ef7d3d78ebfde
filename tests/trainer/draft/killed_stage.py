# SPDX-License-Identifier: Apache-2.0
"""A stage in a process that its test kills: `killed_stage.py TARGET WORK DOCUMENTS` captures into WORK."""

import sys
from pathlib import Path

from aerie.trainer.draft.capture import capture
from aerie.trainer.draft.recipe import Capture
from aerie.trainer.draft.regenerate import read_answers
from aerie.trainer.draft.stages import stage

SETTINGS = Capture(batch_tokens=128, shard_tokens=100)


def main(target: Path, work: Path, documents: Path) -> None:
    """Make the stage."""
    answered = read_answers(documents)
    stage(work, "capture", {}, {}, lambda folder: capture(target, answered, SETTINGS, folder))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
