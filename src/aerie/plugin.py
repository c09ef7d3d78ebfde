# SPDX-License-Identifier: Apache-2.0
"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`).

Must be idempotent, fast and free of CUDA: the API process forks after it ran.
"""


def register() -> None:
    """Register gated heads and INT4 on CPUs, mend vLLM's CPU sampler, and have loaders say which kernel serves what."""
    from vllm import ModelRegistry

    from aerie.draft_models import cpu_mends
    from aerie.draft_models.contract import GATED_ARCHITECTURES
    from aerie.quant import vllm_linear, vllm_report

    # By name: importing the class here would import the model code into processes that never run it.
    for name in GATED_ARCHITECTURES:
        if name not in ModelRegistry.models:
            ModelRegistry.register_model(name, f"aerie.draft_models.vllm_model:{name}")
    vllm_linear.register()
    vllm_report.register()
    cpu_mends.apply()
