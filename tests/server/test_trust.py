# SPDX-License-Identifier: Apache-2.0
"""What `aerie serve` does not start with, however it was asked to."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aerie.server import trust
from aerie.server.errors import BadOption
from aerie.server.keys import make_key
from aerie.server.plan import demo_home, make_plan
from aerie.server.settings import ServeSettings

AERIE = (sys.executable, "-P", "-m", "aerie")
MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(make_key("alice")[1])
    return path


def check(environ: dict[str, str] | None = None, *, optimised: int = 0, **settings: object) -> None:
    trust.check_process(ServeSettings.model_validate(settings), environ or {}, optimised=optimised)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "8.8.8.8"])
def test_a_port_open_to_the_network_needs_keys_or_a_clear_word(key_file: Path, host: str) -> None:
    with pytest.raises(BadOption, match=r"^--host: .* there are no API keys; .*--insecure-no-auth"):
        check(host=host)
    check(host=host, api_key_file=str(key_file))
    check(host=host, insecure_no_auth=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_the_loopback_address_needs_no_keys(host: str) -> None:
    check(host=host)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"host": "127.0.0.2"}, {"localhost", "127.0.0.1", "[::1]", "127.0.0.2"}),
        ({"host": "::1"}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"host": "0.0.0.0", "insecure_no_auth": True}, None),
        ({"api_key_file": "keys"}, None),
        ({"allowed_hosts": "*"}, None),
        ({"allowed_hosts": "API.example, *.b.example,[::1]"}, {"api.example", "*.b.example", "[::1]"}),
    ],
)
def test_the_names_of_a_server(settings: dict[str, object], names: set[str] | None) -> None:
    assert trust.allowed_hosts(ServeSettings.model_validate(settings)) == names


@pytest.mark.parametrize("hosts", ["https://a.example", "a:8000", "a,,b", "a.*", "::1", "*a.example"])
def test_a_name_without_form_is_refused(hosts: str) -> None:
    with pytest.raises(BadOption, match=r"^--allowed-hosts: "):
        check(allowed_hosts=hosts)


def test_options_that_contradict_each_other(key_file: Path) -> None:
    with pytest.raises(BadOption, match=r"^--insecure-no-auth: "):
        check(insecure_no_auth=True, api_key_file=str(key_file))
    with pytest.raises(BadOption, match=r"^--key-concurrency: there are no API keys"):
        check(key_concurrency=1)


def test_a_file_of_keys_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"^--api-key-file: cannot read .*`aerie key NAME`"):
        check(api_key_file=str(tmp_path / "absent"))


@pytest.mark.parametrize("name", ["VLLM_API_KEY", "AERIE_API_KEY"])
def test_keys_in_the_environment_are_not_ignored_in_silence(name: str) -> None:
    with pytest.raises(BadOption, match=rf"^{name}: .*--api-key-file") as refused:
        check({name: "secret-value"})
    assert "secret-value" not in str(refused.value)
    check({name: ""})


def test_insecure_serialisation() -> None:
    with pytest.raises(BadOption, match=r"^VLLM_ALLOW_INSECURE_SERIALIZATION: .*; unset it"):
        check({"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"})
    check({"VLLM_ALLOW_INSECURE_SERIALIZATION": "0"})


def test_an_interpreter_without_assertions(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"^python -O"):
        check(optimised=1)
    environ = {**os.environ, "PYTHONOPTIMIZE": "1"}
    command = [*AERIE, "serve", "--model", str(make_checkpoint())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environ)
    assert (done.returncode, done.stderr.startswith("aerie: error: python -O: ")) == (2, True)


@pytest.mark.parametrize("role", ["model", "draft"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.PTH", "x.pkl", "modeling_x.py", "x.so"])
def test_files_that_can_run_code(make_checkpoint: MakeCheckpoint, role: str, name: str) -> None:
    unknown = {"architectures": ["NobodysForCausalLM"]}
    folders = {"model": make_checkpoint("m", **unknown), "draft": make_checkpoint("d", **unknown)}
    (folders[role] / name).touch()
    plan = make_plan(ServeSettings(model=str(folders["model"]), draft=str(folders["draft"])))
    with pytest.raises(BadOption, match=rf"^--{role}: {name} in .* can run code"):
        trust.check_checkpoints(plan)


@pytest.mark.parametrize(
    ("architecture", "name", "passes"),
    [
        ("NobodysForCausalLM", "config.json", False),
        ("NobodysForCausalLM", "tokenizer_config.json", False),
        ("Qwen3ForCausalLM", "config.json", True),
        ("Qwen3ForCausalLM", "tokenizer_config.json", True),
        ("Qwen3ForCausalLM", "preprocessor_config.json", False),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_code_that_a_configuration_names_is_passed_over_where_vllm_has_the_class(
    make_checkpoint: MakeCheckpoint, architecture: str, name: str, passes: bool, nested: bool
) -> None:
    folder = make_checkpoint(architectures=[architecture])
    code = {"auto_map": {"AutoConfig": "evil.Config"}}
    config = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    (folder / name).write_text(json.dumps({**config, **({"vision_config": [code]} if nested else code)}))
    plan = make_plan(ServeSettings(model=str(folder)))
    if passes:
        trust.check_checkpoints(plan)
        return
    with pytest.raises(BadOption, match=r"^--model: .*auto_map"):
        trust.check_checkpoints(plan)


def test_nothing_of_a_folder_s_code_runs(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.tokenizers import get_tokenizer

    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", None]}
    folder = make_checkpoint(auto_map=classes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_home() / "main" / name, folder)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "auto_map": classes}))
    ran = tmp_path / "ran"
    for name in ("code.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(ran)!r}, 'w').close()\nclass C: ...\nclass M: ...\nclass T: ...\n")
    trust.check_checkpoints(make_plan(ServeSettings(model=str(folder))))
    EngineArgs(model=str(folder)).create_model_config()
    get_tokenizer(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("architecture", ["LlamaForCausalLMEagle3", "Eagle3GatedLlamaForCausalLM"])
def test_a_draft_may_bring_a_class_that_is_here_too(make_checkpoint: MakeCheckpoint, architecture: str) -> None:
    """The hub's heads name the class that trained them; without trust in remote code the engine takes its own."""
    code = {"auto_map": {"AutoModel": "modeling.Head"}}
    model, draft = make_checkpoint(), make_checkpoint("draft", architectures=[architecture], **code)
    (draft / "modeling.py").touch()
    trust.check_checkpoints(make_plan(ServeSettings(model=str(model), draft=str(draft))))
    speculators = {"architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3"}
    trust.check_folder("--draft", make_checkpoint("speculators", **speculators, **code))
    unknown = make_checkpoint("unknown", architectures=["NobodysHead"], **code)
    with pytest.raises(BadOption, match=r"^--draft: .*auto_map"):
        trust.check_folder("--draft", unknown)
    (draft / "model.bin").touch()
    with pytest.raises(BadOption, match=r"^--draft: model\.bin"):
        trust.check_folder("--draft", draft)


def test_a_checkpoint_without_code_passes(make_checkpoint: MakeCheckpoint) -> None:
    trust.check_checkpoints(make_plan(ServeSettings(model=str(make_checkpoint()))))
