# SPDX-License-Identifier: Apache-2.0
"""vLLM's worker for CPUs, whose draft rests in steps that ask it for no token. Read against vLLM 0.32.0 (runner V1).

At K = 0 vLLM runs the draft's first forward pass all the same, to keep its KV cache whole: 5 to 8 % of the demo's step.
Resting leaves the draft without keys for the tokens of those steps. Answers stay as they are; a request that lives to
see K rise again may get fewer drafts accepted, and so may a later one that shares such tokens as a prefix. Prompts are
never left out: a step with more than one token of any request does not rest.

The class is named by `--worker-cls`, vLLM's own option.
"""

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


def rests(step: "SchedulerOutput") -> bool:
    """Whether nothing is to be drafted after a step, and no request has more than one token in it."""
    return step.num_spec_tokens_to_schedule == 0 and step.total_num_scheduled_tokens == len(step.num_scheduled_tokens)


class RestingRunner(CPUModelRunner):
    """Leaves the draft out of steps that rest."""

    def propose_draft_token_ids(
        self,
        scheduler_output: "SchedulerOutput",
        *inputs: Any,  # noqa: ANN401 - vLLM's, passed on
    ) -> "list[list[int]] | torch.Tensor":
        """No token for each request, or what vLLM drafts."""
        if not rests(scheduler_output):
            return super().propose_draft_token_ids(scheduler_output, *inputs)
        self._draft_probs = None
        self._draft_prob_req_ids = None
        return torch.empty(self.input_batch.num_reqs, 0, dtype=torch.int64)


class RestingWorker(CPUWorker):
    """Has the runner above."""

    def init_device(self) -> None:
        """Build the runner again, ours; vLLM has no other place for it, and its own holds no weights yet."""
        super().init_device()  # type: ignore[no-untyped-call]  # vLLM left it untyped
        if not self.use_v2_model_runner:
            self.model_runner = RestingRunner(self.vllm_config, torch.device("cpu"))
