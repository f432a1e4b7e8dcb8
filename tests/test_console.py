"""The console parser against raw consoles of the real sd-scripts (tests/data/transcripts)."""

import csv
import io
import logging
import math
import tracemalloc
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.logging import RichHandler

from spyke_kohya.engine.console import ConsoleParser
from spyke_kohya.engine.events import (
    CheckpointAnnounced,
    CheckpointRemoved,
    DeviceReported,
    EngineFault,
    EngineWarning,
    EpochStarted,
    Event,
    Header,
    ModelSaved,
    StateSaved,
    Step,
    cause_of,
)

TRANSCRIPTS = Path(__file__).parent / "data" / "transcripts"
NAMES = sorted(path.stem for path in TRANSCRIPTS.glob("*.raw"))
OUT = "/home/spyke/output/spyke"


def raw(name: str) -> bytes:
    return (TRANSCRIPTS / f"{name}.raw").read_bytes()


def events_in(data: bytes, cuts: tuple[int, ...] = ()) -> list[Event]:
    parser = ConsoleParser()
    edges = [0, *sorted(cuts), len(data)]
    pieces = (parser.feed(data[start:end]) for start, end in pairwise(edges))
    return [event for piece in pieces for event in piece] + parser.finish()


def of(kind: type, events: list[Event]) -> list[Event]:
    return [event for event in events if isinstance(event, kind)]


@dataclass(frozen=True)
class Expected:
    header: Header | None = None
    device: str | None = "cpu"
    epochs: tuple[int, ...] = ()
    last_step: tuple[int, int] | None = None
    checkpoints: tuple[tuple[str, int], ...] = ()
    states: tuple[str, ...] = ()
    model_saved: bool = False
    fault_kinds: tuple[str, ...] = ()
    cause: str | None = None


EXPECTED = {
    # 4 images x 2 repeats, 2 epochs, a checkpoint every 4 steps
    "two_epochs": Expected(
        header=Header(8, 0, 0, 8, 2, "1", 1, 16),
        epochs=(1, 2),
        last_step=(16, 16),
        checkpoints=(*((f"-step{n:08d}", n) for n in (4, 8, 12, 16)), ("", 16)),
        model_saved=True,
    ),
    # 23 x 10 and 100 regularisation images, stopped by max_train_steps
    "seed_reg": Expected(
        header=Header(230, 0, 100, 460, 1, "1", 1, 12),
        epochs=(1,),
        last_step=(12, 12),
        checkpoints=(("-step00000005", 5), ("-step00000010", 10), ("", 12)),
        model_saved=True,
    ),
    # two nested validation bars, drawn with cursor movements
    "validation": Expected(
        header=Header(6, 2, 0, 6, 2, "1", 1, 12),
        epochs=(1, 2),
        last_step=(12, 12),
        checkpoints=(("-000001", 6), ("", 12)),
        model_saved=True,
    ),
    # batch 2, accumulation 2
    "grad_accum_reg": Expected(
        header=Header(12, 0, 100, 12, 2, "2", 2, 12),
        epochs=(1, 2),
        last_step=(12, 12),
        checkpoints=(*((f"-step{n:08d}", n) for n in (3, 6, 9, 12)), ("", 12)),
        model_saved=True,
    ),
    # learning rate 1e18: the engine runs on and ends "well"
    "nan": Expected(
        header=Header(8, 0, 0, 8, 1, "1", 1, 8),
        epochs=(1,),
        last_step=(8, 8),
        checkpoints=(("", 8),),
        model_saved=True,
    ),
    "missing_model": Expected(
        fault_kinds=("traceback", "launcher"),
        cause='ValueError: The provided pretrained_model_name_or_path "/nope/model.safetensors" is neither a valid '
        "local path nor a valid repo id. Please check the parameter.",
    ),
    "unknown_option": Expected(
        device=None,
        fault_kinds=("usage", "launcher"),
        cause="unrecognized arguments: --learning_rte=1",
    ),
    # a worker's exception inside the main one's, with a chained one inside it; the traceback follows a bar on its line
    "truncated_image": Expected(
        header=Header(4, 0, 0, 4, 1, "1", 1, 4),
        epochs=(1,),
        last_step=(1, 4),
        fault_kinds=("log-error", "traceback", "launcher"),
        cause="OSError: image file is truncated (Error loading file: /home/spyke/mps_ds_bad/4_x/spyke_001.png)",
    ),
    # the warning that names the file follows a bar on its line
    "not_an_image": Expected(
        device=None,
        fault_kinds=("traceback", "launcher"),
        cause="ZeroDivisionError: division by zero (failed to get image size: "
        "/home/spyke/mps_ds_bad2/4_x/spyke_001.png, error: cannot identify image file "
        "'/home/spyke/mps_ds_bad2/4_x/spyke_001.png')",
    ),
    # exit code 0, nothing trained
    "no_images": Expected(
        device=None,
        fault_kinds=("no-data",),
        cause="No data found. Please verify arguments (train_data_dir must be the parent of folders with images)",
    ),
    # the trainer got SIGTERM in step 117 of 1600; the launcher's traceback follows the bar on its line
    "killed_trainer": Expected(
        header=Header(8, 0, 0, 8, 200, "1", 1, 1600),
        epochs=tuple(range(1, 16)),
        last_step=(116, 1600),
        fault_kinds=("launcher",),
        cause="died with <Signals.SIGTERM: 15>",
    ),
    "save_state": Expected(
        header=Header(8, 0, 0, 8, 2, "1", 1, 16),
        epochs=(1, 2),
        last_step=(16, 16),
        checkpoints=(("-000001", 8), ("", 16)),
        states=(f"{OUT}-000001-state", f"{OUT}-state"),
        model_saved=True,
    ),
    # the second of two epochs: steps restart at 1 and the bar stops half way
    "resume_epoch": Expected(
        header=Header(8, 0, 0, 8, 2, "1", 1, 16),
        epochs=(2,),
        last_step=(8, 16),
        checkpoints=(("-step00000004", 4), ("-step00000008", 8), ("", 8)),
        model_saved=True,
    ),
    "narrow_80_columns": Expected(
        header=Header(8, 0, 0, 8, 1, "1", 1, 4),
        epochs=(1,),
        last_step=(4, 4),
        checkpoints=(("-step00000002", 2), ("-step00000004", 4), ("", 4)),
        model_saved=True,
    ),
}


def test_every_transcript_has_its_expectation():
    assert sorted(EXPECTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_real_console_gives_exactly_its_events(name):
    expected, events = EXPECTED[name], events_in(raw(name))
    assert of(Header, events) == [expected.header] * (expected.header is not None)
    assert of(DeviceReported, events) == [DeviceReported(expected.device)] * (expected.device is not None)
    assert [event.epoch for event in of(EpochStarted, events)] == list(expected.epochs)
    assert of(CheckpointAnnounced, events) == [
        CheckpointAnnounced(f"{OUT}{suffix}.safetensors", step) for suffix, step in expected.checkpoints
    ]
    assert of(StateSaved, events) == [StateSaved(path) for path in expected.states]
    assert of(ModelSaved, events) == [ModelSaved()] * expected.model_saved
    assert tuple(event.kind for event in of(EngineFault, events)) == expected.fault_kinds
    assert cause_of(events) == expected.cause


@pytest.mark.parametrize("name", NAMES)
def test_each_step_is_told_once_in_order(name):
    steps = of(Step, events_in(raw(name)))
    last_step, total = EXPECTED[name].last_step or (0, 0)
    assert [step.step for step in steps] == list(range(1, last_step + 1))
    assert {step.total for step in steps} == ({total} if total else set())
    assert [step.elapsed_s for step in steps] == sorted(step.elapsed_s for step in steps)


@pytest.mark.parametrize("name", ["two_epochs", "seed_reg", "grad_accum_reg", "validation", "resume_epoch", "nan"])
def test_avr_loss_is_the_one_tensorboard_recorded_for_that_step(name):
    """Not the stale one of the step before, nor one that holds the next step's batches."""
    recorded = {}
    with (TRANSCRIPTS / f"{name}.losses.csv").open() as file:
        for row in csv.DictReader(file):
            recorded.setdefault(int(row["step"]), float(row["loss_average"]))
    recorded.pop(0, None)
    printed = {step.step: step.avr_loss for step in of(Step, events_in(raw(name)))}
    assert {step: f"{loss:.3g}" for step, loss in printed.items()} == {
        step: f"{loss:.3g}" for step, loss in recorded.items()
    }, f"{len(printed)} steps printed, {len(recorded)} recorded"


def test_nan_is_a_loss_and_not_a_missing_one():
    losses = [step.avr_loss for step in of(Step, events_in(raw("nan")))]
    assert losses[0] == 0.961
    assert all(math.isnan(loss) for loss in losses[1:])


def test_a_chained_and_nested_traceback_is_kept_short_and_whole_at_its_end():
    _, fault, _ = of(EngineFault, events_in(raw("truncated_image")))
    assert fault.text == "OSError: image file is truncated"
    assert fault.detail.endswith("raise OSError(msg) from e\nOSError: image file is truncated")
    assert len(fault.detail.splitlines()) == 60


def test_warnings_come_without_padding_and_source_position():
    assert of(EngineWarning, events_in(raw("no_images")))[0] == EngineWarning("not directory: /home/spyke/nope_dir")


def test_what_rich_wrapped_at_80_columns_is_joined_again():
    wide, narrow = (of(EngineWarning, events_in(raw(name))) for name in ("two_epochs", "narrow_80_columns"))
    assert narrow == wide == [EngineWarning("no regularization images / 正則化画像が見つかりませんでした")]


@pytest.mark.parametrize("columns", range(78, 140))
def test_a_path_that_rich_folds_at_any_width_is_whole_again(columns):
    shown = io.StringIO()
    handler = RichHandler(console=Console(file=shown, width=columns))
    handler.setFormatter(logging.Formatter(fmt="%(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    path = "/Users/a person/output/loras/spyke/a_rather_long_directory_name/spyke-step00000008-state"
    record = logging.LogRecord("x", logging.INFO, "checkpointing.py", 170, "", (), None)
    record.msg = f"Random states saved in {path}/random_states_0.pkl"
    handler.emit(record)
    assert len(shown.getvalue().splitlines()) > 1
    assert events_in(shown.getvalue().encode()) == [StateSaved(path)]


def bar(postfix: str, step: int = 5, rate: str = "3.12s/it", elapsed: str = "00:15") -> str:
    return f"\rsteps:  42%|████▏     | {step}/12 [{elapsed}<00:21,  {rate}{postfix}]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bar(", avr_loss=1.04"), Step(5, 12, 1.04, 15, 3.12)),
        (bar(", avr_loss=0.1", rate="2.00it/s"), Step(5, 12, 0.1, 15, 0.5)),
        (bar(", avr_loss=0.1", elapsed="1:02:03"), Step(5, 12, 0.1, 3723, 3.12)),
        (bar(", Average key norm=0.5, Keys Scaled=3, avr_loss=0.07"), Step(5, 12, 0.07, 15, 3.12)),
        (bar(", avr_loss=inf"), Step(5, 12, math.inf, 15, 3.12)),
        (bar("", rate="?it/s"), Step(5, 12, None, 15, None)),
        (bar("", step=0), None),
        ("                               bucket_reso_steps: 64", None),
        ("\rvalidation " + bar(", val_avg_loss=1.08, timestep=800")[1:], None),
        ("\repoch validation " + bar(", val_epoch_avg_loss=1.08")[1:], None),
    ],
)
def test_forms_of_the_progress_bar(text, expected):
    assert of(Step, events_in(text.encode())) == ([expected] if expected else [])


def test_with_accumulation_a_step_whose_first_rendering_tqdm_left_out_keeps_its_own_loss():
    header = raw("grad_accum_reg").split(b"running training")[1].split(b"text_encoder [0]")[0]
    losses = [(1, "0.5"), (1, "0.6"), (2, "0.7"), (2, "0.8"), (3, "0.8"), (3, "0.9"), (3, "0.95")]
    bars = "".join(bar(f", avr_loss={loss}", step) for step, loss in losses)
    steps = of(Step, events_in(header + bars.encode()))
    assert [step.avr_loss for step in steps] == [0.5, 0.7, 0.9]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("removing old checkpoint: /out/a b.safetensors", CheckpointRemoved("/out/a b.safetensors")),
        ("accelerator device: mps", DeviceReported("mps")),
        ("NaN found in latents, replacing with zeros", EngineWarning("NaN found in latents, replacing with zeros")),
        (
            "/x/nn/functional.py:42: UserWarning: The operator 'aten::y' will fall back to run on the CPU.",
            EngineWarning("UserWarning: The operator 'aten::y' will fall back to run on the CPU."),
        ),
        (
            "[W1122 10:00:00.1 MPSFallback.mm:11] Warning: The operator 'aten::y' will fall back to run on the CPU.",
            EngineWarning("Warning: The operator 'aten::y' will fall back to run on the CPU."),
        ),
        (
            "accelerate <command> [<args>]: error: unrecognized arguments: --use_mps_device",
            EngineFault("usage", "unrecognized arguments: --use_mps_device"),
        ),
    ],
)
@pytest.mark.parametrize("before", ["", bar(", avr_loss=1.04"), "\x1b[A\x1b[A"])
def test_a_line_says_the_same_alone_and_after_a_bar(line, expected, before):
    events = events_in((before + line + "\n").encode())
    assert [event for event in events if not isinstance(event, Step)] == [expected]


def test_a_warning_about_the_engines_source_is_no_event():
    assert events_in(b'/x/deepspeed_utils.py:131: SyntaxWarning: "is not" with a literal.\n') == []


def traceback_of(exception: str, file: str = "train_network.py") -> str:
    return f'Traceback (most recent call last):\n  File "/x/{file}", line 1, in <module>\n    go()\n{exception}\n'


def test_of_chained_tracebacks_the_last_exception_is_the_cause():
    link = "\nDuring handling of the above exception, another exception occurred:\n\n"
    console = traceback_of("KeyError: 'a'") + link + traceback_of("RuntimeError: second\nwith more\n  to say")
    events = events_in(console.encode())
    assert [event.text for event in events] == ["RuntimeError: second"]
    assert events[0].detail.endswith("RuntimeError: second\nwith more\n  to say")


def test_a_launcher_that_fails_by_itself_is_the_launchers_fault():
    text = traceback_of("ValueError: 'MPS' is not a valid DistributedType", "accelerate/commands/launch.py")
    fault = EngineFault("launcher", "ValueError: 'MPS' is not a valid DistributedType")
    assert events_in(text.encode()) == [fault]
    assert cause_of([fault]) == fault.text


def test_an_ignored_exception_is_no_fault_and_training_goes_on():
    console = "Exception ignored in: <function X.__del__>\n" + traceback_of("OSError: x") + bar(", avr_loss=1")
    assert events_in(console.encode()) == [Step(5, 12, 1.0, 15, 3.12)]


def test_no_events_have_no_cause():
    assert cause_of([]) is None


def same(one: list[Event], other: list[Event]) -> bool:
    """nan is not equal to itself, so compare what is shown."""
    return [repr(event) for event in one] == [repr(event) for event in other]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_any_way_of_cutting_a_console_gives_the_same_events(name, data):
    console = raw(name)
    cuts = data.draw(st.lists(st.integers(0, len(console)), max_size=30))
    assert same(events_in(console, tuple(cuts)), events_in(console))


@pytest.mark.parametrize("name", ["unknown_option", "truncated_image"])
def test_a_console_read_byte_by_byte_gives_the_same_events(name):
    console = raw(name)
    assert same(events_in(console, tuple(range(1, len(console)))), events_in(console))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_a_damaged_console_never_raises_and_is_still_independent_of_its_cutting(name, data):
    start = data.draw(st.integers(0, len(raw(name))))
    console = bytearray(raw(name)[start : start + 4000])
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, 3999), st.integers(0, 255)), max_size=50)):
        if at < len(console):
            console[at] = byte
    cuts = data.draw(st.lists(st.integers(0, len(console)), max_size=10))
    assert same(events_in(bytes(console), tuple(cuts)), events_in(bytes(console)))


def test_a_line_of_ten_megabytes_is_read_in_little_memory():
    parser = ConsoleParser()
    tracemalloc.start()
    events = parser.feed(b"saving checkpoint: /out/")
    for _ in range(160):
        events += parser.feed(b"x" * 65536)
    events += parser.feed(b".safetensors\nepoch 1/4\n")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    checkpoint, epoch = events
    assert checkpoint.path.startswith("/out/x")
    assert checkpoint.path.endswith("x.safetensors")
    assert epoch == EpochStarted(1, 4)
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize("size", [65535, 65536, 65537, 100_000])
def test_an_overlong_line_is_cut_the_same_however_it_comes(size):
    line = b"accelerator device: " + bytes(97 + at % 26 for at in range(size - 20)) + b"\n"
    assert events_in(line, tuple(range(0, size, 999))) == events_in(line)
    assert len(events_in(line)[0].device) == min(size, 65536) - 20
