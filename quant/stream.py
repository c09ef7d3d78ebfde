# SPDX-License-Identifier: Apache-2.0
"""Read a Hugging Face checkpoint one tensor at a time and write one shard at a time.

Memory stays at one output shard plus one weight, whatever the size of the model.
"""

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch

from aerie.artefacts import sha256_file, write_json
from aerie.quant.errors import NotACheckpointError, OutputError
from aerie.quant.header import Stored, read_header

REPORT_NAME = "quant_report.json"
WEIGHTS_NAME = "model.safetensors"
TYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""What weights may be of, as safetensors names it."""
INDEX_NAME = "model.safetensors.index.json"
MAPS = ("d2t", "t2d")
"""Tensors of a draft that are no weights: its vocabulary."""
# Everything beside config and weights that a served checkpoint needs; optimiser states and logs stay behind.
CARRIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "*.model",
    "*.jinja",
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors weights."""

    directory: Path
    config: Mapping[str, Any]
    shards: tuple[Path, ...]

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Open a folder, reading its config and the list of its weight files only.

        Raises:
            NotACheckpointError: config.json or the weights are missing or damaged.
        """
        config_path = directory / "config.json"
        if not config_path.is_file():
            raise NotACheckpointError(
                f"{directory}: no config.json there; give the folder of a Hugging Face checkpoint (MODEL)"
            )
        try:
            config = json.loads(config_path.read_text())
            index = directory / INDEX_NAME
            names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {WEIGHTS_NAME}
        except (ValueError, KeyError) as error:
            raise NotACheckpointError(f"{directory}: config.json or {INDEX_NAME} is damaged ({error})") from error
        shards = tuple(directory / name for name in sorted(names))
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise NotACheckpointError(
                f"{directory}: {', '.join(missing)} missing; weights must be safetensors "
                "(save them with `model.save_pretrained(folder)`)"
            )
        return cls(directory, config, shards)

    def tensors(self, shard: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors of one shard, in name order, each read when asked for."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(shard, framework="pt") as file:
                for name in sorted(file.keys()):
                    yield name, file.get_tensor(name)
        except SafetensorError as error:
            raise NotACheckpointError(f"{shard}: is not a whole safetensors file ({error})") from error

    @cached_property
    def stored(self) -> dict[str, Stored]:
        """Where every tensor is, from the headers."""
        return {name: tensor for shard in self.shards for name, tensor in read_header(shard).items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return {name: tensor.shape for name, tensor in self.stored.items()}

    def load(self, name: str) -> torch.Tensor:
        """A weight in memory of its own, whereas what `read` has looked at stays there until its file is let go.

        Raises:
            NotACheckpointError: the file was cut short.
        """
        stored = self.stored[name]
        data = numpy.fromfile(stored.path, numpy.uint8, stored.size, offset=stored.start)
        if data.nbytes != stored.size:
            raise NotACheckpointError(f"{stored.path}: was cut short while it was read; fetch it again")
        return torch.from_numpy(data).view(TYPES[stored.kind]).reshape(stored.shape)

    def read(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Some tensors, by name, out of their mapped files."""
        from safetensors import safe_open

        found: dict[str, torch.Tensor] = {}
        for shard in sorted({self.stored[name].path for name in names}):
            with safe_open(shard, framework="pt") as file:
                found.update({name: file.get_tensor(name) for name in names if self.stored[name].path == shard})
        return found

    def hashes(self) -> dict[str, str]:
        """SHA-256 of config and weights, by file name."""
        return {path.name: sha256_file(path) for path in (self.directory / "config.json", *self.shards)}

    def check_types(self) -> None:
        """Raises NotACheckpointError, naming the tensor, where weights are no 16- or 32-bit floating-point numbers."""
        for name, tensor in self.stored.items():
            if tensor.kind not in TYPES and name not in MAPS:
                raise NotACheckpointError(
                    f"MODEL: {name} is of type {tensor.kind}; give a checkpoint whose weights are BF16, F16 or F32"
                )

    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(shard.stat().st_size for shard in self.shards)

    def largest_shard(self) -> int:
        """Bytes of the largest weight file."""
        return max(shard.stat().st_size for shard in self.shards)


def check_output(source: Path, out: Path) -> None:
    """Refuse an output folder that is the source, or that holds what this room did not write.

    Raises:
        OutputError: with the fix.
    """
    if out.resolve() == source.resolve():
        raise OutputError(f"OUT {out}: is the model's own folder; choose another")
    if out.exists() and not out.is_dir():
        raise OutputError(f"OUT {out}: is a file; choose a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / REPORT_NAME).is_file():
        raise OutputError(f"OUT {out}: exists and was not written by `aerie quantize`; remove it or choose another")


def rewrite(
    source: Checkpoint,
    staging: Path,
    convert: Callable[[str, torch.Tensor], dict[str, torch.Tensor]],
    config: Mapping[str, Any],
) -> int:
    """Write a checkpoint whose tensors are `convert(name, tensor)` of the source's, shard by shard.

    Returns:
        Bytes of the weight files written.
    """
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    written = total = 0
    for shard in source.shards:
        converted: dict[str, torch.Tensor] = {}
        for name, tensor in source.tensors(shard):
            converted.update(convert(name, tensor))
        save_file(converted, staging / shard.name, metadata={"format": "pt"})
        (staging / shard.name).chmod(0o644)  # safetensors makes files only their owner can read
        weight_map.update(dict.fromkeys(converted, shard.name))
        total += sum(tensor.nbytes for tensor in converted.values())
        written += (staging / shard.name).stat().st_size
    if source.shards[0].name != WEIGHTS_NAME:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(staging / INDEX_NAME, index)
    write_json(staging / "config.json", dict(config))
    carry(source.directory, staging)
    return written


def carry(source: Path, staging: Path) -> None:
    """Copy what a served checkpoint needs beside config and weights."""
    for pattern in CARRIED:
        for path in source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, staging / path.name)
