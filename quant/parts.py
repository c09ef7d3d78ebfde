# SPDX-License-Identifier: Apache-2.0
"""What a conversion has finished, so that a killed one goes on; and the finished parts as one checkpoint.

Beside OUT lies `.OUT.parts`: a file for every finished decoder layer, the calibration states behind the last of them,
and what they are of. Files appear whole (written, synced, renamed).
"""

import json
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aerie.artefacts import sync, write_json
from aerie.quant.errors import UnwrittenError
from aerie.quant.header import Stored, read_header
from aerie.quant.stream import INDEX_NAME, WEIGHTS_NAME

STATES = "states_{:05}.safetensors"
SHARD_BYTES = 5 * 10**9
"""Hugging Face's customary size of a shard, the most that is written."""
COPY_BYTES = 2**24


@dataclass(frozen=True)
class Parts:
    """The folder of a conversion in progress."""

    folder: Path

    @classmethod
    def open(cls, out: Path, identity: Mapping[str, Any]) -> "Parts":
        """Of a conversion to `out`; parts that were made of something else are thrown away.

        Raises:
            UnwrittenError: the disk is full, or cannot be written.
        """
        folder = out.with_name(f".{out.name}.parts")
        said = folder / "identity.json"
        wanted = json.loads(json.dumps(identity))
        try:
            if not said.is_file() or json.loads(said.read_text()) != wanted:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                write_json(said, wanted)
        except OSError as error:
            raise UnwrittenError(folder, error) from error
        for left in folder.glob(".*"):  # by a run that was killed as it put the checkpoint together
            shutil.rmtree(left, ignore_errors=True)
        return cls(folder)

    def path(self, name: str) -> Path:
        """Of a part's tensors."""
        return self.folder / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self.path(name).is_file()

    def save(self, name: str, tensors: Mapping[str, torch.Tensor], report: object) -> None:
        """A part's tensors and what is reported of them."""
        save(self.path(name), tensors, {"report": json.dumps(report)})

    def report(self, name: str) -> dict[str, Any]:
        """What `save` was given."""
        from safetensors import safe_open

        with safe_open(self.path(name), framework="pt") as file:
            report: dict[str, Any] = json.loads(file.metadata()["report"])
            return report

    def save_states(self, finished: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """States behind layer `finished` - 1; those of earlier layers go."""
        path = self.folder / STATES.format(finished)
        save(path, tensors, {})
        for old in self.folder.glob("states_*.safetensors"):
            if old != path:
                old.unlink()

    def states(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """The number of finished layers and the states behind them, None at the start."""
        from safetensors.torch import load_file

        paths = sorted(self.folder.glob("states_*.safetensors"))
        return (int(paths[-1].stem.removeprefix("states_")), load_file(paths[-1])) if paths else None

    def remove(self) -> None:
        """Once the checkpoint is complete."""
        shutil.rmtree(self.folder)


def save(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all.

    Raises:
        UnwrittenError: the disk is full, or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    staging = path.with_suffix(".writing")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging, metadata=dict(metadata))
        sync(staging)
        staging.replace(path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        staging.unlink(missing_ok=True)
        raise UnwrittenError(path, error) from error


def assemble(paths: Sequence[Path], staging: Path, shard_bytes: int) -> int:
    """Copy parts into one checkpoint of shards, byte by byte: no tensor is loaded. Returns bytes of the shards."""
    shards = list(_shards(paths, min(shard_bytes, SHARD_BYTES)))
    names = [WEIGHTS_NAME]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map: dict[str, str] = {}
    total = written = 0
    for name, tensors in zip(names, shards, strict=True):
        _write_shard(staging / name, tensors)
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(tensor.size for tensor in tensors.values())
        written += (staging / name).stat().st_size
    if len(shards) > 1:
        write_json(
            staging / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        )
    return written


def _shards(paths: Sequence[Path], shard_bytes: int) -> Iterator[dict[str, Stored]]:
    shard: dict[str, Stored] = {}
    for path in paths:
        for name, tensor in read_header(path).items():
            if shard and sum(one.size for one in shard.values()) + tensor.size > shard_bytes:
                yield shard
                shard = {}
            shard[name] = tensor
    yield shard


def _write_shard(path: Path, tensors: Mapping[str, Stored]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # Wide types first, as safetensors itself lays them out, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].width, name))
    end = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {"dtype": tensor.kind, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.size]}
        end += tensor.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = tensors[name]
            with tensor.path.open("rb") as part:
                part.seek(tensor.start)
                left = tensor.size
                while left:
                    data = part.read(min(left, COPY_BYTES))
                    out.write(data)
                    left -= len(data)
