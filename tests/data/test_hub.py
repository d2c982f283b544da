"""From a hub: whatever the network does, the same bytes; nothing is fetched for nothing; errors are one line."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow.parquet as pq
import pytest
from corpora import contents, documents, environment, texts, write_jsonl, write_parquet
from hub_server import FakeHub, Fault, Seen, serving

from overnight.data import disk, plan
from overnight.data.dataset import Manifest
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import hub as hub_source
from overnight.data.sources import open_source
from overnight.errors import UserError

REPO = "HuggingFaceFW/fineweb-edu"
CARD = b"""---
license: odc-by
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
# A card
"""
FILES, DOCUMENTS = 5, 40


def parquet(found: list[str], folder: Path) -> bytes:
    path = write_parquet(folder / "some.parquet", found, rows_per_group=10)
    content = path.read_bytes()
    path.unlink()
    return content


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """FineWeb-Edu in small."""
    folder = tmp_path_factory.mktemp("repository")
    files = {f"sample/10BT/{n:03d}_00000.parquet": parquet(texts(DOCUMENTS, n), folder) for n in range(FILES)}
    files["data/CC-MAIN-2013-20/000_00000.parquet"] = parquet(texts(12, 99), folder)
    return {**files, "README.md": CARD, ".gitattributes": b"x"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: dict[str, bytes]) -> Iterator[FakeHub]:
    with serving() as server:
        server.commit(REPO, repository)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "2")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
        monkeypatch.setattr(hub_source, "part_size", lambda total: 5000)
        monkeypatch.setattr("overnight.data.fetching.POLL", 0.01)
        monkeypatch.setattr("overnight.data.engines.local.POLL", 0.01)
        yield server


def made(out: Path, name: str = "fineweb-edu", source: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    prepare(open_source(name, **(source or {})), out, PrepareOptions(**{"workers": 1, **options}))
    return contents(out)


@pytest.fixture(scope="session")
def expected(repository: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What comes out of an undisturbed preparation."""
    out = tmp_path_factory.mktemp("expected") / "out"
    with serving() as server, pytest.MonkeyPatch.context() as patch:
        server.commit(REPO, repository)
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setattr(hub_source, "part_size", lambda total: 5000)
        return made(out)


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


# -- what goes wrong


def nth(*numbers: int, fault: Fault, **only: str) -> Callable[[Seen], Fault | None]:
    """The fault at these of the requests that are like `only`, counted from 0."""
    count = 0

    def at(seen: Seen) -> Fault | None:
        nonlocal count
        if any(getattr(seen, name) != value for name, value in only.items()):
            return None
        count += 1
        return fault if count - 1 in numbers else None

    return at


PASSING = {
    "every third request fails": nth(*range(0, 200, 3), fault=Fault(503)),
    "too many requests": nth(3, fault=Fault(429, {"Retry-After": "1"})),
    "cut bodies": nth(0, 1, 3, fault=Fault(cut=2000), place="cdn"),
    "cut before the first byte": nth(0, 2, fault=Fault(cut=0), place="cdn"),
    "no ranges": lambda seen: (
        Fault(no_range=seen.range is not None, cut=None if seen.range else 2000) if seen.place == "cdn" else None
    ),
    "other bytes once": nth(1, fault=Fault(other=True), place="cdn"),
    "a trickle": nth(1, fault=Fault(pause=0.05), place="cdn"),
    "an address that expired": nth(1, fault=Fault(403), place="cdn"),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_changes_nothing(hub: FakeHub, tmp_path: Path, expected: dict[str, str], name: str) -> None:
    hub.fault = PASSING[name]
    started = time.monotonic()
    assert made(tmp_path / "out") == expected
    assert name != "too many requests" or time.monotonic() - started > 1
    if name in ("cut bodies", "no ranges"):
        assert {seen.range for seen in hub.seen if seen.place == "cdn"} >= {None, "bytes=2000-"}


LASTING: dict[str, tuple[Callable[[FakeHub], object], str]] = {
    "gated": (lambda hub: setattr(hub, "gated", True), "is gated: accept its terms on http.*HF_TOKEN"),
    "token": (lambda hub: setattr(hub, "token", "another"), "answers 401.*set HF_TOKEN"),
    "no repository": (lambda hub: hub.commits.clear(), "has no dataset HuggingFaceFW/fineweb-edu"),
    "forbidden": (lambda hub: setattr(hub, "fault", lambda seen: Fault(403)), "answers 403"),
    "no API": (lambda hub: setattr(hub, "fault", lambda seen: Fault(200)), "does not answer as a hub does"),
    "down": (lambda hub: setattr(hub, "fault", lambda seen: Fault(503)), "cannot be fetched.*503.*the same command"),
    "down later": (
        lambda hub: setattr(hub, "fault", lambda seen: Fault(503) if seen.place == "cdn" else None),
        "sample/10BT/000_00000.parquet of .*cannot be fetched.*503",
    ),
    "other bytes": (
        lambda hub: setattr(hub, "fault", lambda seen: Fault(other=True) if seen.place == "cdn" else None),
        "does not have the SHA-256 .*nothing of it was kept",
    ),
    "a trickle": (
        lambda hub: setattr(hub, "fault", lambda seen: Fault(pause=0.05) if seen.place == "cdn" else None),
        "cannot be fetched.*sent .* bytes in",
    ),
    "a path out of it": (lambda hub: hub.commit(REPO, {"../../x.parquet": b""}), "it is not to be trusted"),
    "a path for terminals": (lambda hub: hub.commit(REPO, {"\x1b[31m.parquet": b""}), r"lists '\\x1b.*to be trusted"),
    "a path of no bytes": (lambda hub: hub.commit(REPO, {"a\0.parquet": b""}), "it is not to be trusted"),
    "a page that does not end": (
        lambda hub: setattr(hub, "fault", lambda seen: Fault(body=bytes(2**18)) if seen.place == "cdn" else None),
        "does not have the SHA-256 .*nothing of it was kept",
    ),
    "the same cut": (
        lambda hub: setattr(hub, "fault", lambda seen: Fault(cut=2000, no_range=True) if seen.place == "cdn" else None),
        "cannot be fetched.*2000 bytes",
    ),
    "wait for years": (
        lambda hub: setattr(hub, "fault", lambda seen: Fault(429, {"Retry-After": "9" * 15})),
        "cannot be fetched.*429",
    ),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_stays_is_one_line(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, str], name: str
) -> None:
    monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "0.8")
    monkeypatch.setattr("overnight.network.patience.ENOUGH", 1000)
    change, told = LASTING[name]
    state = (hub.fault, dict(hub.commits), dict(hub.branches[REPO]))
    change(hub)
    with pytest.raises(UserError, match=told) as caught:
        made(tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    hub.fault, hub.commits, hub.branches[REPO] = state
    hub.gated, hub.token = False, None
    assert made(tmp_path / "out") == expected  # the same command goes on


def test_no_network(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "0.5")
    with pytest.raises(UserError, match=r"cannot be fetched from http://127.0.0.1:9 .*refused.*connect to a network"):
        made(tmp_path / "out")
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    with pytest.raises(UserError, match="HF_ENDPOINT is 'nonsense', which is no address"):
        made(tmp_path / "out")
    monkeypatch.setenv("OVERNIGHT_HUB_PATIENCE", "long")
    with pytest.raises(UserError, match="it must be a number of seconds"):
        open_source("fineweb")


def test_a_broken_file_of_the_repository(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit("me/broken", {"a.parquet": b"not parquet"})
    with pytest.raises(UserError, match=r"a\.parquet: not a parquet file"):
        made(tmp_path / "out", "hub:me/broken")
    with pytest.raises(UserError, match="no column 'body'; its columns: text, id"):
        made(tmp_path / "out2", source={"text_field": "body"})


# -- going on


def test_a_branch_that_moves_in_between(
    hub: FakeHub, tmp_path: Path, expected: dict[str, str], repository: dict[str, bytes]
) -> None:
    hub.fault = lambda seen: Fault(404) if seen.file.endswith("003_00000.parquet") else None
    with pytest.raises(UserError, match="003_00000"):
        made(tmp_path / "out")
    before = hub.fetched()
    hub.fault = lambda seen: None
    hub.commit(REPO, {**repository, "sample/10BT/000_00000.parquet": b"changed"})
    hub.seen.clear()
    assert made(tmp_path / "out") == expected
    assert not any(seen.path.startswith("/api/") for seen in hub.seen)
    done = {name for name in before if name not in hub.fetched()}
    assert "sample/10BT/000_00000.parquet" in done  # what was spilled is not fetched again


class Killed(Exception):
    """Where a test has a prepare end."""


def killed(out: Path, where: str, **options: Any) -> None:
    def end(*given: object, **more: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, end)
        with pytest.raises(Killed):
            made(out, **options)


@pytest.fixture
def second(hub: FakeHub, repository: dict[str, bytes], tmp_path: Path) -> dict[str, Any]:
    """A revision with other text, and more of it, in files of the same names; as an argument of `made`."""
    more = {f"sample/10BT/{n:03d}_00000.parquet": parquet(texts(DOCUMENTS + n, 50 + n), tmp_path) for n in range(FILES)}
    hub.commit(REPO, {**repository, **more}, "v2")
    return {"source": {"revision": "v2"}}


@pytest.mark.parametrize("options", [{}, {"val": "nanogpt"}, {"keep_raw": True}], ids=str)
def test_files_of_another_revision_are_not_taken_for_this_one(
    hub: FakeHub, tmp_path: Path, second: dict[str, Any], options: dict[str, Any]
) -> None:
    wanted, out = made(tmp_path / "wanted", **options), tmp_path / "out"
    for source in ({}, second):
        killed(out, "overnight.data.planning.estimate", **options, **source)
    assert made(out, **options) == wanted


def test_what_is_refused_leaves_the_commit_as_it_was(
    hub: FakeHub, tmp_path: Path, second: dict[str, Any], expected: dict[str, str]
) -> None:
    out = tmp_path / "out"
    killed(out, "overnight.data.prepare.merge_bins")
    with pytest.raises(UserError, match="was begun with other settings"):
        made(out, **second)
    with pytest.raises(UserError, match="was begun from the name 'fineweb-edu'"):
        made(out, f"hub:{REPO}", {"config": "sample-10BT"})
    hub.branches[REPO]["main"] = hub.branches[REPO]["v2"]
    assert made(out) == expected


def test_a_manifest_that_says_too_little_is_one_line(hub: FakeHub, tmp_path: Path, expected: dict[str, str]) -> None:
    made(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    del content["sources"][0]["converted"]
    for text in (json.dumps(content), "[]"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"state of the source|does not describe a dataset"):
            made(tmp_path)


def test_a_part_is_cut_where_its_file_has_gone(hub: FakeHub, tmp_path: Path) -> None:
    options: dict[str, Any] = {"limit_tokens": 9000}
    wanted, out = made(tmp_path / "wanted", **options), tmp_path / "out"
    killed(out, "overnight.data.gathering.Gathering._limited", **options)
    shutil.rmtree(out / ".work" / "raw")
    assert made(out, **options) == wanted


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_random(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, out = Random(workers), tmp_path / "out"
    with serving() as server:
        files = {f"{n}.parquet": parquet(texts(70, n, words=2500), tmp_path) for n in range(3)}
        server.commit("me/some", files)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        command = [sys.executable, "-m", "overnight", "prepare", "hub:me/some", "--workers", str(workers), "--out"]
        wanted = made(tmp_path / "expected", "hub:me/some")
        server.pause = 0.02  # a file takes more than a second
        kills = 0
        while kills < 1 + workers:
            process = subprocess.Popen([*command, str(out)], env=environment(), stdout=subprocess.DEVNULL)
            while not any(path.stat().st_size for path in out.glob(".work/hub/*.incomplete")) and not kills:
                assert process.poll() is None
                time.sleep(0.01)
            time.sleep(draw.uniform(0.1, 0.4) if not kills else draw.uniform(1.0, 3.0))
            live = process.poll() is None and not (out / "manifest.json").exists()
            process.kill()
            process.wait()
            if not live:
                break
            assert process.returncode == -signal.SIGKILL
            kills += 1
        server.pause = 0
        subprocess.run([*command, str(out)], env=environment(), check=True, stdout=subprocess.DEVNULL)
        assert kills and contents(out) == wanted
        resumed = [seen.range for seen in server.seen if seen.place == "cdn" and seen.range]
        assert resumed  # a file that was half there was not fetched from its beginning


# -- the cache of huggingface_hub, and without a network


def in_cache(home: Path, repository: dict[str, bytes], commit: str, only: str = "") -> list[Path]:
    """Files as huggingface_hub leaves them."""
    base, found = home / "hub" / ("datasets--" + REPO.replace("/", "--")), []
    (base / "refs").mkdir(parents=True)
    (base / "blobs").mkdir()
    (base / "refs" / "main").write_text(commit)
    for name, content in repository.items():
        if only in name:
            digest = hashlib.sha256(content) if name.endswith(".parquet") else hashlib.sha1(b"blob %d\0" % len(content))
            if not name.endswith(".parquet"):
                digest.update(content)
            blob, link = base / "blobs" / digest.hexdigest(), base / "snapshots" / commit / name
            blob.write_bytes(content)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
            found.append(link)
    return found


def test_the_cache_is_used_and_left_alone(
    hub: FakeHub, tmp_path: Path, expected: dict[str, str], repository: dict[str, bytes]
) -> None:
    names = ["000_00000.parquet", "001_00000.parquet", "002_00000.parquet"]
    commit = hub.branches[REPO]["main"]
    good, *_ = in_cache(tmp_path / "home", repository, commit, "sample/10BT/00")
    good.with_name(names[1]).resolve().write_bytes(bytes(len(repository[f"sample/10BT/{names[1]}"])))
    assert made(tmp_path / "out") == expected
    assert sorted(hub.fetched()) == [f"sample/10BT/{names[1]}"]  # what is not whole is fetched
    assert good.read_bytes() == repository[f"sample/10BT/{names[0]}"]


def test_offline(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    expected: dict[str, str],
    repository: dict[str, bytes],
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, and .* is not in the cache"):
        made(tmp_path / "out")
    in_cache(tmp_path / "home", repository, hub.branches[REPO]["main"])
    source = open_source("fineweb-edu")
    prepare(source, tmp_path / "out", PrepareOptions(workers=1))
    assert contents(tmp_path / "out") == expected and not hub.seen
    assert any("only what the cache" in note for note in source.notes)
    by_rows = made(tmp_path / "rows", val="nanogpt")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    shutil.rmtree(tmp_path / "home")
    assert made(tmp_path / "rows from the hub", val="nanogpt") == by_rows


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


def test_an_unfinished_folder_of_a_stranger_leads_nowhere_else(hub: FakeHub, tmp_path: Path) -> None:
    outside = tmp_path / "mine.parquet"
    outside.write_bytes(b"mine")
    hub.fault = nth(*range(100), fault=Fault(404), place="cdn")
    with pytest.raises(UserError):
        made(tmp_path / "out")
    pin = tmp_path / "out" / ".work" / "hub" / "source.json"
    pin.write_text(pin.read_text().replace("sample/10BT/000_00000.parquet", "../../../mine.parquet"))
    hub.fault = lambda seen: None
    with pytest.raises(UserError, match="it is not to be trusted"):
        made(tmp_path / "out")
    assert outside.read_bytes() == b"mine"
