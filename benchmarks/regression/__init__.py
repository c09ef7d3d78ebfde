# SPDX-License-Identifier: Apache-2.0
"""Whether what is shipped is still as good as it was."""
