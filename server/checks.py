# SPDX-License-Identifier: Apache-2.0
"""What is refused before the engine starts. Every refusal is one line that names the option and the fix."""

import errno
import logging
import os
import socket
from pathlib import Path
from typing import Any

from aerie.draft_models.checkpoint import DraftMismatch, is_head, verify_draft
from aerie.draft_models.cpu_mends import SPLIT_VARIABLE
from aerie.draft_models.headers import read_headers
from aerie.quant.errors import QuantError
from aerie.quant.servable import refusal
from aerie.quant.survey import Survey, survey
from aerie.server.errors import BadOption
from aerie.server.plan import Plan
from aerie.server.tokenizer_file import check_tokenizer_file
from aerie.server.vllm_options import base

log = logging.getLogger(__name__)
BACKENDS = ("linear_backend", "moe_backend")
CPU_HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
METHOD_NAMES = ("eagle-", "eagle3", "dflash", "dspark")
"""Parts of a path by which vLLM 0.32 decides what a draft is, whatever is in it (`config/speculative.py`)."""


def check(plan: Plan) -> None:
    """Refuse a plan that cannot work.

    Raises:
        BadOption: what does not fit, and what would.
    """
    check_plugin()
    check_attention(plan)
    check_length(plan)
    check_parallel(plan)
    check_backends(plan)
    check_tokenizer(plan)
    check_weights(plan, "--model", plan.model)
    if plan.draft is not None:
        check_draft(plan, plan.draft)
        check_weights(plan, "--draft", plan.draft)
        check_lm_heads(plan, plan.draft)
        check_pipeline(plan)


def check_weights(plan: Plan, option: str, folder: Path) -> None:
    """The checkpoint must be whole and quantised in a way that is served, its INT4 layers of a shape that is."""
    surveyed, on_cpu = look(option, folder), plan.device == "cpu"
    if (refused := refusal(surveyed, on_cpu)) is not None:
        raise BadOption(option, *refused)
    if not on_cpu or plan.dtype != "float32":
        return  # vLLM may choose its own kernels, and decides when it loads
    int4 = any(layer.group_size is not None for layer in surveyed.layers)
    if int4 and plan.settings.int4_kernel == "vllm":
        problem = "vLLM's own INT4 kernels take no float32, which a CPU is served in"
        raise BadOption("--int4-kernel", problem, "choose auto, or --dtype bfloat16 where the CPU has it")
    for layer in surveyed.layers:
        if (reason := surveyed.refusal(layer)) is not None:
            fix = "see what is served with `aerie doctor --model`, and quantise it so"
            raise BadOption(option, f"{layer.pattern} cannot be served: {reason}", fix)


def check_backends(plan: Plan) -> None:
    """The options `linear-backend` and `moe-backend` leave only kernels of one of vLLM's names, and ours have none."""
    if plan.settings.int4_kernel != "aerie":
        return
    for name, value in plan.settings.engine_options.items():
        if base(name) in BACKENDS and value != "auto":
            problem = f"aerie is asked for, and {name} of --engine-options asks for vLLM's {value}"
            raise BadOption("--int4-kernel", problem, "leave one of them out")


def check_lm_heads(plan: Plan, draft: Path) -> None:
    """The model runner V2 of vLLM compares the weights of both lm_heads, and INT4 ones have none.

    Read in 0.32.0, `_should_share` in `v1/worker/gpu/spec_decode/eagle/utils.py`; vllm-project/vllm#53104 is open.
    """
    if not uses_second_runner(plan):
        return
    for option, folder in (("--model", plan.model), ("--draft", draft)):
        if any(layer.pattern == "lm_head" and layer.group_size is not None for layer in look(option, folder).layers):
            problem = "its lm_head is INT4, with which vLLM's model runner V2 cannot draft"
            fix = "leave lm_head in 16 bit, set VLLM_USE_V2_MODEL_RUNNER=0, or --no-draft"
            raise BadOption(option, problem, fix)


def look(option: str, folder: Path) -> Survey:
    """The layers of a checkpoint, from its headers.

    Raises:
        BadOption: a file is damaged.
    """
    try:
        return survey(folder)
    except QuantError as error:
        raise BadOption(option, str(error), "copy the checkpoint again") from error


def check_plugin() -> None:
    """`VLLM_PLUGINS` is one list for all plugins; one that leaves ours out would leave gated heads unknown."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and "aerie" not in allowed.split(","):
        raise BadOption("VLLM_PLUGINS", f"{allowed!r} leaves out aerie", "add aerie to it, or unset it")


def check_attention(plan: Plan) -> None:
    """Attention must not split keys and values over threads where drafts are verified; the plugin has it not do so."""
    if plan.device == "cpu" and plan.speculates and os.environ.get(SPLIT_VARIABLE, "0") != "0":
        problem = "from two threads on greedy answers with a draft would differ from those without"
        raise BadOption(SPLIT_VARIABLE, problem, "unset it, or serve with --no-draft")


def check_length(plan: Plan) -> None:
    """`--max-model-len` cannot exceed the positions that the model was built for; of stretched ones vLLM judges."""
    longest = text_config(plan.model_config).get("max_position_embeddings")
    asked = plan.settings.max_model_len
    if _vllm_option(plan, "hf_overrides") is not None or _stretches(text_config(plan.model_config)):
        return
    if asked is not None and isinstance(longest, int) and asked > longest:
        raise BadOption(
            "--max-model-len", f"the model has {longest} positions, not {asked}", f"choose {longest} or less"
        )


def _stretches(config: dict[str, Any]) -> bool:
    """Whether positions are scaled, as YaRN does."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    inner = rope.values() if isinstance(rope, dict) else ()
    return any("factor" in one for one in (rope, *inner) if isinstance(one, dict))


def _vllm_option(plan: Plan, option: str) -> object:
    """The value of an option of vLLM's, as it was given; `None` where it was not."""
    return next((value for name, value in plan.settings.engine_options.items() if base(name) == option), None)


def check_tokenizer(plan: Plan) -> None:
    """A tokenizer of vLLM's own option is read from a folder: nothing is fetched once the engine starts."""
    tokenizer = _vllm_option(plan, "tokenizer")
    if tokenizer is not None and not Path(str(tokenizer)).is_dir():
        raise BadOption("--tokenizer", f"{tokenizer} is not a folder", "name the folder that holds tokenizer.json")
    check_tokenizer_file(*(("--model", plan.model) if tokenizer is None else ("--tokenizer", Path(str(tokenizer)))))


def check_pipeline(plan: Plan) -> None:
    """An EAGLE-3 head eats hidden states of layers that other stages have, which vLLM's CPU runner does not hand on.

    Its GPU runner does, and refuses the models that cannot. Read in 0.32.0, `v1/worker/gpu_model_runner.py`.
    """
    stages = _vllm_option(plan, "pipeline_parallel_size")
    if plan.device == "cpu" and stages not in (None, 1, "1"):
        problem = "vLLM hands no hidden states from one stage to another on a CPU, and the draft needs them"
        raise BadOption("--pipeline-parallel-size", problem, "choose 1, or --no-draft")


def check_parallel(plan: Plan) -> None:
    """`--tensor-parallel-size` must divide the attention heads."""
    heads = text_config(plan.model_config).get("num_attention_heads")
    size = plan.settings.tensor_parallel_size
    if isinstance(heads, int) and heads % size:
        raise BadOption(
            "--tensor-parallel-size", f"{size} does not divide {heads} heads", f"choose a divisor of {heads}"
        )


def check_draft(plan: Plan, draft: Path) -> None:
    """A head must fit its target in every tensor, another draft in its vocabulary; remarks go to the log."""
    try:
        if is_head(draft):
            for remark in verify_draft(draft, plan.model):
                log.warning("%s", remark)
            check_head(plan)
        else:
            check_vocabulary(plan)
            check_language_model(plan, draft)
    except DraftMismatch as error:
        option, _, problem = str(error).partition(": ")
        problem, _, fix = problem.partition("; ")
        raise BadOption(option, problem, fix or "use a draft trained for this model, or --no-draft") from error


def check_head(plan: Plan) -> None:
    """A head's attention must be one that the device computes, and that tensor parallelism can divide.

    The engine runs a head at the target's tensor parallelism. Read in 0.32.0: `LlamaAttention`, and
    `get_supported_head_sizes` in `v1/attention/backends/cpu_attn.py`.
    """
    config = plan.draft_config or {}
    layer = config.get("transformer_layer_config") or config
    heads, size = int(layer["num_attention_heads"]), plan.settings.tensor_parallel_size
    groups = int(layer.get("num_key_value_heads") or heads)
    if heads % size or (groups % size and size % groups):
        problem = f"its {heads} heads and {groups} key-value heads cannot be divided by --tensor-parallel-size {size}"
        raise BadOption("--draft", problem, "choose a size that divides both, or --no-draft")
    nested = config.get("eagle_config") or {}
    if not nested.get("use_aux_hidden_state", True) and uses_second_runner(plan):
        # 0.32.0 does not look at the key there; 0.33 does.
        problem = "eagle_config.use_aux_hidden_state is false, which vLLM's model runner V2 does not obey"
        raise BadOption("--draft", problem, "set VLLM_USE_V2_MODEL_RUNNER=0, or --no-draft")
    head_dim = layer.get("head_dim") or int(layer["hidden_size"]) // heads
    if plan.device == "cpu" and head_dim not in CPU_HEAD_DIMS:
        known = ", ".join(map(str, CPU_HEAD_DIMS))
        raise BadOption("--draft", f"on a CPU no attention heads of {head_dim} are computed", f"it takes {known}")


def check_language_model(plan: Plan, draft: Path) -> None:
    """Refuse a draft that vLLM would not take for a language model: by its path, or for what it is."""
    names = read_headers(draft)
    if "fc.weight" in names:
        raise BadOption("--draft", "it is an EAGLE-1 or EAGLE-2 head", "use an EAGLE-3 head, or --no-draft")
    if not (plan.draft_config or {}).get("architectures"):
        raise BadOption("--draft", "its config.json names no architecture", "use a language model or an EAGLE-3 head")
    if word := next((word for word in METHOD_NAMES if word in str(draft).lower()), None):
        problem = f"{word!r} is in its path, for which vLLM takes it for another kind of draft than it is"
        raise BadOption("--draft", problem, "move it to a folder of another name")


def check_vocabulary(plan: Plan) -> None:
    """A draft that is a language model of its own must know the same tokens."""
    ours, theirs = (text_config(config or {}).get("vocab_size") for config in (plan.model_config, plan.draft_config))
    if theirs is not None and theirs != ours:
        problem = f"its vocabulary has {theirs} tokens, the model's {ours}"
        raise BadOption("--draft", problem, "use a draft of the model's family, or --no-draft")


def uses_second_runner(plan: Plan) -> bool:
    """Whether vLLM's model runner V2 is in charge: on GPUs, unless it is switched off."""
    return plan.device != "cpu" and os.environ.get("VLLM_USE_V2_MODEL_RUNNER") != "0"


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a config that may hold several."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen, so that nobody else takes the port while the engine loads.

    Raises:
        BadOption: the address is wrong, taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise BadOption("--host", f"{host} is not an address", "choose 127.0.0.1 or 0.0.0.0") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _refused(host, port, error) from None
    listener.setblocking(False)
    return listener


def _refused(host: str, port: int, error: OSError) -> BadOption:
    if error.errno == errno.EADDRINUSE:
        return BadOption("--port", f"{port} is in use", "choose another port, or stop the process that listens there")
    if error.errno == errno.EACCES:
        return BadOption("--port", f"{port} needs privileges", "choose a port above 1023")
    return BadOption(
        "--host", f"cannot listen on {host} ({os.strerror(error.errno or 0)})", "choose 127.0.0.1 or 0.0.0.0"
    )
