"""The option table of train_network.py: what a preset may say, and the words it becomes."""

import argparse
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spyke_kohya.engine.options import (
    RESERVED,
    Option,
    check_option,
    option_arguments,
    parser_defaults,
    train_network_options,
)

OPTIONS = list(train_network_options().values())
RIGHT = {None: True, "str": "word", "Path": "a/path", "int": 3, "float": 0.5, "int_or_float": 0.5}
WRONG = {None: "true", "str": 3, "Path": 3, "int": 0.5, "float": "0.5", "int_or_float": "half"}


def right_value(option: Option) -> object:
    return next(filter(None, option.choices)) if option.choices else RIGHT[option.type]


def parser() -> argparse.ArgumentParser:
    """A parser with the same options, as argparse reads them for sd-scripts."""
    built = argparse.ArgumentParser(exit_on_error=False)
    kinds = {"str": str, "Path": str, "int": int, "float": float, "int_or_float": float}
    for option in OPTIONS:
        if option.is_switch:
            built.add_argument(f"--{option.dest}", action="store_true")
        else:
            built.add_argument(f"--{option.dest}", type=kinds[option.type], nargs="*" if option.many else None)
    return built


def test_the_table_is_the_whole_parser():
    assert len(OPTIONS) == 193
    assert {option.type for option in OPTIONS} == set(RIGHT)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.dest)
def test_an_option_takes_its_own_type_and_no_other(option):
    assert check_option(option.dest, right_value(option)) is None
    kind, sentence = check_option(option.dest, WRONG[option.type])
    assert kind == "wrong-type"
    assert option.expected in sentence


@pytest.mark.parametrize("option", [option for option in OPTIONS if not option.is_switch], ids=lambda o: o.dest)
def test_a_number_or_text_is_no_switch_and_only_some_take_lists(option):
    assert check_option(option.dest, True)[0] == "wrong-type"
    fault = check_option(option.dest, [right_value(option)])
    assert fault is None if option.many else fault[0] == "wrong-type"


def test_a_list_must_hold_something_and_only_the_right_things():
    assert check_option("network_args", [])[0] == "wrong-type"
    assert check_option("network_args", ["conv_dim=4", 4])[0] == "wrong-type"
    assert check_option("text_encoder_lr", [1e-5, 2]) is None


def test_a_whole_number_stands_for_a_float_but_not_the_other_way():
    assert check_option("learning_rate", 1) is None
    assert check_option("network_dim", 32.0)[0] == "wrong-type"


@pytest.mark.parametrize(
    "option", [one for one in OPTIONS if one.type in ("float", "int_or_float")], ids=lambda o: o.dest
)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400], ids=["nan", "inf", "-inf", "too large"])
def test_a_number_that_is_not_finite_is_refused_by_name(option, number):
    value = [1.0, number] if option.many else number
    assert check_option(option.dest, value) == ("wrong-type", f"expected a finite number, got {value!r}")


def test_a_table_is_no_value():
    assert check_option("seed", {"a": 1}) == ("wrong-type", "expected a whole number, got a table")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rat", "learning_rate"),
        ("Network-Dim", "network_dim"),
        ("max_train_epoch", "max_train_epochs"),
        ("save_every_n_step", "save_every_n_steps"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(name, meant):
    kind, sentence = check_option(name, 1)
    assert (kind, f"did you mean `{meant}`?" in sentence) == ("unknown-key", True)


def test_a_name_like_no_other_gets_no_guess():
    assert check_option("qqqq", 1) == ("unknown-key", "train_network.py has no option `qqqq`")


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.choices], ids=lambda option: option.dest)
def test_a_choice_is_one_of_those_named(option):
    for choice in filter(None, option.choices):
        assert check_option(option.dest, choice) is None
    kind, sentence = check_option(option.dest, 77 if option.type == "int" else "nonsense")
    assert kind == "bad-choice"
    assert str(option.choices[-1]) in sentence
    assert "None" not in sentence


@pytest.mark.parametrize("name", RESERVED)
def test_what_belongs_to_the_launcher_is_a_real_option_with_a_reason(name):
    assert name in train_network_options()
    assert len(RESERVED[name]) > 20


@pytest.mark.parametrize("item", ["--output_dir=/tmp/x", "-x", "-", "--"])
def test_a_list_smuggles_no_option_in(item):
    kind, sentence = check_option("network_args", ["conv_dim=4", item])
    assert kind == "unsafe-value"
    assert repr(item) in sentence


@pytest.mark.parametrize("item", ["a\nb", "a\rb", "a\0b", "\ud800"])
def test_a_list_holds_no_line_break_and_nothing_unspeakable(item):
    assert check_option("optimizer_args", [item])[0] == "unsafe-value"


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_no_value_holds_what_a_program_can_not_be_given(value):
    assert check_option("output_name", value)[0] == "unsafe-value"


def test_a_single_value_may_begin_with_a_dash_and_hold_lines():
    assert check_option("training_comment", "-- two\nlines") is None
    assert vars(parser().parse_args(option_arguments({"training_comment": "-- two\nlines"})))["training_comment"] == (
        "-- two\nlines"
    )


def test_negative_numbers_in_a_list_are_those_that_argparse_knows():
    assert check_option("base_weights_multiplier", [-0.5, -1]) is None
    assert check_option("base_weights_multiplier", [-1e-05])[0] == "unsafe-value"


def test_switches_lists_and_floats_become_words():
    options = {
        "no_half_vae": True,
        "cache_latents": False,
        "learning_rate": 1e-4,
        "network_dim": 32,
        "optimizer_args": ["fused=True", "weight_decay=0.1"],
        "output_name": "",
        "seed": 42,
    }
    assert option_arguments(options) == [
        "--no_half_vae",
        "--learning_rate=0.0001",
        "--network_dim=32",
        "--optimizer_args",
        "fused=True",
        "weight_decay=0.1",
        "--output_name=",
        "--seed=42",
    ]


WORDS = st.text("a-=.1 \n\0é", max_size=8)
VALUES = {
    None: st.booleans(),
    "str": WORDS,
    "Path": WORDS,
    "int": st.integers(),
    "float": st.floats(allow_nan=False),
    "int_or_float": st.floats(allow_nan=False),
}


@st.composite
def accepted_options(draw):
    chosen = draw(st.lists(st.sampled_from(OPTIONS), unique_by=lambda option: option.dest, max_size=6))
    options = {}
    for option in chosen:
        value = st.sampled_from([*filter(None, option.choices)]) if option.choices else VALUES[option.type]
        drawn = draw(st.lists(value, min_size=1, max_size=3) if option.many and draw(st.booleans()) else value)
        if check_option(option.dest, drawn) is None:
            options[option.dest] = drawn
    return options


def test_two_dashes_alone_are_refused_for_argparse_drops_them():
    assert vars(parser().parse_args(["--console_log_file=--"]))["console_log_file"] == []
    assert "dropped" in check_option("console_log_file", "--")[1]


@settings(max_examples=60, deadline=None)
@given(accepted_options())
def test_whatever_is_accepted_reaches_argparse_as_it_was_written(options):
    given_options = vars(parser().parse_args(option_arguments(options)))
    for name, value in options.items():
        listed = train_network_options()[name].many and not isinstance(value, list)
        assert given_options[name] == ([value] if listed else value), name
    untouched = {name for name, value in given_options.items() if value not in (None, False)}
    assert untouched <= options.keys()


def test_defaults_are_the_parser_s_own():
    defaults = parser_defaults()
    assert defaults.keys() == train_network_options().keys()
    assert (defaults["max_train_steps"], defaults["max_data_loader_n_workers"], defaults["no_half_vae"]) == (
        1600,
        8,
        False,
    )
