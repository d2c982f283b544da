"""Our tokenizers as a GGUF file describes them to llama.cpp: the same ids for the same text.

What llama.cpp does with a description was read in its src/llama-vocab.cpp, in the version of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from overnight.errors import UserError
from overnight.exchange.tokenizer_files import names
from overnight.tokenizers import END_OF_TEXT, Tokenizer
from overnight.tokenizers.bpe import BPETokenizer
from overnight.tokenizers.byte_level import BYTE_OF, ByteLevelTokenizer
from overnight.tokenizers.gpt2 import GPT2Tokenizer
from overnight.tokenizers.simple import BytesTokenizer, CharTokenizer

BYTE_PAIRS, TRIE = "gpt2", "rwkv"  # llama.cpp's names of byte-level BPE, and of the longest token that fits
NO_MERGE = (END_OF_TEXT, END_OF_TEXT)  # the list must not be empty; text is never cut into symbols of this name
KNOWN = (GPT2Tokenizer, BPETokenizer, BytesTokenizer, CharTokenizer)  # and none that is derived from them
NAME_OF = {byte: name for name, byte in BYTE_OF.items()}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms."""

    model: str
    tokens: list[str]
    """Of each id, end of text included."""
    merges: list[tuple[str, str]] = field(default_factory=list)
    end_of_text: int | None = None


def describe(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """The tokenizer of a model with `rows` rows: llama.cpp counts them by tokens, so more rows than ids get names.

    Raises UserError where llama.cpp has nothing that gives the tokenizer's ids.
    """
    found = _describe(tokenizer)
    if found.model == TRIE and rows > tokenizer.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} characters, the model {rows} rows, and llama.cpp would take the "
            "names of the others for text"
        )
    return replace(found, tokens=found.tokens + [f"[PAD{i}]" for i in range(len(found.tokens), rows)])


def _describe(tokenizer: Tokenizer) -> Vocabulary:
    if type(tokenizer) not in KNOWN:
        raise UserError(
            f"llama.cpp has no tokenizer such as {tokenizer.name}: GGUF is written for gpt2, bpe:SIZE, bytes and chars"
        )
    if isinstance(tokenizer, CharTokenizer) and tokenizer.end_of_text is None:
        return Vocabulary(TRIE, _escaped(tokenizer.characters))
    if isinstance(tokenizer, CharTokenizer):
        tokens, merges = _characters(tokenizer.characters)
    else:
        tokens = names(tokenizer) or []
        merges = tokenizer.merges if isinstance(tokenizer, ByteLevelTokenizer) else []
    return Vocabulary(BYTE_PAIRS, tokens, merges or [NO_MERGE], tokenizer.end_of_text)


def _characters(characters: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges that build each character from its bytes, from the first on.

    What they make on the way is no token; it never stays, for no other character has those bytes in its middle.
    """
    own = ["".join(NAME_OF[byte] for byte in character.encode()) for character in characters]
    merges = {(name[:end], name[end]): None for name in own for end in range(1, len(name))}
    return [*own, END_OF_TEXT], list(merges)


def _escaped(characters: str) -> list[str]:
    """Tokens for llama.cpp's trie, the one that does not need an end of text.

    Byte-level BPE takes the token 11 for it where there is none. The trie never returns from a text in which a
    character is unknown and begins with the same byte as a known one: this is why it is for ASCII alone.
    """
    foreign = next((character for character in characters if not character.isascii()), None)
    if foreign is not None:
        raise UserError(
            f"llama.cpp has no tokenizer for characters beyond ASCII ({foreign!r}) without an end of text: "
            "train with bytes or bpe:SIZE, or on more than one document, for GGUF"
        )
    return [c if c.isprintable() and c != "\\" else f"\\x{ord(c):02x}" for c in characters]
