"""Findings and errors as people read them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from spyke_kohya.errors import PresetError
from spyke_kohya.findings import count_text, error, warning
from spyke_kohya.report.plain_text import fault_text, findings_text

LONG = "the folder says one thing and the preset another, so that nobody knows how often an image is used in an epoch"


def test_errors_stand_first_and_say_what_where_and_what_to_do():
    findings = [warning("b.two", "here", "odd", "look"), error("a.one", "there", LONG, "decide")]
    assert findings_text(findings) == (
        "error: there  [a.one]\n"
        "  the folder says one thing and the preset another, so that nobody knows how\n"
        "  often an image is used in an epoch\n"
        "  do: decide\n"
        "warning: here  [b.two]\n"
        "  odd\n"
        "  do: look"
    )


def test_findings_are_counted():
    one, two = error("a.b", "", "", ""), warning("a.b", "", "", "")
    assert [count_text(found) for found in ([], [one], [two], [one, one, two, two])] == [
        "no faults",
        "1 error",
        "1 warning",
        "2 errors, 2 warnings",
    ]


def test_an_error_is_what_where_and_remedy():
    told = fault_text(PresetError("it is off", where="presets/x.toml", remedy="put it right"))
    assert told == "error: it is off\n  where: presets/x.toml\n  do: put it right"
    assert fault_text(PresetError("it is off")) == "error: it is off"


@settings(deadline=None)
@given(st.lists(st.text("abc -", min_size=1, max_size=20), max_size=40).map(" ".join))
def test_no_message_of_words_is_wider_than_a_terminal(message):
    told = findings_text([error("a.b", "here", message, message)])
    assert max(map(len, told.splitlines())) <= 80
