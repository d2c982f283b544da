"""Which documents the sequences of a step are from."""

from __future__ import annotations

from typing import Any

import numpy as np

from overnight.data.mixture import Corpus, Mixture
from overnight.data.streams import Stream
from overnight.loader import Dataset, Numbers, TokenDataset
from overnight.mixing import MixedDataset

Json = dict[str, Any]


class Origins:
    """Finds the place of training sequences in a mixture's files."""

    def __init__(self, data: Mixture, dataset: Dataset) -> None:
        self.data, self.dataset = data, dataset
        self.streams = [Stream(corpus.manifest, "train") for corpus in data.corpora]

    def of(self, numbers: Numbers) -> list[Json]:
        """For each sequence its `number`, `corpus`, `position` in the corpus' stream, and `documents`, in order.

        Of a document there are `file`, `row`, where it starts (`start`, a position), and how many `tokens` of it the
        sequence has, the last target included. `documents` is None where ids alone do not tell where one begins.
        """
        places = self._places(numbers)
        found: dict[int, Json] = {}
        for index in sorted(range(len(places)), key=places.__getitem__):  # each shard's list is read once
            corpus, position = places[index]
            found[index] = {
                "number": int(numbers[index]),
                "corpus": self.data.corpora[corpus].name,
                "position": position,
                "documents": self._documents(corpus, position),
            }
        return [found[index] for index in range(len(places))]

    def _places(self, numbers: Numbers) -> list[tuple[int, int]]:
        """For each sequence which corpus it is from, and where it begins there."""
        dataset = self.dataset
        if isinstance(dataset, TokenDataset):
            return [(0, position) for position in dataset.positions(numbers).tolist()]
        assert isinstance(dataset, MixedDataset)
        corpora, local = dataset.locate(numbers)
        positions = np.empty_like(numbers)
        for corpus in np.unique(corpora).tolist():
            rows = corpora == corpus
            positions[rows] = dataset.datasets[corpus].positions(local[rows])
        return list(zip(corpora.tolist(), positions.tolist(), strict=True))

    def _documents(self, corpus: int, position: int) -> list[Json] | None:
        """The documents of the T + 1 tokens from a position on; the stream is a circle."""
        stream = self.streams[corpus]
        if not _knows_documents(self.data.corpora[corpus]):
            return None
        found, left = [], self.dataset.T + 1
        while left > 0:
            stop = min(position + left, stream.tokens)
            found += stream.documents(position, stop)
            left, position = left - (stop - position), 0
        return found


def _knows_documents(corpus: Corpus) -> bool:
    return not corpus.manifest.foreign or corpus.manifest.tokenizer["end_of_text"] is not None
