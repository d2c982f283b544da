"""`overnight presets`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from overnight.cli.arguments import parse
from overnight.presets import PRESETS


@dataclass(frozen=True)
class Arguments:
    """List the named configurations that `overnight train` takes."""


def main(arguments: Sequence[str]) -> int:
    parse(Arguments, arguments, "presets")
    width = max(map(len, PRESETS))
    print(f"{'preset':<{width}}  layers  heads  width  context  tokens/step    steps  what")
    for name, make in PRESETS.items():
        recipe = make().recipe
        model = recipe.model
        print(
            f"{name:<{width}}  {model.n_layer:>6}  {model.n_head:>5}  {model.n_embd:>5}  "
            f"{recipe.data.sequence_length:>7}  "
            f"{recipe.train.tokens_per_step:>11,}  {recipe.train.steps:>7,}  {make.__doc__}"
        )
    return 0
