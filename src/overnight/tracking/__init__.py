"""Trackers beside a run: each in a process of its own that follows the run folder, so that none can slow training."""

from overnight.tracking.processes import beside, require

__all__ = ["beside", "require"]
