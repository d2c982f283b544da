"""Checkpoints: complete or absent, whatever happens while they are written, and safe to read."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import Tensor

from overnight import checkpoint
from overnight.checkpoint import State, best, find, folder_name, load_tensors, read_state, retain, save, steps
from overnight.config import CheckpointConfig
from overnight.errors import UserError
from overnight.files import PARTIAL, folder_atomic, sha256, sync, write_atomic, write_json

QUICK = settings(deadline=None, max_examples=60, derandomize=True)
FILES = ("model.safetensors", "optimizer.safetensors")
OFFSETS = {"metrics.jsonl": 10, "samples.jsonl": 0, "decisions": 2}
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def tensors_of(step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    model = {"wte.weight": torch.full((4, 3), float(step)), "ln_f.weight": torch.arange(3.0) + step}
    return model, {f"exp_avg/{name}": -value for name, value in model.items()}


def scalars_of(step: int) -> dict[str, dict[str, float]]:
    return {name: {"step": float(step)} for name in ("wte.weight", "ln_f.weight")}


def write(folder: Path, step: int, val_loss: float | None = None) -> Path:
    state = State(step, 64 * step, val_loss, scalars_of(step), None, {**OFFSETS, "metrics.jsonl": 10 * step})
    return save(folder, state, *tensors_of(step))


def assert_complete(path: Path, step: int) -> None:
    """Everything that `write` wrote for this step is there and right."""
    state = read_state(path)
    assert (state.step, state.tokens) == (step, 64 * step)
    assert state.optimizer == scalars_of(step)
    assert state.offsets["metrics.jsonl"] == 10 * step
    for name, expected in zip(FILES, tensors_of(step), strict=True):
        found = load_tensors(path, name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def assert_all_complete(folder: Path) -> None:
    for step in steps(folder):
        assert_complete(folder / folder_name(step), step)


def leftovers(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"{PARTIAL}*"))


def test_round_trip(tmp_path: Path) -> None:
    model = {"half": torch.randn(3, 5).bfloat16(), "whole": torch.randn(7), "scalar": torch.tensor(2.0)}
    model["transposed"] = torch.randn(4, 6).T
    model["part of another"] = torch.randn(10, 2)[:7]
    state = State(12, 768, 3.25, {"whole": {"step": 12.0}}, {"scale": 65536.0, "growth_tracker": 3}, OFFSETS)
    path = save(tmp_path / "checkpoints", state, model, {})
    assert path == tmp_path / "checkpoints" / "step_00000012"
    assert read_state(path) == state
    found = load_tensors(path, "model.safetensors")
    assert found.keys() == model.keys()
    for name, value in model.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    assert load_tensors(path, "optimizer.safetensors") == {}
    assert sorted(entry.name for entry in path.iterdir()) == [*FILES, "state.json"]
    described = json.loads((path / "state.json").read_text())
    assert (described["format"], described["version"]) == ("overnight-checkpoint", 1)
    for name in FILES:
        expected = {"bytes": (path / name).stat().st_size, "sha256": sha256(path / name)}
        assert described["files"][name] == expected


def test_a_step_is_written_once(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(FileExistsError):
        write(tmp_path, 1)
    assert_complete(tmp_path / folder_name(1), 1)


# ---- dying at every file operation


class Watch:
    """Counts the file operations of this process and dies, as by kill -9, just before operation `fatal`."""

    EVENTS = (
        "open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.listdir", "os.scandir",
        "shutil.rmtree",
    )  # fmt: skip

    def __init__(self, fatal: int) -> None:
        self.fatal, self.count = fatal, 0

    def operation(self) -> None:
        self.count += 1
        if self.count == self.fatal:
            os._exit(9)

    def install(self) -> None:
        fsync, write_bytes, save_file = os.fsync, Path.write_bytes, safetensors.torch.save_file

        def watched_fsync(handle: Any) -> None:
            self.operation()
            fsync(handle)

        def watched_write(path: Path, content: bytes) -> int:
            write_bytes(path, content[: len(content) // 2])
            self.operation()  # half of it is there
            return write_bytes(path, content)

        def watched_save(tensors: dict[str, Tensor], path: Path) -> None:
            self.operation()
            save_file(tensors, path)
            whole = path.read_bytes()
            write_bytes(path, whole[: len(whole) // 2])
            self.operation()  # half of it is there
            write_bytes(path, whole)

        os.fsync = watched_fsync  # type: ignore[assignment]
        Path.write_bytes = watched_write  # type: ignore[method-assign,assignment]
        safetensors.torch.save_file = watched_save  # type: ignore[assignment]
        sys.addaudithook(lambda event, _: self.operation() if event in self.EVENTS else None)


def run_and_die(action: Callable[[], Any], fatal: int) -> int | None:
    """Runs `action` in a process of its own that dies at operation `fatal`; 0: the number of operations of the whole.

    None where it died.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            watch = Watch(fatal)
            watch.install()
            action()
            os.write(writer, str(watch.count).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        count = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == (9 if fatal else 0)
    return int(count) if count else None


@forks
def test_death_at_every_operation_of_a_save_leaves_complete_checkpoints_only(tmp_path: Path) -> None:
    write(tmp_path / "counted", 1)
    operations = run_and_die(lambda: write(tmp_path / "counted", 2), 0)
    assert operations is not None
    assert operations > 15
    outcomes = []
    for fatal in range(1, operations + 1):
        folder = tmp_path / str(fatal)
        write(folder, 1)
        run_and_die(lambda folder=folder: write(folder, 2), fatal)
        found = steps(folder)
        assert found in ([1], [1, 2])
        outcomes.append(found[-1])
        assert_all_complete(folder)
        assert find(folder, "last").name == folder_name(found[-1])
        assert best(folder) is None

        following = found[-1] + 1  # going on from the last one, the next is written and the rest is cleared away
        write(folder, following)
        retain(folder, CheckpointConfig(keep_last=5))
        assert steps(folder) == [*found, following]
        assert_all_complete(folder)
        assert leftovers(folder) == []
    assert outcomes == sorted(outcomes)  # there is one moment at which it comes into being
    assert set(outcomes) == {1, 2}


@forks
def test_death_at_every_operation_of_retention_leaves_complete_checkpoints_only(tmp_path: Path) -> None:
    original, rule = tmp_path / "original", CheckpointConfig(keep_last=1, keep_best=True)
    for step, loss in ((1, 4.0), (2, 3.0), (3, 5.0), (4, None)):
        write(original, step, loss)
    (original / f"{PARTIAL}{folder_name(9)}").mkdir()  # of an earlier crash
    shutil.copytree(original, tmp_path / "counted")
    operations = run_and_die(lambda: retain(tmp_path / "counted", rule), 0)
    assert operations is not None
    assert operations > 10
    assert steps(tmp_path / "counted") == [2, 4]
    seen = set()
    for fatal in range(1, operations + 1):
        folder = tmp_path / str(fatal)
        shutil.copytree(original, folder)
        run_and_die(lambda folder=folder: retain(folder, rule), fatal)
        seen.add(tuple(steps(folder)))
        assert {2, 4} <= set(steps(folder))
        assert_all_complete(folder)
        retain(folder, rule)
        assert steps(folder) == [2, 4]
        assert leftovers(folder) == []
        assert_all_complete(folder)
        shutil.rmtree(folder)
    assert seen == {(1, 2, 3, 4), (2, 3, 4), (2, 4)}


@forks
def test_death_at_every_operation_of_a_whole_file_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    operations = run_and_die(lambda: write_json(path, {"new": 1}), 0)
    assert operations is not None
    found = set()
    for fatal in range(1, operations + 1):
        write_json(path, {"old": 1})
        run_and_die(lambda: write_json(path, {"new": 1}), fatal)
        found.add(path.read_text())
    assert found == {'{\n  "old": 1\n}\n', '{\n  "new": 1\n}\n'}


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced to the disk, and what was renamed to what, in order."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    events: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def watched_fsync(handle: int) -> None:
        events.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def watched(move: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Any, target: Any, **options: Any) -> None:
            events.append(f"named {Path(target).name}")
            move(source, target, **options)

        return moved

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched(rename))
    monkeypatch.setattr(os, "replace", watched(replace))
    return events


def test_everything_of_a_checkpoint_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, happened: list[str]) -> None:
    write(tmp_path, 3)
    named = happened.index("named step_00000003")
    assert {*FILES, "state.json", f"{PARTIAL}step_00000003"} <= set(happened[:named])
    assert happened[named + 1 :] == [tmp_path.name]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, happened: list[str]) -> None:
    write_atomic(tmp_path / "a", "content")
    assert happened == [f"{PARTIAL}a", "named a", tmp_path.name]


# ---- a full disk


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize(
    "error", [SafetensorError("I/O error: No space left on device"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_refusing_disk_leaves_the_older_checkpoints_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, nth: int
) -> None:
    write(tmp_path, 1)
    calls = []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        calls.append(path)
        path.write_bytes(b"part of it")
        if len(calls) == nth:
            raise error

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2)
    monkeypatch.undo()
    assert steps(tmp_path) == [1]
    assert_all_complete(tmp_path)
    assert leftovers(tmp_path) == []
    write(tmp_path, 2)
    assert_all_complete(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(path)]
    if not sys.platform.startswith("linux") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs to mount a file system")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_really_full_disk(small_disk: Path) -> None:
    write(small_disk, 1)
    filler = small_disk / "filler"
    for room in (0, 1_000, 10_000, 100_000):  # full at once, and at later and later moments
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        filler.write_bytes(b"\0" * max(0, free - room))
        model = {"wte.weight": torch.zeros(30_000)}
        with pytest.raises(OSError, match=r"(?i)no space"):
            save(small_disk, State(2, 128), model, model)
        assert steps(small_disk) == [1]
        assert_all_complete(small_disk)
        assert leftovers(small_disk) == []
        filler.unlink()
    write(small_disk, 2)
    assert_all_complete(small_disk)


def test_an_exception_while_a_folder_is_filled_removes_it(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder_atomic(tmp_path / "made") as aside:
        (aside / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_crash_do_not_get_into_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / f"{PARTIAL}made").mkdir()
    (tmp_path / f"{PARTIAL}made" / "old").write_text("old")
    with folder_atomic(tmp_path / "made") as aside:
        (aside / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "new"]


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", "ü")
    write_atomic(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# ---- damage and malice


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_missing_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 1)
    content = (path / name).read_bytes()
    for size in (0, 1, 8, len(content) // 2, len(content) - 1):
        (path / name).write_bytes(content[:size])
        with pytest.raises(UserError, match=f"{name} is not what was written"):
            load_tensors(path, name)
        with pytest.raises(UserError, match=f"{name} is not what was written"):
            load_tensors(path, name, check=False)
    (path / name).write_bytes(content + b"\0")
    with pytest.raises(UserError, match=name):
        load_tensors(path, name, check=False)
    (path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        load_tensors(path, name)


def test_a_flipped_bit_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    file = path / "model.safetensors"
    content = file.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors is not what was written"):
            load_tensors(path, "model.safetensors")


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
@pytest.mark.parametrize("check", [True, False])
def test_a_pickle_in_place_of_the_weights_is_refused_and_not_executed(tmp_path: Path, kind: str, check: bool) -> None:
    path, marker = write(tmp_path, 1), tmp_path / "executed"
    file = path / "model.safetensors"
    if kind == "pickle":
        file.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        torch.save({"wte.weight": Bomb(marker)}, file)
    for described in (False, True):  # also where the stranger made size and hash fit
        if described:
            state = json.loads((path / "state.json").read_text())
            del state["sha256"]  # as in older checkpoints
            state["files"]["model.safetensors"] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
            (path / "state.json").write_text(json.dumps(state))
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_tensors(path, "model.safetensors", check)
    assert not marker.exists()
    if kind == "pickle":
        pickle.loads(file.read_bytes())  # what it would have done
    else:
        torch.load(shutil.copy(file, tmp_path / "model.pt"), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"format": "overnight-checkpoint", "version": 2}', None],
    ids=str,
)
def test_a_damaged_state_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = write(tmp_path, 1)
    if content is None:
        (path / "state.json").unlink()
    else:
        (path / "state.json").write_bytes(content)
    with pytest.raises(UserError, match=r"state\.json"):
        read_state(path)


@pytest.mark.parametrize("key", ["step", "tokens", "val_loss", "optimizer", "scaler", "offsets"])
def test_a_state_without_a_field_is_refused_by_name(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    del state[key]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=rf"state\.json: '{key}' is missing"):
        read_state(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("offsets", {name: 5 for name in OFFSETS if name != missing}) for missing in OFFSETS),
        *(("offsets", {**OFFSETS, "decisions": wrong}) for wrong in (-1, 1.5, "3", None, True)),
        ("optimizer", {"wte.weight": 3, "ln_f.weight": {}}),
        ("optimizer", {"wte.weight": {"step": None}, "ln_f.weight": {}}),
    ],
    ids=str,
)
def test_a_state_with_a_wrong_part_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, key: value}))
    with pytest.raises(UserError, match=rf"state\.json: '{key}' is missing or wrong: .* remove"):
        read_state(path)


def test_a_state_that_lacks_a_parameter_of_the_optimizer_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    state = json.loads((path / "state.json").read_text())
    del state["optimizer"]["ln_f.weight"], state["sha256"]  # which older checkpoints lack
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json: 'optimizer' lacks ln_f\.weight: .* remove"):
        load_tensors(path, "optimizer.safetensors")


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    for step, loss in enumerate((float("nan"), float("inf"), float("-inf")), 1):
        path = write(tmp_path, step, loss)
        values = json.loads((path / "state.json").read_text(), parse_constant=pytest.fail)
        assert values["val_loss"] is None
        assert read_state(path).val_loss is None


# ---- syncing


def test_a_file_is_synced_by_a_handle_that_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to sync through another; what is read-only is tried all the same."""
    for name in ("file", "read-only"):
        (tmp_path / name).touch()
    modes, opened = [], os.open

    def watched(path: Path, flags: int) -> int:
        modes.append((path.name, flags))
        if path.name == "read-only" and flags != os.O_RDONLY:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags)

    monkeypatch.setattr(os, "open", watched)
    for name in ("file", "read-only", ""):
        sync(tmp_path / name)
    folder = ("", os.O_RDONLY) if os.name == "nt" else (tmp_path.name, os.O_RDONLY)
    assert modes == [("file", os.O_RDWR), ("read-only", os.O_RDWR), ("read-only", os.O_RDONLY), folder]


# ---- which there are, and which stay


def test_what_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert steps(folder) == []
    with pytest.raises(UserError, match="has no checkpoint yet"):
        find(folder, "last")
    for step, loss in ((30, 2.0), (4, 1.5), (100_000_000, 1.5), (7, None), (8, float("nan"))):
        write(folder, step, loss)
    (folder / f"{PARTIAL}step_00000099").mkdir()
    (folder / "step_notes").mkdir()
    (folder / "notes.txt").touch()
    assert steps(folder) == [4, 7, 8, 30, 100_000_000]
    assert find(folder, "last").name == "step_100000000"
    assert find(folder, "best").name == "step_100000000"  # the later of equals
    assert find(folder, "7").name == find(folder, "0007").name == "step_00000007"
    for which in ("9", "newest", "-4", ""):
        with pytest.raises(UserError, match=r"there are: last, best, 4, 7, 8, 30, 100000000"):
            find(folder, which)


def test_without_validation_the_best_is_the_last(tmp_path: Path) -> None:
    write(tmp_path, 1, float("nan"))
    write(tmp_path, 2)
    assert best(tmp_path) is None
    assert find(tmp_path, "best").name == folder_name(2)


@QUICK
@given(
    losses=st.dictionaries(st.integers(1, 40), st.sampled_from([None, float("nan"), 1.0, 2.0, 3.0]), max_size=10),
    keep_last=st.integers(1, 4),
    keep_best=st.booleans(),
    keep_every=st.sampled_from([0, 1, 5, 10]),
)
def test_retention_keeps_the_last_the_best_and_every_kth(
    tmp_path_factory: pytest.TempPathFactory,
    losses: dict[int, float | None],
    keep_last: int,
    keep_best: bool,
    keep_every: int,
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step, loss in losses.items():
        (folder / folder_name(step)).mkdir()
        state = {
            "format": checkpoint.FORMAT,
            "version": 1,
            "files": {key: {"bytes": 0, "sha256": ""} for key in FILES},
            **State(step, 0, loss, offsets=OFFSETS).__dict__,
        }
        write_json(folder / folder_name(step) / "state.json", state)
    measured = {step: loss for step, loss in losses.items() if loss in (1.0, 2.0, 3.0)}
    expected = set(sorted(losses)[-keep_last:])
    if keep_best and measured:
        expected.add(max(step for step, loss in measured.items() if loss == min(measured.values())))
    if keep_every:
        expected |= {step for step in losses if step % keep_every == 0}
    retain(folder, CheckpointConfig(keep_last=keep_last, keep_best=keep_best, keep_every=keep_every))
    assert set(steps(folder)) == expected
    assert leftovers(folder) == []
