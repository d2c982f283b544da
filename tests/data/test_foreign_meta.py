"""nanoGPT's meta.pkl: characters with the same ids; nothing in it is ever run, and little memory is taken."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from corpora import environment
from hypothesis import given, settings
from hypothesis import strategies as st
from token_files import chars_meta

from overnight.data.foreign import meta as module
from overnight.data.foreign.meta import read_meta, write_meta
from overnight.errors import UserError
from overnight.tokenizers import CharTokenizer, train


def written(folder: Path, content: bytes) -> Path:
    path = folder / "meta.pkl"
    path.write_bytes(content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_meta(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


# ---- what it says


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_characters_keep_their_ids_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    text = "hello wörld 日本 🙂\n'\\"
    meta = chars_meta(text)
    tokenizer = read_meta(written(tmp_path, pickle.dumps(meta, protocol)))
    assert tokenizer.encode(text).tolist() == [meta["stoi"][character] for character in text]  # type: ignore[index]
    assert tokenizer.decode(range(tokenizer.vocab_size)) == "".join(meta["itos"].values())  # type: ignore[attr-defined]


def test_the_order_of_the_ids_is_the_files_own(tmp_path: Path) -> None:
    meta = {"vocab_size": 3, "stoi": {"b": 0, "c": 1, "a": 2}, "itos": {0: "b", 1: "c", 2: "a"}}
    assert read_meta(written(tmp_path, pickle.dumps(meta))).encode("abc").tolist() == [2, 0, 1]


def test_all_65536_ids_fit(tmp_path: Path) -> None:
    text = "".join(chr(code) for code in range(0x20, 0x20000) if not 0xD800 <= code < 0xE000)[: 1 << 16]
    assert read_meta(written(tmp_path, pickle.dumps(chars_meta(text)))).vocab_size == 1 << 16


@pytest.mark.parametrize("end_of_text", [False, True])
def test_what_is_written_is_what_nanogpt_reads_and_reads_back(tmp_path: Path, end_of_text: bool) -> None:
    path, tokenizer = tmp_path / "meta.pkl", CharTokenizer("cab\n", end_of_text)
    write_meta(path, tokenizer)
    meta = pickle.loads(path.read_bytes())
    ids = tokenizer.encode("abba\n").tolist()
    assert [meta["stoi"][character] for character in "abba\n"] == ids
    assert "".join(meta["itos"][i] for i in ids) == "abba\n"
    assert meta["vocab_size"] == len(meta["itos"]) == 4 + end_of_text
    assert read_meta(path).to_json() == tokenizer.to_json()


def test_other_tokenizers_leave_the_number_of_ids(tmp_path: Path) -> None:
    write_meta(tmp_path / "meta.pkl", train("bytes", ()))
    assert pickle.loads((tmp_path / "meta.pkl").read_bytes()) == {"vocab_size": 257}
    assert read_meta(tmp_path / "meta.pkl").name == "ids:257"


AB = {"stoi": {"a": 0, "b": 1}, "itos": {0: "a", 1: "b"}}


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        ([1, 2], "holds a list"),
        (None, "holds a NoneType"),
        ({}, "vocab_size is not a whole number"),
        ({"vocab_size": 0}, "vocab_size is not a whole number"),
        ({"vocab_size": True}, "vocab_size is not a whole number"),
        ({"vocab_size": 65537}, "vocab_size is not a whole number"),
        ({"vocab_size": "3"}, "vocab_size is not a whole number"),
        ({**AB}, "vocab_size is not 2"),
        ({**AB, "vocab_size": 3}, "vocab_size is not 2"),
        ({**AB, "vocab_size": 2, "stoi": {"a": 0}}, "do not number the same"),
        ({**AB, "vocab_size": 2, "stoi": {"a": 0, "b": 2}}, "do not number the same"),
        ({**AB, "vocab_size": 2, "stoi": {"a": False, "b": True}}, "do not number the same"),
        ({**AB, "vocab_size": 2, "itos": {0: "a", 2: "b"}}, "do not number the same"),
        ({**AB, "vocab_size": 2, "itos": {False: "a", True: "b"}}, "do not number the same"),
        ({**AB, "vocab_size": 2, "itos": ["a", "b"]}, "not both dicts"),
        ({"vocab_size": 2, "stoi": AB["stoi"]}, "not both dicts"),
        ({"vocab_size": 0, "stoi": {}, "itos": {}}, "do not number the same"),
        ({"vocab_size": 2, "stoi": {"ab": 0, "c": 1}, "itos": {0: "ab", 1: "c"}}, "more than single characters"),
        ({"vocab_size": 2, "stoi": {"": 0, "c": 1}, "itos": {0: "", 1: "c"}}, "more than single characters"),
        ({"vocab_size": 1, "stoi": {"\ud800": 0}, "itos": {0: "\ud800"}}, "more than single characters"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, meta: object, told: str) -> None:
    assert told in refused(written(tmp_path, pickle.dumps(meta)))


# ---- attacks: hand-made, since pickle.dump makes none of them

COMMAND = b"echo hurt > PLANTED"
LAUGHS = b"]q\x00" + b"".join(b"(h%ch%clq%c" % (n, n, n + 1) for n in range(99))  # 2**99 lists to whoever counts
ATTACKS: dict[str, bytes] = {
    "global and reduce": b"cos\nsystem\n(V" + COMMAND + b"\ntR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(COMMAND)]) + COMMAND + b"\x85R.",
    "inst": b"(V" + COMMAND + b"\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nV" + COMMAND + b"\no.",
    "newobj": b"\x80\x02cos\nsystem\nV" + COMMAND + b"\n\x85\x81.",
    "newobj_ex": b"\x80\x04cos\nsystem\nV" + COMMAND + b"\n\x85}\x92.",
    "build": b"\x80\x02}}V__setstate__\ncos\nsystem\nsb.",
    "ext1": b"\x80\x02\x82\x01.",
    "ext2": b"\x80\x02\x83\x01\x00.",
    "ext4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "persistent id": b"Pos.system\n.",
    "binary persistent id": b"Vx\nQ.",
    "behind a harmless table": pickle.dumps({"vocab_size": 3})[:-1] + b"0cos\nsystem\n(V" + COMMAND + b"\ntR.",
    "after its end": pickle.dumps([1]) + b"cos\nsystem\n(V" + COMMAND + b"\ntR.",
    "within a frame that claims more": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fcos\nsystem\n(V"
    + COMMAND
    + b"\ntR.",
    "deep nesting": b"(" * 100_000 + b".",
    "deep lists": b"]" * 100_000 + b"a" * 99_999 + b".",
    "deep dicts": b"}" + b"K\x00}" * 60_000 + b"s" * 60_000 + b".",
    "many small objects": b"(" + b"]" * (7 << 20) + b"l.",
    "long4 with a huge length": b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",
    "long of many digits": b"L" + b"9" * 4_000_000 + b"L\n.",
    "int of many digits": b"I" + b"9" * 4_000_000 + b"\n.",
    "a text that claims 2**62 bytes": b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b"x.",
    "a text that claims 4 GB": b"\x80\x02X\xff\xff\xff\xffx.",
    "bytes that claim 2**62": b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b"x.",
    "a huge memo number": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a huge memo number in text": b"}p4000000000\n.",
    "a negative memo number": b"}p-1\n.",
    "billions of laughs by dup": b"]" + b"2a" * 60_000 + b".",
    "billions of laughs by the memo": LAUGHS + b".",
    "billions of laughs as a value": b"}Vvocab_size\n(" + LAUGHS + b"ls.",
    "billions of laughs as a character": b"}Vstoi\n}sVitos\n}K\x00(" + LAUGHS + b"lss.",
    "nested tuples as a key": b"})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(64)) + b"K\x01s.",
    "larger than any": b"]" * ((8 << 20) + 1),
    "nothing": b"",
    "no end": b"}",
    "an end alone": b".",
    "text": b"<html>404</html>",
    "unhashable keys": b"}]K\x01s.",
    "a mark that is not there": b"}u.",
}

CHILD = """
import json, sys, tracemalloc
from pathlib import Path
from overnight.data.foreign.meta import read_meta
from overnight.errors import UserError

tracemalloc.start()
told = {}
for path in map(Path, sys.argv[1:]):
    tracemalloc.reset_peak()
    try:
        told[path.name] = [repr(read_meta(path)), 0]
    except UserError as error:
        told[path.name] = [str(error), tracemalloc.get_traced_memory()[1]]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list[str | int]], list[str]]:
    """What each attack was told and the most memory it took, and the files there afterwards."""
    folder = tmp_path_factory.mktemp("attacks")
    paths = [folder / f"{number}.pkl" for number in range(len(ATTACKS))]
    for path, content in zip(paths, ATTACKS.values(), strict=True):
        path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)],
        **{"capture_output": True, "text": True, "check": True, "cwd": folder, "env": environment(), "timeout": 100},
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert done.stderr == ""
    by_name = {name: told[path.name] for name, path in zip(ATTACKS, paths, strict=True)}
    return by_name, sorted(path.name for path in folder.iterdir() if path not in paths)


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_one_line_and_little_memory(
    attacked: tuple[dict[str, list[str | int]], list[str]], name: str
) -> None:
    told, memory = attacked[0][name]
    assert isinstance(told, str)
    assert ".pkl" in told
    assert "\n" not in told
    assert len(told) < 500
    assert int(memory) < 200 << 20


def test_no_attack_ran_anything(attacked: tuple[dict[str, list[str | int]], list[str]]) -> None:
    assert attacked[1] == []


def test_the_attacks_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pickle itself would have done."""
    monkeypatch.chdir(tmp_path)
    for name in ("global and reduce", "stack global", "inst", "obj"):
        pickle.loads(ATTACKS[name])
        (tmp_path / "PLANTED").unlink()


@settings(deadline=None, max_examples=300, derandomize=True)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), protocol=st.sampled_from([0, 2, 4]))
def test_any_changed_byte_gives_characters_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int, protocol: int
) -> None:
    content = bytearray(pickle.dumps(chars_meta("hello, world"), protocol))
    content[position % len(content)] = value
    path = written(tmp_path_factory.getbasetemp(), bytes(content))
    try:
        tokenizer = read_meta(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert tokenizer.vocab_size > 0
        assert np.array_equal(tokenizer.encode(tokenizer.decode([0])), [0])


def test_the_second_lock_holds_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALLOWED", {*module.ALLOWED, "GLOBAL", "TUPLE", "REDUCE", "UNICODE"})
    monkeypatch.chdir(tmp_path)
    assert "names os.system" in refused(written(tmp_path, ATTACKS["global and reduce"]))
    assert not (tmp_path / "PLANTED").exists()
