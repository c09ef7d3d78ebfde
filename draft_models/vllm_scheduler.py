# SPDX-License-Identifier: Apache-2.0
"""vLLM's scheduler, with speculation that a request can decline: `"vllm_xargs": {"speculation": "off"}`.

It also bounds the time that grammars take (`vllm_grammars.py`): of vLLM's classes that one can choose, this one meets
the manager of grammars.

vLLM drafts for a whole batch or not at all. The draft model still runs for such a request, as its neighbours need it;
its tokens are not scheduled, so that every step verifies nothing of it and yields one token. That is how one server
shows both ways side by side, and lets a measurement take turns within one engine.

The class is named in `SchedulerConfig.scheduler_cls`, which vLLM resolves in the engine core's process. Read in vllm
0.32.0 and 0.33.0.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from aerie.draft_models.vllm_grammars import bound_grammars

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds
    from vllm.v1.request import Request

ARGUMENT = "speculation"
"""Key of a request's `vllm_xargs`."""
OFF = "off"


def speculates(request: "Request") -> bool:
    """Whether drafted tokens may be scheduled for a request."""
    arguments = request.sampling_params.extra_args if request.sampling_params is not None else None
    return not arguments or arguments.get(ARGUMENT) != OFF


class OptionalSpeculation(Scheduler):
    """Takes the drafts away from requests that decline them, before a step is scheduled."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - vLLM's own, passed on
        super().__init__(*arguments, **options)
        bound_grammars(self.structured_output_manager)

    def update_draft_token_ids(self, draft_token_ids: "DraftTokenIds") -> None:
        """Store what was drafted; the scheduler calls it between two steps."""
        super().update_draft_token_ids(draft_token_ids)
        self._decline(draft_token_ids.req_ids)

    def _decline(self, request_ids: "list[str]") -> None:
        for request_id in request_ids:
            request = self.requests.get(request_id)
            if request is not None and request.spec_token_ids and not speculates(request):
                request.spec_token_ids = []


class OptionalSpeculationAsync(OptionalSpeculation, AsyncScheduler):
    """The same where steps are scheduled ahead: there a request holds placeholders of the tokens to be drafted."""

    def _update_after_schedule(self, scheduler_output: "SchedulerOutput") -> None:
        super()._update_after_schedule(scheduler_output)
        self._decline(list(scheduler_output.num_scheduled_tokens))


def scheduler_class(*, asynchronous: bool) -> str:
    """The name that `SchedulerConfig.scheduler_cls` takes."""
    chosen = OptionalSpeculationAsync if asynchronous else OptionalSpeculation
    return f"{chosen.__module__}.{chosen.__qualname__}"
