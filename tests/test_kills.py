"""Killed with SIGKILL in every phase, a run ends with the same bits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "kills.py"


def test_kills_change_nothing():
    done = subprocess.run([sys.executable, SCRIPT, "--kills", "6"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kills hit a live run" in done.stdout
    assert "bit-identical in every round" in done.stdout
