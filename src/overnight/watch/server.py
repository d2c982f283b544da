"""A small web server for one page: on this machine only, unless another address is asked for."""

from __future__ import annotations

import contextlib
import errno
import gzip
import ipaddress
import os
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from overnight.errors import UserError
from overnight.watch.page import changing, page
from overnight.watch.watcher import Watcher

PORT, TRIES = 8686, 20  # the port unless another is given, and how many after it are tried


class Server(ThreadingHTTPServer):
    """Serves the page of a watcher; what it shows is made anew when a run has changed, once for all who look."""

    daemon_threads = True  # an open page does not keep the program from ending
    allow_reuse_address = os.name != "nt"  # there it would share the port with another program

    def __init__(self, host: str, port: int, watcher: Watcher) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host, self.watcher = host, watcher
        self.lock = threading.Lock()
        self.tag, self.made = "", b""
        super().__init__((host, port), Handler)

    def look(self) -> tuple[str, bytes]:
        """The tag of this moment, and what changes in the page as compressed JSON."""
        with self.lock:
            look = self.watcher.look()
            if look.tag != self.tag:
                self.made = gzip.compress(changing(look).encode(), compresslevel=1)
                self.tag = look.tag
            return self.tag, self.made

    def first(self) -> bytes:
        with self.lock:
            return page(self.watcher.look()).encode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that hung up."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers two addresses, and nothing of an address is ever a path."""

    server: Server
    server_version, sys_version = "overnight", ""
    timeout = 30  # seconds that a request may take to come

    def do_GET(self) -> None:
        if not _own_name(self.headers.get("Host", ""), self.server.host):
            # a page of another site could otherwise read this one through a name that it points here
            self._answer(403, b"this page is at an IP address or localhost only", "text/plain")
        elif self.path == "/":
            self._answer(200, self.server.first(), "text/html; charset=utf-8", policy=True)
        elif self.path == "/now":
            tag, content = self.server.look()
            if self.headers.get("If-None-Match") == f'"{tag}"':
                self._answer(304, b"", "application/json", tag)
            else:
                self._answer(200, content, "application/json", tag, zipped=True)
        else:
            self._answer(404, b"nothing here", "text/plain")

    def _answer(
        self, status: int, content: bytes, kind: str, tag: str = "", policy: bool = False, zipped: bool = False
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": "frame-ancestors 'none'" if policy else "default-src 'none'",
        }
        if tag:
            headers["ETag"] = f'"{tag}"'
        if zipped:
            headers["Content-Encoding"] = "gzip"
        if status != 304:
            headers["Content-Length"] = str(len(content))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of each request."""


def _own_name(header: str, host: str) -> bool:
    """Whether a Host header is an IP address, localhost, or the name that was asked for."""
    name = header.rpartition("]")[0].lstrip("[") if header.startswith("[") else header.partition(":")[0]
    if name.lower() in ("localhost", host.lower(), socket.gethostname().lower()):
        return True
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(name)
        return True
    return False


def listen(host: str, port: int | None, watcher: Watcher) -> Server:
    """The server, on the port asked for or the first free one from PORT on; a UserError where there is none."""
    ports = range(PORT, PORT + TRIES) if port is None else [port]
    for number in ports:
        try:
            return Server(host, number, watcher)
        except OverflowError:
            raise UserError(f"watch: --port {port} is not a port: take one from 0 (any free one) to 65535") from None
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise UserError(f"watch: cannot listen on {host}: {error.strerror or error}") from None
    if port is None:
        raise UserError(f"watch: the ports {PORT} to {PORT + TRIES - 1} are all taken; choose another with --port")
    raise UserError(f"watch: port {port} is taken; choose another with --port, or leave it out for the next free one")


def serve(server: Server, ready: Callable[[], None]) -> None:
    """Serves until Ctrl-C."""
    with server, contextlib.suppress(KeyboardInterrupt):
        ready()
        server.serve_forever(poll_interval=0.2)
