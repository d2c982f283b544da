"""Two sets of runs beside each other: is one better, worse, or is nothing shown?"""

from overnight.comparison.compare import Comparison, compare

__all__ = ["Comparison", "compare"]
