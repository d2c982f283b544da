"""The fixtures of the report's tests."""

from made_runs import make_run

__all__ = ["make_run"]
