"""From a hub: every document arrives, and nothing is fetched for nothing."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from corpora import contents, documents, texts, write_jsonl
from hub_corpus import DOCUMENTS, FILES, REPO, made
from hub_server import FakeHub

from overnight.data import disk, plan
from overnight.data.dataset import Manifest
from overnight.data.sources import hub as hub_source
from overnight.data.sources import open_source
from overnight.errors import UserError

# -- what is fetched


def test_tasks_of_datatrove_fetch_for_themselves(hub: FakeHub, tmp_path: Path, expected: dict[str, str]) -> None:
    assert made(tmp_path / "out", engine="datatrove", workers=2) == expected
    by_rows = made(tmp_path / "rows", val="nanogpt")
    assert made(tmp_path / "rows by tasks", val="nanogpt", engine="datatrove") == by_rows != expected


def test_every_document_arrives(hub: FakeHub, tmp_path: Path, expected: dict[str, str]) -> None:
    hub.page = 2
    assert made(tmp_path / "out") == expected
    found = documents(tmp_path / "out")
    wanted = {
        (f"sample/10BT/{n:03d}_00000.parquet", row): text
        for n in range(FILES)
        for row, text in enumerate(texts(DOCUMENTS, n))
    }
    assert {(document.file, document.row): document.text.decode() for document in found} == wanted
    (source,) = Manifest.read(tmp_path / "out").sources
    assert (source["repo"], source["config"], source["split"], source["licence"]) == (
        REPO,
        "sample-10BT",
        "train",
        "odc-by",
    )
    assert (source["revision"], source["files"]) == (hub.branches[REPO]["main"], FILES)
    assert set(hub.fetched().values()) == {1}
    assert not (tmp_path / "out" / ".work").exists()
    assert {seen.token for seen in hub.seen if seen.place == "hub"} == {"secret"}
    assert {seen.token for seen in hub.seen if seen.place == "cdn"} == {None}


def test_workers_and_kept_files_change_nothing(hub: FakeHub, tmp_path: Path, expected: dict[str, str]) -> None:
    assert made(tmp_path / "two", workers=2) == expected
    kept = made(tmp_path / "kept", keep_raw=True)
    raw = {name: digest for name, digest in kept.items() if name.startswith("raw/")}
    assert {name: digest for name, digest in kept.items() if name not in raw} == expected
    content = hub.commits[REPO][hub.branches[REPO]["main"]]
    assert raw == {
        f"raw/{name}": hashlib.sha256(content[name]).hexdigest() for name in content if name.startswith("sample")
    }


def test_complete_folder_stays_although_the_branch_moved(
    hub: FakeHub, tmp_path: Path, expected: dict[str, str], repository: dict[str, bytes]
) -> None:
    made(tmp_path / "out")
    hub.commit(REPO, {**repository, "sample/10BT/new.parquet": b"x"})
    hub.seen.clear()
    assert made(tmp_path / "out") == expected and not hub.fetched()
    with pytest.raises(UserError, match=r"other settings.*--config default, there sample-10BT"):
        made(tmp_path / "out", source={"config": "default"})
    with pytest.raises(UserError, match="--revision main, there None"):
        made(tmp_path / "out", source={"revision": "main"})


def test_a_limit_fetches_only_what_it_needs(hub: FakeHub, tmp_path: Path) -> None:
    whole = made(tmp_path / "whole")
    tokens = Manifest.read(tmp_path / "whole").totals["tokens"]
    for workers in (1, 2):
        hub.seen.clear()
        out = tmp_path / f"limited{workers}"
        made(out, limit_tokens=tokens * 3 // (2 * FILES), workers=workers)  # one file and a half
        assert sorted(hub.fetched()) == ["sample/10BT/000_00000.parquet", "sample/10BT/001_00000.parquet"]
        assert set(hub.fetched().values()) == {1}
        assert Manifest.read(out).totals["tokens"] == tokens * 3 // (2 * FILES)
    assert contents(tmp_path / "limited1") == contents(tmp_path / "limited2") != whole


def test_few_files_lie_on_the_disk_at_a_time(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, str]
) -> None:
    monkeypatch.setattr("overnight.data.fetching.SMALL", 0)
    most, out, original = 0, tmp_path / "out", hub_source.HubSource.read

    def read(source: Any, part: Any) -> Any:
        nonlocal most
        time.sleep(0.02)  # as long as fetching another file would take
        most = max(most, len(list((out / ".work" / "raw").rglob("*.parquet"))))
        return original(source, part)

    monkeypatch.setattr(hub_source.HubSource, "read", read)
    assert made(out) == expected
    assert 1 < most <= 3 < FILES


def test_many_small_files_in_a_part(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.data.fetching.SMALL", 0)
    monkeypatch.setattr(hub_source, "part_size", lambda total: 10**6)
    hub.commit("me/small", {f"{n:03d}.jsonl": b'{"text": "%d"}\n' % n for n in range(30)})
    made(tmp_path / "out", "hub:me/small")
    assert {document.text for document in documents(tmp_path / "out")} == {b"%d" % n for n in range(30)}


def test_files_of_several_formats(hub: FakeHub, tmp_path: Path) -> None:
    packed = subprocess.run(["gzip", "-c"], input=b'{"body": "packed"}\n' * 3, capture_output=True, check=True).stdout
    lines = write_jsonl(tmp_path / "lines.jsonl", texts(30, words=900), "body").read_bytes()
    hub.commit("me/lines", {"a.jsonl": lines, "b.jsonl.gz": packed, "notes.txt": b"no", "README.md": b"no card"})
    made(tmp_path / "out", "hub:me/lines", source={"text_field": "body"})
    assert Manifest.read(tmp_path / "out").totals["documents"] == 33
    hub.commit("me/book", {"book.txt": "\n".join(texts(300)).encode(), "LICENSE.md": b"mine"})
    made(tmp_path / "book", "hub:me/book", tokenizer="chars")
    assert Manifest.read(tmp_path / "book").settings["split"] == "position"
    assert b"".join(d.text for d in documents(tmp_path / "book")).decode() == "\n".join(texts(300))


def test_a_tokenizer_is_trained_on_the_first_files(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.data.planning.TRAINING", 1000)
    after: list[set[str]] = []
    original = plan.Plan.save
    monkeypatch.setattr(plan.Plan, "save", lambda *all: (after.append(set(hub.fetched())), original(*all)))
    made(tmp_path / "out", tokenizer="bpe:300")
    assert after == [{"sample/10BT/000_00000.parquet"}]
    monkeypatch.setattr("overnight.data.planning.ALL_OF_IT", 1000)
    with pytest.raises(UserError, match="chars has to read the whole source first"):
        made(tmp_path / "chars", tokenizer="chars")


def test_too_little_disk_is_said_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"of disk is needed and 1 kB is free"):
        made(tmp_path / "out")
    usage = usage._replace(free=sum(open_source("fineweb-edu").sizes().values()) - 1)  # enough but for all at once
    with pytest.raises(UserError, match=r"of disk is needed"):
        made(tmp_path / "out", tokenizer="chars")
    assert not hub.fetched()


def test_where_hardly_a_document_is_long_enough_no_more_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.data.planning.LOOKED_AT", 10_000)
    told = r"of the first 10.* kB of text hardly a document is kept: \d+ have fewer characters than --min-chars 99999; "
    with pytest.raises(UserError, match=told):
        made(tmp_path / "out", min_chars=99_999)
    assert list(hub.fetched()) == ["sample/10BT/000_00000.parquet"]
    made(tmp_path / "out", min_chars=100)


# -- which files


def test_configurations_splits_and_the_converted_branch(hub: FakeHub, repository: dict[str, bytes]) -> None:
    def files(name: str, **more: str) -> list[str]:
        return [part.spans[0].file for part in open_source(name, **more).parts()]

    one = repository["data/CC-MAIN-2013-20/000_00000.parquet"]
    assert set(files("fineweb-edu", config="default")) == {"data/CC-MAIN-2013-20/000_00000.parquet"}
    with pytest.raises(UserError, match=r"no configuration 'sample-10B' \(did you mean sample-10BT\?\)"):
        files("fineweb-edu", config="sample-10B")
    with pytest.raises(UserError, match=r"no split 'test' in sample-10BT; --split: train"):
        files("fineweb-edu", split="test")
    with pytest.raises(UserError, match="has no revision 'v2'"):
        files("fineweb-edu", revision="v2")
    hub.commit("me/script", {"script.py": b"", "subsets/a.tar": b"x"})
    with pytest.raises(UserError, match="the hub has made no parquet of it"):
        files("hub:me/script")
    hub.commit("me/script", {"plain_text/partial-train/0000.parquet": one}, "refs/convert/parquet")
    source = open_source("hub:me/script")
    assert source.describe()["files"] == 1 and any("only the beginning" in note for note in source.notes)
    for name in ("hub:", "hub:a/b/c", "hub:../x"):
        with pytest.raises(UserError, match="names no dataset; write hub:OWNER/NAME"):
            open_source(name)
    for card in (b"---\nconfigs: [\n a: : {\n---\n", b"---\na: " + b"[" * 10**5 + b"\n---\n"):  # no YAML, or too much
        hub.commit("me/card", {"README.md": card, "train.parquet": one})
        assert set(files("hub:me/card")) == {"train.parquet"}
    with pytest.raises(UserError, match="takes no paths"):
        open_source("fineweb", ["x"])
    with pytest.raises(UserError, match="the source 'stdlib' has no --config"):
        open_source("stdlib", config="x")


def test_rows_are_counted_without_a_download(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub_source, "END", 64)
    source = open_source("fineweb-edu")
    assert isinstance(source, hub_source.HubSource)
    source.attach(tmp_path, keep_raw=False)
    assert source.rows() == {file.path: DOCUMENTS for file in source.listing.files}
    sent = [seen.range for seen in hub.seen if seen.place == "cdn"]
    assert len(sent) == 2 * FILES and all(asked and asked.startswith("bytes=-") for asked in sent)
    content = hub.commits[REPO][hub.branches[REPO]["main"]]["sample/10BT/000_00000.parquet"]
    assert pq.read_metadata(io.BytesIO(content)).num_rows == DOCUMENTS
