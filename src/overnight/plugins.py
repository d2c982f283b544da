"""What is named by an import path: one's own tokenizers and evaluations, without a fork."""

from __future__ import annotations

import importlib
import os
from typing import Any

from overnight.errors import UserError

TRUST = "OVERNIGHT_TRUST"  # the import paths that may be loaded because a folder names them


def require_trust(kind: str, path: str) -> None:
    """UserError unless the environment variable OVERNIGHT_TRUST lists an import path: names, separated by commas.

    For those that a folder names, which may be a stranger's: importing a module runs its code.
    """
    if path not in os.environ.get(TRUST, "").split(","):
        raise UserError(
            f"{kind} {path!r} is an import path: loading it runs the code of that module; "
            f"where you trust it, set the environment variable {TRUST}={path!r} (several: separated by commas)"
        )


def imported(kind: str, path: str) -> Any:
    """The object at `package.module:name`, which the caller trusts; nothing but the import is executed."""
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"{kind} '{path}': cannot import it ({error}); is its package installed here?") from None
