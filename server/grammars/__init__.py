# SPDX-License-Identifier: Apache-2.0
"""Grammars, compiled and matched on trial in processes that can be ended, before the engine sees them."""
