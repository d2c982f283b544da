"""From a hub: whatever the network does, the same bytes, or one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_corpus import REPO, made, nth
from hub_server import FakeHub, Fault

from overnight.data.sources import open_source
from overnight.errors import UserError

# -- what goes wrong


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
