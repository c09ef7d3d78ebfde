# SPDX-License-Identifier: Apache-2.0
"""What is not trusted: an interpreter without checks, unsafe serialisation, checkpoints with code, an open port."""

import ipaddress
import json
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aerie.draft_models.checkpoint import DraftMismatch, is_head
from aerie.draft_models.contract import GATED_ARCHITECTURES
from aerie.draft_models.targets import registry
from aerie.server.errors import BadOption
from aerie.server.keys import open_keys
from aerie.server.plan import Plan
from aerie.server.settings import ServeSettings
from aerie.server.tls import open_context

KEY_VARIABLES = ("VLLM_API_KEY", "AERIE_API_KEY")
OFF = ("", "0", "false", "False")
CODE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py", ".so", ".dill", ".joblib"})
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HOST_NAME = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]")
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
REPLACED = ("config.json", "tokenizer_config.json")
"""Of these, what `auto_map` names has a class of vLLM's or transformers' in its place."""


def check_process(settings: ServeSettings, environ: Mapping[str, str], *, optimised: int = sys.flags.optimize) -> None:
    """Refuse what would serve with a door open.

    Raises:
        BadOption: the option or the variable, and the fix.
    """
    if optimised:
        raise BadOption("python -O", "it removes assertions, some of which are vLLM's checks", "start without it")
    if environ.get("VLLM_ALLOW_INSECURE_SERIALIZATION", "") not in OFF:
        name = "VLLM_ALLOW_INSECURE_SERIALIZATION"
        raise BadOption(name, "it lets messages between processes run code", "unset it")
    for name in KEY_VARIABLES:
        if environ.get(name):
            raise BadOption(name, "keys in the environment are not read", "name a file with --api-key-file")
    if settings.insecure_no_auth and settings.api_key_file is not None:
        raise BadOption("--insecure-no-auth", "--api-key-file is given too", "leave one of them out")
    open_keys(settings)
    open_context(settings)
    allowed_hosts(settings)
    if settings.api_key_file is None and not settings.insecure_no_auth and not is_loopback(settings.host):
        fix = "name keys with --api-key-file (`aerie key NAME` makes one), or say --insecure-no-auth"
        raise BadOption("--host", f"{settings.host} opens the server to the network, and there are no API keys", fix)
    if settings.key_concurrency is not None and settings.api_key_file is None:
        raise BadOption("--key-concurrency", "there are no API keys", "name them with --api-key-file")


def allowed_hosts(settings: ServeSettings) -> frozenset[str] | None:
    """The names that the server answers to, in lower case; `None` for any.

    Without keys on a loopback address, a page in this machine's browser whose name was pointed there (DNS rebinding)
    could do all that a client can.

    Raises:
        BadOption: one is no name, or has a port.
    """
    if settings.allowed_hosts is None:
        if settings.api_key_file is not None or not is_loopback(settings.host):
            return None
        host = settings.host.lower()
        return LOOPBACK_NAMES | {f"[{host}]" if ":" in host else host}
    names = [name.strip().lower() for name in settings.allowed_hosts.split(",")]
    for name in names:
        if name != "*" and not HOST_NAME.fullmatch(name):
            fix = "give names such as api.example.com, *.example.com, 192.0.2.1 or [::1], separated by commas"
            raise BadOption("--allowed-hosts", f"{name!r} is no name of a host", fix)
    return None if "*" in names else frozenset(names)


def is_loopback(host: str) -> bool:
    """Whether every address of a host is this machine's own; one that is no address is refused when it is bound."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        return True
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def check_checkpoints(plan: Plan) -> None:
    """Refuse checkpoints that bring code, or weights whose loading can run some.

    Raises:
        BadOption: the file.
    """
    for option, folder in (("--model", plan.model), ("--draft", plan.draft)):
        if folder is not None:
            check_folder(option, folder)


def check_folder(option: str, folder: Path) -> None:
    """One checkpoint: safetensors, JSON and text only, but for code whose class vLLM has itself.

    That is passed over: `trust_remote_code` stays off, with which vLLM and transformers take their own classes or fail.

    Raises:
        BadOption: the file.
    """
    needless = _has_known_class(option, folder)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in CODE_SUFFIXES and not (needless and path.suffix == ".py"):
            fix = "serve a folder that holds safetensors, JSON and text only"
            raise BadOption(option, f"{path.name} in {folder} can run code when it is loaded", fix)
    for name in CONFIGS:
        path = folder / name
        if path.is_file() and _names_code(_read(option, path)) and not (needless and name in REPLACED):
            fix = "use a checkpoint whose architecture vLLM has"
            raise BadOption(option, f"{path} names code of its own (auto_map)", fix)


def _has_known_class(option: str, folder: Path) -> bool:
    """Whether vLLM or our plugin has the class of a checkpoint; vLLM takes that unless told to trust others."""
    path = folder / "config.json"
    config = _read(option, path) if path.is_file() else {}
    names = config.get("architectures")
    if config.get("speculators_model_type") == "eagle3":  # vLLM takes the class from the layer's type
        return True
    if not names:  # heads of some makers name none
        return path.is_file() and _is_head(folder)
    return all(name in registry() or name in GATED_ARCHITECTURES for name in names)


def _is_head(folder: Path) -> bool:
    try:
        return is_head(folder)
    except DraftMismatch:  # told by the checks that follow
        return False


def _read(option: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise BadOption(option, f"{path} is not JSON", "copy the checkpoint again") from None
    if not isinstance(config, dict):
        raise BadOption(option, f"{path} is not a JSON object", "copy the checkpoint again")
    return config


def _names_code(value: object) -> bool:
    if isinstance(value, dict):
        return bool(value.get("auto_map")) or any(map(_names_code, value.values()))
    return isinstance(value, list) and any(map(_names_code, value))
