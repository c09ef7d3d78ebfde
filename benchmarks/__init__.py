# SPDX-License-Identifier: Apache-2.0
"""Measurements of what this repository ships: serving speed, acceptance, quality, losslessness, and their reports."""
