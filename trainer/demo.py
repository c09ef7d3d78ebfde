# SPDX-License-Identifier: Apache-2.0
"""`make demo`: the shipped checkpoint from nothing. Clinic → main model → INT4 → draft → checkpoints/clinic-demo.

A stage whose result exists is not run again, so an interrupted build goes on; remove `runs/clinic-demo` to start over.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from aerie.artefacts import REPOSITORY, check_unoccupied, output_directory, provenance, sha256_file
from aerie.trainer.card import CARD, write_card

RECIPES = Path(__file__).parent / "recipes"
MAIN, INT4, DRAFT = (RECIPES / f"clinic-{part}.yaml" for part in ("main", "int4", "draft"))
WORK = Path("runs/clinic-demo")
SHIPPED = REPOSITORY / "checkpoints" / "clinic-demo"
# Records of how a part was made; the card repeats what matters of them.
RECORDS = ("aerie.json", "quant_report.*", "provenance.json", "card.json", "README.md", "acceptance.svg")


def build() -> None:
    """Run the stages whose results are missing."""
    from aerie.trainer.draft.run import run as train_draft
    from aerie.trainer.main.run import run as train_main
    from aerie.trainer.quantise import Recipe
    from aerie.trainer.quantise import run as quantise

    if not (WORK / "main").exists():
        train_main(MAIN)
    if not (WORK / "main-int4").exists():
        quantise(WORK / "main", WORK / "main-int4", Recipe.from_yaml(INT4))
    if not (WORK / "draft").exists():
        train_draft(DRAFT)


def card() -> dict[str, Any]:
    """What is known of the parts: recipes, seeds, commits, sizes and figures of their training."""
    main = json.loads((WORK / "main" / "aerie.json").read_text())
    quantised = json.loads((WORK / "main-int4" / "quant_report.json").read_text())
    draft = json.loads((WORK / "draft" / "provenance.json").read_text())
    return {
        "name": "clinic-demo",
        "provenance": provenance({}, [], {path.name: sha256_file(path) for path in (MAIN, INT4, DRAFT)}),
        "main": {
            "made_by": main["provenance"],
            "documents": main["training"]["documents"],
            "tokens": main["training"]["tokens"],
            "steps": main["training"]["steps"],
            "validation_perplexity": main["validation_perplexity"],
        },
        "quantisation": {key: value for key, value in quantised.items() if key not in ("layers", "decoder")},
        "draft": {key: value for key, value in draft.items() if key != "curve"} | {"last": draft["curve"][-1]},
    }


def ship(target: Path) -> None:
    """Copy both parts to `target` and write the card with the hash of every file."""
    described = card()
    with output_directory(target, replaces=CARD) as staging:
        for part, name in (("main-int4", "main"), ("draft", "draft")):
            shutil.copytree(WORK / part, staging / name, ignore=shutil.ignore_patterns(*RECORDS))
        write_card(described, staging)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of the shipped checkpoint")
    out = parser.parse_args().out
    check_unoccupied(out, CARD)
    build()
    ship(out)
    print(f"{out}: {sum(path.stat().st_size for path in out.rglob('*') if path.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
