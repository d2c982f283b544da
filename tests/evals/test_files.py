"""Where the examples of an evaluation come from, and that nothing bad is kept."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import FakeHub, Fault, Seen, serving

from overnight.errors import UserError
from overnight.evals.files import Address, HubSplit, locate, numbered_rows, read_rows

ROWS = b'{"a": 1}\n{"a": 2}\n'
FIRST, SECOND = HubSplit("one/first", None, "validation"), HubSplit("two/second", "hard", "test")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Two repositories, the second with a card, and a file at an address."""
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "1")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        card = b"---\nconfigs:\n- config_name: hard\n  data_files:\n  - split: test\n    path: hard/*\n---\n"
        packed = gzip.compress(ROWS, mtime=0)
        server.commit("one/first", {"data/train.jsonl.gz": b"", "data/validation.jsonl.gz": packed})
        server.commit("two/second", {"README.md": card, "easy/test.jsonl": b"{}", "hard/test.jsonl": ROWS})
        server.commit("three/raw", {"rows.jsonl": ROWS})
        yield server


def address(fake: FakeHub) -> Address:
    return Address(f"{fake.url}/datasets/three/raw/resolve/main/rows.jsonl")


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock")


def test_the_first_origin_is_asked_once_and_the_file_kept(fake, tmp_path):
    said = list[str]()
    path = locate("task", None, said.append, [FIRST, SECOND])
    assert read_rows(path) == [{"a": 1}, {"a": 2}]
    assert path == tmp_path / "cache/overnight/evals/task/validation.jsonl.gz"
    assert len(said) == 1 and "fetching data/validation.jsonl.gz of one/first" in said[0]
    asked = len(fake.seen)
    assert locate("task", None, said.append, [FIRST, SECOND]) == path
    assert len(fake.seen) == asked and len(said) == 1


def test_a_file_of_ones_own_is_taken_as_it_is(fake, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_bytes(ROWS)
    assert locate("task", own, print, [FIRST]) == own
    assert not fake.seen
    with pytest.raises(UserError, match=r"task: there is no file .*nothing\.jsonl"):
        locate("task", tmp_path / "nothing.jsonl", print, [FIRST])


def test_what_has_another_hash_is_not_kept_and_the_next_is_asked(fake, tmp_path):
    fake.fault = lambda seen: Fault(other=True) if seen.place == "cdn" else None
    assert locate("task", None, print, [FIRST, SECOND]).name == "test.jsonl"
    assert kept(tmp_path) == ["test.jsonl"]


@pytest.mark.parametrize("content", [b"<html>", b"[1]\n", b'{"a": 1}\n{"a"', b"\xff\n"])
def test_what_are_no_rows_is_not_kept(fake, tmp_path, content):
    fake.commit("three/raw", {"rows.jsonl": content})
    with pytest.raises(UserError, match=r"the fetched rows\.jsonl, line \d: not.*name it: task=FILE") as refusal:
        locate("task", None, print, [address(fake)])
    assert "\n" not in str(refusal.value)
    assert kept(tmp_path) == []
    assert locate("task", None, print, [address(fake), SECOND]).name == "test.jsonl"


def test_a_check_decides_what_is_kept(fake, tmp_path):
    def check(path: Path) -> None:
        raise UserError(f"{path.name} is too small")

    with pytest.raises(UserError, match=r"too small.*too small.*name it: task=FILE"):
        locate("task", None, print, [FIRST, SECOND], check)
    assert kept(tmp_path) == []


@pytest.mark.parametrize("status", [404, 500])
def test_an_error_page_is_not_kept(fake, tmp_path, status):
    fake.fault = lambda seen: Fault(status=status) if "three/raw" in seen.path else None
    with pytest.raises(UserError, match=f"answers {status}"):
        locate("task", None, print, [address(fake)])
    assert kept(tmp_path) == []


def test_a_download_that_ends_too_early_is_not_kept(fake, tmp_path):
    fake.fault = lambda seen: Fault(cut=9) if "three/raw" in seen.path else None
    with pytest.raises(UserError, match="cannot be downloaded"):
        locate("task", None, print, [address(fake)])
    assert kept(tmp_path) == []


def test_an_interrupted_download_goes_on(fake, tmp_path):
    def die(seen: Seen) -> Fault | None:
        if seen.place == "cdn" and seen.range is None:
            raise_in_client.append(seen)
            return Fault(cut=20)
        return None

    raise_in_client = list[Seen]()
    fake.fault = die
    assert read_rows(locate("task", None, print, [FIRST])) == [{"a": 1}, {"a": 2}]
    assert len(raise_in_client) == 1
    assert [seen.range for seen in fake.seen if seen.place == "cdn"][-1] == "bytes=20-"


def test_without_a_network_it_is_one_line_that_tells_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "0.1")
    nowhere = Address("http://127.0.0.1:9/rows.jsonl")
    with pytest.raises(UserError) as refusal:
        locate("task", None, print, [FIRST, SECOND, nowhere])
    told = str(refusal.value)
    assert told.startswith("task: its examples are not here and cannot be fetched (") and "\n" not in told
    assert "one/first" in told and "two/second" not in told and nowhere.url in told
    assert told.endswith("get the file elsewhere and name it: task=FILE, or --file FILE")
    with pytest.raises(UserError, match="cannot be fetched; get the file elsewhere"):
        locate("other", None, print)


def test_offline_takes_what_the_hubs_cache_has(fake, tmp_path, monkeypatch):
    from huggingface_hub import hf_hub_download

    hf_hub_download("two/second", "hard/test.jsonl", repo_type="dataset", endpoint=fake.url)
    hf_hub_download("two/second", "README.md", repo_type="dataset", endpoint=fake.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    asked = len(fake.seen)
    assert read_rows(locate("task", None, print, [SECOND])) == [{"a": 1}, {"a": 2}]
    assert len(fake.seen) == asked


def test_rows_are_told_by_their_lines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + ROWS.replace(b"\n", b"\n\n"))
    assert [where for where, _ in numbered_rows(path)] == [f"{path}, line 1", f"{path}, line 3"]
    path.write_bytes(ROWS + json.dumps("text").encode())
    with pytest.raises(UserError, match="line 3: not a JSON object but text"):
        read_rows(path)
    broken = tmp_path / "rows.parquet"
    broken.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"rows\.parquet.*not a parquet file"):
        read_rows(broken)
    packed = tmp_path / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress(ROWS)[:-9])
    with pytest.raises(UserError, match="ends too early"):
        read_rows(packed)
