# SPDX-License-Identifier: Apache-2.0
"""The options of `aerie serve`, once: flags, `AERIE_*` variables, YAML keys and the reference table come from here."""

from typing import Any, Literal, get_args

from pydantic import ByteSize, ConfigDict, JsonValue
from pydantic.fields import FieldInfo

from aerie.quant.kernel_choice import Choice as Int4Kernel
from aerie.server.front_settings import AccessSettings, LimitSettings, TlsSettings
from aerie.server.option import Name, Tokens, option

ENV_PREFIX = "AERIE_"
DEMO = "demo"
AUTO = "auto"
NONE = "none"
NGRAM = "ngram"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LogLevel = Literal["debug", "info", "warning", "error"]
SpeculationStatistics = Literal["none", "summary", "detailed"]


class ServeSettings(LimitSettings, TlsSettings, AccessSettings):
    """Everything that `aerie serve` can be told. Frozen; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    model: Name = option("Model", DEMO, "Folder or Hugging Face name of the main model; `demo` is the shipped one.")
    revision: Name | None = option(
        "Model", None, "Branch, tag or commit of a `--model` on the Hugging Face hub.", default_text="its main branch"
    )
    draft: Name = option(
        "Model",
        AUTO,
        "Folder or name of the draft; `none` turns speculation off; `ngram` drafts, without a model, what followed the "
        "same tokens before; `auto` takes the demo's draft for the demo, else the folder `draft` inside the model's, "
        "else none.",
    )
    draft_tokens: int = option("Model", 4, "K, the tokens drafted for each step of the main model.", ge=1, le=16)
    speculation: Name = option(
        "Model",
        AUTO,
        "How K is chosen. `auto`: by the tuning that `aerie tune` stored for this machine and these checkpoints; "
        "without one, or with `--draft-tokens` given, as `fixed`: the same K in every step. Or a tuning file.",
    )
    served_model_name: Name | None = option(
        "Model", None, "Name that clients use.", default_text="`clinic-demo` for the demo, else the folder's name"
    )
    max_model_len: Tokens = option(
        "Model",
        None,
        "Longest prompt and answer together, in tokens; `32k` is 32,000 and `32K` 32,768.",
        default_text="the model's own, shortened to what the KV cache holds",
        ge=16,
    )
    dtype: Dtype = option(
        "Model", "auto", "Type of activations and 16-bit weights; `auto` is float32 on a CPU, else the checkpoint's."
    )
    reasoning_parser: Name = option(
        "Model",
        AUTO,
        "vLLM's reasoning parser; `none` leaves thinking in the text; `auto` is `qwen3` for Qwen3 models whose "
        "chat template knows `<think>`, else none.",
    )

    host: Name = option("Server", "127.0.0.1", "Address to listen on; `0.0.0.0` opens the server to the network.")
    port: int = option("Server", 8000, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    grace_seconds: float = option(
        "Server", 30.0, "Time that running requests get to finish after SIGTERM or Ctrl-C.", ge=0, le=3600
    )
    log_level: LogLevel = option("Server", "info", "Least level that is logged.")
    access_log: bool = option("Server", False, "Log one line for each HTTP request.")

    max_queued_requests: int | None = option(
        "Load",
        None,
        "Most requests that wait beyond those the engine works on; more are refused. The default makes an answer take "
        "one and a half times as long as on a server that is just full.",
        default_text="half of `max_num_seqs`",
        ge=0,
        le=1 << 20,
    )
    max_queued_tokens: int = option(
        "Load", 1 << 18, "The same in tokens, prompts and answers, as estimated from the body.", ge=0, le=1 << 40
    )
    queue_timeout: float = option(
        "Load", 120.0, "Longest time until an answer's first token, in seconds.", gt=0, le=86400
    )
    request_timeout: float = option(
        "Load", 600.0, "Longest time for a whole answer, in seconds; clients lower it by `X-Request-Timeout`.",
        gt=0, le=86400,
    )  # fmt: skip

    stall_seconds: float = option(
        "Health",
        60.0,
        "The server is not ready when the engine, with work to do, makes no step for so long.",
        gt=0,
        le=3600,
    )
    probe_seconds: float = option(
        "Health", 30.0, "An engine that is idle for so long is asked for one token.", ge=1, le=3600
    )
    restart_engine: int = option(
        "Health", 0, "How often in a row an engine that died is restarted; 0 ends the process instead.", ge=0, le=100
    )

    kv_cache_memory: ByteSize | None = option(
        "Engine",
        None,
        "Memory for the KV cache, such as `512MiB` or `4GiB`.",
        default_text="512MiB on a CPU; on a GPU what `--gpu-memory-utilization` leaves",
        ge=1 << 20,
    )
    max_num_seqs: int | None = option(
        "Engine", None, "Most requests in one engine step.", default_text="vLLM's", ge=1, le=4096
    )
    enforce_eager: bool | None = option(
        "Engine", None, "Run without torch.compile and CUDA graphs.", default_text="true on a CPU, else false"
    )
    int4_kernel: Int4Kernel = option(
        "Engine",
        "auto",
        "Whose kernels multiply INT4 weights, of linear layers and experts: `aerie` ours wherever they can, `vllm` "
        "vLLM's own, `auto` ours where a measurement shows them ahead or, on a CPU, where vLLM has none.",
    )
    tensor_parallel_size: int = option("Engine", 1, "Devices that share the model.", ge=1, le=64)
    gpu_memory_utilization: float = option("Engine", 0.9, "Share of a GPU's memory the engine may use.", gt=0, le=1)
    engine_options: dict[str, JsonValue] = option(
        "Engine", {}, "More options of `vllm serve`, by name, as a JSON object; each is a flag and a YAML key as well."
    )

    speculation_statistics: SpeculationStatistics = option(
        "Statistics", "summary", "What `metrics.speculative_decoding` tells in each answer; `detailed` adds each step."
    )


def fields() -> dict[str, FieldInfo]:
    """The schema's fields by name, in the order of the reference: those of the front door follow ours."""
    known = ServeSettings.model_fields
    doors = {**AccessSettings.model_fields, **TlsSettings.model_fields, **LimitSettings.model_fields}
    return {
        **{name: field for name, field in known.items() if name not in doors},
        **{name: known[name] for name in doors},
    }


def flag(name: str) -> str:
    """The command-line flag of a field: `draft_tokens` is `--draft-tokens`."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment variable of a field: `draft_tokens` is `AERIE_DRAFT_TOKENS`."""
    return ENV_PREFIX + name.upper()


def group(field: FieldInfo) -> str:
    """The heading under which help and reference list the field."""
    return str(_extra(field)["group"])


def default_text(field: FieldInfo) -> str:
    """The default as the reference shows it."""
    text = _extra(field)["default_text"]
    if text is not None:
        return str(text)
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def is_boolean(field: FieldInfo) -> bool:
    """Whether the option is a switch."""
    return field.annotation is bool or bool in get_args(field.annotation)


def is_size(field: FieldInfo) -> bool:
    """Whether the option is a number of bytes."""
    return ByteSize in (field.annotation, *get_args(field.annotation))


def choices(field: FieldInfo) -> list[str]:
    """The words that a field with a closed set of them accepts."""
    return [value for value in get_args(field.annotation) if isinstance(value, str)]


def _extra(field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}
