"""Whether the questions of an evaluation can be put to a model, before any of them is."""

from __future__ import annotations

from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.base import Eval
from overnight.evals.scoring import Answer, Question
from overnight.tokenizers import Tokenizer


def require_fit(evaluation: Eval, tokenizer: Tokenizer, block_size: int) -> None:
    """UserError, with the evaluation's name, where the tokenizer or a window of `block_size` tokens does not do.

    It asks everything of a model that knows nothing. CORE is left out: its texts are many, and it reports on the way.
    """
    if evaluation.name == "core":
        return

    def knows_nothing(questions: list[Question]) -> list[list[Answer]]:
        longest = max((len(ending) for question in questions for ending in question.endings), default=0)
        if longest > block_size:
            raise UserError(f"an ending has {longest} tokens, and the model sees {block_size} at most; leave it out")
        return [[Answer(0.0, len(ending), False) for ending in question.endings] for question in questions]

    try:
        evaluation(knows_nothing, tokenizer, World())
    except UserError as error:
        raise UserError(f"{evaluation.name} cannot be asked of this model: {error}") from None
