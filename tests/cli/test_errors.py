"""What the system refuses is one line and exit code 2, with --debug a traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from overnight import cli


def refused(done) -> str:
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("overnight: ")
    return done.stderr


def test_a_file_in_place_of_the_run_folder(overnight, dataset, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for more in ([], ["--detach"]):
            arguments = ["train", "gpt2-tiny", "--data", dataset, "--out", out, *tiny, *more]
            assert "file" in refused(overnight(*arguments, check=False))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_in_place_of_a_dataset_or_a_demo(overnight, tmp_path):
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / "below"
    assert "file" in refused(overnight("prepare", "stdlib", "--out", below, check=False))
    assert "file" in refused(overnight("demo", "--out", below, check=False))


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(overnight, dataset, tiny, tmp_path):
    tmp_path.chmod(0o500)
    done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, check=False)
    tmp_path.chmod(0o700)
    assert "Permission denied" in refused(done)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/full/disk"), "/full/disk: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError("made up"), "made up"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_the_line_names_the_file_and_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError, message: str
) -> None:
    def fail(_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "run", fail)
    assert cli.guarded(["train"]) == 2
    assert capsys.readouterr().err == f"overnight: {message}\n"
    with pytest.raises(OSError) as raised:
        cli.guarded(["train", "--debug"])
    assert raised.value is error


def test_a_pipe_whose_reader_has_gone_is_no_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_: object) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(cli, "run", fail)
    monkeypatch.setattr("sys.stdout", (tmp_path / "out").open("w"))
    assert cli.guarded(["presets"]) == 1
