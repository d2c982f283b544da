"""What the tests share: one small dataset, and the command line as a process."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import hypothesis
import pytest

from overnight import cli
from running import Overnight

hypothesis.settings.register_profile("overnight", deadline=None)  # a machine that others use, too, is slow at times
hypothesis.settings.load_profile("overnight")

TINY = [  # one thread: small products gain nothing from more, and lose much where cores are shared
    *("--device", "cpu", "--threads", "1", "--precision", "fp32"),
    *("--model.n-layer", "2", "--model.n-embd", "32", "--model.n-head", "2"),
    *("--data.sequence-length", "32", "--train.tokens-per-step", "256", "--train.steps", "12", "--log.every", "1"),
    *("--eval.every", "5", "--eval.tokens", "2000", "--sample.every", "5", "--sample.prompt", "def "),
    *("--checkpoint.every", "4"),
]


@pytest.fixture(scope="session")
def overnight() -> Overnight:
    """Runs `overnight ARGUMENTS` in this process, which saves importing torch; `check=False` allows it to fail."""

    def run(
        *arguments: object, check: bool = True, cwd: Path | None = None, input: str = ""
    ) -> subprocess.CompletedProcess[str]:
        words, out, err = [str(argument) for argument in arguments], io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "stdin", io.StringIO(input))
            if cwd is not None:
                patch.chdir(cwd)
            try:
                code = cli.guarded(words)
            except SystemExit as stop:  # --help
                code = int(stop.code or 0)
        done = subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A piece of the standard library in bytes: every machine has it."""
    from overnight.data.prepare import PrepareOptions, prepare
    from overnight.data.sources import open_source

    folder = tmp_path_factory.mktemp("dataset") / "data"
    prepare(open_source("stdlib"), folder, PrepareOptions(tokenizer="bytes", limit_tokens=300_000))
    return folder


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags that make any preset's run a matter of a second."""
    return list(TINY)
