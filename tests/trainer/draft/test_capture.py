# SPDX-License-Identifier: Apache-2.0
"""Captured states: of several architectures, on a full disk, after a kill, within a budget."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from aerie.artefacts import sha256_tree
from aerie.quant.formats import FORMATS
from aerie.quant.formats.base import Selection
from aerie.quant.weight import Int4Weight, Scheme
from aerie.trainer.draft.capture import capture, layer_ids, read_description
from aerie.trainer.draft.data import Captured, Source
from aerie.trainer.draft.recipe import Capture
from aerie.trainer.draft.regenerate import Answered, write_answers
from aerie.trainer.draft.shards import DataError, Document, read_shard, write_shard
from aerie.trainer.draft.stages import stage
from aerie.trainer.draft.stream import Streamed, open_source
from aerie.trainer.draft.support import check_basis, check_same_vocabulary, check_tokenizer
from aerie.trainer.draft.target import Teacher
from aerie.trainer.recipe import RecipeError

LargestFile = Callable[[int], AbstractContextManager[None]]

VOCAB, HIDDEN, LAYERS = 64, 32, 4
LENGTHS = (9, 30, 14, 22, 40, 5, 17, 28)
STEM = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
KILLED = Path(__file__).with_name("killed_stage.py")


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig.from_dict(STEM))


def _moe() -> PreTrainedModel:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig.from_dict(STEM | experts))


def _documents(vocab: int = VOCAB) -> list[Answered]:
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(0, vocab, (length,), generator=generator).tolist() for length in LENGTHS]
    return [Answered(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in drawn]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    _llama().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [_llama, _moe], ids=["llama", "qwen3-moe"])
def test_states_are_the_residual_stream_and_the_teacher_is_the_target(
    tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    torch.manual_seed(0)
    model = make()
    model.train(False)
    target, folder = tmp_path / "target", tmp_path / "captured"
    folder.mkdir()
    model.save_pretrained(target)
    capture(target, _documents(), Capture(shard_tokens=60), folder)
    teacher = Teacher.load(folder / "teacher.safetensors")
    ids = read_description(folder)["aux_hidden_state_layer_ids"]
    assert ids == [1, 2, 3]
    documents = [one for path in sorted(folder.glob("hs_*")) for one in read_shard(path)]
    assert sorted(len(one.token_ids) for one in documents) == sorted(LENGTHS)
    for one in documents:
        with torch.inference_mode():
            output = model(one.token_ids[None].long(), output_hidden_states=True)
        aux = torch.stack([output.hidden_states[layer][0] for layer in ids], 1)
        torch.testing.assert_close(one.hidden_states[:, :-1].float(), aux, rtol=2**-8, atol=1e-4)
        # bf16 states move a logit by a few 2^-8 of its size.
        torch.testing.assert_close(teacher.logits(one.hidden_states[:, -1].float()), output.logits[0], rtol=0, atol=0.1)
        assert one.choices.tolist() == output.logits[0].argmax(-1).tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_lm_head_is_dequantised(llama: Path, tmp_path: Path, name: str) -> None:
    layout = FORMATS[name]
    scheme = Scheme(16, name != "compressed-tensors", layout.scale_dtype)
    target = tmp_path / "int4"
    shutil.copytree(llama, target)
    tensors = load_file(target / "model.safetensors")
    q = torch.randint(0, 16, (VOCAB, HIDDEN), dtype=torch.uint8)
    zero = None if scheme.symmetric else torch.randint(0, 16, (VOCAB, 2), dtype=torch.uint8)
    weight = Int4Weight(q, scheme.stored(torch.rand(VOCAB, 2)), zero)
    del tensors["lm_head.weight"]
    save_file(tensors | layout.tensors("lm_head", weight), target / "model.safetensors", {"format": "pt"})
    quantization = layout.quantization_config(scheme, Selection(("lm_head",), (), ()))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    teacher = Teacher.read(target)
    torch.testing.assert_close(teacher.head_WH, weight.dequantise(), rtol=0, atol=0)
    assert not torch.equal(teacher.head_WH, teacher.embed_WH)


def test_an_lm_head_that_cannot_be_read_is_refused(llama: Path, tmp_path: Path) -> None:
    target = tmp_path / "awq"
    shutil.copytree(llama, target)
    tensors = load_file(target / "model.safetensors")
    tensors["lm_head.qweight"] = tensors.pop("lm_head.weight").to(torch.int32)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    with pytest.raises(RecipeError, match=r"ties no embeddings.*lm_head\.qweight"):
        Teacher.read(target)


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}},
        {"quant_method": "quark", "algo_config": [{"name": "rotation"}]},
        {"quant_method": "x", "spinquant": True},
        {"quant_method": "quarot"},
    ],
    ids=["compressed-tensors", "quark", "spinquant", "quarot"],
)
def test_a_rotated_target_is_refused(llama: Path, tmp_path: Path, quantisation: dict[str, object]) -> None:
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quantisation}))
    with pytest.raises(RecipeError, match="rotated basis"):
        check_basis(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"transform_config": None}}))
    check_basis(tmp_path)


def test_tokens_of_another_tokenizer_are_refused(llama: Path, target: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="another tokenizer"):
        capture(llama, _documents(VOCAB + 9), Capture(), tmp_path)
    shutil.copytree(llama, tmp_path / "mixed")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(target / name, tmp_path / "mixed" / name)
    with pytest.raises(RecipeError, match="not of one model"):
        check_tokenizer(tmp_path / "mixed")


def test_a_head_of_another_vocabulary_is_no_start(llama: Path, target: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"head\.start.*64 tokens"):
        check_same_vocabulary(llama, target)
    shutil.copytree(target, tmp_path / "start")
    check_same_vocabulary(tmp_path / "start", target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = dict.fromkeys(tokenizer["model"]["vocab"], 0)
    (tmp_path / "start" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RecipeError, match=r"head\.start.*other tokens"):
        check_same_vocabulary(tmp_path / "start", target)


@pytest.mark.parametrize("layers", range(3, 13))
def test_default_layers_are_distinct(layers: int) -> None:
    ids = layer_ids(None, layers)
    assert len(set(ids)) == 3
    assert ids[-1] < layers


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, largest_file: LargestFile) -> None:
    ids = torch.arange(500, dtype=torch.int32)
    document = Document(torch.zeros(500, 4, 32, dtype=torch.bfloat16), ids, ids > 9, ids)
    with largest_file(20_000), pytest.raises(DataError, match=r"GiB.*capture\.disk_budget_gib"):
        write_shard(tmp_path / "hs_00000.safetensors", [document])
    assert list(tmp_path.iterdir()) == []


def test_a_killed_stage_goes_on_to_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents.jsonl"
    write_answers(documents, _documents() * 8)
    command = [sys.executable, "-P", str(KILLED), str(llama)]
    subprocess.run([*command, str(tmp_path / "whole"), str(documents)], check=True, capture_output=True)
    (whole,) = (tmp_path / "whole").iterdir()
    killed = subprocess.Popen([*command, str(tmp_path / "killed"), str(documents)], stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob(".capture-*.partial/hs_*")):
        assert killed.poll() is None
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (partial,) = (tmp_path / "killed").iterdir()
    saved = {path: path.stat().st_mtime_ns for path in partial.glob("hs_*")}
    assert len(saved) < len(list(whole.glob("hs_*")))
    subprocess.run([*command, str(tmp_path / "killed"), str(documents)], check=True, capture_output=True)
    (resumed,) = (tmp_path / "killed").iterdir()
    assert resumed.name == whole.name
    assert sha256_tree(resumed, "[!p]*") == sha256_tree(whole, "[!p]*")
    assert all((resumed / path.name).stat().st_mtime_ns == made for path, made in saved.items())


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "part").write_text("saved")
        raise OSError("interrupted")

    def goes_on(folder: Path) -> None:
        assert (folder / "part").read_text() == "saved"

    def is_not_called(folder: Path) -> None:
        raise AssertionError(folder)

    with pytest.raises(OSError, match="interrupted"):
        stage(tmp_path, "name", {"a": 1}, {}, fails)
    assert not list(tmp_path.glob("name-*"))
    folder = stage(tmp_path, "name", {"a": 1}, {}, goes_on)
    assert stage(tmp_path, "name", {"a": 1}, {}, is_not_called) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def _budget(documents: list[Answered], share: float) -> float:
    return sum(map(len, documents)) * 4 * HIDDEN * 2 / 2**30 * share


def test_a_budget_below_two_documents_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"capture\.disk_budget_gib.*GiB"):
        capture(llama, _documents(), Capture(disk_budget_gib=_budget(_documents(), 0.3)), tmp_path)


def _content(source: Source, epoch: int, skip: int = 0) -> list[list[torch.Tensor]]:
    batches = source.plan(20, 0, epoch)[skip:]
    return [list(vars(source.batch(indices)).values()) for indices in batches]


def _equal(left: list[list[torch.Tensor]], right: list[list[torch.Tensor]]) -> bool:
    pairs = [pair for ours, theirs in zip(left, right, strict=True) for pair in zip(ours, theirs, strict=True)]
    return all(torch.equal(one, other) for one, other in pairs)


def test_what_does_not_fit_on_disk_is_captured_in_chunks(llama: Path, tmp_path: Path) -> None:
    documents = _documents() * 3
    settings = Capture(disk_budget_gib=_budget(documents, 0.6), shard_tokens=64)
    folder = tmp_path / "captured"
    folder.mkdir()
    capture(llama, documents, settings, folder)
    assert not list(folder.glob("hs_*"))
    with open_source(folder, llama, settings) as source:
        assert isinstance(source, Streamed)
        assert source.chunks > 2
        assert sorted(i for batch in source.plan(20, 0, 0) for i in batch) == list(range(len(documents)))
        assert source.plan(20, 0, 0) == source.plan(20, 0, 0) != source.plan(20, 0, 1)
        first, second = _content(source, 0), _content(source, 1)
        on_disk = sum(path.stat().st_size for path in tmp_path.rglob("hs_*"))
        # Shards hold ids and choices beside the states.
        assert on_disk < 1.2 * _budget(documents, 0.6) * 2**30
    assert [path.name for path in tmp_path.iterdir()] == ["captured"]
    # A training that was killed in its second epoch, in the middle of a chunk.
    with open_source(folder, llama, settings) as again:
        assert _equal(_content(again, 1, skip=3), second[3:])
    whole = tmp_path / "whole"
    whole.mkdir()
    capture(llama, documents, Capture(), whole)
    counts = Captured(whole).token_counts(VOCAB, supervised_only=True)
    with open_source(folder, llama, settings) as once_more:
        assert torch.equal(once_more.token_counts(VOCAB, supervised_only=True), counts)
    assert sum(int(batch[3].sum()) for batch in first) == sum(Captured(whole).row_counts)
