# SPDX-License-Identifier: Apache-2.0
"""What can go wrong in a training by no fault of ours: one line for the user, never a traceback."""


class TrainerError(Exception):
    """The base of them; the text names the option or the file, and the fix."""
