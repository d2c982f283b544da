"""An inspection as one self-contained HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from overnight.inspection import drawings
from overnight.inspection.lines import HEADS, facts, row, shape, totals
from overnight.inspection.measure import Inspection
from overnight.report.document import document, with_links, write_page
from overnight.report.wording import Html, escape, join, several, short, table, tiles

STYLE = """
.plot svg { overflow: hidden; } .plot svg * { stroke-linejoin: round; stroke-linecap: butt; }
.plot text { fill: var(--dim); }
"""
CORNER = 300  # rows and columns of a block's weights that are drawn
MOST_POSITIONS = 4_096  # that are drawn
COLUMNS = (150, 200, 250)  # of 768: elsewhere those that lie at the same fractions of the width


def write_inspection(found: Inspection, out: Path) -> Path:
    """Draws the page, writes it to `out` and returns `out`."""
    return write_page(page(found), out)


def page(found: Inspection) -> str:
    """The whole page as text."""
    name = Path(found.source.where).name or found.source.where
    rows = table(HEADS, [row(tensor) for tensor in found.tensors])
    links, sections = with_links(
        [
            ("pictures", "Pictures", _charts(_pictures(found.source.tensors))),
            ("spectra", "Singular values", _charts(_spectra(found))),
            ("tensors", "Tensors", Html(f'<p class="about">{escape(totals(found))}</p>\n{rows}')),
        ]
    )
    return document(name, Html(f"{_headline(found, name)}{links}{sections}"), style=STYLE)


def _headline(found: Inspection, name: str) -> Html:
    model = found.source.model
    counted = [
        ("Parameters", short(found.parameters), several(len(found.tensors), "tensor")),
        ("Layers", f"{model.n_layer}", f"width {model.n_embd}, {several(model.n_head, 'head')}"),
        ("Context", f"{found.source.block_size:,}", "tokens"),
        ("Vocabulary", f"{model.vocab_size:,}", "ids"),
    ]
    about = [found.source.where, shape(found), *facts(found)]
    warnings = join(Html(f'<p class="warning">{escape(problem)}</p>\n') for problem in found.problems)
    lines = join(Html(f'<p class="about">{escape(line)}</p>\n') for line in about)
    return Html(f"<header><h1>{escape(name)}</h1>\n{lines}{tiles(counted)}{warnings}</header>\n")


def _pictures(tensors: dict[str, Tensor]) -> Iterator[Html]:
    """The position embeddings in three views, and a corner of a block's weights."""
    positions = tensors.get("wpe.weight")
    if positions is not None and positions.dim() == 2 and positions.numel():
        positions = positions[:MOST_POSITIONS]
        width = positions.shape[1]
        yield _figure("Position embeddings", "wpe.weight", drawings.gray(positions, "channel", "position"))
        chosen = sorted({column * width // 768 for column in COLUMNS})
        columns = [(f"channel {column}", positions[:, column]) for column in chosen]
        yield _figure("Channels of the position embeddings", "wpe.weight", drawings.curves(columns, "position"))
        yield _figure(
            "How alike positions are",
            "cosine of the angle between rows of wpe.weight",
            drawings.similarities(positions, "position"),
        )
    name = next((name for name in ("h.1.attn.c_attn.weight", "h.0.attn.c_attn.weight") if name in tensors), "")
    if name and tensors[name].dim() == 2 and tensors[name].numel():
        corner = tensors[name].T[:CORNER, :CORNER]  # inputs down, as in the weights that OpenAI released
        yield _figure(
            "Weights of attention",
            f"{name}, {corner.shape[0]} inputs by {corner.shape[1]} outputs",
            drawings.gray(corner, "output", "input"),
        )


def _spectra(found: Inspection) -> Iterator[Html]:
    """The singular values of each kind of matrix, a line for each block; then those of the embeddings and the head."""
    known = [tensor for tensor in found.tensors if re.fullmatch(r"[\w.]+", tensor.name)]  # others are not the model's
    spectra = {tensor.name: tensor.spectrum for tensor in known if tensor.spectrum}
    blocks = range(found.source.model.n_layer)
    inside = dict.fromkeys(name.split(".", 2)[2] for name in spectra if name.startswith("h.0."))
    outside = [name for name in spectra if not name.startswith("h.")]
    kinds = [(kind, [(f"block {block}", f"h.{block}.{kind}") for block in blocks]) for kind in inside]
    for kind, named in [*kinds, (", ".join(outside), [(name, name) for name in outside])]:
        lines = [(label, spectra[name]) for label, name in named if name in spectra]
        if lines:
            yield _figure(kind, "from the largest to the smallest", drawings.spectra(lines))


def _charts(figures: Iterator[Html]) -> Html:
    drawn = join(figures)
    return Html(f'<div class="charts pairs">{drawn}</div>\n') if drawn else Html("")


def _figure(title: str, about: str, picture: Html) -> Html:
    return Html(
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3><span class="about">{escape(about)}</span>'
        f'</figcaption>\n<div class="plot">{picture}</div></figure>\n'
    )
