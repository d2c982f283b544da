"""Exports on a hub: a small one on this machine, with the endpoints that an upload needs."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from typing import Any

import huggingface_hub
import pytest
import torch
from gpts import random_gpt

from overnight.exchange import export, huggingface
from overnight.model import weights
from overnight.pretrained import Pretrained

REPO, TOKEN = "someone/tiny", "hf_not_a_real_token"


class Hub:
    """Repositories are {path: content}; large files wait by their hash until a commit names them."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.visibility: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.commits = 0
        self.refused: dict[str, tuple[int, dict[str, Any]]] = {}
        """By a part of the path: the status and the body that are answered instead."""
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path.startswith("/lfs/") and method == "PUT":
            self.blobs[hashlib.sha256(body).hexdigest()] = body
            return 200, {}
        if path.startswith(f"/api/models/{REPO}/commit/"):
            return self.commit(body)
        sent = json.loads(body) if body else {}
        if path == "/api/repos/create":
            name = f"{sent['organization']}/{sent['name']}"
            if name in self.repos:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.repos[name], self.visibility[name] = {}, sent.get("visibility", "public")
            return 200, {"url": f"{self.url}/{name}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == f"/api/models/{REPO}" and REPO in self.repos:
            private = self.visibility[REPO] == "private"
            return 200, {"id": REPO, "sha": "0" * 40, "private": private, "siblings": [], "tags": []}
        if "/preupload/" in path:
            modes = {True: "lfs", False: "regular"}
            return 200, {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": modes[file["path"].endswith(".safetensors")],
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in sent["files"]
                ]
            }
        if path.endswith("/info/lfs/objects/batch"):
            actions = {"upload": {"href": f"{self.url}/lfs/upload"}}
            return 200, {"transfer": "basic", "objects": [{**item, "actions": actions} for item in sent["objects"]]}
        return 404, {"error": "not found"}

    def commit(self, body: bytes) -> tuple[int, dict[str, Any]]:
        self.commits += 1
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.repos[REPO][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.repos[REPO][value["path"]] = self.blobs[value["oid"]]
        return 200, {"commitUrl": f"{self.url}/{REPO}/commit/1", "commitOid": "1" * 40, "success": True}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = re.sub(r"\?.*", "", self.path)
        refused = [answer for part, answer in self.hub.refused.items() if part in path]
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            refused.append((401, {"error": "Invalid credentials"}))
        status, value = refused[0] if refused else self.hub.answer(self.command, path, body)
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_PUT = do_GET

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def hub(monkeypatch):
    """Large files go by LFS: the other way, xet, has servers of its own."""
    found = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    gpt, folder = random_gpt(activation="gelu_tanh"), tmp_path_factory.mktemp("source")
    huggingface.write(Pretrained("made", gpt.config, 32, weights(gpt)), folder, torch.float32)
    return folder


@pytest.mark.parametrize("private", [False, True])
def test_all_files_are_in_one_commit(overnight, hub, source, tmp_path, private):
    flags = ["--push", REPO, "--private"] if private else ["--push", REPO]
    said = overnight("export", source, "--to", "hf", "--out", tmp_path / "out", *flags).stdout
    assert f"pushed to {hub.url}/{REPO}" in said
    assert hub.repos[REPO] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.commits == 1 and list(hub.blobs.values()) == [hub.repos[REPO]["model.safetensors"]]
    assert hub.visibility[REPO] == ("private" if private else "public")


def test_a_repository_that_is_there_gets_a_commit_more(overnight, hub, source, tmp_path):
    hub.repos[REPO], hub.visibility[REPO] = {"notes.txt": b"kept"}, "public"
    overnight("export", source, "--to", "hf", "--out", tmp_path / "out", "--push", REPO)
    assert hub.repos[REPO]["notes.txt"] == b"kept" and "model.safetensors" in hub.repos[REPO]


def failed(overnight, source, tmp_path, *flags):
    done = overnight("export", source, "--to", "hf", "--out", tmp_path / "out", "--push", *flags, check=False)
    assert done.returncode == 2, done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("overnight: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    return lines[0]


def test_what_is_to_be_private_does_not_go_where_all_can_see_it(overnight, hub, source, tmp_path):
    hub.repos[REPO], hub.visibility[REPO] = {}, "public"
    assert "is a public repository already" in failed(overnight, source, tmp_path, REPO, "--private")
    assert hub.repos[REPO] == {} and hub.commits == 0 and not hub.blobs


@pytest.mark.parametrize(
    ("part", "status", "answer", "message"),
    [
        ("/api/repos/create", 403, {"error": "You don't have the rights to create a model"}, "403: You don't have"),
        ("/preupload/", 403, {"error": "Forbidden"}, "403"),
        ("/commit/", 403, {"error": "Storage limit reached"}, "Storage limit reached"),
        ("/lfs/", 403, {}, "403"),
        ("/api/validate-yaml", 400, {"errors": [{"message": "license must be one of"}]}, "license must be one of"),
    ],
)
def test_what_the_hub_refuses_is_one_line_and_the_export_stays(
    overnight, hub, source, tmp_path, part, status, answer, message
):
    hub.refused[part] = status, answer
    said = failed(overnight, source, tmp_path, REPO)
    assert message in said and f"`hf upload {REPO} {tmp_path / 'out'}` tries again" in said
    assert (tmp_path / "out" / "certificate.json").exists() and not hub.repos.get(REPO)


def test_a_hub_that_is_not_there(overnight, hub, source, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "did not take" in failed(overnight, source, tmp_path, REPO)


@pytest.mark.parametrize("name", ["tiny", "a b/c", "a/b/c"])
def test_a_name_is_looked_at_before_anything_is_computed(overnight, hub, source, tmp_path, name):
    assert "--push" in failed(overnight, source, tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_needed_before_anything_is_computed(overnight, hub, source, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "HF_TOKEN" in failed(overnight, source, tmp_path, REPO)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_certificate_pushes_nothing(overnight, hub, source, tmp_path, monkeypatch):
    def wrong(pretrained, folder, dtype):
        whole = pretrained.tensors | {"ln_f.weight": pretrained.tensors["ln_f.weight"] + 1}
        target.write(Pretrained("made", pretrained.model, pretrained.block_size, whole), folder, dtype)

    target = export.TARGETS["hf"]
    monkeypatch.setitem(export.TARGETS, "hf", export.Target(wrong, target.reload))
    done = overnight("export", source, "--to", "hf", "--out", tmp_path / "out", "--push", REPO, check=False)
    assert done.returncode == 1 and hub.repos == {}
