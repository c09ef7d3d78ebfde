# SPDX-License-Identifier: Apache-2.0
"""Read, write and verify the checkpoint of a draft.

`verify_draft` needs neither torch nor vLLM and reads no weights, so that a wrong pair is refused in milliseconds.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from aerie.artefacts import output_directory, sha256_file, write_json
from aerie.draft_models import plain
from aerie.draft_models.contract import GATED_ARCHITECTURES, ContractError, DraftConfig, TargetIdentity, tensor_shapes
from aerie.draft_models.contract import DraftMismatch as DraftMismatch
from aerie.draft_models.headers import read_headers, unpacked_shapes
from aerie.draft_models.targets import supports_eagle3

if TYPE_CHECKING:
    from torch import Tensor

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
PROVENANCE: Final = "provenance.json"
DEEPER_THAN_ANY: Final = 1_000_000
"""Layers of a target that takes any layer ids."""
OBJECTS: Final = ("quantization_config", "rope_parameters", "eagle_config", "transformer_layer_config", "text_config")
"""Keys of a config.json whose value is an object, where they are there."""
_INTEGER_DTYPES: Final = {"d2t": "I64", "t2d": "BOOL"}


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


def read_head(directory: Path, target_dir: Path) -> tuple[DraftConfig, dict[str, "Tensor"]]:
    """A head of any maker as one of ours, if its tensors fit the contract; raises ContractError.

    Its own token embeddings are left out: the target's are used.
    """
    import torch
    from safetensors.torch import load_file

    stored = _read_config(directory, "--draft")
    if (stored.get("architectures") or [None])[0] in GATED_ARCHITECTURES or "quantization_config" in stored:
        return read_draft(directory)
    head = plain.PlainHead.of(stored, _read_config(target_dir, "--model"))
    plain.check_tensors(head, _plain_shapes(directory, stored))
    config = DraftConfig.from_hf(head.to_contract())
    loaded: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        loaded |= {name.replace("layers.0.", "midlayer."): tensor for name, tensor in load_file(path).items()}
    tensors = {name: loaded[name] for name in tensor_shapes(config) if name in loaded}
    if config.maps_vocabulary:
        tensors["d2t"] = tensors["d2t"].long()
        ids = torch.arange(config.draft_vocab_size) + tensors["d2t"]
        tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill_(0, ids, value=True)
    _check_shapes(config, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, f"--draft {directory}")
    _check_vocabulary_map(config, tensors)
    return config, tensors


def verify_draft(directory: Path, target_dir: Path) -> tuple[str, ...]:
    """Check that a draft fits its target before an engine is started with the pair.

    Reads both config.json files and the headers of the draft's weights, nothing else.

    Returns:
        Remarks that are no reason to refuse: another target than the one the draft was trained for, layer ids that were
        read in another maker's sense.

    Raises:
        DraftMismatch: names the option and the fix, in one line.
    """
    draft, target = _read_config(directory, "--draft"), _read_config(target_dir, "--model")
    _check_target(target_dir, target)
    if (draft.get("architectures") or [None])[0] in GATED_ARCHITECTURES:
        _check_fit(directory, target_dir, draft, target)
        config = _gated_config(directory, draft)
        _check_headers(config, directory, quantised="quantization_config" in draft)
        return _remarks(config.target, directory, target_dir)
    try:
        head = plain.PlainHead.of(draft, target)
        _check_fit(directory, target_dir, head.config, target)
        plain.check_tensors(head, _plain_shapes(directory, draft))
        identity = head.config.get("target_identity")
        trained_for = None if identity is None else TargetIdentity.model_validate(identity)
    except (ContractError, ValidationError) as error:
        raise _named(directory, target_dir, error) from error
    return head.remarks + _remarks(trained_for, directory, target_dir)


def verify_alone(directory: Path) -> None:
    """Check an EAGLE-3 head's tensors against its own configuration, whatever its target. Raises DraftMismatch."""
    draft = _read_config(directory, "--draft")
    if (draft.get("architectures") or [None])[0] in GATED_ARCHITECTURES:
        _check_headers(_gated_config(directory, draft), directory, quantised="quantization_config" in draft)
        return
    try:
        head = plain.PlainHead.of(draft, {"num_hidden_layers": DEEPER_THAN_ANY})
        plain.check_tensors(head, _plain_shapes(directory, draft))
    except ContractError as error:
        raise DraftMismatch(f"--draft {directory}: {str(error).removeprefix(f'--draft {directory}: ')}") from error


def overrides(directory: Path, target_dir: Path) -> Mapping[str, Any]:
    """What vLLM must be told of a draft beside its config.json, so that both of its runners read the right states.

    Empty for a draft that is no EAGLE-3 head. Raises DraftMismatch.
    """
    draft = _read_config(directory, "--draft")
    if not is_head(directory) or (draft.get("architectures") or [None])[0] in GATED_ARCHITECTURES:
        return {}
    return plain.PlainHead.of(draft, _read_config(target_dir, "--model")).overrides


def is_head(directory: Path) -> bool:
    """Whether a draft is an EAGLE-3 head, gated or plain, and no language model of its own. Raises DraftMismatch."""
    draft = _read_config(directory, "--draft")
    return plain.is_eagle3(draft) or plain.is_eagle3(draft, read_headers(directory))


def _check_target(target_dir: Path, target: Mapping[str, Any]) -> None:
    for architecture in target.get("architectures") or []:
        if supports_eagle3(architecture) is False:
            raise DraftMismatch(
                f"--model {target_dir}: vLLM's {architecture} hands out no hidden states, so no EAGLE-3 head can be "
                f"served with it; use --draft ngram, a language model as the draft, or --no-draft"
            )


def _gated_config(directory: Path, draft: Mapping[str, Any]) -> DraftConfig:
    try:
        return DraftConfig.from_hf(draft)
    except ContractError as error:
        raise DraftMismatch(f"--draft {directory}: {error}") from error


def _check_fit(directory: Path, target_dir: Path, draft: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """A head's vocabulary, width and layers must be the target's."""
    text = plain.text_config(target)
    fix = f"use a draft trained for {target_dir}, or --no-draft"
    for key, ours in (("vocab_size", "vocab_size"), ("hidden_size", "target_hidden_size")):
        value = draft.get(ours, draft.get(key))
        if value is not None and value != text.get(key):
            raise DraftMismatch(f"--draft {directory}: {ours} is {value}, the target's is {text.get(key)}; {fix}")
    layers = text.get("num_hidden_layers", 0)
    ids = draft.get("eagle_aux_hidden_state_layer_ids") or []
    if ids and (sorted(set(ids)) != list(ids) or ids[0] < 0 or ids[-1] > layers):
        raise DraftMismatch(
            f"--draft {directory}: aux layer ids {ids} must be distinct, ascending and within the target's {layers} "
            f"layers; {fix}"
        )


def _plain_shapes(directory: Path, draft: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    headers = read_headers(directory)
    for name in ("d2t",):
        if name in headers and not headers[name][1].startswith("I"):
            raise DraftMismatch(f"{name} is stored as {headers[name][1]}, must be integers")
    shapes = {name: shape for name, (shape, _) in headers.items()}
    quantisation = draft.get("quantization_config") or {}
    if not quantisation:
        return shapes
    if quantisation.get("quant_method") != "compressed-tensors":
        raise DraftMismatch(
            f"its weights are quantised by {quantisation.get('quant_method')}, which heads are not served in; give the "
            f"16-bit head, or quantise that with `aerie quantize`"
        )
    return unpacked_shapes(shapes, f"--draft {directory}")


def _named(directory: Path, target_dir: Path, error: Exception) -> DraftMismatch:
    """The refusal with the option's name and a fix."""
    text = " ".join(str(error).split())
    if text.startswith("--"):
        return DraftMismatch(text)
    text = text if "; " in text else f"{text}; use a draft trained for {target_dir}, or --no-draft"
    return DraftMismatch(f"--draft {directory}: {text}")


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
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise DraftMismatch(f"{option} {directory}: architectures is {names!r}; write a list of names")
    for key in OBJECTS:
        if not isinstance(config.get(key) or {}, dict):
            raise DraftMismatch(f"{option} {directory}: {key} is {config[key]!r}; write an object")
    return config


def _check_headers(config: DraftConfig, directory: Path, *, quantised: bool) -> None:
    headers, where = read_headers(directory), f"--draft {directory}"
    found = {name: shape for name, (shape, _) in headers.items()}
    if quantised:
        # An engine would look for packed weights only where the configuration speaks of them.
        found = unpacked_shapes(found, where)
    _check_shapes(config, found, where)
    for name, dtype in _INTEGER_DTYPES.items():
        if name in headers and headers[name][1] != dtype:
            raise DraftMismatch(f"{where}: {name} is stored as {headers[name][1]}, must be {dtype}")


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


def _remarks(trained_for: TargetIdentity | None, directory: Path, target_dir: Path) -> tuple[str, ...]:
    if trained_for is None or trained_for.config_sha256 == sha256_file(target_dir / CONFIG):
        return ()
    return (f"--draft {directory} was trained for another {trained_for.name!r}; expect fewer accepted tokens",)
