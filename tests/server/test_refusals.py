# SPDX-License-Identifier: Apache-2.0
"""What `aerie serve` refuses before an engine starts: one line on stderr, exit status 2."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from aerie.draft_models.contract import DraftConfig, tensor_shapes
from aerie.server import checks
from aerie.server.engine import speculative_config
from aerie.server.errors import BadOption
from aerie.server.plan import make_plan
from aerie.server.settings import ServeSettings

AERIE = (sys.executable, "-P", "-m", "aerie")
FITTING = DraftConfig(
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=320,
    draft_vocab_size=100,
    target_hidden_size=64,
    aux_hidden_state_layer_ids=(1, 4, 7),
    gate="elementwise",
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    max_position_embeddings=512,
)
MakeCheckpoint = Callable[..., Path]


def refusal(**settings: object) -> str:
    """What the checks say about these settings."""
    with pytest.raises(BadOption) as refused:
        checks.check(make_plan(ServeSettings.model_validate(settings)))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("option", ["model", "draft"])
def test_a_checkpoint_that_is_not_there(make_checkpoint: MakeCheckpoint, tmp_path: Path, option: str) -> None:
    settings = {"model": str(make_checkpoint()), option: str(tmp_path / "absent")}
    assert refusal(**settings) == (
        f"--{option}: {tmp_path}/absent is not a folder; name the folder that holds config.json and *.safetensors"
    )


def test_a_folder_without_config(tmp_path: Path) -> None:
    assert refusal(model=str(tmp_path)).startswith(f"--model: {tmp_path} has no config.json; ")


def test_a_checkpoint_without_safetensors(make_checkpoint: MakeCheckpoint) -> None:
    model = make_checkpoint()
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert refusal(model=str(model)).startswith(
        f"--model: {model} has no *.safetensors; save the weights as safetensors"
    )


def test_a_config_that_is_not_json(make_checkpoint: MakeCheckpoint) -> None:
    model = make_checkpoint()
    (model / "config.json").write_text("{")
    assert "is not JSON" in refusal(model=str(model))


def test_a_demo_that_is_not_in_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AERIE_HOME", str(tmp_path))
    assert "run `make demo`" in refusal()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"vocab_size": 100}, "vocab_size is 100, the target's is 320; use a draft trained for "),
        ({"target_hidden_size": 32}, "target_hidden_size is 32, the target's is 64; use a draft trained for "),
        ({"eagle_aux_hidden_state_layer_ids": [1, 4, 9]}, "within the target's 8 layers; use a draft trained for "),
        ({"eagle_aux_hidden_state_layer_ids": [4, 4, 7]}, "must be distinct"),
    ],
)
def test_a_draft_that_does_not_fit(make_checkpoint: MakeCheckpoint, changes: dict[str, object], told: str) -> None:
    draft = make_checkpoint("draft")
    (draft / "config.json").write_text(json.dumps({**FITTING.to_hf(), **changes}))
    line = refusal(model=str(make_checkpoint()), draft=str(draft))
    assert line.startswith(f"--draft {draft}: ")
    assert told in line


def test_a_draft_whose_tensors_are_not_what_its_config_says(make_checkpoint: MakeCheckpoint) -> None:
    draft = make_checkpoint("draft")
    (draft / "config.json").write_text(json.dumps(FITTING.to_hf()))
    assert "missing d2t, fc.weight" in refusal(model=str(make_checkpoint()), draft=str(draft))


def write_plain_head(folder: Path, **changes: object) -> Path:
    """A head as the authors of EAGLE-3 store theirs, whose architecture is that of a language model."""
    config = replace_gate(FITTING).to_hf() | {"architectures": ["LlamaForCausalLM"], **changes}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tensor_shapes(replace_gate(FITTING))
    tensors = {name: numpy.ones(shape, dtype=numpy.float32) for name, shape in shapes.items()}
    tensors["d2t"] = numpy.zeros(FITTING.draft_vocab_size, dtype=numpy.int64)
    save_file(tensors, folder / "model.safetensors")
    return folder


def replace_gate(config: DraftConfig) -> DraftConfig:
    return config.model_copy(update={"gate": "none", "head_dim": 32})


@pytest.mark.parametrize("name", ["plain", "EAGLE3-of-someone", "eagle-dflash"])
def test_a_head_is_told_by_its_tensors_not_by_its_folder(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, name: str
) -> None:
    plan = make_plan(ServeSettings(model=str(make_checkpoint()), draft=str(write_plain_head(tmp_path / name))))
    checks.check(plan)
    assert (speculative_config(plan) or {})["method"] == "eagle3"


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({}, {"tensor_parallel_size": 4}, "its 4 heads and 3 key-value heads cannot be divided"),
        ({"num_attention_heads": 8, "head_dim": 16}, {}, "on a CPU no attention heads of 16 are computed"),
    ],
)
def test_a_head_that_the_device_or_its_division_cannot_compute(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, changes: dict[str, object], settings: dict[str, Any], told: str
) -> None:
    draft = write_plain_head(tmp_path / "draft")
    plan = make_plan(ServeSettings(model=str(make_checkpoint()), draft=str(draft), **settings))
    groups = {"num_key_value_heads": 3} if settings else {}
    config = {**(plan.draft_config or {}), **changes, **groups}
    with pytest.raises(BadOption, match=told):
        checks.check_head(replace(plan, device="cpu", draft_config=config))


def test_what_is_neither_a_language_model_nor_an_eagle_3_head(make_checkpoint: MakeCheckpoint) -> None:
    model, draft = str(make_checkpoint()), make_checkpoint("first-eagle")
    save_file({"fc.weight": numpy.zeros((64, 128))}, draft / "model.safetensors")
    assert "it is an EAGLE-1 or EAGLE-2 head" in refusal(model=model, draft=str(draft))
    misleading = make_checkpoint("eagle3-drafts/small")
    assert "'eagle3' is in its path" in refusal(model=model, draft=str(misleading))


def test_a_language_model_as_draft_with_another_vocabulary(make_checkpoint: MakeCheckpoint) -> None:
    draft = make_checkpoint("small", vocab_size=100)
    assert refusal(model=str(make_checkpoint()), draft=str(draft)) == (
        "--draft: its vocabulary has 100 tokens, the model's 320; use a draft of the model's family, or --no-draft"
    )


def test_int4_layers_that_no_kernel_serves(make_checkpoint: MakeCheckpoint) -> None:
    weights = {"targets": ["Linear"], "weights": {"num_bits": 4}}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": weights}}
    model = make_checkpoint(quantization_config=quantization)
    layer = "model.layers.3.mlp.up_proj"
    words, scales = numpy.zeros((40, 8), dtype=numpy.int32), numpy.zeros((40, 4), dtype=numpy.float16)
    save_file({f"{layer}.weight_packed": words, f"{layer}.weight_scale": scales}, model / "model.safetensors")
    settings = ServeSettings(model=str(model), dtype="float32")
    on_cpu = replace(make_plan(settings), device="cpu")
    with pytest.raises(BadOption) as refused:
        checks.check(on_cpu)
    assert str(refused.value).startswith(
        "--model: model.layers.*.mlp.up_proj cannot be served: group size 16 is no multiple of 32; "
    )
    checks.check(replace(on_cpu, dtype="bfloat16"))  # vLLM has kernels for more
    checks.check(replace(on_cpu, device="cuda"))


def test_kernels_of_vllm_s_that_do_not_run_in_float32(make_checkpoint: MakeCheckpoint) -> None:
    weights = {"targets": ["Linear"], "weights": {"num_bits": 4}}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": weights}}
    model = make_checkpoint(quantization_config=quantization)
    layer = "model.layers.3.mlp.up_proj"
    words, scales = numpy.zeros((40, 8), dtype=numpy.int32), numpy.zeros((40, 2), dtype=numpy.float16)
    save_file({f"{layer}.weight_packed": words, f"{layer}.weight_scale": scales}, model / "model.safetensors")
    plan = replace(make_plan(ServeSettings(model=str(model), dtype="float32", int4_kernel="vllm")), device="cpu")
    with pytest.raises(BadOption, match=r"^--int4-kernel: vLLM's own INT4 kernels take no float32"):
        checks.check(plan)
    checks.check(replace(plan, dtype="bfloat16"))
    checks.check(replace(plan, device="cuda"))
    checks.check(replace(plan, settings=ServeSettings(int4_kernel="aerie")))


@pytest.mark.parametrize("name", ["linear-backend", "moe_backend"])
def test_our_kernels_and_a_backend_of_vllm_s(make_checkpoint: MakeCheckpoint, name: str) -> None:
    model, options = str(make_checkpoint()), {name: "marlin"}
    assert refusal(model=model, int4_kernel="aerie", engine_options=options) == (
        f"--int4-kernel: aerie is asked for, and {name} of --engine-options asks for vLLM's marlin; "
        "leave one of them out"
    )
    for fine in ({"engine_options": options}, {"int4_kernel": "aerie", "engine_options": {name: "auto"}}):
        checks.check(make_plan(ServeSettings.model_validate({"model": model, **fine})))


def test_an_int4_lm_head_with_a_draft_on_a_gpu(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"targets": ["Linear", "lm_head"], "weights": {"num_bits": 4}}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": weights}}
    model, draft = make_checkpoint(quantization_config=quantization), make_checkpoint("small")
    words, scales = numpy.zeros((320, 8), dtype=numpy.int32), numpy.zeros((320, 2), dtype=numpy.float16)
    save_file({"lm_head.weight_packed": words, "lm_head.weight_scale": scales}, model / "model.safetensors")
    plan = make_plan(ServeSettings(model=str(model), draft=str(draft)))
    with pytest.raises(BadOption, match=r"^--model: its lm_head is INT4.*VLLM_USE_V2_MODEL_RUNNER=0"):
        checks.check(replace(plan, device="cuda"))
    checks.check(replace(plan, device="cpu"))
    checks.check(replace(plan, device="cuda", draft=None))
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    checks.check(replace(plan, device="cuda"))


def test_more_positions_than_the_model_has(make_checkpoint: MakeCheckpoint) -> None:
    line = refusal(model=str(make_checkpoint()), max_model_len=513)
    assert line == "--max-model-len: the model has 512 positions, not 513; choose 512 or less"


def test_of_stretched_positions_vllm_judges(make_checkpoint: MakeCheckpoint) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    overrides = {"hf-overrides": {"rope_parameters": yarn}}
    stretched = {"model": str(make_checkpoint("stretched", rope_scaling=yarn))}
    for asked in (stretched, {"model": str(make_checkpoint()), "engine_options": overrides}):
        checks.check(make_plan(ServeSettings.model_validate({**asked, "max_model_len": 2048})))


def test_a_head_behind_a_pipeline_on_a_cpu(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    given = {"model": str(make_checkpoint()), "draft": str(write_plain_head(tmp_path / "head"))}
    line = refusal(**given, engine_options={"pipeline-parallel-size": "2"})
    assert line.startswith("--pipeline-parallel-size: vLLM hands no hidden states from one stage to another on a CPU")
    assert line.endswith("choose 1, or --no-draft")


def test_a_tokenizer_of_the_hub(make_checkpoint: MakeCheckpoint) -> None:
    line = refusal(model=str(make_checkpoint()), engine_options={"tokenizer": "owner/name"})
    assert line == "--tokenizer: owner/name is not a folder; name the folder that holds tokenizer.json"


def test_devices_that_do_not_divide_the_heads(make_checkpoint: MakeCheckpoint) -> None:
    line = refusal(model=str(make_checkpoint()), tensor_parallel_size=3)
    assert line == "--tensor-parallel-size: 3 does not divide 4 heads; choose a divisor of 4"


def test_a_list_of_plugins_without_ours(monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    line = refusal(model=str(make_checkpoint()))
    assert line == "VLLM_PLUGINS: 'other' leaves out aerie; add aerie to it, or unset it"


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(BadOption, match=f"^--port: {port} is in use; "):
            checks.listen("127.0.0.1", port)


def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(BadOption, match=r"^--host: cannot listen on 192\.0\.2\.1"):
        checks.listen("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--draft-tokens", "0"], "aerie: error: --draft-tokens: '0' is not accepted; choose a number from 1 up to 16"),
        (["--draft-token", "1"], "aerie: error: --draft-token: no such option; did you mean --draft-tokens?"),
        (["--model", "/absent"], "aerie: error: --model: /absent is not a folder; "),
        (["--draft", "x", "--no-draft"], "aerie: error: --no-draft: --draft is given too; leave one of them out"),
        (["--config", "/absent.yaml"], "aerie: error: --config: cannot read /absent.yaml "),
    ],
)
def test_the_process_says_it_in_one_line_and_exits_with_2(tmp_path: Path, arguments: list[str], line: str) -> None:
    done = subprocess.run([*AERIE, "serve", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
