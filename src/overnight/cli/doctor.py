"""`overnight doctor`"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError
from overnight.launching import is_worker, launch, processes_here

if TYPE_CHECKING:
    from overnight.machine.findings import Finding


@dataclass(frozen=True)
class Arguments:
    """What this machine can do for training, or a cluster before a run on it, found by trying.

    Exit codes: 0 nothing stands in the way, 2 something must be put right first.
    """

    cluster: bool = False
    """Look at all processes together: started by torchrun on every host, as the run will be; else on this machine."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """With --cluster: whether this dataset is the same everywhere."""
    out: Path = Path("runs")
    """Where runs will be written: free disk, and with --cluster whether all hosts see the same folder."""
    processes: int | None = None
    """With --cluster and without torchrun: processes on this machine; by default one for each GPU, or one."""
    timeout: float = 20.0
    """With --cluster: seconds after which a process that does not answer is named."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    compile: bool = True
    """Without --cluster: try torch.compile, which takes some seconds."""
    speed: bool = True
    """Without --cluster: measure matrix products, memory, attention and disk, which takes some seconds."""
    network: bool = True
    """Without --cluster: ask the hub whether it answers."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "doctor")
    if given.timeout <= 0:
        raise UserError(f"doctor: --timeout {given.timeout:g}: it must be more than 0 seconds")
    if not given.cluster:
        if given.data is not None or given.processes is not None:
            raise UserError(
                "doctor: --data and --processes go with --cluster; `overnight data DIR --check` reads a dataset"
            )
        from overnight.machine.doctor import examine

        found, numbers = examine(given.device, given.out, given.compile, given.speed, given.network)
        return _tell(given, found, {"measured": numbers} if numbers else {})
    processes = 1 if is_worker() else processes_here(given.processes, given.device)
    if processes > 1:
        return launch(["doctor", *arguments], processes, lambda: 0)
    from overnight.distributed import current_world
    from overnight.machine.cluster import Look
    from overnight.machine.preflight import preflight

    world = current_world()
    look = Look(given.data, given.out, given.timeout, given.device)
    found, measured = preflight(world, look)
    return _tell(given, found, measured, speaks=world.rank == 0)


def _tell(given: Arguments, found: list[Finding], measured: dict[str, Any], speaks: bool = True) -> int:
    from overnight.files import to_json
    from overnight.machine.findings import table

    if speaks:
        shown = {"findings": [dataclasses.asdict(finding) for finding in found], **measured}
        print(to_json(shown, indent=2) if given.json else "\n".join(table(found)), flush=True)
    return 2 if any(finding.verdict == "wrong" for finding in found) else 0
