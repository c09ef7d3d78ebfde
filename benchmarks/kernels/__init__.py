# SPDX-License-Identifier: Apache-2.0
"""What an operator costs beside the alternatives, one operator a file, under the operator's name."""
