# SPDX-License-Identifier: Apache-2.0
"""Put a measured acceptance length on a checkpoint's card.

`python -m aerie.benchmarks.report.card --results FILE` reads a result file that `acceptance.evaluate` wrote, alone or
merged, and rewrites the card of the shipped demo.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from aerie.artefacts import REPOSITORY
from aerie.benchmarks import options
from aerie.benchmarks.acceptance import evaluate
from aerie.benchmarks.results_file import ResultFile, ResultsError
from aerie.trainer.card import CARD, write_card

DEMO = REPOSITORY / "checkpoints/clinic-demo"


def measured(results: ResultFile) -> dict[str, Any]:
    """What the card tells of `acceptance.evaluate`; raises ResultsError where the file has no such run."""
    runs = [run.measured for run in results.runs if run.benchmark == evaluate.NAME]
    length = results.figures.get("acceptance_length")
    if len(runs) != 1 or length is None:
        raise ResultsError(f"the file has {len(runs)} runs of {evaluate.NAME}, one is needed")
    histogram = runs[0]["histogram"]
    if not isinstance(histogram, list):
        raise ResultsError(f"the run of {evaluate.NAME} has no histogram")
    return {"acceptance_length": length, "draft_tokens": len(histogram) - 1, "prompts": runs[0]["requests"]}


def main(
    results: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Result file of acceptance.evaluate.")],
    checkpoint: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder with the card.")] = DEMO,
) -> None:
    """Write the measured acceptance length to the card."""
    card = json.loads((checkpoint / CARD).read_text(encoding="utf-8"))
    write_card({**card, "measured": measured(ResultFile.read(results))}, checkpoint)


if __name__ == "__main__":
    options.run(main)
