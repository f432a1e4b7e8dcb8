"""The event-file reader against files that the real sd-scripts wrote (tests/data/transcripts)."""

import csv
import struct
from itertools import pairwise
from pathlib import Path

import pytest

from spyke_kohya.engine.scalars import StepLoss, losses_from_events, step_losses
from spyke_kohya.errors import EngineError
from spyke_kohya.formats.tfevents import Scalar, find_event_files, read_scalars

TRANSCRIPTS = Path(__file__).parent / "data" / "transcripts"
NAMES = ["grad_accum_reg", "two_epochs", "validation"]


def events(name: str) -> Path:
    return TRANSCRIPTS / f"{name}.tfevents"


def recorded(name: str) -> list[tuple[int, float, float]]:
    with (TRANSCRIPTS / f"{name}.losses.csv").open() as file:
        return [(int(r["step"]), float(r["loss_current"]), float(r["loss_average"])) for r in csv.DictReader(file)]


@pytest.mark.parametrize("name", NAMES)
def test_scalars_are_exactly_what_tensorboard_reads(name):
    scalars, offset = read_scalars(events(name))
    current, average = (
        [(scalar.step, scalar.value) for scalar in scalars if scalar.tag == tag]
        for tag in ("loss/current", "loss/average")
    )
    rows = recorded(name)
    assert current == [(step, loss) for step, loss, _ in rows], f"{len(current)} of {len(rows)}"
    assert average == [(step, loss) for step, _, loss in rows]
    assert offset == events(name).stat().st_size


def test_wall_times_rise_and_are_seconds():
    times = [scalar.wall_time for scalar in read_scalars(events("two_epochs"))[0]]
    assert times == sorted(times)
    assert 20 < times[-1] - times[0] < 60


def test_without_accumulation_each_batch_is_a_step():
    losses = losses_from_events([events("two_epochs")])
    assert [(step.step, step.loss, step.avr_loss) for step in losses] == recorded("two_epochs")
    assert {step.micro_batches for step in losses} == {1}
    assert set(losses[0].lr) == {"unet", "textencoder", "group1"}
    assert losses[0].lr["unet"] == pytest.approx(9.9039e-05, rel=1e-4)


def test_with_accumulation_a_step_is_its_own_batches():
    rows = recorded("grad_accum_reg")
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    expected = [(second[0], (first[1] + second[1]) / 2, second[2], 2) for first, second in pairs]
    losses = losses_from_events([events("grad_accum_reg")])
    assert [(step.step, step.loss, step.avr_loss, step.micro_batches) for step in losses] == expected
    assert [step.step for step in losses] == list(range(1, 13))


def test_batches_after_the_last_step_wait_for_it():
    scalars = [
        Scalar(tag, step, value, 0.0)
        for step, value in ((1, 0.5), (1, 0.25))
        for tag in ("loss/current", "loss/average")
    ]
    assert step_losses(scalars) == [StepLoss(1, 0.5, 0.5, {}, 1)]


def test_several_files_follow_each_other():
    both = losses_from_events([events("two_epochs"), events("grad_accum_reg")])
    assert len(both) == 16 + 12


def test_a_file_cut_at_any_byte_gives_its_complete_records_and_can_be_read_on(tmp_path):
    whole, path = events("two_epochs").read_bytes()[:1000], tmp_path / "events.out.tfevents.1"
    everything, _ = read_scalars(events("two_epochs"))
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        scalars, offset = read_scalars(path)
        assert scalars == everything[: len(scalars)]
        assert offset <= size
        assert scalars + read_scalars(events("two_epochs"), offset)[0] == everything


def test_a_growing_file_is_read_a_piece_at_a_time(tmp_path):
    whole, path = events("grad_accum_reg").read_bytes(), tmp_path / "events.out.tfevents.1"
    scalars, offset = [], 0
    for start, end in pairwise([*range(0, len(whole), 100), len(whole)]):
        with path.open("ab") as file:
            file.write(whole[start:end])
        more, offset = read_scalars(path, offset)
        scalars += more
    assert scalars == read_scalars(events("grad_accum_reg"))[0]


@pytest.mark.parametrize("content", [b"step,loss,avr_loss\n" * 9, b"\x00" * 64, b"\x18" + b"\x00" * 63])
def test_what_is_no_event_file_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="not a TensorBoard event file") as caught:
        read_scalars(path)
    assert caught.value.where == str(path)


def test_a_missing_file_is_an_error_too(tmp_path):
    with pytest.raises(EngineError, match="can't read"):
        read_scalars(tmp_path / "events.out.tfevents.1")


def test_damage_inside_a_record_is_an_error_and_nothing_else(tmp_path):
    whole, path = bytearray(events("two_epochs").read_bytes()[:1000]), tmp_path / "events.out.tfevents.1"
    refused = 0
    for at in range(len(whole)):
        damaged = whole.copy()
        damaged[at] = 0xFF
        path.write_bytes(damaged)
        try:
            read_scalars(path)
        except EngineError:
            refused += 1
    assert 0 < refused < len(whole)


def test_scalars_stored_as_tensors_are_read(tmp_path):
    def framed(data: bytes) -> bytes:
        return struct.pack("<Q", len(data)) + b"\x00" * 4 + data + b"\x00" * 4

    def sized(key: int, data: bytes) -> bytes:
        return bytes([key << 3 | 2, len(data)]) + data

    def event(tensor: bytes) -> bytes:
        value = sized(1, b"loss") + sized(8, tensor)
        return framed(b"\x09" + struct.pack("<d", 7.0) + b"\x10\x85\x02" + sized(5, sized(1, value)))

    tensors = [
        b"\x08\x01" + sized(4, struct.pack("<f", 0.5)),
        b"\x08\x01" + b"\x2d" + struct.pack("<f", 0.25),
        b"\x08\x02" + sized(6, struct.pack("<d", 0.125)),
        b"\x08\x01" + sized(4, struct.pack("<ff", 1.0, 2.0)),
    ]
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(framed(sized(3, b"brain.Event:2")) + b"".join(map(event, tensors)))
    assert read_scalars(path)[0] == [Scalar("loss", 261, value, 7.0) for value in (0.5, 0.25, 0.125)]


def test_event_files_are_found_under_any_run_and_tracker_name_in_order_of_time(tmp_path):
    names = ["20260101/network_train/events.out.tfevents.20.h.1.0", "20260102/mine/events.out.tfevents.10.h.1.0"]
    for name in [*names, "20260101/network_train/hparams.yml"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert find_event_files(tmp_path) == [tmp_path / names[1], tmp_path / names[0]]


def test_a_directory_that_is_not_there_has_no_event_files(tmp_path):
    assert find_event_files(tmp_path / "none") == []
