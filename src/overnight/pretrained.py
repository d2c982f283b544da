"""Trained weights that a run starts from or that are used as they are, whatever file they were read from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from torch import Tensor

from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.model import LanguageModel, check_weights, load_weights, make_model, without_memory
from overnight.tokenizers import IdsTokenizer, Tokenizer, same_ids

MOMENTS = "the optimizer's moments stay behind"
OURS = ("gpt2", "bytes", "chars", "bpe")  # the tokenizers that say which text an id stands for
ROUNDING = 128  # the most that peers round a vocabulary up to a multiple of


@dataclass(frozen=True)
class Pretrained:
    """A GPT's shape, its tensors by our names, and its tokenizer."""

    where: str
    """The file or folder that they are from, for messages."""
    model: ModelConfig
    """`vocab_size` counts the rows of `wte.weight`, those that only its trainer added too."""
    block_size: int
    tensors: dict[str, Tensor]
    """Float32."""
    tokenizer: Tokenizer | None = None
    """None: the file says nothing of it."""
    notes: list[str] = field(default_factory=list)
    """What did not come along, and what was assumed, in sentences."""
    step: int | None = None
    """Of the checkpoint, where they are a run's."""
    other_tokenizer: str = ""
    """Why a tokenizer that lies beside them is none of ours; empty where `tokenizer` is it, or none is there."""

    @property
    def identity(self) -> dict[str, int | str]:
        """What a run that starts from them writes down: a hash of the tensors, and the step of a run's checkpoint."""
        digest = hashlib.sha256()
        for name in sorted(self.tensors):
            digest.update(f"{name}\n{tuple(self.tensors[name].shape)}\n".encode())
            digest.update(self.tensors[name].contiguous().numpy().data)
        step: dict[str, int | str] = {} if self.step is None else {"step": self.step}
        return step | {"sha256": digest.hexdigest()}

    def are(self, recorded: object) -> bool:
        """Whether `recorded` is their identity; runs of earlier versions wrote a step, or 'sha256 ...', alone."""
        if isinstance(recorded, int):
            return recorded == self.step
        identity = self.identity
        return recorded in (identity, f"sha256 {identity['sha256']}")

    def known_tokenizer(self) -> Tokenizer:
        """Their tokenizer; UserError where it is not known."""
        if self.tokenizer is not None:
            return self.tokenizer
        if self.other_tokenizer:
            raise UserError(f"{self.where} has a tokenizer that is not known here: {self.other_tokenizer}")
        raise UserError(f"{self.where} does not say which tokenizer it was trained with, and none lies beside it")

    def refuse_other_tokenizer(self, tokenizer: Tokenizer, data: str) -> None:
        """UserError where the tokenizer of the dataset `data` is not the one that these weights were trained with.

        Where the weights name none, the sizes must fit: rows that were added to round the vocabulary up are allowed.
        """
        own, rows = self.tokenizer, self.model.vocab_size or 0
        if self.other_tokenizer and tokenizer.name.partition(":")[0] in OURS:
            raise UserError(
                f"{data} was prepared with the tokenizer {tokenizer.name}, {self.where} was trained with one that is "
                f"not known here: {self.other_tokenizer}"
            )
        if own is not None and not _may_be_one(own, tokenizer):
            raise UserError(
                f"{data} was prepared with the tokenizer {tokenizer.name}, {self.where} was trained with "
                f"{'another ' if own.name == tokenizer.name else ''}{own.name}: prepare the text with that one"
            )
        if tokenizer.vocab_size > rows or (own is None and rows >= tokenizer.vocab_size + ROUNDING):
            raise UserError(
                f"{data} has {tokenizer.vocab_size:,} ids, {self.where} {rows:,}: it was trained with another tokenizer"
            )

    def build(self) -> LanguageModel:
        """The model, in evaluation mode; UserError where a tensor is missing, unknown or misshapen."""
        # before memory is taken for a model that only a few bytes ask for
        check_weights(without_memory(self.model, self.block_size), self.tensors, self.where)
        gpt = make_model(self.model, self.block_size)
        load_weights(gpt, self.tensors, self.where)
        return gpt.eval()


def _may_be_one(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether nothing says that they differ: ids:SIZE says how many ids there are, and not what they stand for."""
    if isinstance(one, IdsTokenizer) or isinstance(other, IdsTokenizer):
        return one.vocab_size == other.vocab_size
    return same_ids(one, other)
