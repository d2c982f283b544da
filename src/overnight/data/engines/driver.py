"""The process that runs datatrove: `python -m overnight.data.engines.driver FOLDER`.

It keeps what datatrove prints, and what it does on signals, away from the process that waits for the spills; and it
ends, with all that it started, when that process does, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

OBJECT_STORE = 100 * 2**20  # bytes: only names travel between tasks


def main(folder: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from overnight.data.engines.pipeline import executor
    from overnight.data.engines.submission import Submission

    submission = Submission(Path(folder))
    spec = submission.spec()
    if spec.executor != "ray":
        executor(submission).run()
        return
    import ray

    address = spec.options["address"] or os.environ.get("RAY_ADDRESS", "")
    if address:
        ray.init(address=address, log_to_driver=False)
    else:
        ray.init(
            address="local",
            num_cpus=spec.workers,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
            log_to_driver=False,
        )
    try:
        executor(submission).run()
    finally:
        ray.shutdown()


def _end_with_parent() -> None:
    """The parent holds the other end of our standard input."""
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
