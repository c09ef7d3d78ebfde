# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a checkpoint or a recipe; each message names the option and the fix."""

from pathlib import Path


class QuantError(ValueError):
    """A checkpoint, recipe or output folder that cannot be used as asked."""


class NotACheckpointError(QuantError):
    """The folder lacks config.json or safetensors weights."""


class AlreadyQuantisedError(QuantError):
    """The checkpoint's config.json already carries a quantization_config."""


class NotQuantisedError(QuantError):
    """The checkpoint does not hold INT4 weights in a format that we read."""


class ShapeError(QuantError):
    """A weight's input dimension is not a multiple of the recipe's group size."""


class OutputError(QuantError):
    """The output folder would overwrite something that is not ours."""


class UnwrittenError(QuantError):
    """The disk is full, or cannot be written."""

    def __init__(self, path: Path, reason: Exception) -> None:
        super().__init__(
            f"OUT {path}: cannot be written ({reason}); free space there, then run again: finished layers are kept"
        )
