"""What a person sees of a run while it runs."""

import io
from types import SimpleNamespace

import pytest

from spyke_kohya.engine.events import CheckpointAnnounced, DeviceReported, EngineWarning, Header, Step
from spyke_kohya.report.live import Display, decoding_display, notice_of, state_line
from spyke_kohya.report.plain_text import duration
from spyke_kohya.run.progress import Progress

PLAN = SimpleNamespace(num_train_images=230, num_reg_images=100, batches_per_epoch=460, total_steps=1840)
HEADER = Header(230, 0, 100, 460, 4, "1", 1, 1840)


def step(number, loss=0.1, pace=4.0):
    return Step(number, 1840, loss, int(number * 4), pace)


def watched(*events):
    watch = Progress(PLAN, "mps")
    for event in events:
        assert watch.handle(event) is None
    return watch


def test_the_state_in_one_line():
    saved = CheckpointAnnounced("out/spyke-step00000200.safetensors", 200)
    watch = watched(step(1, 0.0786), step(2, 0.0717), step(1000, 0.0738), saved)
    assert state_line(watch) == (
        "step 1000/1840 · avr_loss 0.0738 · lowest 0.0717 at 2 · 4 s/step · 56:00 left · saved 200"
    )


def test_before_the_first_step_and_without_numbers():
    assert state_line(watched()) == "starting the engine …"
    assert state_line(watched(step(1, None, None))) == "step 1/1840"


def test_a_loss_that_is_none_is_never_the_lowest():
    watch = watched(step(1, 0.5), step(2, float("nan")), step(3, float("inf")))
    assert (watch.lowest.step, watch.first_bad_step) == (1, 2)


def test_what_is_worth_a_line():
    watch = watched(DeviceReported("mps"), HEADER)
    assert notice_of(HEADER, watch) == "training on mps: 460 batches an epoch, 4 epochs, 1840 steps"
    assert notice_of(CheckpointAnnounced("a/b.safetensors", 7), watch) == "step 7: saved b.safetensors"
    assert notice_of(EngineWarning("odd"), watch) == "engine warning: odd"
    assert notice_of(step(1), watch) == notice_of(None, watch) == ""


def test_a_flood_of_warnings_ends_after_a_few():
    watch = watched(*[EngineWarning("odd")] * 6)
    assert notice_of(EngineWarning("odd"), watch) == ""


def test_plain_lines_come_twice_a_minute_and_at_the_end():
    seconds = [0.0]
    out = io.StringIO()
    display = Display(out, lambda: seconds[0])
    watch = watched()
    for number in range(1, 1841):
        watch.handle(step(number))
        seconds[0] += 4.0
        display(step(number), watch)
    lines = out.getvalue().splitlines()
    assert len(lines) == 1840 // 8
    assert lines[0].startswith("step 8/1840")
    assert lines[-1].startswith("step 1840/1840")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_notices_and_the_state():
    terminal = Terminal()
    with Display(terminal, begin="starting") as display:
        watch = watched(DeviceReported("mps"), HEADER)
        display(HEADER, watch)
        display(None, watch)
        watch.handle(step(5))
        display(step(5), watch)
    assert "starting" in terminal.getvalue()
    assert "training on mps: 460 batches an epoch" in terminal.getvalue()
    assert "step 5/1840" in terminal.getvalue()


def test_the_first_state_is_a_line_where_it_is_asked_for():
    out = io.StringIO()
    with Display(out, lambda: 0.0, at_once=True) as display:
        display.show("loading the base model")
        display.show("1/8 losses")
    assert out.getvalue() == "loading the base model\n"


@pytest.mark.parametrize(("count", "is_shown"), [(99, False), (100, True)])
def test_decoding_is_shown_on_a_terminal_where_it_takes_a_while(count, is_shown):
    terminal = Terminal()
    with decoding_display(terminal) as begin:
        begin(count)(50)
    assert (f"decoding images 50/{count}" in terminal.getvalue()) == is_shown


def test_decoding_that_is_quick_leaves_no_line_in_a_pipe():
    out = io.StringIO()
    with decoding_display(out) as begin:
        begin(500)(500)
    assert out.getvalue() == ""


def test_durations():
    assert [duration(seconds) for seconds in (0, 59.6, 61, 3599, 3600, 7384)] == [
        "0:00",
        "1:00",
        "1:01",
        "59:59",
        "1:00:00",
        "2:03:04",
    ]
