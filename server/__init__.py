# SPDX-License-Identifier: Apache-2.0
"""HTTP in front of one vLLM engine: settings, checks, readiness, the application, the process's life."""
