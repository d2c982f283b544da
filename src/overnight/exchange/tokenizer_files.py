"""Our tokenizers as the files that transformers' AutoTokenizer loads, with the same ids for every text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from overnight.files import write_atomic, write_json
from overnight.tokenizers import END_OF_TEXT, Tokenizer
from overnight.tokenizers.bpe import BPETokenizer
from overnight.tokenizers.byte_level import BYTE_OF
from overnight.tokenizers.gpt2 import MERGES, GPT2Tokenizer
from overnight.tokenizers.simple import BytesTokenizer, CharTokenizer

BYTE_LEVEL = (GPT2Tokenizer, BPETokenizer, BytesTokenizer)


def names(tokenizer: Tokenizer) -> list[str] | None:
    """What each id is called in these files, in the order of ids; None for a tokenizer that they cannot express."""
    if isinstance(tokenizer, CharTokenizer):
        own = list(tokenizer.characters)
    elif isinstance(tokenizer, BYTE_LEVEL):
        of_byte = {byte: name for name, byte in BYTE_OF.items()}
        ids = [i for i in range(tokenizer.vocab_size) if i != tokenizer.end_of_text]
        own = ["".join(of_byte[byte] for byte in tokenizer.decode_bytes([i])) for i in ids]
    else:
        return None
    return own + [END_OF_TEXT] * (tokenizer.end_of_text is not None)  # it is always the last


def write(tokenizer: Tokenizer, folder: Path, block_size: int) -> bool:
    """Writes a tokenizer's files into `folder`; False where they cannot express it, and nothing is written."""
    own = names(tokenizer)
    if own is None:
        return False
    content = tokenizer.to_json() if isinstance(tokenizer, BPETokenizer) else to_json(tokenizer, own)
    write_atomic(folder / "tokenizer.json", content)
    is_gpt2 = isinstance(tokenizer, GPT2Tokenizer)
    if is_gpt2:  # what older readers of GPT-2 look for
        write_json(folder / "vocab.json", {name: i for i, name in enumerate(own)})
        write_atomic(folder / "merges.txt", MERGES.read_bytes())
    roles = ["bos_token", "eos_token"] + ["unk_token"] * is_gpt2
    special = dict.fromkeys(roles, END_OF_TEXT) if tokenizer.end_of_text is not None else {}
    write_json(folder / "special_tokens_map.json", special)
    settings = {"add_prefix_space": False} if is_gpt2 else {}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GPT2Tokenizer" if is_gpt2 else "PreTrainedTokenizerFast",
            **special,
            **settings,
            "clean_up_tokenization_spaces": False,
            "model_max_length": block_size,
        },
    )
    return True


def to_json(tokenizer: Tokenizer, own: list[str]) -> str:
    """The content of tokenizer.json; `own` are its `names`."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    vocabulary = {name: i for i, name in enumerate(own)}
    if isinstance(tokenizer, CharTokenizer):
        # Each codepoint is a word. One that is not known is an error, as it is here: there is no id for it.
        library = Library(models.WordLevel(vocabulary))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        library.decoder = decoders.Fuse()
    else:
        library = Library(models.BPE(vocabulary, tokenizer.merges if isinstance(tokenizer, GPT2Tokenizer) else []))
        cut = isinstance(tokenizer, GPT2Tokenizer)
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut)
        library.decoder = decoders.ByteLevel()
    if tokenizer.end_of_text is not None:
        library.add_special_tokens([END_OF_TEXT])
    return str(library.to_str(pretty=True)) + "\n"


def from_json(content: str) -> Tokenizer | None:
    """The bytes or chars tokenizer whose tokenizer.json this is; None where it is none that `to_json` writes."""
    stored: dict[str, Any] = json.loads(content)
    known = sorted(stored["model"]["vocab"].items(), key=lambda item: item[1])
    own = [name for name, _ in known]
    end = own[-1:] == [END_OF_TEXT]
    candidates: list[Tokenizer] = [BytesTokenizer()]
    if all(len(name) == 1 for name in own[: len(own) - end]):
        candidates.append(CharTokenizer("".join(own[: len(own) - end]), end))
    return next((one for one in candidates if json.loads(to_json(one, names(one) or [])) == stored), None)
