# SPDX-License-Identifier: Apache-2.0
"""A scheduler whose K is what a file says, so that one server shows every K. Read against vLLM 0.32.0 and 0.33.0.

It needs an engine with a schedule of its own, `num_speculative_tokens_per_batch_size`, whose lookup it fills anew.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aerie.draft_models.vllm_scheduler import OptionalSpeculation, OptionalSpeculationAsync

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

VARIABLE = "AERIE_TUNE_SWITCH"
"""Names the file."""


class Switched(OptionalSpeculation):
    """Reads the file before each step; next to a step's milliseconds that is nothing."""

    def schedule(self, throttle_prefills: bool = False) -> "SchedulerOutput":
        """The next step, with the K that the file has now."""
        draft_tokens = int(Path(os.environ[VARIABLE]).read_text())
        if self.dynamic_sd_lookup is None:
            raise RuntimeError("the engine has no schedule to switch")
        if self.dynamic_sd_lookup[1] != draft_tokens:
            self.dynamic_sd_lookup[:] = [draft_tokens] * len(self.dynamic_sd_lookup)
        return super().schedule(throttle_prefills)


class SwitchedAsync(Switched, OptionalSpeculationAsync):
    """The same where steps are scheduled ahead."""


def scheduler_class(*, asynchronous: bool) -> str:
    """The value of vLLM's option `scheduler-cls`."""
    chosen = SwitchedAsync if asynchronous else Switched
    return f"{chosen.__module__}.{chosen.__qualname__}"
