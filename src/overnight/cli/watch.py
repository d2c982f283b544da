"""`overnight watch`"""

from __future__ import annotations

import ipaddress
import socket
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError


@dataclass(frozen=True)
class Arguments:
    """Follow runs while they go: curves, samples, evaluations, speed, time left and log, on a page of this machine."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, also of runs that have not begun, are finished, or are copied here from elsewhere; folders of runs;
    logs of build-nanogpt, nanoGPT and llm.c."""
    port: int | None = None
    """Where the page is served; by default 8686, or the next free one."""
    host: str = "127.0.0.1"
    """The address to serve at. Any but this machine's own lets others read the runs."""
    terminal: bool = False
    """Show them in the terminal instead; where there is none, once."""
    open: bool = False
    """Open the page in a browser."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "watch")
    if not given.runs:
        raise UserError(
            "watch: which run? Give one or more run folders, or a folder of runs, as in `overnight watch RUN`"
        )
    from overnight.report.folders import passed_over
    from overnight.watch.watcher import Watcher

    for folder in passed_over(given.runs):
        print(f"{folder}: no run in it yet, left out until there is")
    watcher = Watcher(given.runs)
    if given.terminal:
        from overnight.watch.terminal import follow

        follow(watcher)
        return 0
    from overnight.watch.server import listen, serve

    server = listen(given.host, given.port, watcher)
    address = _address(given.host, server.server_address[1])

    def ready() -> None:
        print(f"following {', '.join(map(str, given.runs))} at {address}   (Ctrl-C ends)", flush=True)
        if not _loopback(given.host):
            print(f"anyone who can reach this machine at {given.host} can read these runs", flush=True)
        if given.open:
            webbrowser.open(address)

    serve(server, ready)
    return 0


def _address(host: str, port: object) -> str:
    name = socket.gethostname() if host in ("", "0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}"


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
