"""Reference bands: which validation losses a preset's runs have with other seeds, step by step."""

from overnight.bands.band import Band, find
from overnight.bands.verdict import Look, Measured, Verdict, in_the_run, judge

__all__ = ["Band", "Look", "Measured", "Verdict", "find", "in_the_run", "judge"]
