"""The page: well-formed, self-contained, safe whatever the file holds."""

from __future__ import annotations

import base64
import io
import math
import re
from pathlib import Path

import pytest
import torch
from gpts import nanogpt_checkpoint, random_gpt
from matplotlib import image
from strict_html import Page

from overnight.config import ModelConfig
from overnight.inspection.drawings import curves, gray, similarities, spectra
from overnight.inspection.measure import inspect
from overnight.inspection.page import page
from overnight.model import weights
from overnight.pretrained import Pretrained

EVIL = "</style><script>alert(1)</script><img src=x onerror=alert(1)> {{title}} $x^$ \x1b"


def model(**changes: torch.Tensor) -> Pretrained:
    gpt = random_gpt()
    return Pretrained("somewhere/ckpt.pt", gpt.config, gpt.block_size, {**weights(gpt), **changes})


def test_the_page_of_a_file(tmp_path: Path, overnight) -> None:
    source = nanogpt_checkpoint(random_gpt(), tmp_path / "ckpt.pt")
    done = overnight("inspect", source, "--out", tmp_path / "new" / "page.html")
    assert done.stdout.splitlines()[-1] == str(tmp_path / "new" / "page.html")
    html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    shown = Page(html)
    assert shown.count("svg") == 9 and shown.count("image") == 3 + 3  # three images, each with a bar of its colors
    for words in ("Position embeddings", "h.1.attn.c_attn.weight", "block 1", "channel 8", "29,600", "c_proj.bias"):
        assert words in shown.text, words
    ids = [found["id"] for _, found in shown.elements if "id" in found]
    assert len(ids) == len(set(ids))
    overnight("inspect", source, "--out", tmp_path, "--json")
    assert Page((tmp_path / "inspect.html").read_text(encoding="utf-8")).count("svg") == 9


def test_it_asks_nothing_of_the_network_and_runs_nothing() -> None:
    html = page(inspect(model()))
    shown = Page(html)
    assert shown.count("script") == 0
    policy = next(found["content"] for _, found in shown.elements if "http-equiv" in found)
    assert policy is not None and "default-src 'none'" in policy and "script-src 'none'" in policy
    links = [
        value for _, found in shown.elements for name, value in found.items() if name in ("href", "src", "xlink:href")
    ]
    assert links and all(value is not None and value.startswith(("#", "data:")) for value in links)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_every_reference_is_there() -> None:
    html = page(inspect(model()))
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', html)) <= {(name, "") for name in ids} | {
        ("", name) for name in ids
    }


def test_colors_and_fonts_are_those_of_the_page() -> None:
    drawn = page(inspect(model())).partition("<body>")[2]
    assert not re.search(r"#0000f|#00ff", drawn) and "font-family" not in drawn
    assert "var(--dim)" in drawn and "var(--p2)" in drawn and "color-mix(in srgb, var(--p1) 100%, var(--p0))" in drawn


def test_names_from_the_file_are_escaped() -> None:
    given = Pretrained(EVIL, random_gpt().config, 32, model(**{EVIL: torch.zeros(2, 2)}).tensors, notes=[EVIL])
    shown = Page(page(inspect(given)))
    assert shown.count("script") == 0 and shown.count("img") == 0
    assert shown.text.count("alert(1)") >= 4 and "{{title}}" in shown.text


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 3e38])
def test_weights_that_cannot_be_drawn_well_are_drawn(value: float) -> None:
    tensors = {name: torch.full_like(tensor, value) for name, tensor in model().tensors.items()}
    shown = Page(page(inspect(model(**tensors))))
    assert shown.count("svg") == (9 if math.isfinite(value) else 4)
    assert shown.text.count("not finite (NaN or infinity)") == (0 if math.isfinite(value) else 28)


def test_a_model_of_one_layer_and_tensors_of_other_shapes() -> None:
    tensors = {"wte.weight": torch.ones(5, 2), "wpe.weight": torch.ones(3), "h.0.attn.c_attn.weight": torch.ones(6)}
    config = ModelConfig(n_layer=1, n_head=1, n_embd=2, vocab_size=5)
    assert Page(page(inspect(Pretrained("x", config, 3, tensors)))).count("svg") == 1


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path: Path, overnight, monkeypatch) -> None:
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "matplotlib" else found(name, *more)
    )
    source = nanogpt_checkpoint(random_gpt(), tmp_path / "ckpt.pt")
    done = overnight("inspect", source, "--out", tmp_path / "page.html", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("which is not installed: pip install 'overnight[plots]'\n")
    assert not (tmp_path / "page.html").exists()
    assert "29,600 parameters" in overnight("inspect", source).stdout


# ---- the pictures show the values


def images(svg: str) -> list[torch.Tensor]:
    """The images inside a picture, which stand upside down in the file."""
    files = re.findall(r'base64,([^"]*)"', svg)
    return [torch.tensor(image.imread(io.BytesIO(base64.b64decode(file)))[::-1].copy()) for file in files]


def test_grays_follow_the_values() -> None:
    matrix = torch.tensor([[-1.0, 0.0, 1.0]]).repeat_interleave(40, 1).repeat(40, 1)
    picture = images(gray(matrix, "across", "down"))[0]
    middle = picture[picture.shape[0] // 2, :, 0]
    third = len(middle) // 3
    assert middle[third // 2] < 0.05 and abs(middle[third + third // 2] - 0.5) < 0.05 and middle[-third // 2] > 0.95


def test_positions_are_alike_to_themselves() -> None:
    rows = torch.eye(4).repeat_interleave(10, 0)
    picture = images(similarities(rows, "position"))[0][..., :3]
    size = picture.shape[0]
    alike, unlike = picture[size // 8, size // 8], picture[size // 8, -size // 8]
    assert alike[0] > 0.9 and alike[2] < 0.3 and unlike[0] < 0.3  # viridis: yellow at 1, green at 0


def test_a_picture_is_the_same_each_time() -> None:
    lines = [("a", torch.arange(9.0)), ("b", -torch.arange(9.0))]
    assert curves(lines, "x") == curves(lines, "x")
    values = [("first", [3.0, 2.0, 0.0]), ("last", [2.0, 1.0, 0.5])]
    assert spectra(values) == spectra(values)
