"""tinyshakespeare: downloaded once, checked, and nothing bad kept."""

from __future__ import annotations

import hashlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import Document, open_source, shakespeare
from overnight.errors import UserError


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """A server that gives `reply`; what it ought to give is a small text."""
    reply: dict[str, object] = {"status": 200, "content": b"First Citizen:\n" * 100}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = reply["content"]
            assert isinstance(content, bytes)
            self.send_response(int(str(reply["status"])))
            self.send_header("Content-Length", str(reply.get("length", len(content))))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(shakespeare.URL_VARIABLE, f"http://127.0.0.1:{server.server_port}/input.txt")
    monkeypatch.setattr(shakespeare, "SIZE", 1500)
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(b"First Citizen:\n" * 100).hexdigest())
    yield reply
    server.shutdown()
    server.server_close()


def test_shakespeare_is_downloaded_once(tmp_path: Path, mirror: dict[str, object]) -> None:
    manifest = prepare(open_source("shakespeare"), tmp_path / "one", PrepareOptions(tokenizer="chars"))
    assert [manifest.splits[split]["tokens"] for split in ("train", "val")] == [1350, 150]
    mirror["status"] = 500
    shutil.move(tmp_path / "cache", tmp_path / "away")
    assert prepare(open_source("shakespeare"), tmp_path / "one", PrepareOptions(tokenizer="chars")) == manifest
    shutil.move(tmp_path / "away", tmp_path / "cache")
    assert prepare(open_source("shakespeare"), tmp_path / "two", PrepareOptions(tokenizer="chars")) is not None
    mirror["status"] = 200
    (tmp_path / "cache/overnight/tinyshakespeare.txt").write_text("spoiled")
    source = open_source("shakespeare")
    (document,) = source.read(source.parts()[0])
    assert isinstance(document, Document) and document.text == "First Citizen:\n" * 100


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"status": 404}, "answers 404"),
        ({"status": 503}, "answers 503"),
        ({"content": b"<html>an error page</html>"}, r"something else than tinyshakespeare \(26 bytes"),
        ({"content": b"Second Citizen:" * 100}, "something else than tinyshakespeare"),
        ({"content": b"First Citizen:\n" * 50, "length": 1500}, "something else|cannot be downloaded"),
    ],
)
def test_a_bad_download_is_not_kept(
    tmp_path: Path, mirror: dict[str, object], reply: dict[str, object], told: str
) -> None:
    mirror |= reply
    with pytest.raises(UserError, match=told) as caught:
        prepare(open_source("shakespeare"), tmp_path / "out")
    assert "overnight prepare files FILE --tokenizer chars" in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.rglob("*.txt")) == [] and not (tmp_path / "out").exists()


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(shakespeare.URL_VARIABLE, "http://127.0.0.1:9/input.txt")
    with pytest.raises(UserError, match=r"cannot be downloaded .*refused.*overnight prepare files FILE"):
        open_source("shakespeare").parts()
