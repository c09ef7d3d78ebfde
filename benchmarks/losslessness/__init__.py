# SPDX-License-Identifier: Apache-2.0
"""Whether speculation leaves the outputs as they were."""
