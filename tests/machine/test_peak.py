"""How the device's speed is measured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from overnight.config import Precision
from overnight.machine import peak

CPU = torch.device("cpu")


def test_the_fastest_trial_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = [0.0], iter([9.0, 0.5, 0.2, 0.4, 0.3, 0.1])  # the first one warms up; the last one begins in time

    def work() -> None:
        now[0] += next(taken)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert peak.fastest(work, CPU, 10.35) == pytest.approx(0.2)
    assert list(taken) == [0.1]


def test_short_work_is_repeated_between_two_looks_at_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [0.0], [0]

    def work() -> None:
        now[0] += 1e-5

    def clock() -> float:
        looks[0] += 1
        return now[0]

    monkeypatch.setattr("time.perf_counter", clock)
    assert peak.fastest(work, CPU, 1.0) == pytest.approx(1e-5)
    assert looks[0] < 500


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(peak.SIZES, "cpu", (32, 64))
    monkeypatch.setitem(peak.COPIED, "cpu", 2**16)
    monkeypatch.setitem(peak.ATTENTION, "cpu", (1, 2, 16, 8))
    yield


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_matrix_products_and_copies(small: None, precision: Precision) -> None:
    before = torch.get_float32_matmul_precision()
    assert peak.matmul(CPU, precision, 0.02) > 1e6
    assert torch.get_float32_matmul_precision() == before
    assert peak.bandwidth(CPU, 0.01) > 1e6


def test_attention_by_backend(small: None) -> None:
    found = peak.attention(CPU, "fp32", 0.02)
    assert set(found) == {"flash", "cudnn", "efficient", "math"}
    assert found["cudnn"] is None  # there is none on a CPU
    assert found["math"] is not None and found["math"] > 0


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H200 NVL", "bf16", None),  # another card
        ("NVIDIA H100 80GB HBM3", "tf32", 494e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla V100-SXM2-16GB", "fp32", None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
    ],
)
def test_datasheets(name: str, precision: Precision, expected: float | None) -> None:
    assert peak.datasheet(name, precision) == expected
