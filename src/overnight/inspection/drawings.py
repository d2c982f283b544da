"""Pictures of weights, drawn by matplotlib as SVG that stands in a page and takes its colors."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from overnight.errors import UserError
from overnight.report.charts import COLORS
from overnight.report.wording import Html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (7.0, 4.6)  # inches
DPI = 110  # of images inside the pictures
TEXT = "#0000ff"  # stands for the page's color of captions
LINES = [f"#0000f{number}" for number in range(COLORS)]  # stand for the page's colors of curves
RANGE = 0.99  # of the values lie inside an image's range of grays: the largest would leave the others all alike
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "overnight",
    "font.size": 11.0,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": TEXT,
}


def require() -> None:
    """UserError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("inspect: --out draws with matplotlib, which is not installed: pip install 'overnight[plots]'")


def gray(matrix: Tensor, across: str, down: str) -> Html:
    """A matrix (rows, columns) as an image in grays, 0 in the middle."""
    values = _finite(matrix)
    sizes = values[~values.isnan()].abs()
    # kthvalue takes as many values as there are; quantile stops at 2^24
    limit = float(sizes.kthvalue(max(1, round(RANGE * sizes.numel()))).values) if sizes.numel() else 0.0
    limit = limit or 1.0

    def draw(axes: Axes) -> None:
        image = axes.imshow(values.numpy(), cmap="gray", vmin=-limit, vmax=limit, aspect="auto")
        axes.figure.colorbar(image, ax=axes, extend="both")
        axes.set(xlabel=across, ylabel=down)

    return _svg(draw)


def similarities(rows: Tensor, label: str) -> Html:
    """The cosine of the angle between every two rows of a matrix (n, width), as an image (n, n)."""
    directions = F.normalize(_finite(rows), dim=1)
    cosines = directions @ directions.T

    def draw(axes: Axes) -> None:
        image = axes.imshow(cosines.numpy(), cmap="viridis", vmin=-1, vmax=1)
        axes.figure.colorbar(image, ax=axes)
        axes.set(xlabel=label, ylabel=label)

    return _svg(draw)


def curves(columns: Sequence[tuple[str, Tensor]], across: str) -> Html:
    """Values over their index, a line for each (label, values)."""

    def draw(axes: Axes) -> None:
        for color, (label, values) in zip(LINES, columns, strict=False):
            axes.plot(_finite(values).numpy(), color=color, linewidth=1.2, label=label)
        axes.set(xlabel=across)
        axes.legend()

    return _svg(draw)


def spectra(lines: Sequence[tuple[str, Sequence[float]]]) -> Html:
    """Singular values, the largest first, on a logarithmic axis; the lines' colors go from the first to the last."""

    def draw(axes: Axes) -> None:
        for number, (label, values) in enumerate(lines):
            named = label if number in (0, len(lines) - 1) else None
            positive = [value if value > 0 else float("nan") for value in values]
            axes.plot(positive, color=_mixed(number, len(lines)), linewidth=1.0, label=named)
        axes.set(xlabel="number of the singular value")
        if any(value > 0 for _, values in lines for value in values):
            axes.set_yscale("log")
        axes.legend()

    return _svg(draw)


def _mixed(number: int, count: int) -> str:
    """A color that stands for line `number` of `count`: #00ffNN, NN percent of the way to the second color."""
    return f"#00ff{round(100 * number / max(1, count - 1)):02x}"


def _finite(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, torch.nan).double()  # float32's own range overflows in matplotlib


def _svg(draw: Callable[[Axes], None]) -> Html:
    """What `draw` puts on axes, as an SVG element for HTML."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS):  # type: ignore[arg-type]
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.add_subplot())
        file = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", dpi=DPI, transparent=True, metadata=nothing)
    return _of_the_page(file.getvalue().decode())


def _of_the_page(svg: str) -> Html:
    """A file's SVG as an element of a page: no header, no ids or rules that would reach beyond it, the page's fonts
    and colors."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<style.*?</style>|<metadata.*?</metadata>", "", svg, flags=re.DOTALL)
    mark = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"#00ff([0-9a-f]{2})\b", lambda found: _mixture(int(found[1], 16)), svg)
    svg = re.sub(r"#0000f([0-7])\b", r"var(--p\1)", svg).replace(TEXT, "var(--dim)")
    return Html(svg)


def _mixture(percent: int) -> str:
    return f"color-mix(in srgb, var(--p1) {percent}%, var(--p0))"
