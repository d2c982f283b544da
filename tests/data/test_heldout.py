"""--val nanogpt: validation is the rows that nanoGPT's prepare.py takes, wherever the files lie."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import ListSource, contents, documents, texts, write_jsonl, write_parquet
from hub_server import serving
from hypothesis import given
from hypothesis import strategies as st

from overnight.data.dataset import Manifest
from overnight.data.heldout import HeldOut, nanogpt_rows
from overnight.data.merge import hash_threshold
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import Document, Source, open_source
from overnight.errors import UserError

THRESHOLD = hash_threshold(0.0005)
# what datasets 5.2.0 gave for train_test_split(test_size=0.0005, seed=2357, shuffle=True) of so many rows
TAKEN = {
    2_700: [891, 898],
    100_003: [
        *(458, 741, 9209, 13558, 14211, 15116, 17417, 18186, 18231, 18451, 19725, 20050, 21184),
        *(21307, 22285, 25712, 29705, 34183, 37502, 40945, 47467, 48127, 48928, 49429, 53543, 55111),
        *(58506, 58900, 59549, 60021, 66956, 72315, 73176, 76275, 79745, 80875, 81827, 82411, 85559),
        *(85684, 87824, 88390, 89838, 90066, 91481, 91637, 93464, 94941, 96390, 96760, 99108),
    ],
}


@given(st.sampled_from(sorted(TAKEN)), st.lists(st.floats(0, 1), max_size=6))
def test_rows_of_all_files_in_order(total: int, cuts: list[float]) -> None:
    borders = [0, *sorted(int(cut * total) for cut in cuts), total]
    counts = {f"{n}.parquet": stop - start for n, (start, stop) in enumerate(pairwise(borders))}
    rows, starts = nanogpt_rows(counts, THRESHOLD).rows, dict(zip(counts, borders, strict=False))
    assert sorted(starts[file] + row for file, chosen in rows.items() for row in chosen) == TAKEN[total]


def test_openwebtext_has_as_many_as_in_nanogpt() -> None:
    # 8,013,769 documents, 4,007 of them validation: nanoGPT's data/openwebtext/readme.md and prepare.py
    assert len(nanogpt_rows({"all": 8_013_769}, THRESHOLD).rows["all"]) == 4_007


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.booleans())
def test_keys_keep_their_order_and_tell_the_side(one: int, two: int, held: bool) -> None:
    rule = HeldOut({"f": frozenset([0])}, THRESHOLD)
    document = Document("", "f", 0 if held else 1)
    first, second = (rule.key(document, key) for key in sorted((one, two)))
    assert 0 <= first <= second < 2**64 and (first < THRESHOLD) == (second < THRESHOLD) == held


def made(source: Source, out: Path, **options: Any) -> list[tuple[str, int]]:
    prepare(source, out, PrepareOptions(tokenizer="bytes", val="nanogpt", **options))
    return sorted((document.file, document.row) for document in documents(out) if document.split == "val")


def test_the_same_rows_from_files_and_from_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, counts = tmp_path / "in", (1500, 2600)
    folder.mkdir()
    files = {
        f"{n}.parquet": write_parquet(folder / f"{n}.parquet", texts(count, n, words=3)).read_bytes()
        for n, count in enumerate(counts)
    }
    total = sum(counts)
    chosen = np.random.default_rng(2357).permutation(total)[: math.ceil(0.0005 * total)].tolist()
    wanted = sorted((f"{int(row >= 1500)}.parquet", row - 1500 * (row >= 1500)) for row in chosen)
    assert made(open_source("files", [folder]), tmp_path / "one", workers=1) == wanted
    made(open_source("files", [folder]), tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    manifest = Manifest.read(tmp_path / "one")
    assert manifest.totals["documents"] == total
    assert (manifest.settings["val"], manifest.settings["split"]) == ("nanogpt", "nanogpt")
    with serving() as server:
        server.commit("me/some", files)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        assert made(open_source("hub:me/some"), tmp_path / "hub", workers=1) == wanted
    with pytest.raises(UserError, match="--val None, there nanogpt"):
        prepare(open_source("files", [folder]), tmp_path / "one", PrepareOptions(tokenizer="bytes"))


def test_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only parquet files tell"):
        made(open_source("files", [write_jsonl(tmp_path / "a.jsonl", texts(20))]), tmp_path / "out")
    with pytest.raises(UserError, match="the source 'list' cannot"):
        made(ListSource(texts(20)), tmp_path / "out")
    for options in ({"val_fraction": 0.1}, {"limit_tokens": 1000}, {"dedup": True}, {"min_chars": 1}):
        with pytest.raises(UserError, match=f"does not go with --{next(iter(options)).replace('_', '-')}"):
            PrepareOptions(val="nanogpt", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="there is only nanogpt"):
        PrepareOptions(val="other")
