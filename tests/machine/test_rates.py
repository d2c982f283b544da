"""`overnight doctor`: how fast things are, and what is around the machine, broken on purpose too."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from overnight.machine import peak, rates, surroundings
from running import Overnight

CPU = torch.device("cpu")


def test_doctor_measures(overnight: Overnight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(peak.SIZES, "cpu", (32,))
    monkeypatch.setitem(peak.COPIED, "cpu", 2**16)
    monkeypatch.setitem(peak.ATTENTION, "cpu", (1, 2, 16, 8))
    monkeypatch.setattr(rates, "SECONDS", 0.01)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = overnight("doctor", "--device", "cpu", "--no-compile", "--json", "--out", tmp_path)
    found = json.loads(done.stdout)
    names = [line["name"] for line in found["findings"]]
    assert names[-7:] == [
        *("matmul", "memory speed", "attention", "disk speed", "network", "hub's cache", "trackers"),
    ]
    assert found["measured"]["matmul"]["fp32"] > 0 and found["measured"]["copy"] > 0
    assert found["measured"]["attention"]["math"] > 0 and found["measured"]["disk"] > 0
    assert not list(tmp_path.iterdir())


def test_products_that_gain_nothing_in_16_bits() -> None:
    assert rates.products({"fp32": 1e11, "bf16": 4e11}).value == "fp32 100 GFLOP/s, bf16 400 GFLOP/s"
    slower = rates.products({"fp32": 1e11, "bf16": 1e10})
    assert (slower.verdict, slower.advice) == ("note", "bf16 is slower than fp32 here: a run takes fp32")


def test_attention_kernels_stand_in_the_order_of_their_speed() -> None:
    found = rates.attention({"flash": 0.002, "cudnn": 0.001, "efficient": None}, torch.device("cuda"), "bf16")
    assert found.value.startswith("cudnn 1.0 ms, flash 2.0 ms; not here: efficient (16 x 12 heads x 1024 x 64, bf16")


def test_a_disk_that_is_full_has_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = rates.written(tmp_path / "not" / "yet", 2**20)
    assert rate is not None and rate > 0

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert rates.written(tmp_path, 2**20) is None


@pytest.fixture
def answers() -> Iterator[tuple[str, dict[str, object]]]:
    """A server on this machine, and what it answers."""
    answer: dict[str, object] = {"code": 200, "type": "application/json"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(str(answer["code"])))
            self.send_header("Content-Type", str(answer["type"]))
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", answer
    server.shutdown()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "answers in "),
        ({"code": 503}, "answers 503 Service Unavailable"),
        ({"type": "text/html"}, "does not answer as a hub does"),
    ],
)
def test_the_hub(
    answers: tuple[str, dict[str, object]], change: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, answer = answers
    answer.update(change)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    found = surroundings.network()
    assert expected in found.value
    assert (found.verdict == "note") == bool(change) == ("unset it" in found.advice)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "no address", "http://[", "ftp//x"])
def test_a_wrong_endpoint_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    found = surroundings.network()
    assert found.verdict == "note" and endpoint in found.value
    assert found.advice == "HF_ENDPOINT names it: unset it to use https://huggingface.co"


def test_a_name_that_is_looked_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setattr(surroundings, "PATIENCE", 0.01)
    forever = threading.Event()

    def look_up(*given: object, **options: object) -> None:
        forever.wait(60)
        raise OSError

    monkeypatch.setattr("urllib.request.urlopen", look_up)
    assert surroundings.network().value == "https://huggingface.co does not answer within 0.02 s"
    forever.set()


def test_a_cache_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "a" / "b"))
    assert surroundings.cache().verdict == "ok"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert f"{tmp_path} cannot be written to: HF_HOME=FOLDER names another place" in surroundings.cache().advice


def test_links_between_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda one, other: {one, other} != {0, 2})
    assert surroundings.links(2).value == "all 2 GPUs read each other's memory"
    assert surroundings.links(3).value == "not between 0-2, 2-0"


def test_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "wandb" or None)
    assert surroundings.trackers().value == "wandb; not installed: tensorboard, trackio"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert surroundings.trackers().value.startswith("none; pip install wandb or")
