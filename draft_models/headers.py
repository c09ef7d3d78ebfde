# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and types of a draft's tensors, from the headers of its safetensors files alone."""

from collections.abc import Mapping
from pathlib import Path

from aerie.draft_models.contract import DraftMismatch

Shapes = Mapping[str, tuple[int, ...]]


def read_headers(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor of a draft, in however many files. Raises DraftMismatch."""
    from safetensors import safe_open

    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise DraftMismatch(f"--draft {directory}: {_missing(directory)}")
    headers: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in paths:
        try:
            with safe_open(path, framework="numpy") as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
                headers |= {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
        except Exception as error:  # safetensors' error class is not the same in every version
            raise DraftMismatch(f"--draft {path}: not a whole safetensors file ({error}); fetch it again") from error
    return headers


def _missing(directory: Path) -> str:
    pickled = next((path.name for path in sorted(directory.iterdir()) if path.suffix in (".bin", ".pt", ".pth")), None)
    if pickled is None:
        return "no model.safetensors there; give the folder of a head, or export it again"
    return f"its weights are in {pickled}, which can hold code; save them as safetensors, as docs/checkpoints.md shows"


def unpacked_shapes(shapes: Shapes, where: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that packed ones stand for: of compressed-tensors' INT4, eight inputs a word."""
    unpacked: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight_packed":
            if f"{layer}.weight_scale" not in shapes:
                raise DraftMismatch(f"{where}: missing {layer}.weight_scale")
            unpacked[f"{layer}.weight"] = (shape[0], 8 * shape[1])
        elif not (kind.startswith("weight_") and f"{layer}.weight_packed" in shapes):
            unpacked[name] = shape
    return unpacked
