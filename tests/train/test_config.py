"""Settings: read from TOML, checked, written so that the next run reads the same."""

import math
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamatui.errors import UsageError
from llamatui.train.config import (
    ARCHITECTURE,
    TrainConfig,
    check,
    check_fixed,
    checked_values,
    read_config,
    to_toml,
    with_defaults,
)

KINDS = get_type_hints(TrainConfig)
NUMBERS = [name for name, kind in KINDS.items() if kind in (int, float)]
ZERO_IS_FINE = {
    "n_kv_heads", "hidden_dim", "dropout", "min_lr", "warmup_iters", "weight_decay", "beta1", "beta2",
    "grad_clip", "lora_rank", "sample_tokens", "threads", "seed",
}  # fmt: skip

values = {
    int: st.integers(-(2**62), 2**62),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(),
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_defaults_are_good() -> None:
    check(TrainConfig())


def test_every_setting_is_explained() -> None:
    for entry in fields(TrainConfig):
        assert entry.metadata["help"].endswith("."), entry.name


@given(
    st.fixed_dictionaries(
        {}, optional={name: values.get(kind, st.just("auto")) for name, kind in KINDS.items()}
    )
)
def test_what_is_written_is_what_is_read(settings: dict[str, Any]) -> None:
    config = TrainConfig(**settings)
    if not all(math.isfinite(value) for value in settings.values() if isinstance(value, float)):
        return  # `check` refuses these
    assert TrainConfig(**checked_values(tomllib.loads(to_toml(config)), "")) == config


def test_any_text_of_a_prompt_survives_the_file(tmp_path: Path) -> None:
    config = TrainConfig(sample_prompt='😀 "\\" \x7f\x00\n\t\u2028')
    assert read_config(written(tmp_path, to_toml(config)))["sample_prompt"] == config.sample_prompt


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 1 << 70])
def test_no_number_may_be_out_of_range(name: str, value: float) -> None:
    if value == 1 << 70 and KINDS[name] is float and name not in ("dropout", "beta1", "beta2", "min_lr"):
        return  # a large float is a number like another
    with pytest.raises(UsageError, match=name) as error:
        check(TrainConfig(**{name: KINDS[name](value) if math.isfinite(value) else value}))
    assert ("a finite number, found inf" in error.value.message) is (value == math.inf)
    assert f"--{name.replace('_', '-')}, or in the config" in error.value.hint


@pytest.mark.parametrize("name", NUMBERS)
def test_zero_is_refused_where_it_makes_no_sense(name: str) -> None:
    config = TrainConfig(**{name: 0})
    if name in ZERO_IS_FINE:
        check(config)
    else:
        with pytest.raises(UsageError, match=f"{name}: expected a positive number, found 0"):
            check(config)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"dim": 100, "n_heads": 6}, "heads of an even width, found 16.6667"),
        ({"dim": 18, "n_heads": 6}, "heads of an even width, found 3"),
        ({"n_heads": 6, "n_kv_heads": 4}, "n_kv_heads: expected a divisor of n_heads 6, found 4"),
        ({"n_heads": 6, "n_kv_heads": 12}, "n_kv_heads: expected a divisor"),
        ({"min_lr": 1.0}, "min_lr 1: expected at most learning_rate 0.002"),
        ({"warmup_iters": 2000}, "warmup_iters: expected less than max_iters 2000, found 2000"),
        ({"dropout": 1.0}, "dropout: expected a number from 0 to less than 1"),
        ({"threads": 2000}, "threads: expected at most 1024"),
        ({"sample_prompt": "\udc80"}, "sample_prompt: expected UTF-8"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        check(TrainConfig(**settings))


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("learning_rat = 1", "unknown setting 'learning_rat'", "did you mean learning_rate?"),
        ("zzz = 1", "unknown setting 'zzz'", "--help"),
        ("[train]\ndim = 1", "expected all settings at the top level, found a table: [train]", "leave out"),
        ("dim = 1.5", "dim: expected a whole number, found 1.5", ""),
        ("dim = true", "dim: expected a whole number, found True", ""),
        ("dim = '64'", "dim: expected a whole number, found '64'", ""),
        ("tied = 1", "tied: expected true or false, found 1", ""),
        ("dropout = true", "dropout: expected a number, found True", ""),
        (f"dropout = 1{'0' * 400}", "dropout: expected a number, found 1000", ""),
        ("dtype = 'int8'", "dtype: expected one of auto, float32, bfloat16, float16, found 'int8'", ""),
        ("dtype = [1]", "dtype: expected one of", ""),
        ("sample_prompt = 3", "sample_prompt: expected text, found 3", ""),
        ("dim = ", "expected TOML, found something else: ", "learning_rate = 1e-3"),
        ("dim = 1\ndim = 2", "expected TOML, found something else: ", "learning_rate = 1e-3"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    tmp_path: Path, text: str, problem: str, hint: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read_config(path)
    assert error.value.message.startswith(str(path))
    assert problem in error.value.message
    assert hint in error.value.hint


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    with pytest.raises(UsageError, match=r"c\.toml: cannot be read: No such file") as error:
        read_config(path)
    assert error.value.hint == "check the name"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"c\.toml: expected TOML, found other bytes than UTF-8"):
        read_config(path)


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    read = read_config(written(tmp_path, "learning_rate = 1\nrope_theta = 500_000"))
    assert read == {"learning_rate": 1.0, "rope_theta": 5e5}
    assert type(read["rope_theta"]) is float


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_toml_has_numbers_that_are_none(tmp_path: Path, value: str) -> None:
    with pytest.raises(UsageError, match="learning_rate"):
        check(TrainConfig(**read_config(written(tmp_path, f"learning_rate = {value}"))))


def test_what_zero_stands_for_is_filled_in() -> None:
    model = TrainConfig(dim=64, n_heads=4).model_config(300)
    assert (model.n_kv_heads, model.hidden_dim, model.vocab_size) == (4, 192, 300)
    assert model.hidden_dim >= 8 * 64 / 3


@pytest.mark.parametrize(("max_iters", "expected"), [(1, 0), (50, 5), (1000, 100), (9999, 100)])
def test_a_short_run_warms_up_for_a_tenth_of_it(max_iters: int, expected: int) -> None:
    config = with_defaults({"max_iters": max_iters})
    check(config)
    assert config.warmup_iters == expected
    assert with_defaults({"max_iters": max_iters, "warmup_iters": 7}).warmup_iters == 7


def test_a_setting_that_is_fixed_may_be_repeated_but_not_changed() -> None:
    fixed = TrainConfig(dim=64, n_kv_heads=2, tied=True)
    check_fixed(fixed, {"dim": 64, "tied": True, "learning_rate": 9.0}, ARCHITECTURE, "it")
    check_fixed(fixed, {"n_kv_heads": 0, "hidden_dim": 0}, ARCHITECTURE, "it")
    for changed in {"dim": 32}, {"tied": False}, {"n_kv_heads": 1}, {"n_layers": 0}:
        with pytest.raises(UsageError, match="that of it, found"):
            check_fixed(fixed, changed, ARCHITECTURE, "it")
