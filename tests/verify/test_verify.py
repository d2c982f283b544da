"""`overnight verify` passes, and fails at the right place for each fault that is planted."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from overnight.config import resolve
from overnight.verify import plan
from overnight.verify.checks import TOLERANCES, Check
from overnight.verify.verify import Verdict, verify
from running import Overnight

STEP = {"loss", "gradient norm", "gradients", "weights, moments"}  # what a wrong step shows in


def failed(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if not check.passed}


def test_it_passes_on_one_to_four_processes(overnight: Overnight) -> None:
    done = overnight("verify", "--json")
    found = json.loads(done.stdout)
    assert (found["passed"], found["processes"]) == (True, [1, 2, 3, 4])
    checks = {check["check"]: check for check in found["checks"]}
    assert list(checks) == [
        *("sequences", "padding", "loss", "gradient norm", "gradients", "weights, moments", "resume"),
        *("resume elsewhere", "cached sampling", "first loss", "one batch"),
    ]
    every = "\n".join(checks["gradients"]["differences"])
    for layout in ("1 process, micro-batch 3", "4 processes (ddp), micro-batch 1", "3 processes (fsdp), micro-batch 2"):
        assert f"h.1.mlp.c_proj.weight, {layout}, rank 0, step 4" in every
    assert 0 < checks["gradients"]["difference"] < checks["gradients"]["tolerance"]
    assert checks["resume"]["differences"] == {
        "model.safetensors": 0.0,
        "optimizer.safetensors": 0.0,
        "metrics.jsonl": 0.0,
    }
    assert any(name.startswith("exp_avg_sq/") for name in checks["resume elsewhere"]["differences"])


@pytest.mark.parametrize(
    ("fault", "counts", "expected"),
    [
        ("wrong_accumulation", [1], STEP),
        ("dropped_tail", [1], {"sequences", "padding", *STEP}),
        ("unsaved_moment", [1], {"weights, moments", "resume", "sequences"}),
        ("forgotten_moments", [1], {"resume"}),
        ("stale_cache", [1], {"cached sampling"}),
        ("large_weights", [1], {"first loss", *STEP}),
        ("slow_learning", [1], {"one batch", *STEP}),
        ("no_sync", [1, 2], {*STEP, "resume elsewhere"}),
        ("overlapping_ranks", [1, 2], {"sequences", *STEP, "resume elsewhere"}),
        ("loss_of_one_rank", [1, 2], {"loss", "resume elsewhere"}),
    ],
)
def test_it_finds(fault: str, counts: list[int], expected: set[str]) -> None:
    verdict = verify(counts, setup=f"verify_faults:{fault}")
    assert failed(verdict) == expected, [(check.name, check.difference, check.where) for check in verdict.checks]
    assert not verdict.passed


def test_the_modern_model_and_muon_pass(overnight: Overnight) -> None:
    done = overnight("verify", "--model", "modern", "--processes", "1,2", "--json")
    found = json.loads(done.stdout)
    assert (found["passed"], found["model"]) == (True, "modern")
    moments = next(check for check in found["checks"] if check["check"] == "weights, moments")["differences"]
    assert any(name.startswith("momentum/h.1.attn.c_attn.weight, 2 processes (fsdp)") for name in moments)


def test_it_finds_a_share_that_is_lost() -> None:
    verdict = verify([1, 2], setup="verify_faults:lost_share", block="modern")
    assert "weights, moments" in failed(verdict) and "resume" not in failed(verdict)


def test_a_process_that_fails_is_a_failure_that_says_so(overnight: Overnight) -> None:
    verdict = verify([1, 2], setup="verify_faults:one_rank_fails")
    assert {"sequences", *STEP} <= failed(verdict)
    assert "planted" in next(check.where for check in verdict.checks if check.name == "gradients")
    assert "resume" not in failed(verdict)


def test_what_is_not_a_number_fails() -> None:
    assert not Check("loss", "", math.nan, 1.0).passed
    assert not Check("loss", "", math.inf, 1.0).passed
    assert Check("loss", "", 1.0, 1.0).passed


def test_one_dataset_of_ones_own(dataset: Path, overnight: Overnight) -> None:
    done = overnight("verify", "--processes", "1", "--data", dataset)
    assert "all is well: gpt2, 1 process, cpu, fp32" in done.stdout
    assert "sequences" in done.stdout


@pytest.mark.parametrize("processes", ["0", "two", "1,,2", "-1", "100"])
def test_a_mistake_is_one_line(overnight: Overnight, processes: str) -> None:
    done = overnight("verify", f"--processes={processes}", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--processes" in done.stderr


def test_layouts_go_on_from_each_other() -> None:
    lives = plan.lives([1, 2, 3, 4])
    assert [{case.processes for case in life} for life in lives] == [{1}, {2}, {3}, {4}, {1}]
    cases = {case.name: case for life in lives for case in life}
    assert len(cases) == sum(map(len, lives))  # each has its own folder
    resumed = [
        (cases[case.resumes].processes, cases[case.resumes].parallel, case.processes, case.parallel)
        for case in cases.values()
        if case.resumes
    ]
    assert resumed == [
        (1, "ddp", 2, "ddp"),
        (2, "ddp", 3, "fsdp"),
        (3, "fsdp", 4, "ddp"),
        (1, "ddp", 1, "ddp"),
        (4, "fsdp", 1, "ddp"),
    ]
    for case in cases.values():
        resolve(plan.config(case, "cpu", "fp32"), "bytes", 257)


def test_each_precision_has_its_tolerances() -> None:
    assert set(TOLERANCES) == {"fp32", "bf16"}
