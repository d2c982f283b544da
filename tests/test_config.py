"""Configurations: what is refused and how, the round trip, and what follows from the rest."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overnight import config as configuration
from overnight.config import (
    POSITIVE,
    Config,
    ModelConfig,
    OptimConfig,
    Recipe,
    TrainConfig,
    build,
    differences,
    flag,
    from_dict,
    resolve,
    to_dict,
    validate,
)
from overnight.errors import UserError

QUICK = settings(deadline=None, max_examples=80, derandomize=True)
GOOD = Config(recipe=Recipe(model=ModelConfig(vocab_size=50)))


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, annotation, value) of every field."""
    for name, hint in get_type_hints(type(value)).items():
        inner = getattr(value, name)
        if dataclasses.is_dataclass(inner):
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield prefix + name, hint, inner


def with_leaf(config: Any, name: str, value: Any) -> Any:
    first, _, rest = name.partition(".")
    return replace(config, **{first: with_leaf(getattr(config, first), rest, value) if rest else value})


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


LEAVES = {name: (hint, value) for name, hint, value in leaves(GOOD)}


def with_header(values: dict[str, Any]) -> dict[str, Any]:
    return {"format": "overnight-config", "version": 1, **values}


# ---- round trip


@QUICK
@given(data=st.data())
def test_any_configuration_goes_through_json(data: st.DataObject) -> None:
    config = GOOD
    for name in data.draw(st.lists(st.sampled_from(sorted(LEAVES)), max_size=6)):
        hint, default = LEAVES[name]
        kinds = st.sampled_from(hint.__args__) if "Literal" in str(hint) else st.from_type(type(default))
        config = with_leaf(config, name, data.draw(kinds.filter(lambda value: value == value)))
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert [(name, type(value)) for name, _, value in leaves(again)] == [
        (name, type(value)) for name, _, value in leaves(config)
    ]


def test_what_is_written_has_a_format_and_all_sections() -> None:
    written = to_dict(GOOD)
    assert list(written) == ["format", "version", "preset", "recipe", "machine", "observe"]
    assert (written["format"], written["version"]) == ("overnight-config", 1)


@pytest.mark.parametrize("header", [{}, {"format": "x", "version": 1}, {"format": "overnight-config", "version": 2}])
def test_another_format_is_refused_by_name(header: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"my\.json: not an overnight configuration of version 1"):
        from_dict(header, "my.json")


def test_what_is_left_out_keeps_its_value() -> None:
    found = from_dict(with_header({"recipe": {"model": {"n_layer": 3}}}))
    assert list(differences(Config(), found)) == [("recipe.model.n_layer", 12, 3)]


def test_names_may_have_dashes() -> None:
    found = build(ModelConfig, {"n-layer": 3}, "here", ModelConfig())
    assert found.n_layer == 3


# ---- what is refused


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("recipe.model.n_layers", "n_layer"),
        ("recipe.model.nlayer", "n_layer"),
        ("recipe.optim.learning_rate", None),
        ("recipe.optim.weight-decays", "weight_decay"),
        ("recipe.modle", "model"),
        ("machines", "machine"),
        ("observe.checkpoint.keep_lst", "keep_last"),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(key: str, meant: str | None) -> None:
    last = key.rpartition(".")[2]
    with pytest.raises(UserError) as error:
        from_dict(with_header(nested(key, 1)), "my.json")
    assert str(error.value).startswith("my.json: ")
    assert f"unknown key '{last}'" in str(error.value)
    if meant:
        assert str(error.value).endswith(f"(did you mean {meant}?)")
    else:
        assert "did you mean" not in str(error.value)


WRONG: dict[type, list[Any]] = {
    int: ["3", 3.0, True, None, [3], {}, math.nan],
    float: ["0.1", True, None, [0.1]],
    bool: [1, 0, "true", None],
    str: [3, True, None, ["a"]],
}


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_a_value_of_another_type_is_refused_by_name(name: str) -> None:
    hint, _ = LEAVES[name]
    if "Literal" in str(hint):
        wrong = ["no such thing", 3, None, True]
    else:
        kinds = getattr(hint, "__args__", (hint,))
        wrong = [
            value
            for value in WRONG[next(kind for kind in kinds if kind is not type(None))]
            if not (value is None and type(None) in kinds)
        ]
    for value in wrong:
        with pytest.raises(UserError) as error:
            from_dict(with_header(nested(name, value)), "my.json")
        assert name.rpartition(".")[2] in str(error.value)
        assert str(error.value).startswith("my.json: ")


def test_a_value_in_place_of_a_table_is_refused() -> None:
    with pytest.raises(UserError, match=r"my\.json: recipe: model: expected a table, got 3"):
        from_dict(with_header({"recipe": {"model": 3}}), "my.json")


def test_a_whole_number_is_a_float_too() -> None:
    found = from_dict(with_header({"recipe": {"optim": {"grad_clip": 2}}})).recipe.optim.grad_clip
    assert (found, type(found)) == (2.0, float)


NUMBERS = {
    name: value
    for name, (_, value) in LEAVES.items()
    if isinstance(value, (int, float)) and not isinstance(value, bool)
}


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_number_below_zero_is_refused_by_name(name: str) -> None:
    for value in (-1, -0.5) if isinstance(NUMBERS[name], float) else (-1,):
        with pytest.raises(UserError, match=rf"^{flag(name)} is {value}: it must be"):
            validate(with_leaf(GOOD, name, value))


@pytest.mark.parametrize("name", sorted(name for name, value in NUMBERS.items() if isinstance(value, float)))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(UserError, match=flag(name)):
        validate(with_leaf(GOOD, name, value))


def test_the_numbers_that_must_be_above_zero_exist() -> None:
    assert set(LEAVES) >= POSITIVE


@pytest.mark.parametrize("name", sorted(POSITIVE))
def test_zero_is_refused_where_it_cannot_work(name: str) -> None:
    with pytest.raises(UserError, match=f"^{flag(name)} is 0: it must be above 0"):
        validate(with_leaf(GOOD, name, 0))


@pytest.mark.parametrize("name", ["recipe.seed", "observe.sample.seed"])
def test_a_seed_has_63_bits(name: str) -> None:
    validate(with_leaf(GOOD, name, 2**63 - 1))
    for value in (2**63, 99999999999999999999):
        with pytest.raises(UserError, match=rf"^{flag(name)} is {value}: it must be below 2\*\*63"):
            validate(with_leaf(GOOD, name, value))


def test_a_number_that_no_float_holds_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"grad_clip: 1000.* is too large") as error:
        from_dict(with_header({"recipe": {"optim": {"grad_clip": 10**400}}}))
    assert len(str(error.value)) < 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe.model.n_head": 5}, r"^--model\.n-embd 768 is not a multiple of --model\.n-head 5"),
        ({"recipe.model.dropout": 1.0}, r"model\.dropout is 1\.0: it must be below 1"),
        ({"recipe.train.tokens_per_step": 5000}, r"5000 is not a multiple of .* 1024; the nearest are 4096 or 5120"),
        ({"recipe.train.tokens_per_step": 500}, r"500 is not a multiple .*; the nearest are 1024$"),
        ({"recipe.optim.warmup_steps": 5, "recipe.optim.warmup_tokens": 5}, r"both given: keep one"),
        ({"recipe.optim.beta1": 1.0}, r"beta1 .*must be below 1"),
        ({"recipe.optim.beta2": 1.5}, r"beta2 must be below 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    config = GOOD
    for name, value in changes.items():
        config = with_leaf(config, name, value)
    with pytest.raises(UserError, match=message):
        validate(config)


def test_the_defaults_are_valid() -> None:
    validate(GOOD)


# ---- differences


def test_no_difference() -> None:
    assert list(differences(GOOD, Config(recipe=Recipe(model=ModelConfig(vocab_size=50))))) == []


@QUICK
@given(names=st.lists(st.sampled_from(sorted(NUMBERS)), unique=True))
def test_differences_are_exactly_the_changed_leaves(names: list[str]) -> None:
    changed = GOOD
    for name in names:
        changed = with_leaf(changed, name, NUMBERS[name] + 1)
    assert sorted(differences(GOOD, changed)) == sorted((name, NUMBERS[name], NUMBERS[name] + 1) for name in names)


# ---- resolve


def resolve_with(train: TrainConfig) -> Config:
    return resolve(Config(recipe=Recipe(train=train)), "gpt2", 50_257)


@QUICK
@given(tokens=st.integers(1, 10**12), per_step=st.integers(1, 1000))
def test_tokens_become_whole_steps(tokens: int, per_step: int) -> None:
    train = resolve_with(TrainConfig(tokens=tokens, tokens_per_step=1024 * per_step)).recipe.train
    assert train.tokens is None
    assert (train.steps - 1) * train.tokens_per_step < tokens <= train.steps * train.tokens_per_step


def test_the_tokenizer_is_that_of_the_dataset() -> None:
    config = resolve_with(TrainConfig())
    assert (config.recipe.model.vocab_size, config.recipe.data.tokenizer) == (50_257, "gpt2")
    assert resolve(config, "gpt2", 50_257) == config
    with pytest.raises(UserError, match=r"data\.tokenizer is gpt2, but the dataset was prepared with bytes"):
        resolve(config, "bytes", 257)
    with pytest.raises(UserError, match=r"--model\.vocab-size is 50257, but the dataset has 50258 ids"):
        resolve(config, "gpt2", 50_258)
    assert resolve(config, "gpt2", 50_256) == config  # rows beyond the ids, as nanoGPT's 50,304


def test_nothing_that_was_given_is_replaced() -> None:
    for own in ({"vocab_size": 0}, {"n_head": 0}):
        with pytest.raises(UserError, match=r"(vocab-size|n-head) is 0"):
            resolve(Config(recipe=Recipe(model=ModelConfig(**own))), "gpt2", 50_257)
    with pytest.raises(UserError, match=r"data\.tokenizer is , but"):
        resolve(with_leaf(Config(), "recipe.data.tokenizer", ""), "gpt2", 50_257)


@pytest.mark.parametrize("train", [TrainConfig(steps=0), TrainConfig(tokens=0), TrainConfig(tokens_per_step=0)])
def test_resolving_validates(train: TrainConfig) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        resolve_with(train)


# ---- documentation


def test_every_field_is_explained() -> None:
    """The strings below the fields are what `--help` prints."""
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(configuration))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name not in ("Config",):
            for field, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign) and "factory" not in ast.unparse(field):
                    documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                    assert documented, f"{node.name}.{ast.unparse(field.target)}"


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OptimConfig().lr = 1.0  # type: ignore[misc]
