# SPDX-License-Identifier: Apache-2.0
"""Conversions that were stopped: what is kept, what is told, and that the end is the same."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from aerie.quant.convert import Silent
from aerie.quant.errors import UnwrittenError
from aerie.quant.layerwise import CALIBRATION
from aerie.quant.recipe import QuantRecipe
from aerie.quant.run import quantise
from aerie.quant.text import Document

RECIPE = QuantRecipe(group_size=32)
LAYERS = 2
DOCUMENTS = [Document(tuple((7 * row + 3 * place) % 96 for place in range(24))) for row in range(4)]
SaveModel = Callable[..., Path]
LargestFile = Callable[[int], AbstractContextManager[None]]


class Seen(Silent):
    """What a bar would be told."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.layers: list[tuple[int, int, float | None]] = []
        self._stop_after = stop_after

    def layer(self, done: int, total: int, error: float | None) -> None:
        self.layers.append((done, total, error))
        if done == self._stop_after:
            raise KeyboardInterrupt


def test_progress_counts_parts(save_model: SaveModel, tmp_path: Path) -> None:
    seen = Seen()
    quantise(save_model(), tmp_path / "int4", RECIPE, progress=seen)
    assert seen.layers == [(done, LAYERS + 1, None) for done in range(LAYERS + 2)]


@pytest.mark.parametrize("method", ["rtn", "autoround"])
@pytest.mark.parametrize("stop_after", [1, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    save_model: SaveModel, tmp_path: Path, method: str, stop_after: int
) -> None:
    model = save_model()
    recipe = RECIPE.model_copy(update={"method": method, "iterations": 3, "batch_documents": 2})
    texts = {} if method == "rtn" else {CALIBRATION: DOCUMENTS}
    quantise(model, tmp_path / "whole", recipe, texts)
    with pytest.raises(KeyboardInterrupt):
        quantise(model, tmp_path / "int4", recipe, texts, Seen(stop_after))
    assert not (tmp_path / "int4").exists()
    finished = tmp_path / ".int4.parts/layer_00000.safetensors"
    made = finished.stat().st_mtime_ns
    seen = Seen()
    with pytest.raises(KeyboardInterrupt):
        quantise(model, tmp_path / "int4", recipe, texts, Seen(LAYERS))
    assert finished.stat().st_mtime_ns == made
    quantise(model, tmp_path / "int4", recipe, texts, seen)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "int4" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / ".int4.parts").exists()


def test_parts_of_another_recipe_are_not_taken(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model()
    with pytest.raises(KeyboardInterrupt):
        quantise(model, tmp_path / "int4", QuantRecipe(group_size=64), progress=Seen(1))
    quantise(model, tmp_path / "int4", RECIPE)
    quantise(model, tmp_path / "whole", RECIPE)
    assert (tmp_path / "int4/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


def test_what_a_killed_run_was_putting_together_goes_first(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model()
    with pytest.raises(KeyboardInterrupt):
        quantise(model, tmp_path / "int4", RECIPE, progress=Seen(1))
    left = tmp_path / ".int4.parts/.int4.left/model.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt):
        quantise(model, tmp_path / "int4", RECIPE, progress=Seen(1))
    assert not left.parent.exists()


@pytest.mark.parametrize(
    ("size", "unwritten"), [(100, r"\.parts"), (9_000, r"\.parts/layer_00000\.safetensors"), (50_000, "int4")]
)
def test_what_cannot_be_written_is_named_and_finished_layers_are_kept(
    save_model: SaveModel, tmp_path: Path, size: int, unwritten: str, largest_file: LargestFile
) -> None:
    model = save_model()
    with largest_file(size), pytest.raises(UnwrittenError, match=rf"{unwritten}: cannot be written \(.*large"):
        quantise(model, tmp_path / "int4", RECIPE)
    assert not (tmp_path / "int4").exists()
    assert not [path for path in (tmp_path / ".int4.parts").glob("*") if path.suffix == ".writing"]
    quantise(model, tmp_path / "int4", RECIPE)
    quantise(model, tmp_path / "whole", RECIPE)
    assert (tmp_path / "int4/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
