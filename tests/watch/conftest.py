"""The fixtures of the watch tests."""

from made_runs import make_run

__all__ = ["make_run"]
