# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aerie.draft_models.checkpoint import DraftMismatch, identify_target, read_draft, verify_draft, write_draft
from aerie.draft_models.contract import DraftConfig, GateKind, tensor_shapes

HIDDEN, VOCAB, DRAFT_VOCAB, LAYERS = 8, 32, 16, 7
TARGET = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}


def make_config(**changes: object) -> DraftConfig:
    values: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": VOCAB,
        "draft_vocab_size": DRAFT_VOCAB,
        "target_hidden_size": HIDDEN,
        "aux_hidden_state_layer_ids": (1, 2, LAYERS),
        "gate": "elementwise",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
        "max_position_embeddings": 64,
    }
    return DraftConfig.model_validate(values | changes)


def make_tensors(config: DraftConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in tensor_shapes(config).items()}
    if config.maps_vocabulary:
        ids = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size].sort().values
        tensors["d2t"] = ids - torch.arange(config.draft_vocab_size)
        tensors["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool).index_fill_(0, ids, value=True)
    return tensors


@pytest.fixture
def target(tmp_path: Path) -> Path:
    directory = tmp_path / "target"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(TARGET))
    return directory


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    write_draft(tmp_path / "draft", make_config(), make_tensors(make_config()), {"commit": "abc"})
    return tmp_path / "draft"


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("gate", ["elementwise", "headwise", "none"])
@pytest.mark.parametrize("draft_vocab_size", [DRAFT_VOCAB, VOCAB])
def test_what_was_written_is_read_back(tmp_path: Path, gate: GateKind, draft_vocab_size: int) -> None:
    config = make_config(gate=gate, draft_vocab_size=draft_vocab_size)
    tensors = make_tensors(config)
    write_draft(tmp_path / "draft", config, tensors, {"commit": "abc"})
    read_config, read_tensors = read_draft(tmp_path / "draft")
    assert read_config == config
    assert read_tensors.keys() == tensors.keys()
    assert all(torch.equal(read_tensors[name], tensors[name]) for name in tensors)
    assert json.loads((tmp_path / "draft" / "provenance.json").read_text()) == {"commit": "abc"}


def test_nothing_is_written_when_a_tensor_is_wrong(tmp_path: Path) -> None:
    tensors = make_tensors(make_config())
    with pytest.raises(DraftMismatch, match=r"missing norm\.weight"):
        write_draft(tmp_path / "d", make_config(), {k: v for k, v in tensors.items() if k != "norm.weight"}, {})
    with pytest.raises(DraftMismatch, match="unknown embed_tokens"):
        write_draft(tmp_path / "d", make_config(), tensors | {"embed_tokens.weight": torch.zeros(1)}, {})
    with pytest.raises(DraftMismatch, match=r"fc\.weight has shape \[1\]"):
        write_draft(tmp_path / "d", make_config(), tensors | {"fc.weight": torch.zeros(1)}, {})
    with pytest.raises(DraftMismatch, match="d2t and t2d disagree"):
        write_draft(tmp_path / "d", make_config(), tensors | {"d2t": tensors["d2t"].flip(0)}, {})
    with pytest.raises(DraftMismatch, match="d2t must be int64"):
        write_draft(tmp_path / "d", make_config(), tensors | {"d2t": tensors["d2t"].int()}, {})
    assert not list(tmp_path.iterdir())


def test_a_draft_that_fits_is_accepted_without_remarks(draft: Path, target: Path) -> None:
    assert verify_draft(draft, target) == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vocab_size": VOCAB + 1}, "vocab_size is 32, the target's is 33"),
        ({"hidden_size": 2 * HIDDEN}, "target_hidden_size is 8, the target's is 16"),
        ({"num_hidden_layers": LAYERS - 1}, "within the target's 6 layers"),
    ],
)
def test_a_draft_for_another_target_is_refused_with_the_fix(
    draft: Path, target: Path, changes: dict[str, object], named: str
) -> None:
    change_config(target, **changes)
    with pytest.raises(DraftMismatch, match=named) as refusal:
        verify_draft(draft, target)
    assert "--no-draft" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_multimodal_targets_are_judged_by_their_text_model(draft: Path, target: Path) -> None:
    (target / "config.json").write_text(json.dumps({"text_config": TARGET}))
    assert verify_draft(draft, target) == ()


@pytest.mark.parametrize("ids", [[1, 1, 2], [3, 2, 1], [-1, 2, 3]])
def test_layer_ids_that_vllm_would_merge_or_sort_are_refused(draft: Path, target: Path, ids: list[int]) -> None:
    change_config(draft, eagle_aux_hidden_state_layer_ids=ids)
    with pytest.raises(DraftMismatch, match="distinct, ascending"):
        verify_draft(draft, target)


def test_weights_that_contradict_the_configuration_are_refused(draft: Path, target: Path) -> None:
    change_config(draft, gate_granularity="headwise")
    with pytest.raises(DraftMismatch, match=r"g_proj\.weight has shape"):
        verify_draft(draft, target)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors, though long enough"])
def test_missing_and_broken_weights_are_refused(draft: Path, target: Path, content: bytes | None) -> None:
    weights = draft / "model.safetensors"
    weights.unlink()
    if content is not None:
        weights.write_bytes(content)
    with pytest.raises(DraftMismatch, match=r"model\.safetensors"):
        verify_draft(draft, target)


def test_missing_folders_are_refused_by_the_option_s_name(tmp_path: Path, draft: Path, target: Path) -> None:
    with pytest.raises(DraftMismatch, match=r"^--draft .*no config\.json"):
        verify_draft(tmp_path, target)
    with pytest.raises(DraftMismatch, match=r"^--model .*no config\.json"):
        verify_draft(draft, tmp_path)


def test_another_target_of_the_same_shape_is_remarked(tmp_path: Path, target: Path) -> None:
    config = make_config(target=identify_target(target))
    write_draft(tmp_path / "draft", config, make_tensors(config), {})
    assert verify_draft(tmp_path / "draft", target) == ()
    change_config(target, trained="again")
    assert "trained for another" in verify_draft(tmp_path / "draft", target)[0]


def test_verification_needs_no_torch(draft: Path, target: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from aerie.draft_models.checkpoint import verify_draft;"
        f"verify_draft(Path({str(draft)!r}), Path({str(target)!r})); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def quantise_headers(directory: Path, **changes: object) -> None:
    """Put packed tensors of no meaning in the place of weights, as compressed-tensors names and shapes them."""
    path = directory / "model.safetensors"
    packed: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(path).items():
        layer = name.removesuffix(".weight")
        if tensor.ndim == 2:
            outputs, inputs = tensor.shape
            packed[f"{layer}.weight_packed"] = torch.zeros(outputs, inputs // 8, dtype=torch.int32)
            packed[f"{layer}.weight_scale"] = torch.ones(outputs, 1)
            packed[f"{layer}.weight_shape"] = torch.tensor(tensor.shape)
        else:
            packed[name] = tensor
    save_file(packed, path)
    change_config(directory, **changes)


def test_int4_weights_are_held_to_the_shapes_they_stand_for(tmp_path: Path, target: Path) -> None:
    config = make_config(intermediate_size=16)
    draft = tmp_path / "draft"
    write_draft(draft, config, make_tensors(config), {})
    quantise_headers(draft, quantization_config={"quant_method": "compressed-tensors"})
    assert verify_draft(draft, target) == ()
    with pytest.raises(DraftMismatch, match="quantised; give the 16-bit draft"):
        read_draft(draft)
    change_config(draft, intermediate_size=24)
    with pytest.raises(DraftMismatch, match=r"mlp.* has shape \[.*16.*the configuration says"):
        verify_draft(draft, target)


def test_int4_weights_that_the_configuration_does_not_speak_of_are_refused(tmp_path: Path, target: Path) -> None:
    config = make_config(intermediate_size=16)
    write_draft(tmp_path / "draft", config, make_tensors(config), {})
    quantise_headers(tmp_path / "draft")
    with pytest.raises(DraftMismatch, match=r"missing fc\.weight"):
        verify_draft(tmp_path / "draft", target)
