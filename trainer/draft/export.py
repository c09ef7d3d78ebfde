# SPDX-License-Identifier: Apache-2.0
"""From a trained head to the checkpoint that vLLM serves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from aerie.draft_models.checkpoint import write_draft
from aerie.draft_models.modeling import Eagle3Head

TOLD = ("documents", "tokens", "supervised_tokens", "left_out_as_too_long", "left_out_as_too_short")
"""What a checkpoint says of the data that it was trained on."""


def export(
    head: Eagle3Head,
    directory: Path,
    provenance: Mapping[str, object],
    weights: Literal["bfloat16", "float32"],
    history: list[dict[str, object]],
    data: Mapping[str, Any],
) -> None:
    """Write `directory` atomically: config.json, model.safetensors, and provenance.json with the training's curve."""
    record = {**provenance, "data": {key: data[key] for key in TOLD if key in data}}
    write_draft(directory, head.config, tensors_of(head, weights), {**record, "curve": history})


def tensors_of(head: Eagle3Head, weights: Literal["bfloat16", "float32"]) -> dict[str, Tensor]:
    """The checkpoint's tensors, on the CPU."""
    dtype = torch.bfloat16 if weights == "bfloat16" else torch.float32
    return {name: (x.to(dtype) if x.is_floating_point() else x).cpu() for name, x in head.state_dict().items()}
