# SPDX-License-Identifier: Apache-2.0
"""Where settings come from: flags over environment over YAML over defaults, and errors that name the right one."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from annotated_types import Ge, Gt, Le
from pydantic import ByteSize, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from aerie.draft_models.draft_kernels import CHOICE_VARIABLE
from aerie.server.errors import BadOption
from aerie.server.settings import ENV_PREFIX, ServeSettings, choices, fields, flag, is_boolean, is_size, variable
from aerie.server.translation import translate
from aerie.server.tuning import FOLDER_VARIABLE
from aerie.server.vllm_options import RENAMED, base, check_served, named, split

NEARLY = 0.85
"""How alike a name must be to one of ours to be taken for it misspelt; none of vLLM's is so alike."""


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None = None, words: Sequence[str] = ()
) -> ServeSettings:
    """Merge the sources and validate once.

    `flags` holds only what was typed, by field name; `words` what was typed beside: the model and options of vLLM.

    Raises:
        BadOption: an unknown key or a bad value, named as its source spells it.
    """
    from_yaml = _source({} if config is None else read_yaml(config))
    variables = {name: environ[variable(name)] for name in fields() if environ.get(variable(name), "") != ""}
    from_environ = _source(variables)
    model, options = split(words)
    for name in options:
        if (meant := misspells(name)) is not None:
            raise BadOption(f"--{name}", "no such option", f"did you mean {flag(meant)}?")
    if model is not None and flags.get("model", model) != model:
        raise BadOption("--model", f"{flags['model']} is given, and {model} without a name", "leave one of them out")
    from_flags = _source({**flags, **({} if model is None else {"model": model})}, options)
    merged = {**from_yaml, **from_environ, **from_flags}
    options_of_all = [source.get("engine_options", {}) for source in (from_yaml, from_environ, from_flags)]
    if all(isinstance(one, dict) for one in options_of_all):
        merged["engine_options"] = {name: value for one in options_of_all for name, value in one.items()}
        check_served(merged["engine_options"])
    try:
        return ServeSettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if name in from_flags:
            source = flag(name)
        elif name in from_environ:
            source = variable(name)
        else:
            source = f"{name} in {config}"
        raise BadOption(source, f"{merged[name]!r} is not accepted", fix(name, fields()[name])) from None


def _source(values: Mapping[str, object], options: Mapping[str, JsonValue] = MappingProxyType({})) -> dict[str, Any]:
    """One source's fields, with what vLLM's options in it amount to. `options` win over its `engine_options`."""
    decoded = {name: _decode(name, value) for name, value in values.items()}
    of_vllm = decoded.get("engine_options", {})
    if not isinstance(of_vllm, dict) or not (of_vllm or options):
        return decoded
    translated, left = translate({**named(of_vllm), **options}, decoded)
    return {**decoded, **translated, "engine_options": left}


def misspells(name: str) -> str | None:
    """The field that a name nearly is; `None` for vLLM's names and for those of neither."""
    option = base(name)
    if option in fields() or option in RENAMED:
        return None
    return next(iter(difflib.get_close_matches(option, fields(), n=1, cutoff=NEARLY)), None)


def misspelt(environ: Mapping[str, str]) -> list[str]:
    """Remarks on variables that look like one of ours. Not refused: a cluster may set `AERIE_SERVICE_HOST` and such."""
    known = [variable(name) for name in fields()]
    remarks = []
    for name in sorted(environ):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if name.startswith(ENV_PREFIX) and name not in (*known, CHOICE_VARIABLE, FOLDER_VARIABLE) and close:
            remarks.append(f"{name} is no option; did you mean {close[0]}?")
    return remarks


def read_yaml(config: Path) -> dict[str, Any]:
    """The keys of a settings file.

    Raises:
        BadOption: the file is missing, is not a mapping, or has a key that the schema does not know.
    """
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadOption("--config", f"cannot read {config} ({error.strerror})", "name a readable YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadOption("--config", f"{config} is not YAML ({error})", "write one `key: value` a line") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadOption("--config", f"{config} is not a mapping", "write one `key: value` a line")
    ours = {str(key): value for key, value in values.items() if key in fields()}
    # Whether vLLM knows the others, its parser tells; what is nearly one of ours is told at once.
    others = {str(key): value for key, value in values.items() if key not in fields()}
    for key in others:
        if (meant := misspells(key)) is not None:
            raise BadOption(f"{key} in {config}", "unknown key", f"did you mean {meant}?")
    if not others:
        return ours
    options = ours.get("engine_options") or {}
    return {**ours, "engine_options": {**options, **others} if isinstance(options, dict) else options}


def fix(name: str, field: FieldInfo) -> str:
    """What to write instead, told by the field's type and bounds."""
    if choices(field):
        return f"choose one of {', '.join(choices(field))}"
    if is_boolean(field):
        return "choose true or false"
    if is_size(field):
        least = next(ByteSize(str(item.ge)) for item in field.metadata if isinstance(item, Ge))
        return f"choose a size of at least {least.human_readable().replace('.0', '')}, such as 512MiB"
    bounds = [_bound(item) for item in field.metadata if isinstance(item, Ge | Gt | Le)]
    if bounds:
        return f"choose a number {' '.join(bounds)}"
    if name == "engine_options":
        return 'write a JSON object, such as {"max-num-batched-tokens": 2048}'
    return f"default: {field.default}"


def _bound(item: Ge | Gt | Le) -> str:
    if isinstance(item, Le):
        return f"up to {item.le}"
    return f"from {item.ge}" if isinstance(item, Ge) else f"above {item.gt}"


def _decode(name: str, value: object) -> object:
    """Text from a flag or a variable becomes JSON where the field is an object."""
    if name != "engine_options" or not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
