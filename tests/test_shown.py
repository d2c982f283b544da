"""What the README, the docs and the examples show is run."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from overnight.cli import COMMANDS, demo
from overnight.presets import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The `overnight` commands in the indented blocks of a page."""
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))  # a command may go on in the next line
    found = re.findall(r"^    (?:\$ )?(overnight .*)$", text, re.MULTILINE)
    return [shlex.split(line.split("#")[0])[1:] for line in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_preset_that_is_shown_exists(page):
    for words in commands(page):
        assert words[0] in COMMANDS or words[0].startswith("-"), words
        if words[0] == "train" and words[1].islower() and words[1].replace("-", "").isalnum():
            assert words[1] in PRESETS, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_is_shown_is_one(page, overnight):
    text = page.read_text(encoding="utf-8")
    for words in commands(page):
        known = overnight(words[0], *(["gpt2-tiny"] if words[0] == "train" else []), "--help", check=False)
        for flag in [word.split("=")[0] for word in words if word.startswith("--")]:
            assert flag in known.stdout or flag == "--section.field", (page.name, words)
    if page.name == "train.md":
        flags = re.findall(r"`(--[a-z.-]+)", text)
        known = overnight("train", "gpt2-tiny", "--help").stdout
        others = ("--kills", "--max-restarts")  # of scripts/kills.py and of torchrun
        assert not [flag for flag in flags if flag not in known and flag not in others]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readme_from_text_to_sample(overnight, tmp_path, tiny):
    """The README's tasks in its order, with shakespeare's stand-in and small models."""
    text = "".join(f"ROMEO {n % 7}:\nTo be, or not to be: that is question {n}.\n\n" for n in range(400))
    (tmp_path / "plays").mkdir()
    (tmp_path / "plays" / "play.txt").write_text(text)
    item = {"ctx": "To be, or", "endings": ["not to be", "sleep"], "label": 0}
    (tmp_path / "hellaswag_val.jsonl").write_text(json.dumps(item) + "\n")
    small = [*tiny, "--sample.prompt", ""]
    for words in commands(ROOT / "README.md"):
        words = [word.replace("FOLDER", "plays") for word in words]
        if words[:2] == ["prepare", "shakespeare"]:
            words[1:2] = ["files", "plays/play.txt"]
        if words[0] == "watch":
            words.append("--terminal")  # a page would be served until Ctrl-C
        # whole runs on several processes are in test_processes.py
        elsewhere = {"RUN", "SOURCE", "fineweb-edu", "--processes", "runs/new_1"}
        if words[0] in ("demo", "presets", "bench") or "gpt2" in words[1] or elsewhere & set(words):
            continue
        overnight(*words, *(small if words[0] == "train" else []), cwd=tmp_path)
    overnight("report", "runs/shakespeare", "runs/mine", cwd=tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_the_demo(overnight, tmp_path, monkeypatch):
    full = demo.preset()
    model = replace(full.recipe.model, n_layer=1, n_embd=32, n_head=1)
    recipe = replace(full.recipe, model=model, data=replace(full.recipe.data, sequence_length=64))
    monkeypatch.setattr(demo, "preset", lambda: replace(full, recipe=recipe))
    done = overnight("demo", "--steps", "2", "--out", tmp_path / "demo")
    assert re.search(r"gzip -9\s+[12]\.\d{3}\n\s+xz -9\s+1\.\d{3}\n\s+this model\s+\d\.\d{3}", done.stdout)
    page = (tmp_path / "demo" / "run" / "report.html").read_text(encoding="utf-8")
    assert "Held-out text" in page and "xz -9" in page
    again = overnight("demo", "--steps", "2", "--out", tmp_path / "demo")
    assert "finished at step 2" in again.stdout


def test_the_notebook():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    assert "def " in notebook.cells[9].outputs[0]["text"]
