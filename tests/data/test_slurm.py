"""The datatrove engine on Slurm, as far as that can be had without a cluster: its programs are those of fake_slurm."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_slurm
import pytest
from corpora import ListSource, contents, texts, write_jsonl

from overnight.data.engines import datatrove, slurm
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.errors import UserError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Slurm runs on Linux")
ON_SLURM: dict[str, Any] = {"engine": "datatrove", "executor": "slurm"}
CPU = {"partition": "cpu", "time": "1:00:00", "tasks": "2"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "slurm"
    for name, value in fake_slurm.install(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "POLL", 0.1)
    monkeypatch.setattr(slurm, "LAG", 0.3)
    yield home
    for job in fake_slurm.jobs(home):
        fake_slurm.cancel(job)


class Said:
    """What the user is told; `interrupt` is pressed at the first line with these words."""

    live = False

    def __init__(self, interrupt: str | None = None) -> None:
        self.lines: list[str] = []
        self.interrupt = interrupt

    def line(self, text: str = "") -> None:
        self.lines.append(text)

    def progress(self, text: str) -> None: ...

    def __contains__(self, words: str) -> bool:
        return any(words in line for line in self.lines)


def on_slurm(source: Any, out: Path, said: Said | None = None, **more: Any) -> None:
    options = {"executor_options": CPU, **more}
    prepare(source, out, PrepareOptions(**ON_SLURM, **options), said)


@pytest.fixture
def source() -> ListSource:
    return ListSource(texts(40), per_part=8)


@pytest.fixture
def expected(source: ListSource, tmp_path: Path) -> dict[str, str]:
    prepare(source, tmp_path / "expected", PrepareOptions(workers=1))
    return contents(tmp_path / "expected")


def test_the_same_bytes_from_job_arrays(
    cluster: Path, source: ListSource, expected: dict[str, str], tmp_path: Path
) -> None:
    said = Said()
    asked = {**CPU, "tasks": "3", "max_array_size": "2", "mem_per_cpu_gb": "3", "sbatch.account": "mine"}
    on_slurm(source, tmp_path / "out", said, executor_options=asked, workers=1)
    assert contents(tmp_path / "out") == expected
    assert "submitted to Slurm: 101, 102, 3 tasks" in said
    scripts = fake_slurm.submitted(cluster)
    assert len(scripts) == 2  # and no third one that would only add up statistics
    wanted = {"partition": "cpu", "time": "1:00:00", "account": "mine", "mem-per-cpu": "3G", "array": "0-1%1"}
    assert {name: fake_slurm.directive(scripts[0], name) for name in wanted} == wanted
    assert "--qos" not in scripts[0]


def test_ctrl_c_leaves_the_jobs_and_the_same_command_waits_for_them(
    cluster: Path, source: ListSource, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said = tmp_path / "out", Said()
    (cluster / "hold").touch()
    with monkeypatch.context() as patch:

        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        patch.setattr(datatrove.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            on_slurm(source, out, said)
    assert "the Slurm jobs go on; `scancel 101` ends them" in said
    (cluster / "hold").unlink()
    on_slurm(source, out, said)
    assert "waiting for the Slurm jobs" in said
    assert len(fake_slurm.submitted(cluster)) == 1 and contents(out) == expected


def test_jobs_that_are_gone(cluster: Path, source: ListSource, expected: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Cancelled(Said):
        def line(self, text: str = "") -> None:
            if text.startswith("submitted"):
                while not list(out.glob(".work/part-*.json")):
                    time.sleep(0.02)
                fake_slurm.cancel(fake_slurm.jobs(cluster)[0])

    with pytest.raises(UserError, match=r"jobs ended, and \d parts are missing: see .*/slurm_logs; the same command"):
        on_slurm(source, out, Cancelled(), executor_options={**CPU, "tasks": "5"})
    finished = len(list(out.glob(".work/part-*.json")))
    on_slurm(source, out, executor_options={**CPU, "tasks": "5"})
    assert fake_slurm.directive(fake_slurm.submitted(cluster)[1], "array") == f"0-{5 - finished - 1}"
    assert contents(out) == expected


def test_a_bad_document_ends_the_jobs(cluster: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "some.jsonl", texts(40))
    with file.open("a") as handle:
        handle.write("{\n")
    source = open_source("files", [file])
    with pytest.raises(UserError, match=r"some.jsonl: row 40 .*--skip-bad"):
        on_slurm(source, tmp_path / "out")
    assert not fake_slurm.jobs(cluster)
    on_slurm(source, tmp_path / "out", skip_bad=True)
    prepare(source, tmp_path / "expected", PrepareOptions(skip_bad=True))
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_slurm_refuses(cluster: Path, source: ListSource, tmp_path: Path) -> None:
    (cluster / "refuse").touch()
    with pytest.raises(UserError, match="did not take the job: sbatch: error: invalid partition specified: nowhere"):
        on_slurm(source, tmp_path / "out")


def test_jobs_of_an_earlier_state_of_the_source(cluster: Path, tmp_path: Path) -> None:
    (cluster / "hold").touch()

    class Interrupted(Said):
        def line(self, text: str = "") -> None:
            if text.startswith("submitted"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        on_slurm(ListSource(texts(40)), tmp_path / "out", Interrupted())
    other = ListSource(texts(44, seed=1))
    with pytest.raises(UserError, match="an earlier state of the source: `scancel 101`, then the same command"):
        on_slurm(other, tmp_path / "out")
    fake_slurm.cancel(fake_slurm.jobs(cluster)[0])
    (cluster / "hold").unlink()
    on_slurm(other, tmp_path / "out")
    prepare(other, tmp_path / "expected")
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_space_in_the_path(cluster: Path, source: ListSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has a space in its path"):
        on_slurm(source, tmp_path / "my data")


def test_no_slurm_here(source: ListSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        on_slurm(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
