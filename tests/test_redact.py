"""Secrets and the home directory go nowhere; the rest stays as it is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spyke_kohya.engine.events import CheckpointAnnounced
from spyke_kohya.record.redact import Redactor, SecretMask, restored

HOME = Path("/home/spyke")
KEY = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("token hf_abcdefghijklmnopqrstuvwx.", "token [redacted]."),
        (f"WANDB_API_KEY={KEY} x", "WANDB_API_KEY=[redacted] x"),
        (f"wandb api key: {KEY}", "wandb api key: [redacted]"),
        (f"commit {KEY}", f"commit {KEY}"),
        ("my-own-secret!", "[redacted]!"),
        ("/home/spyke/models and /home/spyke", "~/models and ~"),
        ("--output_dir=/home/spyke/x", "--output_dir=~/x"),
        ("/home/spyke2/x /home/spyke-old", "/home/spyke2/x /home/spyke-old"),
        ("hf_short", "hf_short"),
    ],
)
def test_a_text(text, clean):
    redactor = Redactor({"MY_TOKEN": "my-own-secret", "SHORT_TOKEN": "abc", "PATH": "/usr/bin"}, HOME)
    assert redactor.text(text) == clean


def test_a_record_all_the_way_down_and_back():
    redactor = Redactor({"HF_TOKEN": "secret-secret"}, HOME)
    record = {"argv": ["/home/spyke/venv/bin/x", "--a=/home/spyke/y"], "n": 1, "deep": {"t": "secret-secret"}}
    clean = redactor.value(record)
    assert clean == {"argv": ["~/venv/bin/x", "--a=~/y"], "n": 1, "deep": {"t": "[redacted]"}}
    assert restored(clean, HOME)["argv"] == record["argv"]
    assert restored("a~b ~x", HOME) == "a~b ~x"


def test_an_event():
    event = CheckpointAnnounced("/home/spyke/out/x.safetensors", 5)
    assert Redactor({}, HOME).event(event) == CheckpointAnnounced("~/out/x.safetensors", 5)
    assert Redactor({}, Path("/")).event(event) is event


@given(st.lists(st.sampled_from([b"secret!!", b"secret", b"!!", b"s", b"other", b"secretsecret!!x", b"\xff\n"])))
def test_a_stream_is_masked_however_it_is_cut(pieces):
    whole = b"".join(pieces)
    mask = SecretMask(("secret!!", "other"))
    out = b"".join([*(mask.feed(piece) for piece in pieces), mask.finish()])
    assert out == whole.replace(b"secret!!", b"*" * 8).replace(b"other", b"*" * 5)


def test_without_secrets_a_stream_passes_at_once():
    assert SecretMask(()).feed(b"abc") == b"abc"


@pytest.mark.parametrize(("secret", "shown"), [("1234567", "1234567"), ("12345678", "[redacted]")])
def test_a_secret_has_8_characters_or_more(secret, shown):
    assert Redactor({"MY_TOKEN": secret}, HOME).text(secret) == shown
