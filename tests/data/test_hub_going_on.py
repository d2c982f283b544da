"""From a hub: interrupted, begun by others, with the cache of huggingface_hub, and without a network."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from corpora import contents, environment, texts
from hub_corpus import DOCUMENTS, FILES, REPO, made, nth, parquet
from hub_server import FakeHub, Fault, serving

from overnight.data.meter import Quiet
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.errors import UserError

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


UNKEPT = "what was downloaded was not kept"


class Said(Quiet):
    """Keeps what the user is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str = "") -> None:
        self.lines.append(text)


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


def test_a_complete_folder_needs_no_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, str]
) -> None:
    made(tmp_path / "out")
    hub.seen.clear()
    assert made(tmp_path / "out") == expected and not hub.seen
    with pytest.raises(UserError, match="--seed 1, there 0"):
        made(tmp_path / "out", seed=1)
    assert not hub.seen
    said = Said()
    prepare(open_source("fineweb-edu"), tmp_path / "out", PrepareOptions(keep_raw=True), said)
    assert said.lines == [f"{tmp_path / 'out'} is complete already, with these settings: nothing to do; " + UNKEPT]


@pytest.mark.parametrize("first", [False, True])
def test_files_are_kept_from_when_it_is_asked_for_until_it_is_not(
    hub: FakeHub, tmp_path: Path, expected: dict[str, str], first: bool
) -> None:
    out, names = tmp_path / "out", {f"sample/10BT/{number:03d}_00000.parquet" for number in range(FILES)}
    killed(out, "overnight.data.planning.estimate", keep_raw=first)  # one file is here, and none tokenized
    here = set(hub.fetched())
    hub.seen.clear()
    found = made(out, keep_raw=not first)
    assert len(here) == 1 and set(hub.fetched()) == names - here
    kept = {name.removeprefix("raw/") for name in found if name.startswith("raw/")}
    assert kept == (here if first else names)
    assert {name: digest for name, digest in found.items() if not name.startswith("raw/")} == expected


def test_what_is_not_downloaded_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--keep-raw is for data sets of the hub"):
        prepare(open_source("stdlib"), tmp_path / "out", PrepareOptions(keep_raw=True))


def test_what_was_tokenized_before_it_was_to_be_kept_is_told(
    hub: FakeHub, tmp_path: Path, expected: dict[str, str]
) -> None:
    killed(tmp_path / "out", "overnight.data.prepare.merge_bins")
    hub.seen.clear()
    said = Said()
    prepare(open_source("fineweb-edu"), tmp_path / "out", PrepareOptions(workers=1, keep_raw=True), said)
    assert f"{FILES} files were tokenized before --keep-raw was given: they are not in" in "\n".join(said.lines)
    assert contents(tmp_path / "out") == expected and not hub.fetched()


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
