"""The server of the watch page: one page, to this machine alone, and nothing but runs."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_runs import CONFIG, MakeRun, train_line
from strict_html import Page

import overnight
from overnight.cli.watch import main
from overnight.errors import UserError
from overnight.watch.server import PORT, Server, _own_name, listen
from overnight.watch.watcher import Watcher


@contextmanager
def serving(*paths: Path) -> Iterator[Server]:
    server = listen("127.0.0.1", 0, Watcher(paths))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(server: Server, path: str = "/", method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_the_page_holds_the_runs_and_its_script_only(make_run: MakeRun) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    folder = make_run("a run", {**CONFIG, "preset": evil}, samples=[{"step": 1, "prompt": "", "texts": [evil]}])
    (folder / "log.txt").write_text(evil)
    with serving(folder) as server:
        answer, body = get(server)
    page = Page(body.decode())
    assert answer.status == 200 and page.count("script") == 2 and page.count("img") == 0
    policy = next(found["content"] for tag, found in page.elements if "http-equiv" in found)
    assert policy is not None and "default-src 'none'" in policy and "connect-src 'self'" in policy
    assert answer.getheader("Content-Security-Policy") == "frame-ancestors 'none'"
    now = json.loads(page.data)
    names = [name for name, _, _ in now["sections"]]
    assert names[0] == "curves" and "log" in names
    parts = "".join(html for _, _, html in now["sections"]) + now["strip"] + now["headline"]
    assert "<script" not in parts and "<img" not in parts and "alert(1)" in parts


def test_only_news_is_sent(make_run: MakeRun) -> None:
    folder = make_run()
    with serving(folder) as server:
        answer, body = get(server, "/now")
        now = json.loads(gzip.decompress(body))
        tag = answer.getheader("ETag")
        assert answer.status == 200 and tag == f'"{now["tag"]}"'
        assert "<path" not in json.dumps(now["sections"][0])  # the script draws them
        answer, body = get(server, "/now", If_None_Match=tag)
        assert (answer.status, body) == (304, b"")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(train_line(210, 1.0)) + "\n")
        answer, body = get(server, "/now", If_None_Match=tag)
        assert answer.status == 200
        assert json.loads(gzip.decompress(body))["data"]["charts"][0]["lines"][0]["x"][-1] == 210


def test_nothing_else_is_served(make_run: MakeRun) -> None:
    with serving(make_run()) as server:
        for path in ("/config.json", "/../config.json", "/%2e%2e/config.json", "//etc/passwd", "/?x", "/now/"):
            assert get(server, path)[0].status == 404, path
        for method in ("POST", "HEAD", "PUT", "OPTIONS", "DELETE"):
            assert get(server, method=method)[0].status == 501, method


def test_a_foreign_name_that_points_here_is_refused(make_run: MakeRun) -> None:
    with serving(make_run()) as server:
        for host in ("evil.example", "evil.example:8686", "127.0.0.1.evil.example", ""):
            answer, body = get(server, "/now", Host=host)
            assert answer.status == 403 and b"run" not in body, host
        for host in ("localhost:9000", "127.0.0.1", "[::1]:8686"):  # other ports: through a tunnel
            assert get(server, Host=host)[0].status == 200, host
    assert _own_name("gpu-7:8686", "gpu-7")


def test_a_run_that_does_not_exist_yet(tmp_path: Path) -> None:
    with serving(tmp_path / "later") as server:
        now = json.loads(gzip.decompress(get(server, "/now")[1]))
        assert "the folder does not exist yet" in now["strip"] and now["sections"] == []


def test_a_taken_port(make_run: MakeRun) -> None:
    watcher = Watcher([make_run()])
    with listen("127.0.0.1", 0, watcher) as first:
        port = first.server_address[1]
        with pytest.raises(UserError, match=f"port {port} is taken; choose another"):
            listen("127.0.0.1", port, watcher)
    with listen("127.0.0.1", None, watcher) as first, listen("127.0.0.1", None, watcher) as second:
        assert PORT <= first.server_address[1] < second.server_address[1]
    for host, port in (("nowhere.invalid", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(UserError, match="watch: ") as caught:
            listen(host, port, watcher)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_the_command_ends_with_ctrl_c(make_run: MakeRun) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "overnight", "watch", str(make_run()), "--port", "0", "--host", "0.0.0.0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(overnight.__file__).parents[1])},
    )  # fmt: skip
    assert process.stdout is not None
    assert "following" in process.stdout.readline()
    assert "anyone who can reach this machine" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")


def test_which_run() -> None:
    with pytest.raises(UserError, match="which run"):
        main([])
