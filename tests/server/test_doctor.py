# SPDX-License-Identifier: Apache-2.0
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from aerie.artefacts import sha256_file
from aerie.server import doctor
from aerie.server.doctor import CARD, Finding, changed_files, show
from aerie.server.doctor_checkpoint import checkpoint, experts
from aerie.server.plan import device

MakeCheckpoint = Callable[..., Path]
OK = Finding("vllm", "ok", "0.32.0")
OFF = Finding("CUDA graphs", "off", "there is no GPU")
MISSING = Finding("demo", "missing", "not there", "run `make demo`")


@pytest.mark.parametrize(("findings", "status"), [([OK], 0), ([OK, OFF], 0), ([OK, OFF, MISSING], 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_only_what_is_missing_fails(
    capsys: pytest.CaptureFixture[str], findings: list[Finding], status: int, as_json: bool
) -> None:
    assert show(findings, as_json=as_json) == status
    printed = capsys.readouterr().out
    assert all(finding.text in printed and finding.fix in printed for finding in findings)
    if as_json:
        assert json.loads(printed)["ok"] is (status == 0)


def test_files_are_held_against_the_card(tmp_path: Path) -> None:
    (tmp_path / "same").write_text("same")
    (tmp_path / "changed").write_text("before")
    files = {name: sha256_file(tmp_path / name) for name in ("same", "changed")}
    (tmp_path / "changed").write_text("after")

    assert changed_files(tmp_path, {"files": {**files, "gone": "0" * 64}}) == ["changed", "gone"]
    assert changed_files(tmp_path, {}) == [CARD]


def test_a_demo_that_is_not_there_is_missing_with_the_fix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AERIE_HOME", str(tmp_path))
    (finding,) = doctor.demo()
    assert finding.status == "missing"
    assert "lacks main, draft" in finding.text
    assert "make demo" in finding.fix


def test_a_list_of_plugins_without_ours_is_missing_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    (finding,) = doctor.plugin()
    assert (finding.status, finding.fix) == ("missing", "add aerie to VLLM_PLUGINS, or unset it")
    monkeypatch.setenv("VLLM_PLUGINS", "other,aerie")
    assert [finding.status for finding in doctor.plugin()] == ["ok"]


def test_a_version_we_did_not_read_is_missing_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", {"vllm": "0.99.0"}.get)
    vllm, torch, *_ = doctor.versions()
    assert (vllm.status, vllm.fix) == ("missing", "pip install vllm==0.33.0")
    assert (torch.topic, torch.status) == ("torch", "missing")


def test_an_examination_that_fails_is_a_finding() -> None:
    def broken() -> Iterator[Finding]:
        raise OSError("broken installation")

    (finding,) = doctor.safely(broken)
    assert (finding.status, finding.text) == ("missing", "OSError: broken installation")


def pack(folder: Path, layer: str, inputs: int) -> None:
    """Make a checkpoint's only matrix an INT4 one of 40 outputs, with one scale an output."""
    words = numpy.zeros((40, inputs // 8), dtype=numpy.int32)
    scales = numpy.zeros((40, 1), dtype=numpy.float16)
    save_file({f"{layer}.weight_packed": words, f"{layer}.weight_scale": scales}, folder / "model.safetensors")


INT4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
}


@pytest.mark.skipif(device() != "cpu", reason="on a GPU vLLM chooses")
@pytest.mark.parametrize(
    ("layer", "kernel"),
    [
        ("model.layers.0.mlp.up_proj", "AerieW4A16LinearKernel"),
        ("model.layers.0.mlp.experts.7.up_proj", "AerieInt4Experts"),
    ],
)
def test_a_checkpoint_s_layers_are_told_with_their_kernel(
    make_checkpoint: MakeCheckpoint, layer: str, kernel: str
) -> None:
    folder = make_checkpoint(quantization_config=INT4)
    pack(folder, layer, 64)
    (finding,) = checkpoint(folder, "float32")
    assert finding.status == "ok"
    assert finding.text.startswith(f"40 x 64, INT4 symmetric, one scale an output: {kernel}, because ")


@pytest.mark.skipif(device() != "cpu", reason="on a GPU vLLM chooses")
def test_a_layer_that_nothing_serves_is_missing_with_the_reason(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint(quantization_config=INT4)
    pack(folder, "model.layers.0.mlp.experts.7.up_proj", 104)
    (finding,) = checkpoint(folder, "float32")
    assert finding.status == "missing"
    assert "104 inputs with one scale an output are no multiple of 32" in finding.text
    assert finding.fix


@pytest.mark.skipif(device() != "cpu", reason="on a GPU vLLM chooses")
@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("q_proj", "k_proj", "v_proj"), ", in one of 120 x 64: "),
        (("gate_proj", "up_proj"), ", in one of 80 x 64: "),
        (("up_proj",), "one scale an output: "),
    ],
)
def test_layers_are_looked_at_as_vllm_fuses_them(
    make_checkpoint: MakeCheckpoint, names: tuple[str, ...], told: str
) -> None:
    folder = make_checkpoint(quantization_config=INT4)
    tensors = {}
    for name in names:
        tensors[f"model.layers.0.{name}.weight_packed"] = numpy.zeros((40, 8), dtype=numpy.int32)
        tensors[f"model.layers.0.{name}.weight_scale"] = numpy.zeros((40, 1), dtype=numpy.float16)
    save_file(tensors, folder / "model.safetensors")
    findings = list(checkpoint(folder, "float32"))
    assert len(findings) == len(names)
    assert all(told in finding.text for finding in findings)


@pytest.mark.skipif(device() != "cpu", reason="on a GPU vLLM chooses")
def test_whose_kernels_serve_and_why_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AERIE_INT4_KERNEL", "aerie")
    told = {finding.topic: finding.text for finding in doctor.kernels()}
    assert told["int4 choice"].startswith("aerie, ")
    assert told["int4 kernel"] == "AerieW4A16LinearKernel: AERIE_INT4_KERNEL=aerie"
    assert told["int4 experts"] == "AerieInt4Experts: AERIE_INT4_KERNEL=aerie"
    monkeypatch.setenv("AERIE_INT4_KERNEL", "stock")
    (finding,) = doctor.kernels()
    assert (finding.topic, finding.status) == ("int4 choice", "missing")
    assert "AERIE_INT4_KERNEL=stock" in finding.text


def test_the_experts_of_a_layer_are_counted_by_the_configuration(make_checkpoint: MakeCheckpoint) -> None:
    assert experts(make_checkpoint("dense")) == 1
    assert experts(make_checkpoint("qwen", num_experts=128)) == 128
    assert experts(make_checkpoint("inner", text_config={"n_routed_experts": 256})) == 256


@pytest.mark.skipif(device() != "cpu", reason="on a GPU vLLM decides")
def test_what_serve_would_refuse_is_missing(make_checkpoint: MakeCheckpoint) -> None:
    (finding,) = checkpoint(make_checkpoint(quantization_config={"quant_method": "fp8"}))
    assert finding.status == "missing"
    assert "quant_method fp8 is not served on a CPU" in finding.text
    assert "aerie quantize" in finding.fix


def test_a_folder_that_is_no_checkpoint_is_a_finding(tmp_path: Path) -> None:
    (finding,) = doctor.safely(partial(checkpoint, tmp_path))
    assert (finding.topic, finding.status) == ("checkpoint", "missing")
    assert "config.json: cannot be read" in finding.text


def test_a_head_that_no_target_could_be_served_with_is_a_finding(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("head", architectures=["LlamaForCausalLMEagle3"], model_type="llama", intermediate_size=9)
    (finding,) = checkpoint(folder)
    assert finding.status == "missing"
    assert finding.text.startswith("missing fc.weight")
