# SPDX-License-Identifier: Apache-2.0
"""Variables of the environment that a server decides before vLLM is imported.

The operator's own win, but for what is an option of ours: the kernels' choice, and how many stop strings there may be.
"""

import os

from aerie.quant import kernel_choice
from aerie.server.plan import Plan

COMPILED_PRODUCTS = 128
"""For oneDNN to keep on a CPU. It compiles a product of matrices for each number of rows, and rows are the tokens of a
step: its own 1,024 of half a MiB and more fill up over hours. See docs/operations.md."""

QUIET_WARNING = "ignore:resource_tracker:UserWarning"
"""The tracker outlives us, and would say last, after why an engine failed, what it cleaned up behind its worker."""


def set_environment(plan: Plan) -> None:
    """What vLLM, its libraries and our plugin in its processes read there; to be set before they are imported."""
    warnings = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{warnings},{QUIET_WARNING}" if warnings else QUIET_WARNING
    os.environ[kernel_choice.CHOICE_VARIABLE] = plan.settings.int4_kernel
    # Read when vLLM's models of requests are imported; 4 by default.
    os.environ["VLLM_MAX_STOP_STRINGS"] = str(plan.settings.max_stop_strings)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", plan.settings.log_level.upper())
    # Every checkpoint is on disk by now; a lookup on a model hub could only delay or fail the start.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if plan.device == "cpu":
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(COMPILED_PRODUCTS))
