"""The page: complete, well-formed, safe whatever the run holds, and content with itself."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import CONFIG, MakeRun, attempt_line, eval_line, task_line, train_line, write_lines
from strict_html import Page

import overnight.report
from overnight.cli.report import main
from overnight.errors import UserError
from overnight.report import write_report

EVIL = (
    "</script><script>alert(1)</script><img src=x onerror=alert(1)> {{script}} \"'&<|endoftext|>\u2028\u202e\x00\ud800"
)


def report(*folders: Path) -> tuple[Page, str]:
    out = write_report(folders, folders[0] / "report.html")
    html = out.read_text(encoding="utf-8")
    return Page(html), html


def test_one_run(make_run: MakeRun) -> None:
    page, _ = report(make_run("first night"))
    for words in ("first night", "Step 200 of 200: finished", "Validation loss 2.1549", "perplexity 8.63", "102k",
                  "Learning rate", "Gradient norm", "Tokens per second", "Once upon 100", "n_embd", "feedfeedfeedfeed",
                  "the largest that fits", "2 layers, width 32, context 64"):  # fmt: skip
        assert words in page.text, words
    data = json.loads(page.data)
    assert [chart["title"] for chart in data["charts"]] == [
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
    ]
    loss = data["charts"][0]["lines"]
    assert [(line["label"], len(line["x"])) for line in loss] == [("training", 20), ("validation", 3)]
    assert page.count("svg") == 4
    assert page.count("article") == 2


def test_several_runs(make_run: MakeRun, tmp_path: Path) -> None:
    other = json.loads(json.dumps(CONFIG))
    other["recipe"]["optim"]["lr"] = 0.5
    page, _ = report(make_run("a/run"), make_run("b/run", other))
    for words in (
        "2 runs",
        "a/run",
        "b/run",
        "What differs",
        "recipe.optim.lr",
        "0.001",
        "0.5",
        "The same in all runs",
    ):
        assert words in page.text, words
    data = json.loads(page.data)
    assert [run["name"] for run in data["runs"]] == ["a/run", "b/run"]
    assert [chart["title"] for chart in data["charts"]][:3] == [
        "Validation loss",
        "Training loss",
        "Validation bits per byte",
    ]
    assert all([line["run"] for line in chart["lines"]] == [0, 1] for chart in data["charts"])
    assert "different tokenizers" not in page.text


def test_different_tokenizers_are_pointed_out(make_run: MakeRun, tmp_path: Path) -> None:
    folders = []
    for name in ("gpt2", "bytes"):
        (tmp_path / f"data-{name}").mkdir()
        (tmp_path / f"data-{name}" / "manifest.json").write_text(json.dumps({"tokenizer": {"name": name}}))
        used = {"path": str(tmp_path / f"data-{name}"), "fingerprint": name}
        folders.append(make_run(name, attempts=[attempt_line(1, 0, dataset=used)]))
    page, _ = report(*folders)
    assert "different tokenizers (gpt2: gpt2, bytes: bytes): compare bits per byte" in page.text


def test_the_same_run_twice_is_one_run(make_run: MakeRun) -> None:
    folder = make_run()
    page, _ = report(folder, folder)
    assert len(json.loads(page.data)["runs"]) == 1


def test_foreign_text_stays_text(make_run: MakeRun) -> None:
    config = {**CONFIG, "preset": EVIL, "machine": {EVIL: EVIL}}
    samples = [{"step": 10, "prompt": EVIL, "texts": [EVIL + EVIL, "\nx"]}]
    decisions = [{"step": 0, "name": EVIL, "value": {EVIL: [EVIL]}, "reason": EVIL, "time": {"now": EVIL}}]
    attempts = [
        attempt_line(1, 0, device=EVIL, command=[EVIL], host=EVIL, versions={EVIL: EVIL}, dataset={"path": EVIL})
    ]
    metrics = [{**train_line(10, 2.0), EVIL: 1.0}, {**eval_line(10, 2.0), EVIL: {EVIL: 2.0}}]
    name = "<script>alert(1)<|script> \"'&"
    folder = make_run(name, config, samples=samples, decisions=decisions, attempts=attempts, metrics=metrics)
    note = {"title": EVIL, "text": EVIL, "table": {"columns": [EVIL, 1], "rows": [[EVIL, 2]]}}
    (folder / "notes.json").write_text(json.dumps({"sections": [note]}))
    for folders in ([folder], [folder, make_run("other")]):
        page, html = report(*folders)
        assert page.count("script") == 2
        assert page.count("img") == 0
        assert not any(name.startswith("on") for _, found in page.elements for name in found)
        assert "alert(1)" in page.text and "<|endoftext|>" in page.text and "{{script}}" in page.text
        assert "\x00" not in html
    assert json.loads(page.data)["runs"][0]["name"] == name


def test_only_the_script_of_the_page_may_run(make_run: MakeRun) -> None:
    page, html = report(make_run())
    script = re.search(r"<script>(.*)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    policy = next(found["content"] for tag, found in page.elements if "http-equiv" in found)
    assert policy is not None and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_nothing_comes_from_elsewhere(make_run: MakeRun) -> None:
    page, html = report(make_run())
    for tag, found in page.elements:
        for name in ("src", "href", "action", "srcset", "data"):
            link = found.get(name)
            assert link is None or link.startswith(("#", "data:")), (tag, link)
    assert not re.search(r"https?://|@import|url\((?!#)", html)


def test_a_run_that_just_began(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"format": "overnight-config", "version": 1}')
    page, _ = report(tmp_path)
    assert "Nothing measured yet." in page.text and "nothing to draw" in page.text


def test_a_run_under_way(make_run: MakeRun) -> None:
    folder = make_run(metrics=[train_line(50, 3.0)], samples=[])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tr')
    page, _ = report(folder)
    assert "Step 50 of 200: 25%, last heard of 2026-01-02 03:04 UTC" in page.text


def test_notes_stand_before_the_curves(make_run: MakeRun) -> None:
    folder = make_run()
    note = {
        "title": "Beside gzip",
        "text": "one\n\ntwo",
        "table": {"columns": ["", "bits"], "rows": [["gzip -9", 2.31], ["x"]]},
    }
    (folder / "notes.json").write_text(json.dumps({"sections": [note]}))
    page, _ = report(folder)
    assert page.text.index("gzip -9 2.31") < page.text.index("Learning rate")


def test_size_is_bounded_and_spikes_survive(make_run: MakeRun) -> None:
    lines = [train_line(step, 99.0 if step == 12_345 else 2.0 + step % 7 / 10) for step in range(1, 30_001)]
    samples = [{"step": step, "prompt": "a", "texts": ["a" * 100_000]} for step in range(300)]
    folder = make_run(metrics=[], samples=samples)
    write_lines(folder / "metrics.jsonl", lines)
    page, html = report(folder)
    assert len(html) < 700_000
    line = json.loads(page.data)["charts"][0]["lines"][0]
    assert len(line["x"]) <= 2000 and len(line["meanX"]) <= 1000
    assert [step for step, loss in zip(line["x"], line["y"], strict=True) if loss == 99.0] == [12_345]
    assert page.count("article") == 60


def test_not_a_run_and_nowhere_to_write(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="at least one"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written .* choose another file with --out"):
        write_report([make_run()], tmp_path / "file" / "report.html")


def test_a_folder_of_runs_stands_for_all_of_them(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, runs = make_run("runs/first"), make_run("runs/second"), tmp_path / "runs"
    (runs / "locked").mkdir()
    (runs / "locked" / "lock").write_text("{}")
    (runs / ".hidden").mkdir()
    said, out = f"{runs / 'locked'}: no run in it, left out", tmp_path / "report.html"
    for paths in ([runs], sorted(runs.glob("[!.]*")), [first, runs, second]):
        assert main([*map(str, paths), "--out", str(out)]) == 0
        assert capsys.readouterr().out.splitlines() == [said, str(out)]
        assert "2 runs" in Page(out.read_text(encoding="utf-8")).text
    with pytest.raises(UserError, match="locked is not a run folder"):
        main([str(runs / "locked")])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def damaged(good: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A line in which any values are replaced by anything."""
    return st.dictionaries(st.sampled_from(sorted(good)), json_values, max_size=3).map(
        lambda change: {**good, **change}
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_json_in_any_place_is_shown_or_left_out(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("run")
    dataset = tmp_path_factory.mktemp("data")
    config = {**data.draw(damaged({**CONFIG})), "format": "overnight-config", "version": 1}
    (folder / "config.json").write_text(json.dumps(config))
    manifest = {
        "tokenizer": {"name": "gpt2"},
        "splits": {"train": {"tokens": 1, "bytes": 3}},
        "sources": [{"name": "x"}],
    }
    (dataset / "manifest.json").write_text(json.dumps(data.draw(damaged(manifest))))
    used = {"path": str(dataset), "fingerprint": "f"}
    good = {
        "metrics": [
            train_line(10, 3.0),
            eval_line(10, 3.0),
            train_line(20, 2.0),
            task_line(20, 0.3),
            task_line(30, 0.3),
        ],
        "samples": [{"step": 10, "prompt": "a", "texts": ["ab"]}],
        "attempts": [attempt_line(1, 0, dataset=used), attempt_line(2, 10, dataset=used)],
        "decisions": [{"step": 0, "name": "train.steps", "value": 300, "reason": "asked", "attempt": 1}],
    }
    for name, lines in good.items():
        write_lines(folder / f"{name}.jsonl", [data.draw(damaged(line)) for line in lines])
    note = {"title": "t", "text": "x", "table": {"columns": ["a"], "rows": [[1]]}}
    (folder / "notes.json").write_text(
        json.dumps({"sections": data.draw(json_values | st.just([note, data.draw(damaged(note))]))})
    )
    page, _ = report(folder)
    json.loads(page.data)


def run_command(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from overnight.cli.report import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules, 'torch was imported'; sys.exit(code)"
    )
    source = Path(overnight.report.__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(source)},
    )  # fmt: skip


def test_command(make_run: MakeRun, tmp_path: Path) -> None:
    folder, other = make_run("a"), make_run("b")
    here = tmp_path / "here"
    here.mkdir()
    for arguments, out in (
        ([folder], folder / "report.html"),
        ([folder, other], here / "report.html"),
        ([folder, "--out", here / "new" / "x.html"], here / "new" / "x.html"),
    ):
        done = run_command(*arguments, cwd=here)
        assert done.returncode == 0, done.stderr
        assert (here / done.stdout.strip()).resolve() == out
        assert out.read_text().startswith("<!doctype html>")


def test_command_without_a_run() -> None:
    from overnight.cli.report import main

    with pytest.raises(UserError, match="which run"):
        main([])
