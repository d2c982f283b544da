"""The run folder: lines that survive torn writes and full disks, decisions, the lock."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.config import Config, Recipe
from overnight.errors import UserError
from overnight.runs import Held, JsonLines, RunFolder, datasets_of, read_json, read_lines

QUICK = settings(deadline=None, max_examples=60, derandomize=True)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
LINES = st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), max_size=6)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# ---- lines


@QUICK
@given(lines=LINES)
def test_lines_round_trip_one_a_line(lines: list[dict[str, Any]]) -> None:
    with folder() as path:
        log = JsonLines(path / "a.jsonl")
        for line in lines:
            assert log.append(line) is None
        log.sync()
        assert read_lines(log.path) == lines
        content = log.path.read_bytes() if lines else b""
        assert content.count(b"\n") == len(lines)
        assert log.size == len(content)
        again = JsonLines(log.path)
        assert again.size == len(content)
        assert again.append({"more": 1}) is None
        assert read_lines(log.path) == [*lines, {"more": 1}]


@QUICK
@given(lines=LINES, data=st.data())
def test_a_torn_last_line_is_left_out_and_cut_off(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    whole = [json.dumps(line).encode() + b"\n" for line in lines]
    content = b"".join(whole)
    torn = content[: data.draw(st.integers(0, len(content)))]
    complete = torn.count(b"\n")
    with folder() as path:
        (path / "a.jsonl").write_bytes(torn)
        assert read_lines(path / "a.jsonl") == lines[:complete]
        log = JsonLines(path / "a.jsonl")
        log.drop_torn_line()
        assert log.size == sum(map(len, whole[:complete]))
        assert log.append({"next": 1}) is None
        assert read_lines(path / "a.jsonl") == [*lines[:complete], {"next": 1}]


def test_no_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "absent.jsonl") == []
    log = JsonLines(tmp_path / "absent.jsonl")
    log.drop_torn_line()
    log.cut(0)
    log.sync()
    assert not log.path.exists()


@pytest.mark.parametrize("broken", [b"{", b"12", b"[]", b"", b"null", b"\xff\xfe", b'{"a": 1} {"b": 2}'])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not a JSON object"):
        read_lines(path)


def test_cut_goes_back_to_an_earlier_size(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "a.jsonl")
    log.append({"step": 1})
    size = log.size
    log.append({"step": 2})
    log.cut(size)
    assert (log.size, log.path.stat().st_size) == (size, size)
    log.append({"step": 3})
    assert read_lines(log.path) == [{"step": 1}, {"step": 3}]
    log.cut(0)
    log.append({"step": 4})
    assert read_lines(log.path) == [{"step": 4}]


def test_cut_refuses_a_file_that_has_become_too_short(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    with pytest.raises(UserError, match=rf"{log.size} bytes, but the checkpoint counts 100"):
        log.cut(100)


class Disk:
    """A file on a disk with so many bytes of room left."""

    def __init__(self, file: Any) -> None:
        self.file, self.room = file, 0

    def write(self, content: bytes) -> int:
        taken = min(self.room, len(content))
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= taken
        return int(self.file.write(content[:taken]))

    def truncate(self, size: int) -> int:
        self.room += max(0, os.fstat(self.file.fileno()).st_size - size)
        return int(self.file.truncate(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@QUICK
@given(events=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=12))
def test_what_a_full_disk_refuses_waits_and_comes_later_in_order(events: list[tuple[int, int]]) -> None:
    """Each event makes some room, then appends a line of some length."""
    with folder() as path:
        log = JsonLines(path / "a.jsonl")
        disk = Disk(log.path.open("ab", buffering=0))
        log.file = disk  # type: ignore[assignment]
        expected, on_disk = b"", b""
        for number, (room, length) in enumerate(events):
            disk.room += room
            line = {"n": number, "text": "x" * length}
            expected += json.dumps(line).encode() + b"\n"
            fits = disk.room >= len(expected) - len(on_disk)
            error = log.append(line)
            assert (error is None) == fits
            if fits:
                on_disk = expected
                log.sync()
            else:
                assert error is not None
                assert error.errno == errno.ENOSPC
                with pytest.raises(OSError, match="No space"):
                    log.sync()  # so that no checkpoint counts lines that are not there
            assert log.path.read_bytes() == on_disk  # complete lines only
            assert log.size == len(on_disk)
        disk.room = 10_000
        assert log.append({"last": True}) is None
        log.sync()
        assert log.path.read_bytes() == expected + b'{"last": true}\n'


def test_a_disk_that_refuses_even_to_open(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "absent" / "a.jsonl")
    assert isinstance(log.append({"n": 1}), OSError)
    (tmp_path / "absent").mkdir()
    assert log.append({"n": 2}) is None
    assert read_lines(log.path) == [{"n": 1}, {"n": 2}]


def test_a_part_of_a_line_that_could_not_be_taken_back_is_taken_back_later(tmp_path: Path) -> None:
    class Stuck(Disk):
        broken = True

        def truncate(self, size: int) -> int:
            if self.broken:
                raise OSError(errno.EIO, "Input/output error")
            return super().truncate(size)

    log = JsonLines(tmp_path / "a.jsonl")
    log.append({"n": 1})
    disk = Stuck(log.file)
    disk.room = 5
    log.file = disk  # type: ignore[assignment]
    assert log.append({"n": 2}) is not None
    assert log.path.read_bytes() == b'{"n": 1}\n{"n":'
    disk.broken, disk.room = False, 1000
    assert log.append({"n": 3}) is None
    assert read_lines(log.path) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_what_is_no_finite_number_is_null(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "a.jsonl")
    log.append({"loss": math.nan, "deep": [{"norm": math.inf}, (-math.inf, 1.5)], "seed": 2})
    assert log.path.read_text() == '{"loss": null, "deep": [{"norm": null}, [null, 1.5]], "seed": 2}\n'


# ---- creating and opening


def run_at(path: Path) -> RunFolder:
    return RunFolder.create(path, Config(preset="mine", recipe=Recipe(seed=5)))


def test_a_new_folder_holds_its_configuration(tmp_path: Path) -> None:
    run = run_at(tmp_path / "deep" / "run")
    config = RunFolder.open(run.path).config()
    assert config == Config(preset="mine", recipe=Recipe(seed=5))
    assert run.checkpoints == run.path / "checkpoints"


@pytest.mark.parametrize("content", ["notes.txt", "model.safetensors", "src/a.py"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / content).parent.mkdir(exist_ok=True)
    (tmp_path / content).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"exists and is not a run folder; choose another with --out"):
        run_at(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is not a run folder"):
        run_at(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "mine"


def test_what_comes_before_the_configuration_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("lock", "log.txt", ".partial-config.json"):
        (tmp_path / name).touch()
    assert run_at(tmp_path).config().preset == "mine"


def die_at(fatal: int, action: Callable[[], Any]) -> int:
    """Runs `action` in a process that dies before its file operation `fatal`; returns the number of operations."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def watch(event: str, _: Any) -> None:
            nonlocal count
            if event in ("open", "os.mkdir", "os.rename", "os.remove"):
                count += 1
                if count == fatal:
                    os._exit(9)

        try:
            sys.addaudithook(watch)
            action()
            os.write(writer, str(count).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        count_text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert (code, bool(count_text)) == ((9, False) if fatal else (0, True))
    return int(count_text or 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment_of_its_creation_the_same_command_goes_on(tmp_path: Path) -> None:
    def begin(path: Path) -> None:
        run = RunFolder(path)
        with run.lock():
            run_at(path)

    operations = die_at(0, lambda: begin(tmp_path / "counted"))
    assert operations >= 5
    created = 0
    for fatal in range(1, operations + 1):
        path = tmp_path / str(fatal)
        die_at(fatal, lambda path=path: begin(path))
        if (path / "config.json").exists():
            created += 1
        else:
            begin(path)
        run = RunFolder.open(path)
        assert run.config().preset == "mine"
        assert run.holder() is None
    assert 0 < created < operations


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_any_moment_of_its_opening_a_run_still_gets_its_tokenizer(tmp_path: Path) -> None:
    from overnight.data.dataset import Manifest
    from overnight.data.mixture import Corpus, Mixture
    from overnight.session import open_run

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tokenizer.json").write_text('{"the": "dataset\'s"}')
    tokenizer = {"name": "chars", "vocab_size": 65, "end_of_text": None, "file": "tokenizer.json", "sha256": "0"}
    manifest = Manifest(tmp_path / "data", tokenizer, "uint16", {}, [], {}, {}, "f")
    data = Mixture((Corpus("data", manifest, 1),))
    operations = die_at(0, lambda: open_run(Config(), data, tmp_path / "counted"))
    half = 0
    for fatal in range(1, operations + 1):
        out = tmp_path / str(fatal)
        die_at(fatal, lambda out=out: open_run(Config(), data, out))
        half += (out / "config.json").exists() and not (out / "tokenizer.json").exists()
        folder, config = open_run(Config(), data, out)
        assert folder.config() == config
        assert config.recipe.model.vocab_size == 65
        assert (out / "tokenizer.json").read_text() == '{"the": "dataset\'s"}'
    assert half  # it was killed between the two files


def test_what_is_not_a_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        RunFolder.open(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    run = run_at(tmp_path / "run")
    (run.path / "config.json").write_text('{"format": "overnight-config"')
    with pytest.raises(UserError, match=r"config\.json"):
        RunFolder.open(run.path).config()


@pytest.mark.parametrize(("content", "message"), [("[1]", "expected a JSON object"), ("{", "not readable as JSON")])
def test_json_that_is_none_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=rf"a\.json: {message}"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"b\.json is missing"):
        read_json(tmp_path / "b.json")


# ---- decisions and attempts


@QUICK
@given(
    lines=st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab"), st.none() | st.integers(0, 99)), max_size=8),
    reopened_after=st.integers(0, 8),
)
def test_a_decision_is_that_of_the_last_line_from_then_or_earlier(
    lines: list[tuple[int, str, int | None]], reopened_after: int
) -> None:
    with folder() as path:
        run = run_at(path / "run")
        for number, (step, name, value) in enumerate(lines):
            if number == reopened_after:
                run = RunFolder.open(run.path)
            run.decide(step, name, value, "why not")
        for reader in (run, RunFolder.open(run.path)):
            assert len(reader.decisions) == len(lines)
            for name in "abc":
                for at in range(11):
                    values = ["default"] + [value for step, own, value in lines if own == name and step <= at]
                    assert reader.decided(name, at, "default") == values[-1]


def test_a_decision_is_on_disk_before_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_at(tmp_path / "run")
    run.decide(0, "threads", 2, "cores")

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        run.decide(0, "threads", 4, "asked for")
    assert run.decided("threads", 5) == 2


def test_a_torn_decision_does_not_spoil_the_next(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    run.decide(0, "threads", 2, "cores")
    with (run.path / "decisions.jsonl").open("ab") as file:
        file.write(b'{"step": 0, "na')
    again = RunFolder.open(run.path)
    again.decide(3, "threads", 1, "asked for")
    assert [RunFolder.open(run.path).decided("threads", step) for step in (0, 2, 3)] == [2, 2, 1]


def test_attempts_are_numbered_and_named_in_decisions(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    run.start_attempt({"step": 0})
    with (run.path / "attempts.jsonl").open("ab") as file:
        file.write(b'{"attempt": 2, "st')
    again = RunFolder.open(run.path)
    again.start_attempt({"step": 7})
    again.decide(7, "threads", 1, "asked for")
    assert [(line["attempt"], line["step"]) for line in read_lines(run.path / "attempts.jsonl")] == [(1, 0), (2, 7)]
    line = read_lines(run.path / "decisions.jsonl")[0]
    assert set(line) == {"step", "name", "value", "reason", "attempt", "time"}
    assert line["attempt"] == 2


def test_the_datasets_of_a_run(tmp_path: Path) -> None:
    assert datasets_of(tmp_path) == []
    made = [{"path": f"/data/{name}", "fingerprint": name} for name in "ab"]
    run = run_at(tmp_path / "run")
    for dataset in made:
        run.start_attempt({"step": 0, "dataset": dataset})
    assert datasets_of(run.path) == made


@pytest.mark.parametrize("wrong", [{}, {"dataset": None}, {"dataset": "x"}, {"dataset": {"path": "x"}}], ids=str)
def test_an_attempt_without_its_dataset_is_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    run = run_at(tmp_path / "run")
    run.start_attempt({"step": 0, "dataset": {"path": "x", "fingerprint": "y"}})
    run.start_attempt(wrong)
    with pytest.raises(UserError, match=r"attempts\.jsonl, line 2: 'dataset' is missing or wrong"):
        datasets_of(run.path)


def test_a_stop_is_asked_for_once(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    assert not run.stop_requested()
    RunFolder.open(run.path).request_stop()
    assert run.stop_requested()
    run.clear_stop()
    run.clear_stop()
    assert not run.stop_requested()


# ---- the lock

HOLDER = """
import sys
from pathlib import Path
from overnight.runs import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "held\n"
            yield child
        finally:
            child.kill()


def test_the_lock_keeps_a_second_process_out_and_tells_who_has_it(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    assert run.holder() is None
    with another_process(run.path) as child:
        assert run.holder() == {"host": socket.gethostname(), "pid": child.pid}
        for _ in range(2):  # being refused takes nothing from who has it
            with pytest.raises(Held, match=rf"is being trained by process {child.pid} on .*overnight stop"), run.lock():
                pytest.fail("two processes have the lock")
        child.communicate()
        assert child.returncode == 0
    assert run.holder() is None
    with run.lock():
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    with another_process(run.path) as child:
        child.kill()
        child.wait()
        assert (run.path / "lock").read_text()  # its name still stands there
        assert run.holder() is None
        with run.lock():
            assert json.loads((run.path / "lock").read_text())["pid"] == os.getpid()
        assert (run.path / "lock").read_text() == ""


def test_an_exception_frees_the_lock(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    assert run.holder() is None


PROBE = """
import sys
from pathlib import Path
from overnight.runs import RunFolder
run = RunFolder(Path(sys.argv[1]))
print("looking", flush=True)
while True:
    run.holder()
"""


def test_nobody_who_starts_is_refused_because_another_looks(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROBE, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "looking\n"
            for _ in range(100):
                time.sleep(0.002)  # so that the other process looks between any two
                with run.lock():
                    assert json.loads((run.path / "lock").read_text())["pid"] == os.getpid()
            assert child.poll() is None
        finally:
            child.kill()


def test_looking_writes_nothing(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    assert run.holder() is None
    assert not (run.path / "lock").exists()
    (run.path / "lock").write_text('{"pid": 1, "host": "of a killed process"}')
    (run.path / "lock").chmod(0o444)
    assert run.holder() is None
    assert "killed" in (run.path / "lock").read_text()


@pytest.mark.skipif(os.name == "nt", reason="needs flock")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_no_phantom_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    import fcntl

    def refuse(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = run_at(tmp_path / "run")
    with run.lock():
        assert run.holder() is None


def test_a_line_that_is_no_decision_is_named(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", Config())
    folder.decide(0, "micro_batch", 4, "by trial")
    with (tmp_path / "run" / "decisions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3}\n')
    with pytest.raises(UserError, match=r"decisions.jsonl, line 2: not a decision"):
        RunFolder.open(tmp_path / "run")
