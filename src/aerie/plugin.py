# SPDX-License-Identifier: Apache-2.0
"""What vLLM calls in each of its processes (entry point `vllm.general_plugins`).

Must be idempotent, fast and free of CUDA: the API process forks after it ran.
"""


def register() -> None:
    """Register gated heads and INT4 kernels, mend vLLM's CPU sampler, and have loaders say which kernel serves what.

    In the processes that vLLM starts, a full disk may no longer stop the log's writer. Those of `aerie serve` do not
    outlive it, and leave the exception that ends them.
    """
    import os
    from multiprocessing import parent_process

    from vllm import ModelRegistry

    from aerie.draft_models import cpu_mends
    from aerie.draft_models.contract import GATED_ARCHITECTURES
    from aerie.quant import vllm_linear, vllm_report
    from aerie.server import failure
    from aerie.server.children import die_with_parent
    from aerie.server.log_streams import keep_writable

    parent = parent_process()
    if parent is not None:
        keep_writable()
        # Whoever else makes an engine may do so in a thread that ends before it.
        if parent.pid is not None and failure.FOLDER_VARIABLE in os.environ:
            die_with_parent(parent.pid)
            failure.watch()
            failure.end_quickly()
    # By name: importing the class here would import the model code into processes that never run it.
    for name in GATED_ARCHITECTURES:
        if name not in ModelRegistry.models:
            ModelRegistry.register_model(name, f"aerie.draft_models.vllm_model:{name}")
    vllm_linear.register()
    vllm_report.register()
    cpu_mends.apply()
