# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
from pydantic import ValidationError

from aerie.server.errors import BadOption
from aerie.server.settings import ServeSettings, fields, flag, variable
from aerie.server.sources import load, misspelt

YAML, ENVIRONMENT, FLAG = 2, 3, 5


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(f"draft_tokens: {YAML}\n")
    return path


def test_flags_win_over_environment_over_yaml_over_defaults(config: Path) -> None:
    environ = {"AERIE_DRAFT_TOKENS": str(ENVIRONMENT)}

    assert load({}, {}).draft_tokens == ServeSettings().draft_tokens
    assert load({}, {}, config).draft_tokens == YAML
    assert load({}, environ, config).draft_tokens == ENVIRONMENT
    assert load({"draft_tokens": str(FLAG)}, environ, config).draft_tokens == FLAG


def test_an_empty_variable_counts_as_unset(config: Path) -> None:
    assert load({}, {"AERIE_DRAFT_TOKENS": ""}, config).draft_tokens == YAML


def test_text_from_flags_and_variables_becomes_the_fields_type() -> None:
    options = '{"max-num-batched-tokens": 64}'
    settings = load({"kv_cache_memory": "64MiB", "engine_options": options}, {"AERIE_ENFORCE_EAGER": "false"})

    assert settings.kv_cache_memory == 64 << 20
    assert settings.engine_options == {"max-num-batched-tokens": 64}
    assert settings.enforce_eager is False


@pytest.mark.parametrize(
    ("text", "tokens"), [("4096", 4096), ("32k", 32_000), ("32K", 32_768), ("auto", None), ("-1", None)]
)
def test_a_context_is_written_as_for_vllm(text: str, tokens: int | None) -> None:
    assert load({"max_model_len": text}, {}).max_model_len == tokens


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ServeSettings().port = 1  # type: ignore[misc]  # what the test is about


def test_every_field_has_a_flag_a_variable_and_help() -> None:
    assert flag("draft_tokens") == "--draft-tokens"
    assert variable("draft_tokens") == "AERIE_DRAFT_TOKENS"
    assert all(field.description and field.description.endswith(".") for field in fields().values())


@pytest.mark.parametrize(
    ("yaml", "told"),
    [
        ("draft_token: 3", "draft_token in {path}: unknown key; did you mean draft_tokens?"),
        ("draft_tokens: 17", "draft_tokens in {path}: 17 is not accepted; choose a number from 1 up to 16"),
        ("draft_tokens: [", "--config: {path} is not YAML"),
        ("[1, 2]", "--config: {path} is not a mapping; write one `key: value` a line"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path: Path, yaml: str, told: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(yaml)
    with pytest.raises(BadOption) as refused:
        load({}, {}, path)
    assert str(refused.value).startswith(told.format(path=path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("draft_tokens", "0", "choose a number from 1 up to 16"),
        ("port", "tcp://10.0.0.1:8000", "choose a number from 0 up to 65535"),
        ("dtype", "int8", "choose one of auto, float32, bfloat16, float16"),
        ("int4_kernel", "stock", "choose one of auto, aerie, vllm"),
        ("access_log", "perhaps", "choose true or false"),
        ("kv_cache_memory", "much", "choose a size of at least 1MiB, such as 512MiB"),
        ("gpu_memory_utilization", "0", "choose a number above 0 up to 1"),
        ("max_model_len", "1", "choose a number from 16"),
        ("max_model_len", "long", "choose a number from 16"),
        ("engine_options", "{", "write a JSON object"),
    ],
)
def test_a_bad_value_is_refused_with_the_name_of_its_source_and_the_fix(name: str, value: str, fix: str) -> None:
    for source, arguments in ((flag(name), ({name: value}, {})), (variable(name), ({}, {variable(name): value}))):
        with pytest.raises(BadOption) as refused:
            load(*arguments)
        assert refused.value.option == source
        assert refused.value.fix.startswith(fix)


def test_a_misspelt_variable_is_remarked_on() -> None:
    environ = {"AERIE_DRAFT_TOKEN": "3", "AERIE_SERVICE_HOST": "10.0.0.1", "AERIE_DRAFT": "none", "HOME": "/"}
    assert misspelt(environ) == ["AERIE_DRAFT_TOKEN is no option; did you mean AERIE_DRAFT_TOKENS?"]
    assert misspelt({"AERIE_INT4_KERNELS": "aerie"}) == [
        "AERIE_INT4_KERNELS is no option; did you mean AERIE_INT4_KERNEL?"
    ]
    assert misspelt({"AERIE_DRAFT_KERNELS": "aerie", "AERIE_INT4_KERNEL": "aerie"}) == []


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(BadOption, match=r"^--config: cannot read /absent\.yaml"):
        load({}, {}, Path("/absent.yaml"))
