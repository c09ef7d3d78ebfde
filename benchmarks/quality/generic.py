# SPDX-License-Identifier: Apache-2.0
"""Generic English to calibrate on instead of a model's own answers: the Python manual of the standard library.

It is on every machine that runs this, under a free licence, and nothing that a model of ours was trained on.
"""

import json
import random
from pathlib import Path

from aerie.artefacts import write_atomic

CHARACTERS = 1200
"""Of a document, about; whole paragraphs."""


def documents(count: int, seed: int = 0) -> list[str]:
    """`count` pieces of the manual, drawn without repetition."""
    from pydoc_data.topics import topics

    pieces = [piece for name in sorted(topics) for piece in _pieces(topics[name])]
    return random.Random(seed).sample(pieces, count)


def write(path: Path, count: int, seed: int = 0) -> None:
    """As calibration text: one {"text": ...} a line."""
    lines = (json.dumps({"text": text}) + "\n" for text in documents(count, seed))
    write_atomic(path, "".join(lines).encode())


def _pieces(text: str) -> list[str]:
    found, piece = [], ""
    for paragraph in text.split("\n\n"):
        piece += paragraph + "\n\n"
        if len(piece) >= CHARACTERS:
            found.append(piece.strip())
            piece = ""
    return found
