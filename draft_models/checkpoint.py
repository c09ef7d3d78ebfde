# SPDX-License-Identifier: Apache-2.0
"""Read, write and verify the checkpoint of a draft.

`verify_draft` needs neither torch nor vLLM and reads no weights, so that a wrong pair is refused in milliseconds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aerie.artefacts import output_directory, sha256_file, write_json
from aerie.draft_models.contract import (
    GATED_ARCHITECTURES,
    ContractError,
    DraftConfig,
    TargetIdentity,
    tensor_shapes,
)

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
PROVENANCE: Final = "provenance.json"
_INTEGER_DTYPES: Final = {"d2t": "I64", "t2d": "BOOL"}


class DraftMismatch(ContractError):  # noqa: N818 -- states the fact, as vLLM and the server report it
    """A draft and its target do not fit, or the draft's files contradict its configuration."""


def identify_target(directory: Path) -> TargetIdentity:
    """The identity of a main model's checkpoint; reads, and hashes, all of its weights."""
    quantisation = _read_config(directory, "--model").get("quantization_config") or {}
    return TargetIdentity(
        name=directory.resolve().name,
        config_sha256=sha256_file(directory / CONFIG),
        weights_sha256={path.name: sha256_file(path) for path in sorted(directory.glob("*.safetensors"))},
        quantisation=quantisation.get("quant_method"),
    )


def write_draft(
    directory: Path, config: DraftConfig, tensors: Mapping[str, "Tensor"], provenance: Mapping[str, object]
) -> None:
    """Write config.json, model.safetensors and provenance.json, all or nothing.

    Raises DraftMismatch first, and OccupiedError where another thing than a draft is in the way.
    """
    from safetensors.torch import save_file

    _check_shapes(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, "tensors to write")
    _check_vocabulary_map(config, tensors)
    with output_directory(directory, replaces=PROVENANCE) as staging:
        write_json(staging / CONFIG, config.to_hf())
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, staging / WEIGHTS, {"format": "pt"})
        write_json(staging / PROVENANCE, dict(provenance))


def read_draft(directory: Path) -> tuple[DraftConfig, dict[str, "Tensor"]]:
    """The configuration and all tensors, on the CPU, in the types they were stored in; raises DraftMismatch."""
    from safetensors.torch import load_file

    stored = _read_config(directory, "--draft")
    config = DraftConfig.from_hf(stored)
    _check_headers(config, directory, quantised="quantization_config" in stored)
    if "quantization_config" in stored:
        raise DraftMismatch(f"--draft {directory}: its weights are quantised; give the 16-bit draft it was made from")
    tensors = load_file(directory / WEIGHTS)
    _check_vocabulary_map(config, tensors)
    return config, tensors


def verify_draft(directory: Path, target_dir: Path) -> tuple[str, ...]:
    """Check that a draft fits its target before an engine is started with the pair.

    Reads both config.json files and the header of the draft's weights, nothing else. Drafts of other makers are checked
    as far as their configuration speaks.

    Returns:
        Remarks that are no reason to refuse: another target than the one the draft was trained for.

    Raises:
        DraftMismatch: names the option and the fix, in one line.
    """
    draft, target = _read_config(directory, "--draft"), _read_config(target_dir, "--model")
    target = target.get("text_config") or target
    fix = f"use a draft trained for {target_dir}, or --no-draft"
    for key, ours in (("vocab_size", "vocab_size"), ("hidden_size", "target_hidden_size")):
        value = draft.get(ours, draft.get(key))
        if value is not None and value != target.get(key):
            raise DraftMismatch(f"--draft {directory}: {ours} is {value}, the target's is {target.get(key)}; {fix}")
    layers = target.get("num_hidden_layers", 0)
    ids = _aux_layer_ids(draft, layers)
    if sorted(set(ids)) != ids or ids[0] < 0 or ids[-1] > layers:
        raise DraftMismatch(
            f"--draft {directory}: aux layer ids {ids} must be distinct, ascending and within the target's {layers} "
            f"layers; {fix}"
        )
    if (draft.get("architectures") or [None])[0] in GATED_ARCHITECTURES or "num_aux_hidden_states" in draft:
        try:
            config = DraftConfig.from_hf(draft)
        except ContractError as error:
            raise DraftMismatch(f"--draft {directory}: {error}") from error
        _check_headers(config, directory, quantised="quantization_config" in draft)
        return _remarks(config, directory, target_dir)
    return ()


def _read_config(directory: Path, option: str) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise DraftMismatch(f"{option} {directory}: no {CONFIG} there; give the folder of a checkpoint") from None
    except ValueError as error:
        raise DraftMismatch(f"{option} {directory}: {CONFIG} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise DraftMismatch(f"{option} {directory}: {CONFIG} is not a JSON object")
    return config


def _aux_layer_ids(draft: Mapping[str, Any], layers: int) -> list[int]:
    """The ids vLLM will use: those of the configuration, or its default."""
    nested = draft.get("eagle_config") or {}
    named = draft.get("eagle_aux_hidden_state_layer_ids") or nested.get("eagle_aux_hidden_state_layer_ids")
    return list(named) if named else [2, layers // 2, layers - 3]


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of every tensor in a safetensors file, from its header."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def _plain_shapes(found: Mapping[str, tuple[int, ...]], where: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that packed ones stand for: of compressed-tensors' INT4, eight inputs a word."""
    plain: dict[str, tuple[int, ...]] = {}
    for name, shape in found.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight_packed":
            if f"{layer}.weight_scale" not in found:
                raise DraftMismatch(f"{where}: missing {layer}.weight_scale")
            plain[f"{layer}.weight"] = (shape[0], 8 * shape[1])
        elif not (kind.startswith("weight_") and f"{layer}.weight_packed" in found):
            plain[name] = shape
    return plain


def _check_headers(config: DraftConfig, directory: Path, *, quantised: bool) -> None:
    path = directory / WEIGHTS
    if not path.is_file():
        raise DraftMismatch(f"--draft {directory}: no {WEIGHTS} there; export the draft again")
    try:
        headers = _headers(path)
    except Exception as error:  # safetensors' error class is not the same in every version
        raise DraftMismatch(f"--draft {path}: not a safetensors file ({error})") from error
    found = {name: shape for name, (shape, _) in headers.items()}
    if quantised:
        # An engine would look for packed weights only where the configuration speaks of them.
        found = _plain_shapes(found, f"--draft {path}")
    _check_shapes(config, found, f"--draft {path}")
    for name, dtype in _INTEGER_DTYPES.items():
        if name in headers and headers[name][1] != dtype:
            raise DraftMismatch(f"--draft {path}: {name} is stored as {headers[name][1]}, must be {dtype}")


def _check_shapes(config: DraftConfig, found: Mapping[str, tuple[int, ...]], where: str) -> None:
    expected = tensor_shapes(config)
    if missing := sorted(expected.keys() - found.keys()):
        raise DraftMismatch(f"{where}: missing {', '.join(missing)}")
    if unknown := sorted(found.keys() - expected.keys()):
        raise DraftMismatch(f"{where}: unknown {', '.join(unknown)}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise DraftMismatch(f"{where}: {name} has shape {list(found[name])}, the configuration says {list(shape)}")


def _check_vocabulary_map(config: DraftConfig, tensors: Mapping[str, "Tensor"]) -> None:
    """Draft ids must map to distinct target ids, the ones t2d marks."""
    import torch

    if not config.maps_vocabulary:
        return
    offsets, mask = tensors["d2t"], tensors["t2d"]
    if offsets.dtype != torch.int64 or mask.dtype != torch.bool:
        raise DraftMismatch(f"d2t must be int64 and t2d bool, they are {offsets.dtype} and {mask.dtype}")
    target_ids = torch.arange(config.draft_vocab_size) + offsets
    if not torch.equal(target_ids, mask.nonzero().squeeze(1)):
        raise DraftMismatch("d2t and t2d disagree: draft id i must be the i-th target id that t2d marks, less i")


def _remarks(config: DraftConfig, directory: Path, target_dir: Path) -> tuple[str, ...]:
    trained_for = config.target
    if trained_for is None or trained_for.config_sha256 == sha256_file(target_dir / CONFIG):
        return ()
    return (f"--draft {directory} was trained for another {trained_for.name!r}; expect fewer accepted tokens",)
