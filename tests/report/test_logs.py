"""Logs of other programs, in the formats that their code writes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import MakeRun

from overnight.cli.report import main
from overnight.errors import UserError
from overnight.report import write_report
from overnight.report.logs import read, read_log
from overnight.report.run_data import RunData

BUILD_NANOGPT = "0 val 10.9511\n0 hella 0.2463\n0 train 10.955029\n1 train 9.5\n250 val 5.9\n250 hella 0.2601\n"
LLM_C = (
    "s:0 tel:11.0092\ns:0 eval:0.2450\ns:0 trl:11.0091 lr:0.000001 norm:15.37\n"
    "s:1 trl:-nan lr:0.000002 norm:inf\ns:2 tel:6.171\n"
)
NANOGPT = """Overriding: dataset = shakespeare_char
tokens per iteration will be: 16,384
number of parameters: 10.65M
step 0: train loss 4.2874, val loss 4.2823
iter 0: loss 4.2664, time 25000.00ms, mfu -100.00%
iter 10: loss 3.1, time 20.00ms, mfu 1.50%
saving checkpoint to out
step 250: train loss 1.9, val loss nan
"""


def log(tmp_path: Path, text: str, name: str = "x.txt", tokens: int = 0) -> RunData:
    path = tmp_path / name
    path.write_text(text)
    return read_log(path, tokens)


def pairs(run: RunData, name: str) -> list[tuple[float, float]]:
    return list(zip(run.series[name].step.tolist(), run.series[name].value.tolist(), strict=True))


def test_build_nanogpt(tmp_path: Path) -> None:
    run = log(tmp_path, BUILD_NANOGPT, tokens=524_288)
    assert run.program == "build-nanogpt" and run.problems == []
    assert pairs(run, "train.loss") == [(1, 10.955029), (2, 9.5)]  # its step 0 is the first update
    assert pairs(run, "eval.val_loss") == [(0, 10.9511), (250, 5.9)]
    assert [(one.step, one.metrics) for one in run.tasks] == [(0, {"acc_norm": 0.2463}), (250, {"acc_norm": 0.2601})]
    assert run.clock.step.tolist() == [0, 1, 2, 250]
    assert run.clock.tokens.tolist() == [0, 524_288, 2 * 524_288, 250 * 524_288]


def test_llm_c(tmp_path: Path) -> None:
    run = log(tmp_path, LLM_C)
    assert run.program == "llm.c"
    assert pairs(run, "eval.val_loss") == [(0, 11.0092), (2, 6.171)]
    assert run.series["train.loss"].step.tolist() == [1, 2] and math.isnan(run.series["train.loss"].value[1])
    assert pairs(run, "train.grad_norm") == [(1, 15.37), (2, math.inf)]
    assert pairs(run, "train.lr")[0] == (1, 1e-6)
    assert run.tasks[0].metrics == {"acc_norm": 0.245}
    assert not np.isfinite(run.clock.tokens).any() and "--tokens-per-step" in run.problems[0]


def test_nanogpt(tmp_path: Path) -> None:
    run = log(tmp_path, NANOGPT)
    assert run.program == "nanoGPT"
    assert run.problems == ["x.txt: 3 of its lines hold no measurement and are left out."]
    assert pairs(run, "train.loss") == [(1, 4.2664), (11, 3.1)]
    assert pairs(run, "eval.train_split_loss") == [(0, 4.2874), (250, 1.9)]
    assert math.isnan(run.series["eval.val_loss"].value[1])
    assert pairs(run, "train.mfu") == [(11, 0.015)]
    assert pairs(run, "train.tokens_per_second")[1] == (11, 16_384 / 0.02)
    assert run.clock.tokens[-1] == 250 * 16_384  # as its own first lines tell
    assert "milliseconds" not in run.series


def test_broken_lines_are_counted(tmp_path: Path) -> None:
    cut = "250 val 5.9\n\n250 va\n260 val 5.x\n270 val 1.2.3\n-1 val 3\n280 valid 3\n300 val 5.8 5.7\n310 val 5"
    run = log(tmp_path, cut, tokens=1)
    assert pairs(run, "eval.val_loss") == [(250, 5.9), (310, 5)]
    assert run.problems == ["x.txt: 6 of its lines hold no measurement and are left out."]


def test_the_later_line_for_a_step_holds(tmp_path: Path) -> None:
    assert pairs(log(tmp_path, "0 val 9\n250 val 5\n250 val 4\n", tokens=1), "eval.val_loss") == [(0, 9), (250, 4)]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([BUILD_NANOGPT, LLM_C, NANOGPT]), st.integers(0, 100))
def test_anything_in_a_log_is_left_out(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, good: str, at: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "x.log"
    lines = good.encode().splitlines(keepends=True)
    at = at % (len(lines) + 1)
    path.write_bytes(b"".join(lines[:at]) + junk + b"\n" + b"".join(lines[at:]))
    run = read_log(path)
    assert run.series and all(len(one.step) == len(one.value) for one in run.series.values())


@pytest.mark.parametrize("content", [b"", b"hello\nworld\n", bytes(range(256)) * 200, b"a" * 100_000])
def test_a_file_that_is_no_log(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UserError, match="neither a run folder nor a log of build-nanogpt") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_logs_lie_over_runs(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / "log.txt"
    path.write_text(BUILD_NANOGPT)
    page = write_report([folder, path], tmp_path / "report.html", 512).read_text()
    assert "theirs/log.txt" in page and '"axis":"tokens"' in page
    alone = write_report([path], tmp_path / "alone.html").read_text()
    assert '"axis":"step"' in alone


def test_command(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "main.log", tmp_path / "report.html"
    path.write_text(LLM_C + "torn")
    assert main([str(make_run()), str(path), "--out", str(out), "--tokens-per-step", "0.5M"]) == 0
    printed = capsys.readouterr().out
    assert "a log of llm.c\n  main.log: 1 of its lines hold no measurement and are left out.\n" in printed
    assert out.exists()
