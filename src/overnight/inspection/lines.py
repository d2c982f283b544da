"""An inspection as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from overnight.inspection.measure import Inspection, Measured
from overnight.words import DASH, one_line

HEADS = ("tensor", "shape", "parameters", "norm", "std", "max", "sv max", "sv min", "stable rank")
PARTS = {
    "wte": "token embeddings",
    "wpe": "position embeddings",
    "bigrams": "embeddings of pairs",
    "values": "value embeddings",
    "h": "blocks",
    "ln_f": "last layer norm",
    "lm_head": "head",
}


def lines(found: Inspection) -> list[str]:
    """All that `overnight inspect` shows, without terminal codes from the file."""
    shown = [f"{found.source.where}: {shape(found)}", *(f"  {one_line(fact)}" for fact in facts(found)), ""]
    shown += _table([HEADS, *(row(tensor) for tensor in found.tensors)])
    return [*shown, "", one_line(totals(found)), *(f"warning: {one_line(problem)}" for problem in found.problems)]


def shape(found: Inspection) -> str:
    """The model in a phrase."""
    model = found.source.model
    block = "" if model.block == "gpt2" else f"{model.block}, "
    biases = "with biases" if model.bias else "without biases"
    return (
        f"{block}{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, "
        f"context {found.source.block_size:,}, vocabulary {model.vocab_size:,}, {model.activation}, {biases}"
    )


def facts(found: Inspection) -> list[str]:
    """Sentences on the step, the tokenizer, and what stayed behind."""
    source = found.source
    step = [] if source.step is None else [f"step {source.step:,}"]
    tokenizer = source.tokenizer
    known = "unknown" if tokenizer is None else f"{tokenizer.name}, {tokenizer.vocab_size:,} ids"
    return [*step, f"tokenizer {known}", *source.notes]


def totals(found: Inspection) -> str:
    """How many parameters there are, and where."""
    parts = ", ".join(f"{PARTS.get(name, name)} {count:,}" for name, count in found.groups.items())
    return f"{len(found.tensors)} tensors, {found.parameters:,} parameters: {parts}"


def row(tensor: Measured) -> tuple[str, ...]:
    """A tensor's cells below HEADS."""
    measured = (tensor.norm, tensor.std, tensor.max_abs, tensor.largest, tensor.smallest, tensor.stable_rank)
    numbers = [DASH if value is None else f"{value:.4g}" for value in measured]
    flag = f"{tensor.non_finite:,} not finite" if tensor.non_finite else ""
    shape = " x ".join(map(str, tensor.shape)) or "scalar"
    return tensor.name, shape, f"{tensor.parameters:,}", flag or numbers[0], *numbers[1:]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of one width each: the name on the left, numbers on the right."""
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        cells = [one_line(cell) for cell in column]
        width = max(map(len, cells))
        columns.append([cell.ljust(width) if number == 0 else cell.rjust(width) for cell in cells])
    return ["  ".join(cells) for cells in zip(*columns, strict=True)]
