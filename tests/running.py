"""The command line as the tests run it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

Overnight = Callable[..., subprocess.CompletedProcess[str]]
