# SPDX-License-Identifier: Apache-2.0
"""Where settings come from: flags over environment over YAML over defaults, and errors that name the right one."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from annotated_types import Ge, Gt, Le
from pydantic import ByteSize, ValidationError
from pydantic.fields import FieldInfo

from aerie.draft_models.draft_kernels import CHOICE_VARIABLE
from aerie.server.errors import BadOption
from aerie.server.settings import ENV_PREFIX, ServeSettings, choices, fields, flag, is_boolean, is_size, variable
from aerie.server.tuning import FOLDER_VARIABLE


def load(flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None = None) -> ServeSettings:
    """Merge the sources and validate once.

    `flags` holds only what was typed, by field name.

    Raises:
        BadOption: an unknown key or a bad value, named as its source spells it.
    """
    from_yaml = {} if config is None else read_yaml(config)
    from_environ = {name: environ[variable(name)] for name in fields() if environ.get(variable(name), "") != ""}
    merged = {**from_yaml, **from_environ, **flags}
    try:
        return ServeSettings.model_validate({name: _decode(name, value) for name, value in merged.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if name in flags:
            source = flag(name)
        elif name in from_environ:
            source = variable(name)
        else:
            source = f"{name} in {config}"
        raise BadOption(source, f"{merged[name]!r} is not accepted", fix(name, fields()[name])) from None


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
    for key in values:
        if key not in fields():
            close = difflib.get_close_matches(str(key), fields(), n=1)
            hint = f"did you mean {close[0]}?" if close else "`aerie serve --help` lists the options"
            raise BadOption(f"{key} in {config}", "unknown key", hint)
    return values


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
