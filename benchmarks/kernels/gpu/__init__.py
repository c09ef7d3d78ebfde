# SPDX-License-Identifier: Apache-2.0
"""`aerie bench kernels`: our Triton kernels on this machine's GPU, beside cuBLAS and vLLM's compiled kernels."""
