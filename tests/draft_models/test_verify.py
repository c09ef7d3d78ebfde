# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aerie.draft_models.checkpoint import identify_target, write_draft
from aerie.draft_models.contract import DraftConfig, tensor_shapes
from aerie.draft_models.verify import check_files, verify

HIDDEN, VOCAB, LAYERS = 8, 32, 7


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    shape = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(shape))
    save_file({"weight": torch.ones(3)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def draft(tmp_path: Path, target: Path) -> Path:
    config = DraftConfig(
        hidden_size=HIDDEN, intermediate_size=12, num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        vocab_size=VOCAB, draft_vocab_size=VOCAB, target_hidden_size=HIDDEN, aux_hidden_state_layer_ids=(1, 2, 4),
        gate="elementwise", rms_norm_eps=1e-6, rope_theta=1e4, max_position_embeddings=64,
        target=identify_target(target),
    )  # fmt: skip
    tensors = {name: torch.ones(shape) for name, shape in tensor_shapes(config).items()}
    tensors["midlayer.self_attn.g_proj.weight"].zero_()
    write_draft(tmp_path / "draft", config, tensors, {"inputs": {"tokenizer.json": "0" * 64}})
    return tmp_path / "draft"


def failed(draft: Path, target: Path) -> dict[str, str]:
    return {check.name: check.detail for check in check_files(draft, target) if check.passed is False}


def change(draft: Path, name: str, value: float) -> None:
    tensors = load_file(draft / "model.safetensors")
    tensors[name].fill_(value)
    save_file(tensors, draft / "model.safetensors")


def test_a_sound_head_passes_and_a_gate_of_zeros_is_sound(
    draft: Path, target: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failed(draft, target) == {}
    assert verify(draft, target, prompts=None, draft_tokens=4, engine=False) == 0
    assert "layer ids" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "reason"), [(0.0, "all zeros: norm.weight"), (float("nan"), "not finite: norm.weight")]
)
def test_a_dead_norm_fails(
    draft: Path, target: Path, value: float, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(draft, "norm.weight", value)
    assert reason in failed(draft, target)["norms"]
    assert verify(draft, target, prompts=None, draft_tokens=4, engine=False) == 1
    assert reason in capsys.readouterr().out.splitlines()[-1]


def test_other_weights_of_the_target_are_named(draft: Path, target: Path) -> None:
    save_file({"weight": torch.zeros(3)}, target / "model.safetensors")
    assert set(failed(draft, target)) == {"target weights"}
    assert "model.safetensors" in failed(draft, target)["target weights"]


def test_another_tokenizer_than_the_training_s_is_named(draft: Path, target: Path) -> None:
    (target / "tokenizer.json").write_text("{}")
    assert failed(draft, target) == {"tokenizer": "not the one of the training: tokenizer.json differ"}


def test_files_that_contradict_the_configuration_end_the_checks(draft: Path, target: Path) -> None:
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"gate_granularity": "headwise"}))
    (check,) = check_files(draft, target)
    assert (check.name, check.passed) == ("shapes", False)
    assert "g_proj.weight has shape" in check.detail


def test_a_head_of_another_maker_is_judged_as_it_is_served(draft: Path, target: Path) -> None:
    """Without a gate, our keys and a target's identity; with what the contract has no words for, too."""
    config = json.loads((draft / "config.json").read_text())
    for key in ("target_identity", "attn_output_gate", "gate_activation", "gate_granularity", "num_aux_hidden_states"):
        del config[key]
    nested = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}
    del config["eagle_aux_hidden_state_layer_ids"]
    config |= {"architectures": ["LlamaForCausalLM"], "eagle_config": nested}
    tensors = load_file(draft / "model.safetensors")
    del tensors["midlayer.self_attn.g_proj.weight"]
    save_file(tensors, draft / "model.safetensors")
    (draft / "config.json").write_text(json.dumps(config))
    found = {check.name: check for check in check_files(draft, target)}
    assert [check.name for check in found.values() if check.passed is False] == []
    assert found["layer ids"].detail == "[2, 4, 5] of 7 layers"
    assert "as SGLang takes them" in found["configuration"].detail
    (draft / "config.json").write_text(json.dumps(config | {"rope_scaling": {"rope_type": "llama3", "factor": 8}}))
    notes = {check.name: check for check in check_files(draft, target)}
    assert (notes["shapes"].passed, notes["contents"].passed) == (True, None)
    (draft / "config.json").write_text(json.dumps(config | {"num_attention_heads": 4}))
    assert "q_proj.weight has shape" in failed(draft, target)["shapes"]


@pytest.mark.parametrize("missing", ["folder", "config.json", "model.safetensors"])
def test_what_cannot_be_looked_at_is_one_line_and_status_2(draft: Path, target: Path, missing: str) -> None:
    if missing != "folder":
        (draft / missing).unlink()
    where = draft if missing != "folder" else draft / "nowhere"
    command = [sys.executable, "-P", "-m", "aerie", "draft", "verify", str(where), "--model", str(target)]
    refused = subprocess.run([*command, "--no-engine"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert refused.stderr.startswith("aerie: error: DRAFT: ")


def test_the_command_tells_by_its_status(draft: Path, target: Path) -> None:
    command = [sys.executable, "-P", "-m", "aerie", "draft", "verify", str(draft), "--model", str(target)]
    sound = subprocess.run([*command, "--no-engine"], capture_output=True, text=True, check=False)
    assert (sound.returncode, sound.stderr) == (0, "")
    change(draft, "norm.weight", 0.0)
    # A head whose files are wrong is not served at all.
    broken = subprocess.run(command, capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert "norms: all zeros: norm.weight" in broken.stdout.splitlines()[-1]
