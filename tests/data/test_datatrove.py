"""The datatrove engine writes what the local one writes, on datatrove's own processes and on Ray."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import ListSource, contents, environment, texts, write_jsonl, write_parquet

from overnight.data.engines.submission import Submission
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import Bad, Document, Part, open_source
from overnight.errors import UserError

BY_DATATROVE: dict[str, Any] = {"engine": "datatrove", "executor_options": {"tasks": "4"}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds; one of them is large enough to be divided."""
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "large.jsonl", texts(60, words=9000))
    write_jsonl(folder / "small.jsonl", texts(40, seed=1))
    write_parquet(folder / "rows.parquet", texts(250, seed=2, words=900))
    for number, text in enumerate(texts(5, seed=3)):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8", newline="")
    return folder


def both(source: Any, folder: Path, on: dict[str, Any] | None = None, **options: Any) -> None:
    """The same dataset by both engines, byte by byte."""
    prepare(source, folder / "local", PrepareOptions(**{"workers": 1} | options))
    prepare(source, folder / "datatrove", PrepareOptions(**BY_DATATROVE | (on or {}) | options))
    assert contents(folder / "datatrove") == contents(folder / "local")


@pytest.mark.parametrize(
    "options",
    [{"workers": 1}, {"tokenizer": "bpe:300", "workers": 2}, {"limit_tokens": 100_000, "workers": 2}],
    ids=["gpt2", "bpe", "limit"],
)
def test_by_hash(corpus: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    source = open_source("files", [corpus])
    assert len(source.parts()) > 3
    both(source, tmp_path, **options)


@pytest.mark.parametrize("options", [{"tokenizer": "chars"}, {"limit_tokens": 90_000}], ids=["chars", "limit"])
def test_by_position(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "book.txt").write_text("\n".join(texts(300, words=400)), encoding="utf-8")
    (tmp_path / "short.md").write_text("\n".join(texts(3)), encoding="utf-8")
    source = open_source("files", [tmp_path / "book.txt", tmp_path / "short.md"])
    source.piece_bytes = 100_000  # type: ignore[attr-defined]
    both(source, tmp_path, workers=2, **options)


class Waves(ListSource):
    """Says which parts were read, wherever."""

    def __init__(self, found: list[str], notes: Path) -> None:
        super().__init__(found, per_part=1)
        self.noted = notes
        notes.mkdir()

    def read(self, part: Part) -> Iterator[Document | Bad]:
        (self.noted / f"{part.spans[0].start}-{os.getpid()}").touch()
        yield from super().read(part)


def test_a_limit_leaves_the_rest_unread_and_waves_go_on_until_it_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse, dense = "the " * 500, "x=1;" * 500  # all together promise more than the beginning holds
    source = Waves([sparse + str(n) for n in range(60)] + [dense + str(n) for n in range(12)], tmp_path / "notes")
    waves, write = [], Submission.write
    monkeypatch.setattr(Submission, "write", lambda *arguments: waves.append(arguments) or write(*arguments))
    options = {"limit_tokens": 20_000, "workers": 1}
    both(source, tmp_path, **options)
    elsewhere = [path.name for path in source.noted.iterdir() if not path.name.endswith(f"-{os.getpid()}")]
    read = {int(name.partition("-")[0]) for name in elsewhere}
    assert len(waves) > 1
    assert 30 < len(read) < 60 and read == set(range(len(read)))


def test_a_source_in_a_users_module_and_a_script_without_a_guard(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_source.py").write_text(
        "from corpora import ListSource, texts\n"
        "class Mine(ListSource):\n"
        "    def __init__(self, paths, text_field):\n"
        "        super().__init__(texts(40))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.append('mine')\n"
        "from overnight.data.prepare import PrepareOptions, prepare\n"
        "from overnight.data.sources import open_source\n"
        "print('once')\n"
        "options = PrepareOptions(engine='datatrove', workers=2, executor_options={'tasks': 2})\n"
        "prepare(open_source('my_source:Mine'), 'out', options)\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")
    prepare(ListSource(texts(40)), tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_source_of_the_script_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Waves, "__module__", "__main__")
    source = Waves(texts(40), tmp_path / "notes")
    with pytest.raises(UserError, match="Waves is defined in the script itself; put it in a module"):
        prepare(source, tmp_path / "out", PrepareOptions(**BY_DATATROVE))


class Failing(ListSource):
    """Fails at its last part, in a task only."""

    def __init__(self, how: str) -> None:
        super().__init__(texts(40), per_part=10)
        self.how, self.home = how, os.getpid()

    def read(self, part: Part) -> Iterator[Document | Bad]:
        if part.spans[0].stop >= len(self.found) and os.getpid() != self.home:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "bad":
                yield Bad("list", "row 30: no text")
                return
            raise {"full": OSError(errno.ENOSPC, "No space left on device"), "broken": ValueError("no\nsuch")}[self.how]
        yield from super().read(part)


@pytest.mark.parametrize(
    ("how", "workers", "message"),
    [
        ("bad", 2, r"^list: row 30: no text; put it right, or leave it out with --skip-bad$"),
        ("full", 1, r"^the disk of .*out is full; make room, and the same command goes on$"),
        ("broken", 1, r"^a task failed: ValueError: no such; its log: .*/datatrove/0001/logs/task_0000\d.log$"),
        ("killed", 1, r"^a worker process died, .*--workers continues$"),
        ("killed", 2, r"^a worker process died, .*--workers continues$"),
    ],
)
def test_what_fails_in_a_task_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], how: str, workers: int, message: str
) -> None:
    source = Failing(how)
    with pytest.raises(UserError, match=message):
        prepare(source, tmp_path / "out", PrepareOptions(**BY_DATATROVE, workers=workers))
    assert capfd.readouterr() == ("", "")
    if how == "broken":
        (log,) = tmp_path.glob("out/.work/datatrove/0001/logs/task_00003.log")
        assert "Traceback" in log.read_text()


def test_a_spill_that_is_gone_is_made_again_whatever_datatrove_has_marked(tmp_path: Path) -> None:
    source, out = Failing("broken"), tmp_path / "out"
    with pytest.raises(UserError, match="a task failed"):
        prepare(source, out, PrepareOptions(**BY_DATATROVE, workers=1))
    assert len(list(out.glob(".work/datatrove/0001/completions/*"))) == 3
    (out / ".work" / "part-0000001.json").unlink()
    other = (out / ".work" / "part-0000002.json").read_text().replace('"mark": "', '"mark": "other')
    (out / ".work" / "part-0000002.json").write_text(other)
    source.how = "no more"
    prepare(ListSource(source.found, per_part=10), out, PrepareOptions(**BY_DATATROVE, workers=1))
    prepare(ListSource(source.found, per_part=10), tmp_path / "expected")
    assert contents(out) == contents(tmp_path / "expected")


def processes(word: str) -> list[int]:
    """Those whose command line has this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_kill_9_at_random(corpus: Path, tmp_path: Path) -> None:
    out, draw = tmp_path / "out", random.Random(0)
    asked = ["--engine", "datatrove", "--workers", "2", "--executor-options", "tasks=4"]
    command = [sys.executable, "-m", "overnight", "prepare", "files", str(corpus), "--out", str(out), *asked]
    for _ in range(3):
        process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not list(out.glob(".work/datatrove/*/running/*")):
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 10
        while processes(str(out)):  # what it had started ends, too
            assert time.monotonic() < end
            time.sleep(0.02)
    subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
    prepare(open_source("files", [corpus]), tmp_path / "expected")
    assert contents(out) == contents(tmp_path / "expected")


def test_ctrl_c_ends_what_was_started(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--engine", "datatrove", "--workers", "2"]
    command = [sys.executable, "-m", "overnight", "prepare", "files", str(corpus), "--out", str(out), *asked]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not list(out.glob(".work/datatrove/*/running/*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and told.splitlines()[-1] == "interrupted; the same command goes on from here"
    assert not processes(str(out))


def test_ray(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = processes("raylet")
    on_ray = {"executor": "ray", "executor_options": {"tasks": 2, "mem_per_cpu_gb": 0.3}}
    both(open_source("files", [corpus]), tmp_path, on_ray, workers=2, limit_tokens=200_000, tokenizer="bpe:300")
    assert capfd.readouterr() == ("", "")
    assert processes("raylet") == before


def test_a_ray_that_is_not_there(tmp_path: Path) -> None:
    options = {**BY_DATATROVE, "executor": "ray", "executor_options": {"address": "auto"}}
    with pytest.raises(UserError, match=r"^datatrove stopped: ConnectionError: .*; its log: .*driver.log$"):
        prepare(ListSource(texts(40)), tmp_path / "out", PrepareOptions(**options))
