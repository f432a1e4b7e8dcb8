"""What happens beside a training while the engine prints nothing."""

import signal
from datetime import datetime
from pathlib import Path

from test_train import launch_of
from workplace import TRANSCRIPTS, make_workplace

from spyke_kohya.process.stop_signals import StopRequest
from spyke_kohya.record.redact import Redactor
from spyke_kohya.run import lossfile
from spyke_kohya.run.train import train


def test_the_losses_are_written_while_the_engine_is_silent(tmp_path, monkeypatch):
    """An engine that hangs for an hour has its losses on the disk, and not only at its end."""
    monkeypatch.setattr(lossfile, "_EVERY_S", 0.0)
    place = make_workplace(tmp_path)
    stop, seen = StopRequest(), []
    inherited = place.environment(
        FAKE_SCENARIO="waits", FAKE_READY=str(tmp_path / "ready"), FAKE_EVENTS=str(TRANSCRIPTS / "two_epochs.tfevents")
    )

    def listen(event, progress):
        losses = place.only_run() / "losses.csv"
        if event is None and progress.step:
            seen.append(losses.exists())
            if losses.exists() or len(seen) > 5:
                stop.signals.append(signal.SIGINT)

    train(
        launch_of(place, inherited),
        inherited=inherited,
        redactor=Redactor(inherited, Path.home()),
        listen=listen,
        now=datetime.now,
        stop=stop,
    )
    assert seen[-1], "the losses were not written while the engine was silent"
