"""torch's profiler, quiet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.profiler import profile


def profiler(memory: bool = False) -> profile:
    """What runs within it is recorded, on the CPU and on CUDA; with `memory` what is allocated as well."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else its library writes to stderr that it begins and ends
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    return profile(activities=activities, profile_memory=memory)
