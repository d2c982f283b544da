"""What befalls a run: damaged checkpoints, changed files, a clock that jumps, disks that refuse, ranks that hang."""

from __future__ import annotations

import datetime
import errno
import importlib.util
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from overnight import hanging, launching, runs
from overnight.data import unchanged
from overnight.runs import RunFolder, read_lines
from overnight.stopping import stop_signals
from running import Overnight

STEPS = 6
FEW = ["--eval.every", "0", "--sample.every", "3", "--checkpoint.every", "2", "--checkpoint.keep-last", "9"]
Train = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def train(overnight: Overnight, dataset: Path, tiny: list[str]) -> Train:
    def run(out: Path, *flags: object, data: Path = dataset, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["train", "shakespeare-char-cpu", "--data", data, "--out", out, *tiny, *FEW]
        return overnight(*command, "--train.steps", STEPS, *flags, check=check)

    return run


@pytest.fixture(scope="module")
def undisturbed(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(out)
    return out


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run."""
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step_{step:08d}"


def results(run: Path) -> list[Any]:
    """Weights, optimizer, metrics and samples, but for times."""
    lines = [line for name in ("metrics.jsonl", "samples.jsonl") for line in read_lines(run / name)]
    files = sorted(checkpoint(run, STEPS).glob("*.safetensors"))
    return [{**line, "time": None} for line in lines] + [file.read_bytes() for file in files]


def change(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# ---- checkpoints


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_of_a_damaged_checkpoint_the_one_before_is_used(name: str, run: Path, undisturbed: Path, train: Train) -> None:
    os.truncate(checkpoint(run, 6) / name, 100)
    change(checkpoint(run, 4) / name, 60)  # of the right length
    done = train(run)
    for step in (6, 4):
        assert f"checkpoint {step} is damaged, going on from 2" in done.stdout
        assert str(checkpoint(run, step) / name) in done.stdout
    assert read_lines(run / "attempts.jsonl")[-1]["step"] == 2
    assert results(run) == results(undisturbed)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step_{step:08d}" for step in (2, 4, 6)]


def test_where_all_checkpoints_are_damaged_a_person_has_to_say(run: Path, train: Train) -> None:
    for step in (2, 4, 6):
        change(checkpoint(run, step) / "optimizer.safetensors")
    before = sorted(run.rglob("*"))
    assert "no other checkpoint" in one_line(train(run, check=False))
    assert sorted(run.rglob("*")) == before


def test_a_damaged_checkpoint_is_set_aside_until_the_run_is_past_it(run: Path, train: Train) -> None:
    change(checkpoint(run, 6) / "model.safetensors")
    shutil.rmtree(checkpoint(run, 2))
    (run / "stop").touch()  # taken away at the start, so it does not stop this run
    train(run, "--checkpoint.every", "0", "--train.steps", "8")
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step_00000004", "step_00000008"]


def test_sampling_says_which_checkpoint_it_passes_over(run: Path, overnight: Overnight) -> None:
    change(checkpoint(run, 6) / "state.json", 60)
    done = overnight("sample", run, "--max-new-tokens", 2, "--device", "cpu")
    assert f"{checkpoint(run, 6) / 'state.json'}" in done.stderr
    assert "passed over" in done.stderr
    assert "is damaged" in one_line(overnight("sample", run, "--checkpoint", "last", "--device", "cpu", check=False))


# ---- what a run is made of


def test_a_shard_that_was_changed_is_refused_and_put_back_is_taken(
    run: Path, undisturbed: Path, dataset: Path, tmp_path: Path, train: Train, overnight: Overnight
) -> None:
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    shard = data / "train_000000.npy"
    shutil.rmtree(checkpoint(run, 6))
    change(shard)
    assert f"{shard} is not what was prepared" in one_line(train(run, data=data, check=False))
    new = train(tmp_path / "new", data=data, check=False)
    assert f"{shard} is not what was prepared" in one_line(new)
    change(shard)
    train(run, data=data)
    assert results(run) == results(undisturbed)
    change(data / "val_000000.npy")
    assert "val_000000.npy is not what" in one_line(overnight("eval", run, "--data", data, check=False))


def test_shards_are_read_once_as_long_as_they_do_not_change(
    run: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(unchanged, "sha256", lambda path: read.append(path) or "another")
    train(run)
    assert not read
    (run / "shards.json").write_text('{"x": 1}')
    train(run, check=False)
    assert read


def test_a_manifest_that_was_changed_is_refused(dataset: Path, tmp_path: Path, train: Train) -> None:
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert "manifest.json was changed" in one_line(train(tmp_path / "run", data=data, check=False))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("change", [{"sources": [{"name": "x", "bytes": "12"}]}, {"totals": {"left_out_tokens": "x"}}])
def test_a_manifest_with_words_for_numbers_is_one_line(
    change: dict[str, Any], dataset: Path, tmp_path: Path, overnight: Overnight
) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    totals = manifest["totals"] | change.get("totals", {})
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change, "totals": totals}))
    assert "prepare the dataset anew" in one_line(overnight("data", tmp_path, check=False))


def test_a_recipe_that_was_changed_is_refused(run: Path, overnight: Overnight) -> None:
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["optim"]["lr"] /= 2
    (run / "config.json").write_text(json.dumps(config))
    for command in (["train", run], ["sample", run, "--device", "cpu"]):
        assert "its recipe is not the one" in one_line(overnight(*command, check=False))


def test_decisions_that_were_changed_are_refused(run: Path, train: Train) -> None:
    path = run / "decisions.jsonl"
    lines = path.read_text().replace('"name": "micro_batch", "value": ', '"name": "micro_batch", "value": 1')
    path.write_text(lines)
    assert "decisions.jsonl is not what it was at step 6" in one_line(train(run, check=False))
    shutil.rmtree(run / "checkpoints")
    for name, value in (("micro_batch", '"x"'), ("micro_batch", "-1"), ("threads", "null"), ("precision", '"fp99"')):
        path.write_text(lines + f'{{"step": 0, "name": "{name}", "value": {value}, "reason": "x"}}\n')
        assert "not a decision" in one_line(train(run, check=False))
    path.write_text(lines + '{"step": 0, "name": "micro_batch", "value": 1}\n')
    assert "not a decision" in one_line(train(run, check=False))


# ---- clocks and disks


def test_a_clock_that_jumps_changes_nothing(
    undisturbed: Path, tmp_path: Path, train: Train, overnight: Overnight, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, year, real = itertools.count(), 365 * 86400.0, time.time

    def wall() -> float:
        """Years forward and back, by turns."""
        return real() + year * (-1) ** next(calls)

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Jumping:
            return cls.fromtimestamp(wall(), tz)

    monkeypatch.setattr(time, "time", wall)
    monkeypatch.setattr(runs.datetime, "datetime", Jumping)
    train(tmp_path / "run")
    assert results(tmp_path / "run") == results(undisturbed)
    for line in read_lines(tmp_path / "run" / "metrics.jsonl"):
        seconds = [value for key, value in line["time"].items() if key != "now" and value is not None]
        assert all(value >= 0 for value in seconds), line
        assert line["time"].get("left", 0) < 3600
    overnight("report", tmp_path / "run", "--out", tmp_path / "report.html")
    overnight("watch", "--terminal", tmp_path / "run")


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_where_the_folder_refuses_for_a_while_training_goes_on(
    code: int, undisturbed: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    original = Path.open

    def refusing(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if path.name in ("metrics.jsonl", "samples.jsonl", "log.txt") and "a" in mode and len(refused) < 6:
            refused.append(path.name)
            raise OSError(code, os.strerror(code), str(path))
        return original(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", refusing)
    done = train(tmp_path / "run")
    assert {"metrics.jsonl", "log.txt"} <= set(refused)
    assert "checkpoint of step 2 NOT written" in done.stdout
    assert results(tmp_path / "run") == results(undisturbed)


def test_a_folder_that_cannot_be_written_to_keeps_its_request_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    RunFolder(tmp_path).clear_stop()


# ---- processes


HANGS = """
import os, time
from pathlib import Path
from overnight import training
from overnight.presets import PRESETS

def config():
    step = training.train_step
    def train_step(training, index, micro_batch):
        if index == 3 and training.world.rank == 1:
            planted()
        return step(training, index, micro_batch)
    training.train_step = train_step
    return PRESETS["shakespeare-char-cpu"]()

def planted():
    time.sleep(300)
"""


def test_a_rank_that_hangs_is_told_and_ends_all(dataset: Path, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "MASTER_PORT": port}
    environment |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = ["train", "hangs:config", "--data", dataset, "--out", tmp_path / "run", *tiny, "--timeout", "0.06"]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "overnight", *map(str, command)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [hanging.HUNG] * 2, said
    for number, place in enumerate(["in step 4, in any (distributed.py", "nothing moved for 0.06 minutes"]):
        assert f"rank {number}, process {ranks[number].pid} on" in said[number]
        assert place in said[number]
    assert "planted" in (tmp_path / "run" / "hung_rank_1.txt").read_text()


def test_a_process_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    with hanging.watched(0.02, tmp_path, 0):
        for _ in range(20):
            time.sleep(0.1)
            hanging.beat()
    assert not list(tmp_path.iterdir())


def test_after_a_hang_the_processes_are_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [hanging.HUNG, hanging.HUNG, 0]
    monkeypatch.setattr(launching, "_run", lambda arguments, processes: codes.pop(0))
    monkeypatch.setattr(launching.signal, "signal", lambda *given: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launching.launch(["train"], 2, lambda: 0) == 0
    assert not codes


def test_a_rank_whose_launcher_is_gone_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for launcher, stops in ((os.getppid(), False), (2**22 + 1, True)):  # gone even before this process was ready
        monkeypatch.setenv(launching.LAUNCHER, str(launcher))
        with stop_signals(RunFolder(tmp_path)) as stop:
            assert stop() is stops


# ---- random damage


def script(name: str) -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / f"{name}.py"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_damaged_files_are_refused_or_make_no_difference(tmp_path: Path) -> None:
    tally, defects = script("mutations").examine(60, 1, tmp_path, every=False)
    assert not defects, "\n".join(defects)
    assert sum(tally.values()) == 60
    assert sum(count for (_, what), count in tally.items() if what == "refused") >= 5


def test_that_check_sees_what_is_wrong() -> None:
    mutations = script("mutations")
    assert "Traceback" in mutations.Outcome(1, "", "", "Traceback: x").defect()
    assert mutations.Outcome(2, "", "two\nlines\n").defect()
    assert mutations.Outcome(1, "", "overnight: one line\n").defect()
    assert not mutations.Outcome(2, "", "overnight: one line\n").defect()
