"""The one exception that stands for a user's mistake."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2; `--debug` shows the traceback.
    """
