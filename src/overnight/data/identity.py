"""Which text a dataset holds out, whatever tokenizer it is in: so that losses are compared on one text only."""

from __future__ import annotations

import hashlib
from typing import Any

from overnight.data.dataset import Manifest, load_tokenizer, open_shards
from overnight.loader import TokenStream

HEAD = 1 << 20  # bytes of text that are hashed: reading a large split whole would take too long at every start
PIECE = 1 << 16  # tokens decoded at once


def identity(manifest: Manifest) -> dict[str, Any]:
    """The dataset's tokenizer and text, as attempts.jsonl has them.

    `validation` is None where the ids are all that is known of the text.
    """
    tokenizer = {key: manifest.tokenizer.get(key) for key in ("name", "vocab_size", "sha256")}
    return {
        "tokenizer": tokenizer,
        "train_bytes": manifest.splits["train"].get("bytes"),
        "validation": held_out_text(manifest),
    }


def held_out_text(manifest: Manifest) -> dict[str, Any] | None:
    """The length in bytes of the validation text, and the SHA-256 of its beginning."""
    tokenizer = load_tokenizer(manifest)
    if not tokenizer.token_bytes().any():
        return None
    stream, head, place = TokenStream(open_shards(manifest, "val")), bytearray(), 0
    while place < stream.length and len(head) < HEAD:
        piece = stream.read(place, min(PIECE, stream.length - place))
        head += tokenizer.decode_bytes(piece.tolist())
        place += len(piece)
    del head[HEAD:]
    size = manifest.splits["val"].get("bytes")
    return {"bytes": size, "head_bytes": len(head), "head_sha256": hashlib.sha256(head).hexdigest()}
