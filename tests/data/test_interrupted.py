"""Killed at any moment and started again, prepare writes the same bytes; it never writes beside another."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import DyingSource, ListSource, contents, environment, overnight, texts, write_jsonl

from overnight import files
from overnight.data import disk, shards, spill
from overnight.data.dataset import Manifest
from overnight.data.lock import locked
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.errors import UserError

PREPARE = [sys.executable, "-m", "overnight", "prepare"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7 MB in as many parts."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "some.jsonl", texts(500, words=2500))


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("expected") / "out"
    prepare(open_source("files", [corpus]), out, PrepareOptions(workers=1, shard_tokens=500_000))
    return contents(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_random(corpus: Path, expected: dict[str, str], tmp_path: Path, workers: int) -> None:
    out, draw, phases = tmp_path / "out", random.Random(workers), []
    command = [
        *PREPARE,
        "files",
        str(corpus),
        "--out",
        str(out),
        "--workers",
        str(workers),
        "--shard-tokens",
        "500_000",
    ]
    while len(phases) < 4:
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
        while not (out / ".work" / "plan.json").exists():
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 1.2))
        live = process.poll() is None and not (out / "manifest.json").exists()
        process.kill()
        process.wait()
        if not live:  # it was done sooner: begin again
            shutil.rmtree(out)
            continue
        assert process.returncode == -signal.SIGKILL
        phases.append((len(list(out.glob(".work/part-*.json"))), len(list(out.glob("*.npy")))))
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    assert contents(out) == expected, phases


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def counted(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException) -> Iterator[int]:
    """Makes the `at`-th sync or rename fail; yields how many there were before each."""
    seen = 0

    def before(original: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == at:
                raise error
            return original(*arguments)

        return wrapped

    for module in (files, spill, shards):
        monkeypatch.setattr(module, "sync", before(module.sync))
    monkeypatch.setattr(Path, "replace", before(Path.replace))
    while True:
        yield seen


@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("count", [40, 5])
def test_stopped_at_every_file_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException
) -> None:
    options = PrepareOptions(tokenizer="bpe:280", shard_tokens=10_000, workers=1)
    source = ListSource(texts(count), per_part=20)
    prepare(source, tmp_path / "expected", options)
    wanted, at = contents(tmp_path / "expected"), 0
    while True:
        at += 1
        out = tmp_path / f"out{at}"
        with monkeypatch.context() as patch:
            seen = counted(patch, at, error)
            next(seen)
            try:
                prepare(source, out, options)
                break
            except Killed:
                pass
            except UserError as full:
                assert "the disk" in str(full) and "goes on" in str(full)
        prepare(source, out, options)
        assert contents(out) == wanted, at
    assert at > 20 and contents(out) == wanted


def test_finished_parts_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, read = ListSource(texts(40), per_part=10), []
    with monkeypatch.context() as patch:
        next(counted(patch, 8, Killed()))
        with pytest.raises(Killed):
            prepare(source, tmp_path / "out", PrepareOptions(workers=1))
    finished = len(list(tmp_path.glob("out/.work/part-*.json")))
    original = source.read
    monkeypatch.setattr(source, "read", lambda part: read.append(part) or original(part))
    prepare(source, tmp_path / "out", PrepareOptions(workers=1))
    assert finished and len(read) == 4 - finished


def interrupted(out: Path, source: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Leaves `out` with one finished part."""
    with monkeypatch.context() as patch:
        next(counted(patch, 8, Killed()))
        with pytest.raises(Killed):
            prepare(source, out, PrepareOptions(workers=1, **options))
    assert list(out.glob(".work/part-*.json"))


def test_half_done_with_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = ListSource(texts(40), per_part=10), tmp_path / "out"
    interrupted(out, source, monkeypatch)
    with pytest.raises(UserError, match=r"--seed 1, there 0.*delete it"):
        prepare(source, out, PrepareOptions(seed=1))
    prepare(source, out, PrepareOptions(skip_bad=True))  # nothing finished held anything bad
    assert Manifest.read(out).settings["skip_bad"] is True


def test_half_done_and_the_source_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus, lines = tmp_path / "some.jsonl", texts(30, words=9000)
    out, file = tmp_path / "out", write_jsonl(corpus, lines)
    interrupted(out, open_source("files", [file]), monkeypatch)
    write_jsonl(corpus, [*lines, *texts(3, seed=9)])
    prepare(open_source("files", [file]), out)
    prepare(open_source("files", [file]), tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_complete_folder(tmp_path: Path) -> None:
    source, out = ListSource(texts(40)), tmp_path / "out"
    first = prepare(source, out)
    before = contents(out)
    assert prepare(source, out, PrepareOptions(workers=2)) == first
    assert contents(out) == before
    with pytest.raises(UserError, match=r"--tokenizer bytes, there gpt2"):
        prepare(source, out, PrepareOptions(tokenizer="bytes"))
    with pytest.raises(UserError, match="another state of the source"):
        prepare(ListSource(texts(41)), out)
    with pytest.raises(UserError, match="made from 'list'"):
        prepare(open_source("stdlib"), out)
    assert contents(out) == before


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        prepare(ListSource(texts(40)), tmp_path)
    with pytest.raises(UserError, match="is a file"):
        prepare(ListSource(texts(40)), tmp_path / "notes.txt")
    assert contents(tmp_path).keys() == {"notes.txt"}


def test_two_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with locked(out / ".work" / "lock", "not reached"), pytest.raises(UserError, match="another prepare is writing"):
        prepare(ListSource(texts(40)), out)
    prepare(ListSource(texts(40)), out)


def test_a_worker_that_dies(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a worker process died"):
        prepare(DyingSource(texts(40)), tmp_path / "out", PrepareOptions(workers=2))
    prepare(ListSource(texts(40)), tmp_path / "out", PrepareOptions(workers=1))


def test_ctrl_c_ends_the_workers(corpus: Path, expected: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*PREPARE, "files", str(corpus), "--out", str(out), "--workers", "2", "--shard-tokens", "500_000"]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.glob(".work/part-*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=20)  # ends only when no worker holds the pipe any more
    assert process.returncode == 130 and "interrupted; the same command goes on" in told
    done = overnight(*command[3:])
    assert "going on" in done.stdout and contents(out) == expected


def test_from_a_script_without_a_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from corpora import ListSource, texts\n"
        "from overnight.data.prepare import PrepareOptions, prepare\n"
        "print('once')\n"
        f"prepare(ListSource(texts(40)), {str(tmp_path / 'out')!r}, PrepareOptions(workers=2))\n"
    )
    done = subprocess.run([sys.executable, script], env=environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"of disk is needed and 1 kB is free"):
        prepare(ListSource(texts(40)), tmp_path / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", [".arrow", ".npy", ".docs.parquet"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    original = Path.open

    def full(path: Path, mode: str = "r", **more: Any) -> Any:
        if path.name.endswith(suffix) and "w" in mode:
            return original(Path("/dev/full"), mode, **more)
        return original(path, mode, **more)

    source = ListSource(texts(400), per_part=100)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(
            UserError, match=f"the disk of {tmp_path}/out is full; make room, and the same command goes on"
        ):
            prepare(source, tmp_path / "out", PrepareOptions(workers=1))
    prepare(source, tmp_path / "out", PrepareOptions(workers=1))
    prepare(source, tmp_path / "expected", PrepareOptions(workers=1))
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_progress_names_rate_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    class Terminal:
        live = True

        def line(self, text: str = "") -> None:
            lines.append(text)

        progress = line

    monkeypatch.setattr("overnight.data.tokenizing.TICK", 0.0)
    clock = iter(range(10**6))
    monkeypatch.setattr("overnight.data.meter.time.monotonic", lambda: next(clock))
    prepare(ListSource(texts(40)), tmp_path / "out", PrepareOptions(workers=1), Terminal())
    assert any("tokens/s" in line and "left" in line for line in lines)
    assert any(line.startswith("disk: about") for line in lines)
