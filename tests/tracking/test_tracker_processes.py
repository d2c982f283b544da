"""Trackers beside training, as processes of their own: whatever becomes of them, training goes on."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest

import overnight
from overnight.config import Config, Observe, TrackConfig, validate
from overnight.console import Console
from overnight.errors import UserError
from overnight.tracking import beside, require

WANDB = """
import json, pathlib, time
got = pathlib.Path({got!r})
class Settings:
    def __init__(self, **settings): self.settings = settings
class Html:
    def __init__(self, text, inject): self.text = text
class Run:
    url = "https://wandb.test/run"
    def log(self, numbers, step):
        {log}
        with got.open("a") as file:
            file.write(json.dumps([step, {{k: v for k, v in numbers.items() if k != "samples"}}]) + chr(10))
    def finish(self): pass
def init(**given):
    {init}
    given.pop("settings"); given.pop("config")
    with got.open("a") as file:
        file.write(json.dumps(given) + chr(10))
    return Run()
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Installs a stand-in for wandb that writes down what it is told, and does first what a test wants."""

    def install(init: str = "pass", log: str = "pass") -> Path:
        got, packages = tmp_path / "got.jsonl", tmp_path / "packages"
        packages.mkdir()
        (packages / "wandb.py").write_text(WANDB.format(got=str(got), init=init, log=log))
        monkeypatch.syspath_prepend(str(packages))
        monkeypatch.setattr("overnight.tracking.processes.PATIENCE", 60.0)  # machines that test may be busy
        source = str(Path(overnight.__file__).parents[1])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(packages), source]))
        return got

    return install


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "first night"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


WANTED = Observe(trackers="wandb", track=TrackConfig(project="p", group="g"))


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train_line(step: int) -> str:
    return json.dumps({"kind": "train", "step": step, "loss": 2.0}) + "\n"


def test_a_run_and_its_continuation_are_one_tracker_run(fake, run: Path) -> None:  # type: ignore[no-untyped-def]
    got, said = fake(), io.StringIO()
    for start, stop in ((0, 2), (2, 4)):
        with beside(run, WANTED, start, Console(stream=said)), (run / "metrics.jsonl").open("a") as file:
            for step in range(start, stop):
                file.write(train_line(step + 1))
    first, *logged = lines(got)
    again = logged.pop(2)
    assert isinstance(first, dict) and first == again
    assert (first["project"], first["group"], first["entity"], first["name"]) == ("p", "g", None, "first night")
    assert first["resume"] == "allow" and len(first["id"]) == 8
    assert logged == [[step, {"train/loss": 2.0}] for step in (1, 2, 3, 4)]
    assert said.getvalue() == "wandb: https://wandb.test/run\n" * 2


def test_a_tracker_that_fails_says_so_once(fake, run: Path) -> None:  # type: ignore[no-untyped-def]
    fake(init="raise RuntimeError('api_key not configured')")
    said = io.StringIO()
    with beside(run, WANTED, 0, Console(stream=said)):
        (run / "metrics.jsonl").write_text(train_line(1))
    log = run / "trackers" / "wandb.log"
    assert said.getvalue() == (
        f"wandb: RuntimeError: api_key not configured; training goes on without it, {log} has more\n"
    )
    assert "Traceback" in log.read_text()


def test_a_tracker_that_hangs_is_left_behind(fake, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    fake(log="time.sleep(3 if step == 1 else 0)")
    monkeypatch.setattr("overnight.tracking.processes.PATIENCE", 0.3)
    said = io.StringIO()
    begin = time.monotonic()
    with beside(run, WANTED, 0, Console(stream=said)):
        (run / "metrics.jsonl").write_text("".join(train_line(step) for step in range(1, 20_000)))
    assert time.monotonic() - begin < 3.0
    assert "wandb: has not ended yet" in said.getvalue()


def test_an_exception_in_training_comes_through(fake, run: Path) -> None:  # type: ignore[no-untyped-def]
    got = fake()
    with pytest.raises(ZeroDivisionError), beside(run, WANTED, 0, Console(stream=io.StringIO())):
        (run / "metrics.jsonl").write_text(train_line(1))
        raise ZeroDivisionError
    assert lines(got)[1:] == [[1, {"train/loss": 2.0}]]


def test_a_run_with_a_tracker_ends_as_one_without(  # type: ignore[no-untyped-def]
    fake, overnight, dataset: Path, tiny: list[str], tmp_path: Path
) -> None:
    got = fake(log="time.sleep(0)")
    for out, more in (("with", ["--trackers", "wandb"]), ("without", [])):
        done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / out, *tiny, *more)
        assert ("wandb: https://wandb.test/run" in done.stdout) == bool(more)
    weights = [tmp_path / out / "checkpoints" / "step_00000012" / "model.safetensors" for out in ("with", "without")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    metrics = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    sent = [numbers["train/loss"] for _, numbers in lines(got)[1:] if "train/loss" in numbers]  # type: ignore[misc]
    assert sent == [line["loss"] for line in metrics if line["kind"] == "train"]
    assert not (tmp_path / "without" / "trackers").exists()


def test_what_is_not_installed_is_told_before_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--trackers trackio: .* pip install 'overnight\[trackio\]' does it"):
        require(Observe(trackers="trackio"))
    require(Observe())


def test_a_tracker_that_there_is_not() -> None:
    with pytest.raises(UserError, match=r"trackers: there is no 'wandbb' \(did you mean wandb\?\)"):
        validate(Config(observe=Observe(trackers="tensorboard, wandbb")))
