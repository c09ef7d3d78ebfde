# SPDX-License-Identifier: Apache-2.0
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aerie.draft_models.contract import GATED_ARCHITECTURES, PLAIN_ARCHITECTURES
from aerie.server import checks, plan
from aerie.server.engine import engine_flags, speculative_config
from aerie.server.environment import set_environment
from aerie.server.errors import BadOption
from aerie.server.plan import make_plan
from aerie.server.settings import ServeSettings

THINKING = "{% if x %}<think>{% endif %}"
MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[plan.Device], None]:
    """Pretend that vLLM was built for a device."""
    return lambda device: monkeypatch.setattr(plan, "device", lambda: device)


def settings(**values: object) -> ServeSettings:
    return ServeSettings.model_validate(values)


def test_the_demo_is_served_without_options(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    monkeypatch.setenv("AERIE_HOME", str(tmp_path))
    main = make_checkpoint("checkpoints/clinic-demo/main", chat_template=THINKING)
    draft = make_checkpoint("checkpoints/clinic-demo/draft", architectures=["Eagle3GatedLlamaForCausalLM"])

    made = make_plan(settings())

    assert (made.model, made.draft, made.served_model_name) == (main, draft, "clinic-demo")
    assert made.reasoning_parser == "qwen3"
    drafts = {"method": "eagle3", "model": str(draft), "num_speculative_tokens": 4, "disable_eagle_block_drop": True}
    assert speculative_config(made) == drafts


def test_our_operator_for_lm_head_is_reached_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint
) -> None:
    model = str(make_checkpoint("m"))
    gated = make_plan(settings(model=model, draft=str(make_checkpoint("g", architectures=GATED_ARCHITECTURES[:1]))))
    plain = make_plan(settings(model=model, draft=str(make_checkpoint("p", architectures=PLAIN_ARCHITECTURES[:1]))))
    for choice, asked in (("auto", False), ("torch", False), ("aerie", True)):
        monkeypatch.setenv("AERIE_DRAFT_KERNELS", choice)
        assert ("use_local_argmax_reduction" in (speculative_config(gated) or {})) is asked
        assert "use_local_argmax_reduction" not in (speculative_config(plain) or {})
    monkeypatch.setenv("AERIE_DRAFT_KERNELS", "fast")
    with pytest.raises(BadOption, match=r"AERIE_DRAFT_KERNELS: .* choose auto, aerie or torch"):
        speculative_config(gated)


def test_a_model_is_served_under_its_folders_name_without_draft(make_checkpoint: MakeCheckpoint) -> None:
    made = make_plan(settings(model=str(make_checkpoint("my-model"))))
    assert (made.served_model_name, made.draft, made.reasoning_parser) == ("my-model", None, None)
    flags = engine_flags(made)
    assert flags["--speculative-config"] is None
    assert flags["--per-request-spec-decode-metrics"] == "none"  # vLLM refuses them without speculation


def test_n_grams_are_drafted_without_a_model(make_checkpoint: MakeCheckpoint) -> None:
    model = make_checkpoint("m")
    make_checkpoint("m/draft")
    made = make_plan(settings(model=str(model), draft="ngram", draft_tokens=3))
    assert (made.draft, made.speculates, made.speculation.draft_tokens) == (None, True, 3)
    flags = engine_flags(made)
    assert flags["--speculative-config"]["method"] == "ngram"
    assert flags["--speculative-config"]["num_speculative_tokens"] == 3
    assert flags["--per-request-spec-decode-metrics"] == "summary"
    with pytest.raises(BadOption, match="there is no draft"):
        make_plan(settings(model=str(model), draft="ngram", speculation="tuned.json"))


def test_a_draft_beside_the_weights_is_found(make_checkpoint: MakeCheckpoint) -> None:
    model = make_checkpoint("m")
    draft = make_checkpoint("m/draft")
    assert make_plan(settings(model=str(model))).draft == draft
    assert make_plan(settings(model=str(model), draft="none")).draft is None


def test_a_cpu_gets_float32_eager_and_a_modest_cache(
    on: Callable[[plan.Device], None], make_checkpoint: MakeCheckpoint
) -> None:
    model = str(make_checkpoint())
    on("cpu")
    made = make_plan(settings(model=model))
    assert (made.dtype, made.enforce_eager, made.kv_cache_bytes) == ("float32", True, 512 << 20)
    asked = make_plan(settings(model=model, dtype="bfloat16", enforce_eager=False, kv_cache_memory="1GiB"))
    assert (asked.dtype, asked.enforce_eager, asked.kv_cache_bytes) == ("bfloat16", False, 1 << 30)
    on("cuda")
    made = make_plan(settings(model=model))
    assert (made.dtype, made.enforce_eager, made.kv_cache_bytes) == ("auto", False, None)


@pytest.mark.parametrize(
    ("asked", "model_type", "template", "parser"),
    [
        ("auto", "qwen3", THINKING, "qwen3"),
        ("auto", "qwen3", "no thinking", None),
        ("auto", "llama", THINKING, None),
        ("none", "qwen3", THINKING, None),
        ("deepseek_r1", "llama", "", "deepseek_r1"),
    ],
)
def test_the_reasoning_parser(
    make_checkpoint: MakeCheckpoint, asked: str, model_type: str, template: str, parser: str | None
) -> None:
    model = make_checkpoint(model_type=model_type, chat_template=template)
    assert make_plan(settings(model=str(model), reasoning_parser=asked)).reasoning_parser == parser


@pytest.mark.parametrize(
    ("tokenizer", "parser"),
    [
        ({"chat_template": "<think>"}, "qwen3"),
        ({"chat_template": [{"name": "default", "template": "<think>"}]}, "qwen3"),
        ({"chat_template": "none", "added_tokens_decoder": {"9": {"content": "<think>"}}}, None),
        ([], None),
    ],
)
def test_the_reasoning_parser_by_a_template_in_the_tokenizer_s_configuration(
    make_checkpoint: MakeCheckpoint, tokenizer: object, parser: str | None
) -> None:
    model = make_checkpoint()
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert make_plan(settings(model=str(model))).reasoning_parser == parser


def test_a_revision_is_of_a_repository(monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint) -> None:
    model, fetched = make_checkpoint(), dict[str, object]()

    def snapshot(repository: str, **named: object) -> str:
        fetched.update(named, repository=repository)
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    make_plan(settings(model="owner/name", revision="v2"))
    assert (fetched["repository"], fetched["revision"]) == ("owner/name", "v2")
    for name in (str(model), "demo"):
        with pytest.raises(BadOption, match=r"^--revision: .* is a folder"):
            make_plan(settings(model=name, revision="v2"))


def test_a_draft_may_be_a_folder_of_a_repository(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint
) -> None:
    model, draft, fetched = make_checkpoint(), make_checkpoint("snapshot/drafts/small"), dict[str, object]()

    def snapshot(repository: str, **named: object) -> str:
        fetched.update(named, repository=repository)
        return str(draft.parent.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert make_plan(settings(model=str(model), draft="owner/name/drafts/small")).draft == draft
    assert fetched["repository"] == "owner/name"
    patterns = fetched["allow_patterns"]
    assert isinstance(patterns, list)
    assert "drafts/small/*.safetensors" in patterns


def test_statistics_and_usage_are_on_by_default(make_checkpoint: MakeCheckpoint) -> None:
    model, draft = make_checkpoint("m"), make_checkpoint("d")
    flags = engine_flags(make_plan(settings(model=str(model), draft=str(draft))))
    assert flags["--per-request-spec-decode-metrics"] == "summary"


def test_one_compiler_of_grammars_unless_another_is_named(make_checkpoint: MakeCheckpoint) -> None:
    model = str(make_checkpoint())
    assert engine_flags(make_plan(settings(model=model)))["--structured-outputs-config"] == {
        "backend": "xgrammar",
        "disable_any_whitespace": True,
    }
    free = engine_flags(make_plan(settings(model=model, json_whitespace="any")))
    assert not free["--structured-outputs-config"]["disable_any_whitespace"]
    for name, value in (
        ("structured_outputs_config", {"backend": "guidance"}),
        ("structured-outputs-config.backend", "x"),
    ):
        flags = engine_flags(make_plan(settings(model=model, engine_options={name: value})))
        assert "--structured-outputs-config" not in flags


@pytest.mark.parametrize("outside", [{}, {"AERIE_INT4_KERNEL": "vllm"}])
def test_the_engine_s_processes_are_told_whose_kernels_to_use(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint, outside: dict[str, str]
) -> None:
    """A flag has won over the variable by then; the processes have nothing but the variable."""
    made = make_plan(settings(model=str(make_checkpoint()), int4_kernel="aerie"))
    monkeypatch.setattr(os, "environ", {**outside})
    set_environment(made)
    assert os.environ["AERIE_INT4_KERNEL"] == "aerie"


@pytest.mark.parametrize(("outside", "kept"), [({}, "128"), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}, "16")])
def test_a_worker_on_a_cpu_keeps_few_compiled_products(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint, outside: dict[str, str], kept: str
) -> None:
    made = make_plan(settings(model=str(make_checkpoint())))
    monkeypatch.setattr(os, "environ", {**outside})
    set_environment(made)
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == kept


def test_the_tracker_of_shared_memory_does_not_speak_after_us(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint
) -> None:
    made = make_plan(settings(model=str(make_checkpoint())))
    monkeypatch.setattr(os, "environ", {"PYTHONWARNINGS": "default"})
    set_environment(made)
    killed = (
        "import os; from multiprocessing.shared_memory import SharedMemory as S; S(create=True, size=8); os._exit(1)"
    )
    # Returns when the tracker has ended too: it holds the same stream.
    done = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_attention_that_splits_by_what_is_in_the_step_beside_a_draft(
    monkeypatch: pytest.MonkeyPatch, make_checkpoint: MakeCheckpoint
) -> None:
    drafting = make_plan(ServeSettings(model=str(make_checkpoint()), draft="ngram"))
    for value in ("1", "2"):
        monkeypatch.setenv("VLLM_CPU_ATTN_SPLIT_KV", value)
        with pytest.raises(BadOption, match=r"^VLLM_CPU_ATTN_SPLIT_KV: .* unset it, or serve with --no-draft$"):
            checks.check(replace(drafting, device="cpu"))
        checks.check(replace(drafting, device="cuda"))
        checks.check(make_plan(ServeSettings(model=drafting.settings.model, draft="none")))
    monkeypatch.setenv("VLLM_CPU_ATTN_SPLIT_KV", "0")
    checks.check(replace(drafting, device="cpu"))


def test_gguf_is_refused_with_what_can_be_done(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    folder = make_checkpoint()
    (folder / "model.safetensors").rename(folder / "model.gguf")
    for name in (folder, tmp_path / "model.Q4_K_M.gguf"):
        with pytest.raises(BadOption, match=r"^--model: .*GGUF.*aerie quantize"):
            make_plan(settings(model=str(name)))


def test_vllm_is_told_the_method_of_a_scheme_in_a_file_of_its_own(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint()
    assert "--quantization" not in engine_flags(make_plan(settings(model=str(folder))))
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 32, "sym": true, "desc_act": false}')
    assert engine_flags(make_plan(settings(model=str(folder))))["--quantization"] == "gptq"
    named = settings(model=str(folder), engine_options={"quantization": "auto_gptq"})
    assert "--quantization" not in engine_flags(make_plan(named))
