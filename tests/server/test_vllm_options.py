# SPDX-License-Identifier: Apache-2.0
"""Options of `vllm serve` on our command line: split, translated, refused, and judged by vLLM's own parser."""

import dataclasses
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from aerie.cli import app
from aerie.server.arguments import argument_module
from aerie.server.engine import VllmEngine, parse_arguments
from aerie.server.errors import BadOption
from aerie.server.occupancy import Capacity
from aerie.server.plan import make_plan
from aerie.server.settings import ServeSettings, fields
from aerie.server.sources import load, misspells
from aerie.server.vllm_options import FRONT_END, REFUSED, RENAMED, SHORT, split

OF_THE_LAUNCHER = {"model_tag", "headless", "api_server_count", "config", "grpc"}
TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")


@pytest.fixture(scope="module")
def parser() -> Any:  # noqa: ANN401 - vLLM's
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return argument_module().make_arg_parser(FlexibleArgumentParser())


@pytest.fixture
def parsed(make_checkpoint: Callable[..., Path]) -> Callable[..., Any]:
    """`parsed("--seed", "1")`: what vLLM's parser makes of a command line of `aerie serve`."""

    def parse(*words: str, **values: str) -> Any:  # noqa: ANN401 - vLLM's
        model = make_checkpoint() if "model" not in values else values["model"]
        return parse_arguments(make_plan(load({"model": str(model), **values}, {}, None, words)))

    return parse


def test_every_option_of_vllm_s_front_end_is_ours_passed_on_or_refused() -> None:
    """A new one of another vLLM would have no effect, in silence: decide about it in `vllm_options.py`."""
    front = {field.name for field in dataclasses.fields(argument_module().FrontendArgs)} | OF_THE_LAUNCHER
    kinds = (FRONT_END, set(RENAMED), set(REFUSED), set(fields()))
    assert front - set().union(*kinds) == set()
    assert sum(map(len, kinds)) == len(set().union(*kinds))


def test_every_name_is_one_of_vllm_s(parser: Any) -> None:  # noqa: ANN401
    flags = parser._option_string_actions
    names = {action.dest for action in parser._actions} | {flag.lstrip("-").replace("-", "_") for flag in flags}
    assert (FRONT_END | set(RENAMED) | set(REFUSED)) - names == set()
    shorts = {flag for flag in flags if not flag.startswith("--")} - {"-h"}
    assert shorts <= set(SHORT)
    assert [short for short in shorts if flags[short] is not flags[f"--{SHORT[short]}"]] == []
    assert [action.dest for action in parser._actions if misspells(action.dest) is not None] == []


@pytest.mark.parametrize(
    ("words", "model", "options"),
    [
        (("m",), "m", {}),
        (("m", *TOOLS, "--seed=1"), "m", {"enable-auto-tool-choice": True, "tool-call-parser": "hermes", "seed": "1"}),
        (("--lora_modules", "a=x", "b=y"), None, {"lora-modules": ["a=x", "b=y"]}),
        (("--no-enable-prefix-caching",), None, {"enable-prefix-caching": False}),
        (("-pp", "2", "-cc.mode=3", "-O2"), None, {
            "pipeline-parallel-size": "2", "compilation-config.mode": "3", "optimization-level": "2",
        }),
        (("--x.list_of+", "1", "--x.list_of+=2", "--y", "-1"), None, {"x.list_of+": ["1", "2"], "y": "-1"}),
    ],
)  # fmt: skip
def test_words_are_split(words: tuple[str, ...], model: str | None, options: dict[str, object]) -> None:
    assert split(words) == (model, options)


def test_flags_win_over_engine_options_over_variables_over_yaml(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("seed: 1\nkv-cache-dtype: fp8\nblock_size: 1\nengine_options: {max-loras: 1}\n")
    environ = {"AERIE_ENGINE_OPTIONS": json.dumps({"seed": 2, "kv_cache_dtype": "auto"})}

    assert load({}, environ, config).engine_options == {
        "max-loras": 1, "seed": 2, "kv-cache-dtype": "auto", "block-size": 1,
    }  # fmt: skip
    typed = {"engine_options": '{"seed": 3, "block-size": 2}'}
    assert load(typed, {}, config, ["--seed", "4"]).engine_options["seed"] == "4"
    assert load(typed, {}, config).engine_options["block-size"] == 2


def test_names_that_are_ours_mean_one_thing() -> None:
    words = ["m", "-tp", "2", "--kv-cache-memory-bytes", "1G", "--uvicorn-log-level", "warning"]
    chosen = load({"engine_options": '{"max_num_seqs": 8}'}, {}, None, words)
    assert (chosen.model, chosen.tensor_parallel_size, chosen.max_num_seqs) == ("m", 2, 8)
    assert (chosen.kv_cache_memory, chosen.log_level, chosen.engine_options) == (10**9, "warning", {})
    with pytest.raises(BadOption, match=r"^--kv-cache-memory-bytes: '1G' is asked for, and '2G' by --kv-cache-memory;"):
        load({"kv_cache_memory": "2G"}, {}, None, words)
    with pytest.raises(BadOption, match=r"^--model: other is given, and m without a name"):
        load({"model": "other"}, {}, None, words)


def test_vllm_s_speculative_configuration_is_our_draft() -> None:
    config = json.dumps({"method": "eagle3", "model": "head", "num_speculative_tokens": 3})
    for words in (
        ["--speculative-config", config],
        ["-sc.method", "eagle3", "-sc.model", "head", "--speculative-config.num_speculative_tokens", "3"],
        ["--spec-method", "eagle3", "--spec-model", "head", "--spec-tokens", "3"],
    ):
        chosen = load({}, {}, None, words)
        assert (chosen.draft, chosen.draft_tokens, chosen.engine_options) == ("head", 3, {})
    assert load({}, {}, None, ["-sc", '{"method": "ngram"}']).draft == "ngram"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"method": "mtp"}, "the method 'mtp' is not served; choose draft_model, eagle3, ngram"),
        (
            {"method": "ngram", "prompt_lookup_max": 3},
            "prompt_lookup_max cannot be set here; give the draft by --draft",
        ),
        ({"method": "eagle3"}, "the method 'eagle3' needs a model"),
        ({"method": "eagle3", "model": "b"}, "'b' is asked for, and 'a' by --draft; leave one of them out"),
        ([], r"\[\] is no JSON object"),
    ],
)
def test_other_drafting_is_refused_by_name(config: object, told: str) -> None:
    with pytest.raises(BadOption, match=rf"^--speculative-config: {told}"):
        load({"draft": "a", "engine_options": {"speculative_config": config}}, {})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--root-path", "/a"], "--root-path: vLLM's option is refused: a proxy that serves below a path strips it"),
        (
            ["--api_key=secret-value"],
            "--api-key: vLLM's option is refused: keys belong into the file of --api-key-file",
        ),
        (["-asc", "2"], "--api-server-count: vLLM's option is refused: there is one server"),
        (["--disable-log-stats"], "--disable-log-stats: vLLM's option is refused"),
        (["--draft-token", "3"], "--draft-token: no such option; did you mean --draft-tokens?"),
        (["--seed", "1", "--seed", "2"], "--seed: it is given twice"),
        (["m", "n"], "n: it stands behind no option; name the model first"),
    ],
)
def test_what_cannot_work_is_refused_before_vllm_is_imported(words: list[str], told: str) -> None:
    with pytest.raises(BadOption) as refused:
        load({}, {}, None, words)
    assert str(refused.value).startswith(told)
    assert "secret-value" not in str(refused.value)


def test_every_refused_option_is_refused_however_it_is_spelt() -> None:
    for name in REFUSED:
        for spelling in (name, name.replace("_", "-"), f"--{name}"):
            with pytest.raises(BadOption, match="is refused"):
                load({"engine_options": {spelling: "x"}}, {})


def test_vllm_s_parser_has_what_was_typed(parsed: Callable[..., Any], tmp_path: Path) -> None:
    template, adapter = tmp_path / "template.jinja", tmp_path / "adapter"
    template.write_text("{{ messages }}")
    adapter.mkdir()
    words = [
        *TOOLS,
        "--chat-template",
        str(template),
        "--enable-lora",
        "--lora-modules",
        f"a={adapter}",
        f"b={adapter}",
    ]
    words += ["--seed", "1", "-pp", "2", "-dp", "2", "--max-num-batched-tokens", "2k", "--no-enable-prefix-caching"]
    words += ["--hf-overrides", '{"rope_theta": 7}', "--kv-cache-dtype", "fp8", "--quantization", "fp8"]
    words += ["--structured-outputs-config.backend", "guidance", "--load-format", "safetensors"]
    arguments = parsed(*words)

    assert (arguments.enable_auto_tool_choice, arguments.tool_call_parser) == (True, "hermes")
    assert arguments.chat_template == str(template)
    assert [(lora.name, lora.path) for lora in arguments.lora_modules] == [("a", str(adapter)), ("b", str(adapter))]
    assert (arguments.seed, arguments.pipeline_parallel_size, arguments.data_parallel_size) == (1, 2, 2)
    assert (arguments.max_num_batched_tokens, arguments.enable_prefix_caching) == (2000, False)
    assert arguments.hf_overrides == {"rope_theta": 7}
    assert arguments.structured_outputs_config.backend == "guidance"


def test_lists_and_objects_in_json_are_as_good(parsed: Callable[..., Any], tmp_path: Path) -> None:
    adapters = [f"a={tmp_path}", {"name": "b", "path": str(tmp_path)}]
    arguments = parsed(engine_options=json.dumps({"enable-lora": True, "lora-modules": adapters}))
    assert [(lora.name, lora.path) for lora in arguments.lora_modules] == [("a", str(tmp_path)), ("b", str(tmp_path))]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--tool-call-parsr", "x"], "--tool-call-parsr: neither aerie serve nor vLLM has such an option; did you mean "
            "--tool-call-parser"),
        (["--colour"], "--colour: neither aerie serve nor vLLM has such an option"),
        (["--seed", "x"], "--seed: invalid int value: 'x'"),
        (["--enable-auto-tool-choice", "m"], "--enable-auto-tool-choice: it takes no value, and m stands behind it"),
        (["--enable-auto-tool-choice"], "--enable-auto-tool-choice: vLLM refuses it: --enable-auto"),
        (["--lora-modules", "a=/"], "--lora-modules: adapters are named, and none is served; add --enable-lora"),
        (["--enable-lora", "--lora-modules", "a=owner/a"], "--lora-modules: owner/a is not a folder"),
        (["--chat-template", "/no/such.jinja"], "--chat-template: vLLM refuses it: The supplied chat template"),
    ],
)  # fmt: skip
def test_what_vllm_refuses_is_told_by_name(parsed: Callable[..., Any], words: list[str], told: str) -> None:
    with pytest.raises(BadOption) as refused:
        parsed(*words)
    assert str(refused.value).startswith(told)


def test_an_adapter_that_can_run_code_is_refused(parsed: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(BadOption, match=r"^--lora-modules: adapter_model.bin in .* can run code"):
        parsed("--enable-lora", "--lora-modules", f"a={tmp_path}")
    (tmp_path / "adapter_model.bin").unlink()
    save_file({"empty": numpy.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert parsed("--enable-lora", "--lora-modules", f"a={tmp_path}", model=str(tmp_path / "main")).lora_modules


def test_the_command_line_takes_both_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[ServeSettings] = []
    monkeypatch.setattr("aerie.server.run.run", served.append)
    monkeypatch.setattr("aerie.cli._leave", lambda status: None)
    command = [
        "serve",
        "--port",
        "8001",
        "m",
        *TOOLS,
        "-tp",
        "2",
        "--no-enforce-eager",
        "--speculative-config.model",
        "d",
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    (chosen,) = served
    assert (chosen.model, chosen.port, chosen.tensor_parallel_size, chosen.draft) == ("m", 8001, 2, "d")
    assert chosen.enforce_eager is False
    assert chosen.engine_options == {"enable-auto-tool-choice": True, "tool-call-parser": "hermes"}


def test_replicas_of_the_model_hold_as_many_requests_more(make_checkpoint: Callable[..., Path]) -> None:
    config = SimpleNamespace(
        cache_config=SimpleNamespace(num_gpu_blocks=10, block_size=16),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        model_config=SimpleNamespace(max_model_len=64),
        parallel_config=SimpleNamespace(data_parallel_size=2),
    )
    client: Any = SimpleNamespace(vllm_config=config)
    settings = ServeSettings(model=str(make_checkpoint()))
    assert VllmEngine(client, Namespace(), settings).capacity == Capacity(sequences=16, tokens=320, longest=64)
