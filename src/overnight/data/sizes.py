"""Numbers as people write and read them: 100M tokens, 1.5 GB."""

from __future__ import annotations

import re

from overnight.errors import UserError

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}


def parse_count(text: str) -> int:
    """'100M', '1e6', '2_000', '1.5B', '10k' as an integer; UserError for anything else."""
    match = re.fullmatch(r"([0-9][0-9_]*(?:\.[0-9_]+)?(?:[eE]\+?[0-9]+)?)([kKmMgGbBtT]?)", text.strip())
    value = float(match[1].replace("_", "")) * _FACTORS[match[2].lower()] if match else 0.5
    if value != int(value):
        raise UserError(f"'{text}' is not a whole number; write it like 2_000, 100M or 1e6")
    return int(value)


def short(count: float) -> str:
    """1234567 as '1.23M'."""
    for factor, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            return f"{count / factor:.3g}{letter}" if count < 999.5 * factor else f"{count / factor:.0f}{letter}"
    return f"{count:.0f}"


def size(count: float) -> str:
    """Bytes as '1.5 GB' (decimal units)."""
    return scaled(count, "B") if count >= 1000 else f"{count:.0f} bytes"


def scaled(count: float, unit: str) -> str:
    """An amount of some unit with its prefix: 4.84e11 and FLOP/s as '484 GFLOP/s'."""
    for factor, prefix in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= factor:
            value = count / factor
            return f"{value:.3g} {prefix}{unit}" if value < 999.5 else f"{value:.0f} {prefix}{unit}"
    return f"{count:.3g} {unit}"
