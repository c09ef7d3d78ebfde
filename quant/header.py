# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files: where each tensor's bytes are, without loading any.

A file is 8 bytes of little-endian length, that much JSON, then the data (https://github.com/huggingface/safetensors).
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from aerie.quant.errors import NotACheckpointError


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    start: int
    """Of its bytes in the file."""
    size: int
    """In bytes."""
    kind: str
    """Type of its elements: BF16, F32, I32, ..."""
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return self.size // max(1, self.count)


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, in name order.

    Raises:
        NotACheckpointError: it is no safetensors file, or was cut short.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {}
        for name, one in sorted(header.items()):
            first, last = one["data_offsets"]
            found[name] = Stored(path, 8 + length + first, last - first, one["dtype"], tuple(one["shape"]))
        ends = [tensor.start + tensor.size for tensor in found.values()]
        if ends and max(ends) != path.stat().st_size:
            raise ValueError(f"it has {path.stat().st_size} bytes, its header says {max(ends)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise NotACheckpointError(f"{path}: is not a whole safetensors file ({error}); fetch it again") from error
    return found
