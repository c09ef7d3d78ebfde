# SPDX-License-Identifier: Apache-2.0
"""`peak_memory.py METHOD SMALL MODEL OUT STOP`: quantise in a process of its own and print what memory that took.

Prints {"bytes": most that was resident above what was before any weight of MODEL was read, "layers": those done}. SMALL
is quantised first, so that all libraries are loaded by then. METHOD `none` is rtn without text. After STOP layers it
ends.
"""

import json
import sys
from contextlib import suppress
from pathlib import Path

from aerie.quant.convert import HELD_OUT, Silent
from aerie.quant.layerwise import CALIBRATION
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.quant.text import Document

DOCUMENTS = [Document(tuple(range(24)))]


class Until(Silent):
    """Stops a conversion."""

    def __init__(self, stop: int) -> None:
        self.done, self._stop = 0, stop

    def layer(self, done: int, total: int, error: float | None) -> None:
        self.done = done
        if done == self._stop:
            raise KeyboardInterrupt


def status(name: str) -> int:
    """Bytes from the kernel's account of this process; unlike getrusage's, none are those of the process before."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main(method: str, small: str, model: str, out: str, stop: str) -> None:
    """Measure."""
    texts = {} if method == "none" else {CALIBRATION: DOCUMENTS, HELD_OUT: DOCUMENTS}
    options = {"method": "rtn" if method == "none" else method, "group_size": 64, "clip": "absmax"}
    # A few updates show what one takes; experts that the text does not reach are to be tuned as well.
    recipe = QuantRecipe.model_validate(options | {"iterations": 3, "min_expert_tokens": 0})
    quantise(Path(small), Path(f"{out}-small"), recipe, texts)
    until = Until(int(stop))
    before = status("VmRSS")
    with suppress(KeyboardInterrupt):
        quantise(Path(model), Path(out), recipe, texts, until)
    print(json.dumps({"bytes": status("VmHWM") - before, "layers": until.done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
