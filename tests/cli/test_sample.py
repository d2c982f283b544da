"""`overnight sample` as a user runs it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def run(overnight, dataset, tiny, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "first"
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", out, *tiny)
    return out


@pytest.fixture(scope="module")
def chars(overnight, tiny, tmp_path_factory):
    """A run that knows few characters."""
    folder = tmp_path_factory.mktemp("chars")
    (folder / "text.txt").write_text("to be or not to be\n" * 500)
    overnight("prepare", "files", folder / "text.txt", "--out", folder / "data", "--tokenizer", "chars")
    options = ["--sample.every", "0", "--train.steps", "1"]
    overnight("train", "gpt2-tiny", "--data", folder / "data", "--out", folder / "run", *tiny, *options)
    return folder / "run"


def test_sample(run, overnight):
    options = ["--max-new-tokens", "50", "--seed", "3"]
    once = overnight("sample", run, "--prompt", "def ", *options).stdout
    assert once.startswith("def ") and once == overnight("sample", run, "--prompt", "def ", *options).stdout
    uncached = overnight("sample", run, "--prompt", "def ", *options, "--no-cache").stdout
    assert uncached == once  # 50 tokens are past the context of 32
    assert overnight("sample", run, "--prompt", "-", *options, input="def ").stdout == once
    assert overnight("sample", run, "--prompt", "def ", *options, "--seed", "4").stdout != once
    assert len(overnight("sample", run, *options, "--checkpoint", "8", "--samples", "2").stdout) > 50
    missing = overnight("sample", run, "--checkpoint", "9", check=False)
    assert missing.returncode == 2 and "there are: last, best, 8, 12" in missing.stderr


def test_a_prompt_from_standard_input(run, overnight):
    options = ["--max-new-tokens", "20", "--seed", "3"]
    once = overnight("sample", run, "--prompt", "def ", *options).stdout
    for arguments in ([run, "-", *options], [run, *options, "-"], [run, "--prompt-file", "-", *options]):
        assert overnight("sample", *arguments, input="def ").stdout == once


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-", "--prompt", "a"], "give one of"),
        (["-", "--prompt-file", "a"], "give one of"),
        (["--prompt", "-", "--prompt-file", "a"], "give one of"),
        (["hello"], "A prompt is given with --prompt TEXT"),
        (["--seed", str(2**64)], "--seed is 18446744073709551616"),
        (["--seed", "-1"], "--seed is -1"),
        (["--temperature", "nan"], "--temperature must be 0 or more"),
        (["--prompt-file", "absent.txt"], "absent.txt"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(run, overnight, tmp_path, arguments, message):
    done = overnight("sample", run, *arguments, check=False, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_standard_input_that_is_no_text(run, overnight, monkeypatch):
    done = subprocess.run(
        [sys.executable, "-m", "overnight", "sample", str(run), "-"],
        input=b"\xff\xfe",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        check=False,
    )
    assert done.returncode == 2
    assert b"standard input" in done.stderr and done.stdout == b""


def test_a_prompt_that_cannot_be_encoded_is_refused_before_anything_is_printed(chars, overnight):
    assert overnight("sample", chars, "--prompt", "to be").stdout.startswith("to be")
    done = overnight("sample", chars, "--prompt", "to €", check=False)
    assert done.returncode == 2
    assert done.stdout == "" and "€" in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_characters_gets_question_marks(run: Path, encoding: str) -> None:
    command = [sys.executable, "-m", "overnight", "sample", str(run), "--prompt", "a☃b", "--max-new-tokens", "9"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=True)
    assert done.stdout.startswith(b"a?b")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_console_shows_a_line_without_the_characters_that_are_lacking(tmp_path: Path, encoding: str) -> None:
    from overnight.console import Console

    shown = io.BytesIO()
    with Console(tmp_path / "log.txt", io.TextIOWrapper(shown, encoding=encoding)) as console:
        console.line("step 1: snow ☃ and half \ud83d of a pair")
        console.line("step 2")
        assert shown.getvalue().splitlines() == [b"step 1: snow ? and half ? of a pair", b"step 2"]
    expected = "step 1: snow ☃ and half ? of a pair\nstep 2\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == expected
