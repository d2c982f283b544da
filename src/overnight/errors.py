"""A user's mistake, and what it is told with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right: one line that says what is wrong, where, and what to do.

    The command line prints the message alone and exits with code 2; `--debug` shows the traceback.
    """


def suggestion(word: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' where something known is close to `word`, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
