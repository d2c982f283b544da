"""`bpe:SIZE`: byte-level byte-pair encoding trained on the corpus, stored as a Hugging Face tokenizer.json.

The library `tokenizers` trains; tiktoken encodes, which is several times faster and gives the same ids: with merges
as training makes them, the lowest rank first and the listed pairs in order are the same rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from overnight.errors import UserError
from overnight.tokenizers.base import END_OF_TEXT, repair
from overnight.tokenizers.byte_level import BYTE_OF, ByteLevelTokenizer, names_of, ranks_of

SMALLEST = 257  # 256 bytes and end of text
CUT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}  # how text is cut before merges
LARGEST = 1_000_000  # far beyond any vocabulary in use: a slip of the finger


def size_of(name: str) -> int:
    """4096 for "bpe:4096". Raises UserError where that is no size of a vocabulary."""
    digits = name.partition(":")[2]
    if not (digits.isascii() and digits.isdigit()) or digits.startswith("0"):
        raise UserError(f"tokenizer '{name}': write it as bpe:SIZE with the number of ids, as in bpe:4096")
    if len(digits) > 9 or not SMALLEST <= int(digits) <= LARGEST:
        raise UserError(
            f"tokenizer '{name}': the size must be from {SMALLEST} (256 bytes and {END_OF_TEXT}) to {LARGEST}"
        )
    return int(digits)


class BPETokenizer(ByteLevelTokenizer):
    """The merges of a tokenizer.json at work: 256 bytes, SIZE - 257 merges, end of text (SIZE - 1)."""

    def __init__(self, name: str, content: str) -> None:
        super().__init__(name, size_of(name))
        self._content = content

    @classmethod
    def train(cls, name: str, texts: Iterable[str]) -> BPETokenizer:
        """Learns the merges from `texts`; the same texts in the same order give the same merges.

        Raises UserError where the texts have too few different pairs for that many ids.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        size = size_of(name)
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size - 1, initial_alphabet=list(BYTE_OF), show_progress=False)
        model.train_from_iterator((_encodable(text) for text in texts), trainer)
        found = model.get_vocab_size() + 1
        if found != size:
            raise UserError(f"tokenizer '{name}': the text gives only {found} ids; use bpe:{found}, or more text")
        # In the vocabulary as well as among the added tokens, as in GPT-2's own file, so that others count it.
        stored = json.loads(model.to_str())
        stored["model"]["vocab"][END_OF_TEXT] = size - 1
        model = Tokenizer.from_str(json.dumps(stored))
        model.add_special_tokens([END_OF_TEXT])
        return cls(name, model.to_str(pretty=True) + "\n")

    @classmethod
    def from_json(cls, name: str, content: str) -> BPETokenizer:
        """The inverse of `to_json`. Raises UserError where `content` is not what `train` writes."""
        tokenizer = cls(name, content)
        tokenizer.check()
        return tokenizer

    def __reduce__(self) -> tuple[type[BPETokenizer], tuple[str, str]]:
        return BPETokenizer, (self.name, self._content)

    def to_json(self) -> str:
        return self._content

    def difference(self) -> str:
        """What tokenizer.json says that this class does not do; empty where there is nothing."""
        try:
            return _difference(json.loads(self._content), self.merges, self.vocab_size)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return repr(error)

    def check(self) -> None:
        """Raises UserError where there is a `difference`."""
        if reason := self.difference():
            raise UserError(f"not the byte-level BPE tokenizer '{self.name}' ({reason}); prepare the dataset again")

    def _ranks(self) -> dict[bytes, int]:
        return ranks_of(self.merges)

    @cached_property
    def merges(self) -> list[tuple[str, str]]:
        merges = json.loads(self._content)["model"]["merges"]
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
        return [(left, right) for left, right in pairs]


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return repair(text)
    return text


def _difference(stored: dict[str, Any], merges: list[tuple[str, str]], size: int) -> str:
    """What keeps a tokenizer.json from being GPT-2's algorithm with these merges; empty where nothing does."""
    model, cut, after = stored["model"], stored["pre_tokenizer"] or {}, stored["post_processor"]
    names = names_of(merges)
    special = [(token["content"], token["id"]) for token in stored["added_tokens"]]
    spaces = [token[flag] for token in stored["added_tokens"] for flag in ("lstrip", "rstrip", "single_word")]
    expected = [
        (model["type"], "BPE", "model"),
        (len(names), size, "number of ids"),
        (model["vocab"], {name: i for i, name in enumerate(names)}, "vocabulary in the order of the merges"),
        (special, [(END_OF_TEXT, size - 1)], "added tokens"),
        (any(spaces), False, "rule for the spaces around added tokens"),
        (stored["normalizer"], None, "normalizer"),
        ([cut.get(key) for key in CUT], list(CUT.values()), "pre-tokenizer"),
        (after is None or after["type"] == "ByteLevel", True, "post-processor"),  # it moves offsets, and adds no ids
        ((stored["decoder"] or {}).get("type"), "ByteLevel", "decoder"),
        (model["continuing_subword_prefix"] or model["end_of_word_suffix"] or "", "", "prefix or suffix of subwords"),
        (model["dropout"], None, "dropout"),
        (model["ignore_merges"], False, "ignore_merges"),
    ]
    ranks_of(merges)  # every name is one of bytes
    return next((f"another {what}" for found, wanted, what in expected if found != wanted), "")
