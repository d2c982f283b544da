"""Every ending's loss, against transformers' logits of one context and one ending at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpts import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overnight.errors import UserError
from overnight.evals.scoring import Answer, Question, question, score
from overnight.exchange import sources
from overnight.model import GPT
from overnight.tokenizers import CharTokenizer, Tokenizer, train

from .worlds import on_all

CPU, BLOCK, IDS = torch.device("cpu"), 32, 97  # of the oracle


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Any]:
    """The same weights, ours and in transformers."""
    theirs, folder = oracle(), tmp_path_factory.mktemp("model")
    theirs.save_pretrained(folder)
    return sources.read(str(folder)).build(), theirs


def reference(model: Any, asked: Question) -> list[Answer]:
    """One example at a time, in float64 after the logits."""
    found = []
    for ending in asked.endings:
        ids = torch.tensor((asked.context + ending)[-(BLOCK + 1) :])
        with torch.no_grad():
            logits = model(ids[None, :-1]).logits[0].double()
        start = len(ids) - 1 - len(ending)
        losses = torch.nn.functional.cross_entropy(logits[start:], ids[start + 1 :], reduction="none")
        found.append(
            Answer(float(losses.sum()), len(ending), bool((logits[start:].argmax(1) == ids[start + 1 :]).all()))
        )
    return found


def scored(model: GPT, questions: Sequence[Question], **more: Any) -> list[list[Answer]]:
    return score(model, questions, **{"device": CPU, "precision": "fp32", **more})


def close(found: list[list[Answer]], expected: list[list[Answer]], within: float) -> bool:
    pairs = [(a, b) for ours, theirs in zip(found, expected, strict=True) for a, b in zip(ours, theirs, strict=True)]
    return all(
        abs(a.nats - b.nats) <= within * max(1.0, b.nats) and (a.tokens, a.greedy) == (b.tokens, b.greedy)
        for a, b in pairs
    )


def ids(least: int, most: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, IDS - 1), min_size=least, max_size=most).map(tuple)


@st.composite
def questions(draw: st.DrawFn) -> list[Question]:
    """Some of them with the same context, with endings that repeat, with a context beyond the window."""
    contexts = draw(st.lists(ids(1, 45), min_size=1, max_size=4))
    return [
        Question(draw(st.sampled_from(contexts)), tuple(draw(st.lists(ids(1, 9), max_size=5))))
        for _ in range(draw(st.integers(0, 6)))
    ]


@settings(max_examples=60, deadline=None)
@given(asked=questions(), tokens=st.integers(1, 400), size=st.integers(1, 3))
def test_every_ending_is_as_likely_as_when_it_is_computed_alone(models, asked, tokens, size):
    ours, theirs = models
    expected = [reference(theirs, one) for one in asked]
    for found in on_all(size, lambda world: scored(ours, asked, tokens_at_once=tokens, world=world)):
        assert close(found, expected, 1e-5)


@cache
def many() -> list[Question]:
    draw = torch.Generator().manual_seed(3)

    def some(least: int, most: int) -> tuple[int, ...]:
        count = int(torch.randint(least, most + 1, (), generator=draw))
        return tuple(torch.randint(0, IDS, (count,), generator=draw).tolist())

    return [Question(some(1, 30), tuple(some(1, 8) for _ in range(4))) for _ in range(60)]


def test_results_do_not_depend_on_the_batch_or_the_number_of_processes(models):
    ours, _ = models
    one = scored(ours, many())
    for tokens in (1, 64, 300, 10**6):
        assert close(scored(ours, many(), tokens_at_once=tokens), one, 1e-6)
    for size in (1, 2, 3, 7):
        for found in on_all(size, lambda world: scored(ours, many(), world=world, tokens_at_once=300)):
            assert found == scored(ours, many(), tokens_at_once=300)  # the same batches, whoever computes them


def test_greedy_endings_are_told(models):
    ours, theirs = models
    context, ending = (5, 6, 7), list[int]()
    for _ in range(4):
        with torch.no_grad():
            ending.append(int(theirs(torch.tensor([[*context, *ending]])).logits[0, -1].argmax()))
    other = (*ending[:3], (ending[3] + 1) % IDS)
    answers = scored(ours, [Question(context, (tuple(ending), other, tuple(ending[:2])))])[0]
    assert [answer.greedy for answer in answers] == [True, False, True]


def test_a_context_is_computed_once_for_all_its_endings(models, monkeypatch):
    ours, _ = models
    seen = Counter[int]()

    def watched(tokens: Tensor, *rest: Any, real: Any = ours.features, **more: Any) -> Tensor:
        seen["tokens"] += tokens.numel()
        return real(tokens, *rest, **more)

    monkeypatch.setattr(ours, "features", watched)
    context = tuple(range(20))
    apart = [Question(context, ((1, 2), (3,))), Question((9,), ((4, 5, 6),)), Question(context, ((7, 8, 9),))]
    scored(ours, apart, tokens_at_once=1)
    assert seen["tokens"] == (20 + 1 + 0 + 2) + (1 + 2)  # the last token of an ending predicts nothing


def test_many_endings_of_a_context_are_divided_into_rows(models, monkeypatch):
    ours, theirs = models
    shapes = list[int]()

    def watched(tokens: Tensor, *rest: Any, real: Any = ours.features, **more: Any) -> Tensor:
        shapes.append(tokens.shape[1])
        return real(tokens, *rest, **more)

    monkeypatch.setattr(ours, "features", watched)
    asked = [Question((0,), ((number, 1, 2, 3, number),)) for number in range(50)]
    assert close(scored(ours, asked), [reference(theirs, one) for one in asked], 1e-5)
    assert max(shapes) <= 1 + BLOCK


def test_endings_that_cannot_be_scored(models):
    ours, _ = models
    empty = scored(ours, [Question((1, 2), ((), (3,)))])[0]
    assert empty[0] == Answer(0.0, 0, True)
    assert scored(ours, []) == []
    assert scored(ours, [Question((1,), ())]) == [[]]
    with pytest.raises(UserError, match="an ending of 33 tokens"):
        scored(ours, [Question((1,), ((0,) * 33,))])
    with pytest.raises(ValueError, match="context"):
        scored(ours, [Question((), ((0,),))])


def test_the_model_and_the_random_state_are_left_as_they_were(models):
    ours, _ = models
    expected, before = scored(ours, many()[:5]), torch.get_rng_state()
    ours.train()
    for module in ours.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    try:
        assert scored(ours, many()[:5]) == expected
        assert ours.training and ours.h[0].attn.training
        with pytest.raises(RuntimeError, match="enough"):
            scored(ours, many(), progress=stop)
        assert ours.training
    finally:
        ours.eval()
        for module in ours.modules():
            if hasattr(module, "dropout"):
                module.dropout = 0.0
    assert torch.equal(torch.get_rng_state(), before)


def stop(share: float) -> None:
    raise RuntimeError("enough")


def test_progress_goes_to_its_end(models):
    shares = list[float]()
    scored(models[0], many(), tokens_at_once=300, progress=shares.append)
    assert shares == sorted(shares) and len(shares) > 5 and shares[-1] == 1.0


def test_in_bfloat16_it_is_near(models):
    ours, _ = models
    exact, near = scored(ours, many()), scored(ours, many(), precision="bf16")
    pairs = [(a.nats, b.nats) for x, y in zip(exact, near, strict=True) for a, b in zip(x, y, strict=True)]
    assert max(abs(a - b) / a for a, b in pairs) < 0.02
    assert any(a != b for a, b in pairs)


def test_beside_a_compiled_model_nothing_is_compiled_again(models):
    from torch._dynamo.utils import counters

    ours, _ = models
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager")
    tokens = torch.arange(16).view(2, 8)

    def graphs() -> int:
        compiled(tokens, tokens)
        return int(counters["stats"]["unique_graphs"])

    first = graphs()
    assert first > 0
    for tokens_at_once in (300, 400):
        scored(ours, many(), tokens_at_once=tokens_at_once)
        assert graphs() == first
    torch._dynamo.reset()


# ---- texts


TEXTS = ["", " ", "A man", "A man ", "A man\n\n", "Zürich is ", "def f(x):", "x  y  "]
ENDINGS = [" is", "is", " ", "  two", "\n", "'s hat", " 🙂.", "s"]


@pytest.mark.parametrize("name", ["gpt2", "bytes", "bpe:270"])
def test_texts_are_encoded_as_lm_evaluation_harness_does_it(name):
    api = pytest.importorskip("lm_eval.api.model")
    tokenizer = train(name, ["A man is on a roof. He is two men's hat. " * 9])
    stub = SimpleNamespace(backend="causal", tok_encode=lambda text, **_: tokenizer.encode(text).tolist())
    for context in filter(str.strip, TEXTS):
        found = question(tokenizer, context, ENDINGS)
        for text, ending in zip(ENDINGS, found.endings, strict=True):
            theirs = api.TemplateLM._encode_pair(stub, context, text)
            assert (list(found.context), list(ending)) == theirs


def test_an_empty_context_is_end_of_text():
    gpt2: Tokenizer = train("gpt2", [])
    assert question(gpt2, "", ["A man"]) == Question((50256,), (tuple(gpt2.encode("A man").tolist()),))
    assert question(gpt2, " ", ["A"]).endings == (tuple(gpt2.encode(" A").tolist()),)
    chars = CharTokenizer.of(["ab\n"], False)
    assert question(chars, "", ["ab"]).context == tuple(chars.encode("\n").tolist())
