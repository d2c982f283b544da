"""`overnight bench`: a run's own steps, and nothing left behind."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from overnight import attention, optim, training
from overnight.bench import ladder, opening, text
from overnight.bench.bench import Result, bench
from overnight.bench.ladder import Rung, Setting
from overnight.bench.timing import Spread, Steps, Stopwatch
from overnight.config import Config
from overnight.console import Console
from overnight.distributed import ALONE, current_world, joined
from overnight.files import write_json
from overnight.machine import device as machine
from overnight.machine import peak
from overnight.presets import shakespeare_char_cpu
from overnight.verify import processes, worker
from running import Overnight

TINY = [
    *("--device", "cpu", "--threads", "1", "--precision", "fp32", "--micro-batch", "3"),
    *("--model.n-layer", "2", "--model.n-embd", "32", "--model.n-head", "2", "--model.vocab-size", "200"),
    *("--data.sequence-length", "32", "--train.tokens-per-step", "256"),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Rates that need no measuring, and a folder for temporary files in which nothing of ours may be left."""
    monkeypatch.setattr(peak, "matmul", lambda device, precision: 1e12)
    monkeypatch.setattr(peak, "bandwidth", lambda device: 1e10)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert not list(folder.glob("overnight*"))  # torch has a cache there


def test_what_it_says_fits_together(overnight: Overnight, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json.gz"
    done = overnight("bench", "gpt2-124m", *TINY, "--steps", "4", "--trace", trace, "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["choices"] == {
        **{"processes": 1, "threads": 1, "parallel": None},
        **{"precision": "fp32", "micro_batch": 3, "compile": False},
    }
    assert (found["tokens_per_step"], found["micro_batches"]) == (256, 3)  # 8 sequences, 3 at once
    speed = found["tokens_per_second"]
    assert speed["low"] <= speed["median"] <= speed["high"] and speed["count"] == 4
    assert speed["median"] == pytest.approx(256 / found["seconds"]["median"])
    assert found["utilisation"] == pytest.approx(speed["median"] * sum(found["flops_per_token"].values()) / 1e12)
    assert found["mfu_by_datasheet"] is None
    assert found["memory"] == pytest.approx(sum(found["predicted"]["parts"].values()), rel=0.1)
    assert all(found["parts"][part] > 0 for part in ("data", "forward", "loss", "backward", "optimizer"))
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"data", "forward", "loss", "backward", "sync", "optimizer"} <= names
    assert {path.name for path in tmp_path.iterdir()} == {"temporary", "trace.json.gz"}


def test_on_a_dataset_of_ones_own(overnight: Overnight, dataset: Path) -> None:
    flags = [*TINY[: TINY.index("--model.vocab-size")], *TINY[TINY.index("--model.vocab-size") + 2 :]]
    done = overnight("bench", "gpt2-124m", *flags, "--data", dataset, "--steps", "1")
    assert "tokens/s" in done.stdout and "predicted" in done.stdout
    assert "processes 1, threads 1, precision fp32, micro-batch 3, compile off" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gpt2-123m"], "bench: there is no preset or file 'gpt2-123m' (did you mean gpt2-124m?)"),
        (["--steps", "0"], "bench: --steps 0: it must be 1 or more"),
        (["--ladder", "--processes", "2"], "bench: --ladder is for one process"),
        (["--out", "x"], "bench: unknown option --out"),
    ],
)
def test_mistakes_are_one_line(overnight: Overnight, arguments: list[str], expected: str) -> None:
    done = overnight("bench", *arguments, check=False)
    assert done.returncode == 2
    assert expected in done.stderr and done.stderr.count("\n") == 1


def test_too_little_memory_is_one_line(overnight: Overnight, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise training.DeviceFull

    monkeypatch.setattr("overnight.bench.timing.train_step", full)
    done = overnight("bench", "gpt2-124m", *TINY, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "overnight: bench: out of memory with 3 sequences at once: give a smaller --micro-batch\n",
    )


def small() -> Config:
    """12 sequences of 64 characters in a step."""
    config = shakespeare_char_cpu()
    recipe = replace(config.recipe, model=replace(config.recipe.model, n_layer=1, n_head=2, n_embd=32))
    return replace(config, recipe=recipe, machine=replace(config.machine, device="cpu", threads=1, precision="fp32"))


def test_long_steps_are_cut_to_whole_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small()
    config = replace(config, machine=replace(config.machine, micro_batch=2))
    with opening.opened(config, None, ALONE, Console.silent()) as opened:
        steps, begun = Steps(opened), []
        assert (steps.in_run, steps.micro_batch) == (6, 2)
        monkeypatch.setattr(steps, "time", lambda count: begun.append(opened.sequences_per_step) or [0.25])
        assert steps.fit(1.1) == 4 * 0.25  # each of the four takes a quarter of a second
        assert begun == [2, 2] and opened.sequences_per_step == 8
        steps.fit(100.0)
        assert opened.sequences_per_step == 12  # never more than in a run
        assert opened.model.n_vocab == 65


def test_the_parts_come_in_the_order_of_a_step() -> None:
    told: list[str] = []
    from overnight.machine.parts import told as telling

    with opening.opened(small(), None, ALONE, Console.silent()) as opened:
        with telling(opened, told.append):
            training.train_step(opened, 0, 6)
        assert told == [*["forward", "loss", "backward"] * 2, "sync", "optimizer"]
        training.train_step(opened, 1, 6)
        assert len(told) == 8 and "features" not in vars(opened.model)


def test_a_stopwatch_counts_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    stopwatch = Stopwatch(torch.device("cpu"))
    for part in ("one", "two", "one", ""):
        stopwatch.enter(part)
    assert stopwatch.seconds == {"": 1.0, "one": 2.0 + 4.0, "two": 3.0}


def one_of_several(rank: int, size: int, port: int, folder: Path) -> None:
    worker.take_place(rank, size, port)
    peak.matmul = lambda device, precision: 1e12  # type: ignore[assignment]
    peak.bandwidth = lambda device: 1e10  # type: ignore[assignment]
    world = current_world()
    config = small()
    machine_too = replace(config.machine, micro_batch=2)
    with joined(world):
        found = bench(replace(config, machine=machine_too), None, world, Console.silent(), steps=2)
    write_json(folder / f"{rank}.json", found.to_json())


def test_several_processes(tmp_path: Path) -> None:
    processes.run(2, one_of_several, tmp_path)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["choices"] == other["choices"]
    assert (one["choices"]["processes"], one["choices"]["parallel"]) == (2, "ddp")
    assert one["run_tokens_per_step"] == 12 * 64
    assert one["tokens_per_step"] == other["tokens_per_step"] == one["micro_batches"] * 2 * 2 * 64
    assert one["parts"] == other["parts"] and one["parts"]["sync"] > 0
    assert one["peaks"]["matmul"] == 2e12


def result(**changed: object) -> Result:
    made = Result(
        preset="p",
        device="cuda (NVIDIA H200)",
        choices={"processes": 1, "precision": "bf16", "micro_batch": 4, "compile": True},
        parameters={"matrix": 1000},
        flops_per_token={"blocks": 5000, "head": 1000},
        sequence_length=10,
        tokens_per_step=100,
        micro_batches=2,
        run_tokens_per_step=1000,
        seconds=Spread(3.0, 2.0, 4.0, 5),
        parts={"forward": 1.0, "backward": 1.0, "sync": 0.0, "optimizer": 1.0},
        peaks={"matmul": 400_000.0, "copy": 1e9},
        datasheet=1_000_000.0,
        memory=2000,
        predicted=None,
        unpredicted="the model is in parts",
        process=None,
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def test_a_runs_speed_is_reckoned_with_one_update_a_step() -> None:
    found = result()
    assert found.tokens_per_second == Spread(100 / 3, 25.0, 50.0, 5)
    assert found.run_tokens_per_second == pytest.approx(1000 / (10 * 2.0 + 1.0))
    assert found.utilisation == pytest.approx(100 / 3 * 6000 / 400_000)
    assert math.isclose(result(run_tokens_per_step=100).run_tokens_per_second, 100 / 3)


def test_the_lines() -> None:
    lines = "\n".join(text.lines(result()))
    assert "speed        33 tokens/s (the middle half of 5 steps: 25 to 50)" in lines
    assert "48 tokens/s in a run" in lines
    assert "50.0% of 400 kFLOP/s" in lines
    assert "20.0% of 1 MFLOP/s, the datasheet's: the MFU" in lines
    assert "precision bf16, micro-batch 4, compile on" in lines
    assert "memory       2 kB at most, no prediction (the model is in parts)" in lines
    assert "parts        forward 33.3%, backward 33.3%, optimizer 33.3%" in lines


# ---- the ladder


def test_written_attention_is_attention() -> None:
    q, k, v = (torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    mask = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(3)) < 0.8
    mask |= torch.eye(5, dtype=torch.bool)
    for options in ({"is_causal": True}, {"attn_mask": mask, "scale": 0.3}, {}):
        expected = F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]
        assert torch.allclose(ladder.written_attention(q, k, v, **options), expected, atol=1e-6)  # type: ignore[arg-type]


def test_a_rungs_switches_hold_only_there() -> None:
    given = F.scaled_dot_product_attention
    with ladder._switched(Setting()), opening.opened(small(), None, ALONE, Console.silent()) as opened:
        assert F.scaled_dot_product_attention is ladder.written_attention
        assert len(opened.model.wte.weight) == 65
        assert not opened.optimizer.param_groups[0]["fused"]
    top = Setting(written_attention=False, padded=True, fused=True)
    with ladder._switched(top), opening.opened(small(), None, ALONE, Console.silent()) as opened:
        assert F.scaled_dot_product_attention is given
        assert len(opened.model.wte.weight) == 128
        assert opened.optimizer.param_groups[0]["fused"]
    assert optim.FUSED


def test_climbing(overnight: Overnight, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "compile_problem", lambda device: "no C++ compiler")
    monkeypatch.setattr(machine, "precisions", lambda device: ["fp32", "bf16"])
    monkeypatch.setattr(attention, "SHORT", 16)
    settings: list[Setting] = []
    climbed = ladder._climbed

    def noted(config: Config, setting: Setting, *rest: object) -> tuple[Spread, int]:
        settings.append(setting)
        return climbed(config, setting, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ladder, "_climbed", noted)
    done = overnight("bench", "--ladder", *TINY, "--steps", "1", "--json")
    rungs = {rung["name"]: rung for rung in json.loads(done.stdout)["rungs"]}
    assert rungs["tf32"]["reason"] == "needs an NVIDIA GPU of the Ampere generation or later"
    assert rungs["torch.compile"]["reason"] == "no C++ compiler"
    there = [rung for rung in rungs.values() if not rung["reason"]]
    assert [rung["name"] for rung in there][:2] == ["fp32", "bf16"]
    for before, rung in pairwise(there):
        speeds = [one["tokens_per_second"]["median"] for one in (before, rung)]
        assert rung["factor"] == pytest.approx(speeds[1] / speeds[0])
    assert settings == [
        Setting("fp32"),
        Setting("bf16"),
        Setting("bf16", written_attention=False),
        Setting("bf16", written_attention=False, padded=True),
        Setting("bf16", written_attention=False, padded=True, fused=True),
    ]


def test_the_rung_of_attention_is_left_out_where_a_run_has_no_use_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "compile_problem", lambda device: "no C++ compiler")
    monkeypatch.setattr(machine, "precisions", lambda device: ["fp32", "bf16"])
    left_out = {name: reason for name, _, reason in ladder.ladder(torch.device("cpu"), small())}
    assert "attention written out" in left_out["scaled_dot_product_attention (flash)"]
    monkeypatch.setattr(machine, "precisions", lambda device: ["fp32"])
    left_out = {name: reason for name, _, reason in ladder.ladder(torch.device("cpu"), small())}
    assert not left_out["scaled_dot_product_attention (flash)"]
    assert left_out["bf16"] == "no instructions for 16-bit products here"


def test_the_ladders_table() -> None:
    rungs = [
        Rung("fp32", Spread(100.0, 90.0, 110.0, 3), None),
        Rung("tf32", None, None, "needs a GPU"),
        Rung("bf16", Spread(250.0, 240.0, 260.0, 3), 2.5),
    ]
    assert ladder.table(rungs) == [
        "          tokens/s  factor",
        "fp32           100",
        "tf32  left out: needs a GPU",
        "bf16           250    2.50",
        "the last to the first: 2.50",
    ]
