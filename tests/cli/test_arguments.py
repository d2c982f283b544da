"""Flags from dataclasses: what they become, and mistakes told in one line."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.cli.arguments import flags, parse
from overnight.cli.prepare import Arguments as PrepareArguments
from overnight.cli.train import Arguments as TrainArguments
from overnight.config import POSITIVE, SEEDS, Config, Machine, Observe, Recipe, differences, flag
from overnight.errors import UserError


@dataclass(frozen=True)
class Inner:
    """A section."""

    n_layer: int = 12
    """Number of blocks."""
    lr: float = 0.1
    """Learning rate."""


@dataclass(frozen=True)
class Arguments:
    """What it does."""

    out: Annotated[Path, tyro.conf.Positional]
    """Where to."""
    kind: Literal["a", "b"] = "a"
    """Which."""
    many_words: str | None = None
    """Several words."""
    count: int | None = None
    """How many."""
    loud: bool = False
    """Noise."""
    model: Inner = field(default_factory=Inner)
    hidden: Annotated[Inner, tyro.conf.arg(name="")] = field(default_factory=Inner)


def parsed(*arguments: str) -> Arguments:
    return parse(Arguments, ["out", *arguments], "make")


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        parsed(*arguments)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("make: ")
    assert message.endswith("; see `overnight make --help`")
    return message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--kind", "b"], {"kind": "b"}),
        (["--many-words", "x y"], {"many_words": "x y"}),
        (["--many_words", "x"], {"many_words": "x"}),
        (["--many-words=--x"], {"many_words": "--x"}),
        (["--count", "3"], {"count": 3}),
        (["--loud"], {"loud": True}),
        (["--no-loud"], {"loud": False}),
        (["--model.n-layer", "3", "--model.lr", "1e-3"], {"model": Inner(3, 1e-3)}),
        (["--n-layer=4"], {"hidden": Inner(n_layer=4)}),
    ],
    ids=str,
)
def test_flags_become_fields(arguments: list[str], expected: dict[str, Any]) -> None:
    assert parsed(*arguments) == Arguments(Path("out"), **expected)


def test_what_is_not_given_comes_from_the_default() -> None:
    default = Arguments(Path("there"), kind="b", model=Inner(n_layer=5))
    found = parse(Arguments, ["here", "--model.lr", "2"], "make", default)
    assert found == Arguments(Path("here"), kind="b", model=Inner(n_layer=5, lr=2.0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kid", "a"], ["unknown option --kid", "(did you mean --kind?)"]),
        (["--model.n-layr", "3"], ["unknown option --model.n-layr", "(did you mean --model.n-layer?)"]),
        (["--model.n_layr=3"], ["--model.n_layr", "(did you mean --model.n-layer?)"]),
        (["--zzzzzz", "1"], ["unknown option --zzzzzz"]),
        (["another"], ["another"]),
        (["--kind", "c"], ["make: --kind is one of a, b, not 'c'; see"]),
        (["--count", "three"], ["make: --count takes a whole number, not 'three'; see"]),
        (["--model.n-layer", "3.5"], ["make: --model.n-layer takes a whole number, not '3.5'; see"]),
        (["--model.lr", "fast"], ["make: --model.lr takes a number, not 'fast'; see"]),
        (["--model.lr=it's"], ['make: --model.lr takes a number, not "it\'s"; see']),
        (["--model.lr"], ["make: --model.lr needs a value; see"]),
        (["--loud", "maybe"], ["unknown option maybe: --loud takes no value, --no-loud is its opposite"]),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_that_names_it(arguments: list[str], words: list[str]) -> None:
    message = refused(*arguments)
    assert all(word in message for word in words), message
    assert not set("│╭╮╰╯─") & set(message)


def test_a_far_off_word_gets_no_suggestion() -> None:
    assert "did you mean" not in refused("--zzzzzz", "1")


def test_what_is_missing_is_named_without_its_help() -> None:
    with pytest.raises(UserError, match=r"^make: PATH is missing; see `overnight make --help`$"):
        parse(Arguments, [], "make")
    with pytest.raises(UserError, match=r"^prepare: SOURCE and --out DIR are missing; see `overnight prepare --help`$"):
        parse(PrepareArguments, [], "prepare")
    with pytest.raises(UserError, match=r"^train: PRESET is missing"):
        parse(TrainArguments, [], "train")


@given(text=st.text(min_size=1, max_size=12))
@settings(deadline=None, max_examples=40, derandomize=True)
def test_whatever_is_given_it_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        found = parse(Arguments, ["out", text], "make")
    except UserError as error:
        assert str(error).startswith("make: ")
        assert len(str(error).splitlines()) <= len(text.splitlines()) or "\n" not in str(error)
    except SystemExit as stop:
        assert text in ("-h", "--help")
        assert stop.code == 0
    else:
        assert isinstance(found, Arguments)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_prints_every_field_with_its_explanation(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(flag)
    assert stop.value.code in (0, None)
    printed = capsys.readouterr()
    assert printed.err == ""
    for word in ("overnight make", "What it does.", "--kind", "--many-words", "--model.n-layer", "Number of blocks."):
        assert word in printed.out, word


def test_flags_lists_what_parse_takes() -> None:
    assert flags(Arguments) == [
        "--out", "--kind", "--many-words", "--count", "--loud", "--model.n-layer", "--model.lr", "--n-layer", "--lr",
    ]  # fmt: skip


BINDING = [
    "--train.steps", "--train.tokens", "--train.tokens-per-step", "--checkpoint.every", "--eval.every",
    "--sample.every", "--log.every", "--model.n-layer", "--model.n-embd", "--data.sequence-length", "--optim.lr",
    "--precision", "--device", "--compile", "--micro-batch", "--seed", "--overfit",
]  # fmt: skip


def test_the_training_flags_have_the_names_that_bind() -> None:
    assert set(BINDING) <= set(flags(TrainArguments))
    given = {"--precision": "bf16", "--device": "cpu", "--compile": "off", "--optim.lr": "0.5"}
    arguments = [word for name in BINDING for word in (name, given.get(name, "7"))]
    found = parse(TrainArguments, ["gpt2-tiny", *arguments], "train")
    recipe, machine, observe = found.recipe, found.machine, found.observe
    assert isinstance(recipe, Recipe)
    assert isinstance(machine, Machine)
    assert isinstance(observe, Observe)
    assert (recipe.train.steps, recipe.train.tokens, recipe.train.tokens_per_step) == (7, 7, 7)
    assert (recipe.model.n_layer, recipe.model.n_embd, recipe.data.sequence_length) == (7, 7, 7)
    assert (recipe.optim.lr, recipe.seed, recipe.overfit) == (0.5, 7, 7)
    assert (machine.precision, machine.device, machine.compile, machine.micro_batch) == ("bf16", "cpu", "off", 7)
    every = (observe.checkpoint.every, observe.eval.every, observe.sample.every, observe.log.every)
    assert every == (7, 7, 7, 7)


def test_every_field_is_named_by_its_flag() -> None:
    unlike = dataclasses.replace(
        Config(preset="x"), recipe=Recipe(seed=-1), machine=Machine(threads=-1), observe=Observe(trackers="-1")
    )
    names = [name for name, _, _ in differences(Config(), unlike) if name != "preset"]
    assert [flag(name) for name in names] == ["--seed", "--threads", "--trackers"]
    assert {flag(name) for name in POSITIVE | SEEDS} <= set(flags(TrainArguments))


def test_no_two_training_flags_have_one_name() -> None:
    assert len(set(flags(TrainArguments))) == len(flags(TrainArguments))
