# SPDX-License-Identifier: Apache-2.0
"""How the integers and scales of a weight are chosen, one method a file."""
