"""Tokenizers: `gpt2`, `bytes`, `chars`, `bpe:SIZE`, `ids:SIZE`, or one's own.

`train` makes one by name, `load` brings back the one that a dataset was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from overnight.errors import UserError, suggestion
from overnight.plugins import imported, require_trust
from overnight.tokenizers.base import END_OF_TEXT, Ids, Tokenizer, dtype_for, prompt_ids, repair
from overnight.tokenizers.bpe import BPETokenizer, size_of
from overnight.tokenizers.byte_level import ByteLevelTokenizer
from overnight.tokenizers.gpt2 import GPT2Tokenizer
from overnight.tokenizers.simple import BytesTokenizer, CharTokenizer, IdsTokenizer, ids_size

__all__ = [
    "END_OF_TEXT",
    "TOKENIZERS",
    "CharTokenizer",
    "Factory",
    "Ids",
    "IdsTokenizer",
    "Tokenizer",
    "dtype_for",
    "load",
    "loads",
    "needs_texts",
    "prompt_ids",
    "repair",
    "same_ids",
    "train",
]


def _plain(name: str) -> None:
    if ":" in name:
        kind = name.partition(":")[0]
        raise UserError(f"tokenizer '{name}': {kind} has no size; write '{kind}'")


@dataclass(frozen=True)
class Factory:
    """How the tokenizers of one name are made. An import path (`my_package.module:factory`) names one of these.

    A tokenizer that it makes has the name it was asked for: that is what finds the factory again.
    """

    train: Callable[[str, Iterable[str], bool], Tokenizer]  # (name, texts, end_of_text)
    load: Callable[[str, str | None], Tokenizer]  # (name, what `to_json` gave)
    needs_texts: bool = False
    check: Callable[[str], object] = lambda name: None  # raises UserError for a name that makes no sense


TOKENIZERS: dict[str, Factory] = {
    "gpt2": Factory(lambda *_: GPT2Tokenizer(), lambda *_: GPT2Tokenizer(), check=_plain),
    "bytes": Factory(lambda *_: BytesTokenizer(), lambda *_: BytesTokenizer(), check=_plain),
    "chars": Factory(
        lambda name, texts, end_of_text: CharTokenizer.of(texts, end_of_text),
        lambda name, content: CharTokenizer.from_json(_required(name, content)),
        needs_texts=True,
        check=_plain,
    ),
    "bpe": Factory(
        lambda name, texts, end_of_text: BPETokenizer.train(name, texts),
        lambda name, content: BPETokenizer.from_json(name, _required(name, content)),
        needs_texts=True,
        check=size_of,
    ),
    "ids": Factory(lambda name, *_: IdsTokenizer(name), lambda name, _: IdsTokenizer(name), check=ids_size),
}


def train(name: str, texts: Iterable[str], *, end_of_text: bool = True) -> Tokenizer:
    """Makes the tokenizer called `name`, from `texts` where it `needs_texts`.

    `chars` needs all texts of the corpus; `bpe:SIZE` a sample, which the caller bounds (memory is about that of its
    different words). `end_of_text=False` makes `chars` without an end of text, exactly as nanoGPT's; the
    others always have one. Raises UserError for an unknown name, a bad size, or too little text.
    """
    return _factory(name).train(name, texts, end_of_text)


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether they give the same ids for every text. How a tokenizer.json is laid out says nothing of that."""
    if isinstance(one, ByteLevelTokenizer) and isinstance(other, ByteLevelTokenizer):
        return one.merges == other.merges  # all else follows from them
    return (one.name, one.to_json()) == (other.name, other.to_json())


def needs_texts(name: str) -> bool:
    """Whether `train` reads its texts: False for `gpt2` and `bytes`. Raises UserError for a bad name."""
    return _factory(name).needs_texts


def load(name: str, file: Path | None, *, trusted: bool = False) -> Tokenizer:
    """The tokenizer that a dataset or a run was made with: `name` from its manifest, `file` its tokenizer.json.

    `file` is None where there is none. Raises UserError for an unknown name and a missing or broken file.

    An import path (`my_package.module:factory`) is code, and the folder that names it may be a stranger's. So it is
    imported only where the user wrote the name himself (`trusted`), or where the environment variable OVERNIGHT_TRUST
    lists it: names, separated by commas. Otherwise it is a UserError that says so.
    """
    if not (trusted or _is_own(name)):
        require_trust("tokenizer", name)
    factory = _factory(name)
    try:
        content = None if file is None else file.read_text(encoding="utf-8")
        return factory.load(name, content)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the tokenizer '{name}' from {file}: {error}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None if file is not None else error


def loads(name: str, content: str) -> Tokenizer:
    """The tokenizer `name` from the content of its tokenizer.json, for names that need no import."""
    if not _is_own(name):
        raise UserError(f"tokenizer {name!r} is an import path, which only a file of overnight's own may name")
    return _factory(name).load(name, content)


def _required(name: str, content: str | None) -> str:
    if content is None:
        raise UserError(
            f"tokenizer '{name}' comes with a file tokenizer.json, and there is none; prepare the dataset again"
        )
    return content


def _is_own(name: str) -> bool:
    """Whether it is found without importing anything, if at all."""
    return name.partition(":")[0] in TOKENIZERS or ":" not in name


def _factory(name: str) -> Factory:
    factory = TOKENIZERS.get(name.partition(":")[0]) if _is_own(name) else _imported(name)
    if factory is None:
        known = ["gpt2", "bytes", "chars", "bpe:SIZE", "ids:SIZE"]
        raise UserError(f"there is no tokenizer '{name}'{suggestion(name, known)}; there are {', '.join(known)}")
    factory.check(name)
    return factory


def _imported(path: str) -> Factory:
    """The Factory at an import path that the caller trusts; nothing but the import is executed."""
    found = imported("tokenizer", path)
    if not isinstance(found, Factory):
        raise UserError(f"tokenizer '{path}' is a {type(found).__name__}, not an overnight.tokenizers.Factory")
    return found
