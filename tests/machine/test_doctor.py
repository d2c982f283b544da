"""`overnight doctor` of one machine: each finding, also of hardware that is not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from overnight.machine import device as machine
from overnight.machine import doctor
from overnight.machine.findings import Finding, table
from running import Overnight

NEW_TORCH = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


def test_it_says_what_is_here(overnight: Overnight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "compile_problem", lambda device: "no C++ compiler")
    done = overnight("doctor", "--device", "cpu", "--no-speed", "--no-network", "--out", tmp_path / "not" / "yet")
    assert f"torch          {torch.__version__}" in done.stdout
    assert "no C++ compiler; runs do without" in done.stdout
    found = json.loads(
        overnight("doctor", "--json", "--no-compile", "--no-speed", "--no-network", "--out", tmp_path).stdout
    )["findings"]
    assert {"overnight", "torch", "device", "precision", "threads", "disk"} <= {line["name"] for line in found}
    assert "compile" not in {line["name"] for line in found}


def test_a_device_that_is_not_there_is_exit_code_2(overnight: Overnight) -> None:
    done = overnight("doctor", "--device", "cuda:7", "--no-compile", "--no-speed", "--no-network", check=False)
    assert done.returncode == 2
    assert "wrong device" in done.stdout and "--device cuda:7 does not work here" in done.stdout


@pytest.mark.parametrize(
    ("name", "capability", "built_for", "verdict", "advice"),
    [
        ("V100", (7, 0), NEW_TORCH, "wrong", "whl/cu126"),
        ("P100", (6, 0), NEW_TORCH, "wrong", "whl/cu126"),
        ("V100", (7, 0), ["sm_50", "sm_60", "sm_70", "sm_75"], "ok", ""),
        ("T4", (7, 5), NEW_TORCH, "ok", ""),
        ("L4", (8, 9), NEW_TORCH, "ok", ""),  # runs what was built for 8.6
        ("of tomorrow", (13, 0), NEW_TORCH, "ok", ""),  # compiled by the driver from what 12.0 has
        ("H100", (9, 0), ["sm_60", "sm_70"], "wrong", "a newer torch"),
    ],
)
def test_gpus_that_a_torch_was_not_built_for(
    name: str, capability: tuple[int, int], built_for: list[str], verdict: str, advice: str
) -> None:
    found = doctor.gpu(0, name, capability, built_for)
    assert found.verdict == verdict
    assert advice in found.advice


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((9, 0), ["tf32", "bf16"]),
        ((8, 0), ["tf32", "bf16"]),
        ((7, 5), ["fp32", "fp16"]),
        ((6, 0), ["fp32", "fp16"]),
        ((5, 2), ["fp32"]),
    ],
)
def test_precisions_of_gpus(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: list[str]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert machine.precisions(torch.device("cuda:0")) == expected
    said = doctor.precision(torch.device("cuda:0")).value
    assert ("gradient scaler" in said) == ("fp16" in expected)


@pytest.mark.parametrize(
    ("given", "processes", "cores", "expected"),
    [
        (None, 1, 8, 8),
        (None, 4, 8, 2),
        (None, 8, 2, 1),
        ("3", 1, 8, 3),
        ("3", 4, 8, 3),
        ("1", 1, 8, 1),
        ("1", 4, 8, 2),  # torchrun's own 1
        ("many", 2, 8, 4),
    ],
)
def test_threads_of_each_process(
    monkeypatch: pytest.MonkeyPatch, given: str | None, processes: int, cores: int, expected: int
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    count, why = machine.threads(processes)
    assert count == expected
    assert (why == "OMP_NUM_THREADS") == (given == "3" or (given == "1" and processes == 1))


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NCCL_SHM_DISABLE=1" in doctor.shared_memory(tmp_path / "none", 1).advice
    monkeypatch.setattr(doctor, "ENOUGH_SHARED", 2**62)
    assert doctor.shared_memory(tmp_path, 1).verdict == "ok"
    assert "--shm-size" in doctor.shared_memory(tmp_path, 2).advice


def test_the_table_stands_in_columns() -> None:
    lines = table([Finding("a", "1"), Finding("long name", "2", "do this", "wrong")])
    assert lines == ["ok    a          1", "wrong long name  2", "                 do this"]
