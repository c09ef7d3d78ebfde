# SPDX-License-Identifier: Apache-2.0
"""A written checkpoint is read back before it gets its name."""

from collections import defaultdict
from pathlib import Path

import torch

from aerie.quant.errors import QuantError
from aerie.quant.formats import recognise
from aerie.quant.stream import Checkpoint
from aerie.quant.weight import LEVELS


def verify(folder: Path, source: Checkpoint, layers: frozenset[str]) -> None:
    """Check that every tensor of `source` is there, quantised or not, whole and of its shape.

    Raises:
        QuantError: names the first that is not; what was written is then thrown away.
    """
    written = Checkpoint.open(folder)
    layout = recognise(written.config)
    if layout is None:
        raise QuantError(
            f"OUT: config.json of what was written does not describe it ({written.config.get('model_type')})"
        )
    tensors: dict[str, set[str]] = defaultdict(set)
    for name in written.stored:
        linear, _, kind = name.rpartition(".")
        tensors[linear if kind in layout.kinds and linear in layers else name].add(name)
    for name, shape in source.shapes().items():
        linear = name.removesuffix(".weight")
        key = linear if linear in layers else name
        found = written.read(tensors.pop(key, set()))
        if key in layers:
            weight = layout.read({whole.rpartition(".")[2]: tensor for whole, tensor in found.items()})
            whole = tuple(weight.q_NK.shape) == shape and int(weight.q_NK.max()) <= LEVELS
            whole = whole and bool(torch.isfinite(weight.scale_NG).all())
        else:
            whole = [tuple(tensor.shape) for tensor in found.values()] == [shape]
        if not whole:
            raise QuantError(f"OUT: {name} was not written as it is ({sorted(found)}); please report this")
    if tensors:
        raise QuantError(f"OUT: holds {min(tensors)}, which MODEL does not; please report this")
