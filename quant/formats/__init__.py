# SPDX-License-Identifier: Apache-2.0
"""How quantised weights lie on disk, one checkpoint format a file."""

from collections.abc import Mapping
from typing import Any

from aerie.quant.formats.awq import Awq
from aerie.quant.formats.base import Format
from aerie.quant.formats.compressed_tensors import CompressedTensors
from aerie.quant.formats.gptq import Gptq

FORMATS: dict[str, Format] = {one.name: one for one in (CompressedTensors(), Gptq(), Awq())}


def recognise(config: Mapping[str, Any]) -> Format | None:
    """The format of the checkpoint with this config.json; None when we cannot read its weights."""
    return next((one for one in FORMATS.values() if one.describes(config) is not None), None)
