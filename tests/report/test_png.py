"""Charts as PNG files."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest
from made_runs import MakeRun, morning_run

from overnight.cli.report import main
from overnight.errors import UserError
from overnight.report import png
from overnight.report.charts import charts
from overnight.report.png import write_pngs
from overnight.report.run_data import read_run

needs_matplotlib = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="draws with matplotlib")


def size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n" and content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


@needs_matplotlib
def test_a_file_for_each_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "DPI", 40)
    folder = morning_run(tmp_path / "run", steps=200)
    assert main([str(folder), "--png", str(tmp_path / "new" / "png")]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    drawn = charts([read_run(folder)])
    assert [path.stem for path in printed[1:]] == [chart.id for chart in drawn]
    assert {size(path) for path in printed[1:]} == {(440, 200), (260, 168)}
    assert sorted(path.name for path in (tmp_path / "new" / "png").iterdir()) == sorted(
        path.name for path in printed[1:]
    )


@needs_matplotlib
def test_losses_that_are_not_numbers_are_drawn_around(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "DPI", 40)
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '{"kind":"train","step":210,"loss":NaN,"grad_norm":0}\n{"kind":"eval","step":210,"val_loss":Infinity}\n'
        )
    assert size(write_pngs([read_run(folder)], tmp_path)[0])


def test_one_line_where_it_cannot_be_done(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = read_run(make_run())
    (tmp_path / "file").write_text("")
    if importlib.util.find_spec("matplotlib"):
        with pytest.raises(UserError, match=r"file.* cannot be written .* choose another --png"):
            write_pngs([run], tmp_path / "file" / "png")
        with pytest.raises(UserError, match="nothing to draw"):
            write_pngs([read_run(make_run("empty", metrics=[]))], tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'overnight\[plots\]'"):
        write_pngs([run], tmp_path)
    with pytest.raises(UserError, match=r"pip install 'overnight\[plots\]'"):
        main([str(run.folder), "--png", str(tmp_path)])
    assert not (run.folder / "report.html").exists()  # it is told before the work
