"""A small hub on this machine: the endpoints of a hub that a download needs, and whatever can go wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS = (".parquet", ".gz", ".zst", ".safetensors")
BLOCK = 2**14


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    place: str
    """hub, or cdn: the other host, to which large files are redirected."""
    method: str
    path: str
    range: str | None
    token: str | None

    @property
    def file(self) -> str:
        """The name of the file that is asked for; empty for the API."""
        return self.path.split("/", 2)[2] if self.path.startswith("/cdn/") else self.path.partition("/resolve/")[2]


@dataclass(frozen=True)
class Fault:
    """What is answered instead, or how."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Only so many bytes of the body, then the connection is closed."""
    other: bool = False
    """Other bytes of the same length."""
    no_range: bool = False
    """All of the file, whatever range was asked for."""
    pause: float = 0.0
    """Seconds between one byte and the next."""
    body: bytes | None = None
    """This, whatever was asked for."""


class FakeHub:
    """Repositories are {path: content} at commits; branches point to commits."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.seen: list[Seen] = []
        self.fault: Callable[[Seen], Fault | None] = lambda seen: None
        self.page = 1000
        self.token: str | None = None
        """Where it is set, requests need it."""
        self.gated = False
        self.pause = 0.0
        """Seconds before each block of a file."""
        self.hub = _serve(self, "hub")
        self.cdn = _serve(self, "cdn")
        self.url = f"http://127.0.0.1:{self.hub.server_port}"

    def commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch; returns its id."""
        commit = hashlib.sha1(repr((repo, sorted(files.items()))).encode()).hexdigest()
        self.commits.setdefault(repo, {})[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def fetched(self, method: str = "GET") -> dict[str, int]:
        """How often each file's bytes were asked for."""
        counts: dict[str, int] = {}
        for seen in list(self.seen):
            if seen.method == method and "/resolve/" in seen.path and not seen.path.endswith("README.md"):
                name = seen.file.partition("/")[2]
                counts[name] = counts.get(name, 0) + 1
        return counts

    def close(self) -> None:
        for server in (self.hub, self.cdn):
            server.shutdown()
            server.server_close()


@contextlib.contextmanager
def serving() -> Iterator[FakeHub]:
    hub = FakeHub()
    try:
        yield hub
    finally:
        hub.close()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the API lists it."""
    git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found: dict[str, Any] = {"type": "file", "oid": git, "size": len(content), "path": path}
    if path.endswith(LFS):
        digest = hashlib.sha256(content).hexdigest()
        found["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return found


def _serve(hub: FakeHub, place: str) -> http.server.ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"hub": hub, "place": place})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub
    place: str

    def do_GET(self) -> None:
        with contextlib.suppress(ConnectionError):
            self._answer()

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None: ...

    def _answer(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        seen = Seen(self.place, self.command, unquote(urlsplit(self.path).path), self.headers.get("Range"), token)
        self.hub.seen.append(seen)
        fault = self.hub.fault(seen) or Fault()
        if fault.status:
            return self._send(fault.status, b"", fault.headers)
        if fault.body is not None:
            return self._send(200, fault.body)
        if self.place == "cdn":
            _, _, commit, path = seen.path.split("/", 3)
            content = next(files[commit] for files in self.hub.commits.values() if commit in files)[path]
            return self._file(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, fault)
        if self.hub.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if self.hub.token is not None and token != self.hub.token:
            return self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        if match := re.fullmatch(r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?", seen.path):
            return self._api(match[1], match[2], match[3])
        if match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", seen.path):
            return self._resolve(match[1], match[2], match[3], fault)
        return self._send(404, b"")

    def _commit(self, repo: str, revision: str) -> str | None:
        if repo not in self.hub.commits:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.hub.branches[repo].get(revision, revision)
        if commit not in self.hub.commits[repo]:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _api(self, repo: str, kind: str | None, revision: str | None) -> None:
        commit = self._commit(repo, revision or "main")
        if commit is None:
            return None
        if kind != "tree":
            return self._json({"id": repo, "sha": commit, "private": False, "tags": [], "siblings": []})
        files = self.hub.commits[repo][commit]
        entries = [entry(path, content) for path, content in sorted(files.items())]
        cursor = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        after, headers = cursor + self.hub.page, {}
        if after < len(entries):
            query = f"recursive=True&cursor={after}"
            headers["Link"] = f'<{self.hub.url}/api/datasets/{repo}/tree/{quote(commit)}?{query}>; rel="next"'
        return self._json(entries[cursor:after], headers)

    def _resolve(self, repo: str, revision: str, path: str, fault: Fault) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return None
        if path not in self.hub.commits[repo][commit]:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = self.hub.commits[repo][commit][path]
        listed = entry(path, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{listed["oid"]}"', "Accept-Ranges": "bytes"}
        if "lfs" not in listed:
            return self._file(content, headers, fault)
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{listed["lfs"]["oid"]}"'}
        headers["Location"] = f"http://127.0.0.1:{self.hub.cdn.server_port}/cdn/{commit}/{quote(path)}"
        return self._send(302, b"", headers)

    def _file(self, content: bytes, headers: dict[str, str], fault: Fault) -> None:
        size, status = len(content), 200
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked and not fault.no_range:
            first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
            if first >= size:
                return self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
            content, status = content[first : last + 1], 206
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        return self._send(status, bytes(len(content)) if fault.other else content, headers, fault)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: Fault | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        fault = fault or Fault()
        step = 1 if fault.pause else BLOCK
        for start in range(0, len(body[: fault.cut]), step):
            time.sleep(fault.pause or (self.hub.pause if status in (200, 206) else 0))
            self.wfile.write(body[: fault.cut][start : start + step])
        if fault.cut is not None:
            self.close_connection = True
