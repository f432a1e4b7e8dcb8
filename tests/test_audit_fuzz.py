"""Whatever lies in a preset or a folder: findings with an exit code, never a traceback, never a hang."""

import json
import os
import shutil
import signal
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from workplace import make_workplace

from spyke_kohya.audit.examine import AuditTools, examine
from spyke_kohya.dataset.picture_cache import PictureCache
from spyke_kohya.presets.loading import load
from spyke_kohya.report.plain_text import findings_text

TOOLS = AuditTools(look=lambda paths: PictureCache(None).look(paths, lambda count: lambda done: None), memory_bytes=1)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def place(tmp_path):
    return make_workplace(tmp_path)


@contextmanager
def soon(seconds=20):
    """Fail where the work takes longer: it hangs."""

    def hang(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def examined(place, name="tiny"):
    with soon():
        examination = examine(load(name, place.root), place.root, tools=TOOLS)
    text = findings_text(examination.findings)
    assert all(character.isprintable() or character == "\n" for character in text)
    json.dumps(examination.to_dict())
    return [finding.code for finding in examination.findings]


NAMED = (
    "general datasets subsets image_dir num_repeats resolution batch_size is_reg validation_split enable_bucket "
    "bucket_reso_steps min_bucket_reso caption_separator dataset launch target expect total_steps trigger "
    "train_network learning_rate network_dim lr_warmup_steps output_dir max_train_epochs save_every_n_steps"
)
KEYS = st.sampled_from(NAMED.split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@QUICK
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_document_is_a_preset_or_has_findings(place, document):
    (place.root / "presets/any.json").write_text(json.dumps(document), encoding="utf-8")
    examined(place, "presets/any.json")


@settings(QUICK, max_examples=50)
@given(st.text(alphabet="[]={}\"'#\\\n.,01abtrue \t\r-+:_\ud7ffé", max_size=60) | st.binary(max_size=40))
@example("[" * 5000)
@example("a = " + "[" * 5000)
@example("a." * 3000 + "b = 1")
@example("[[datasets]]\n[datasets]\n[[datasets.subsets]]\n")
@example('"""' * 3)
def test_any_text_is_a_preset_or_has_findings(place, text):
    (place.root / "presets/any.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    examined(place, "any")


@settings(QUICK, max_examples=25)
@given(place_of=st.sampled_from(["tiny", "data"]), cut=st.integers(0, 700), junk=st.binary(max_size=4))
def test_a_preset_cut_or_hurt_anywhere(place, place_of, cut, junk):
    file = place.root / f"presets/{place_of}.toml"
    whole = file.read_bytes()
    file.write_bytes(whole[:cut] + junk + (whole[cut + len(junk) :] if junk else b""))
    try:
        examined(place)
    finally:
        file.write_bytes(whole)


NAMES = st.text(
    alphabet=st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..", "0", "1", "2", "3") and len(name.encode()) <= 250)


@QUICK
@given(NAMES)
@example("a b")
@example("line\nbreak")
@example("quote'\"`$(x)")
@example("🎉" * 60)
@example("x" * 251)
@example("\x1b[31mred")
@example("-rf")
@example("*[?]")
@example("100%_{}")
def test_any_file_name_is_an_image_like_any_other(place, name):
    image, caption = place.images / f"{name}.png", place.images / f"{name}.txt"
    shutil.copy(place.images / "0.png", image)
    caption.write_text("no trigger")
    try:
        hidden = name.startswith(".")
        assert ("captions.trigger-missing" in examined(place)) != hidden
        assert ("images.duplicate" in examined(place)) != hidden
    finally:
        image.unlink()
        caption.unlink()


def test_a_name_that_is_no_text_is_told_and_printed(place, tmp_path):
    name = os.fsencode(place.images) + b"/\xff\xfe.png"
    try:
        with open(name, "wb") as file:
            file.write(b"no picture")
    except OSError:
        pytest.skip("this disk takes only names that are text")
    for words in ((), ("--json",)):
        done = place.spyke("validate", "tiny", *words, XDG_CACHE_HOME=str(tmp_path / "c"))
        assert (done.returncode, done.stderr) == (4, "")
        assert "images.unreadable" in done.stdout
    assert json.loads(done.stdout)[0]["ok"] is False


def image_bytes(tmp_path, kind):
    file = tmp_path / f"sample.{kind}"
    image = Image.radial_gradient("L").convert("RGB").resize((48, 48))
    image.save(file, exif=Image.Exif())
    return file.read_bytes()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "bmp"])
@settings(QUICK, max_examples=25)
@given(cut=st.integers(0, 4000), flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 255)), max_size=6))
def test_image_bytes_cut_or_flipped_anywhere(place, tmp_path, kind, cut, flips):
    data = bytearray(image_bytes(tmp_path, kind)[: cut or None])
    for position, bits in flips:
        if data:
            data[position % len(data)] ^= bits
    file = place.images / f"hurt.{kind}"
    file.write_bytes(data)
    (place.images / "hurt.txt").write_text("spyke, hurt")
    examined(place)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("max_bucket_reso = 10000000000000\nenable_bucket = true", "dataset.bucket-limits"),
        ("num_repeats = 10000000000000", "plan.too-long"),
        ("batch_size = 10000000000000", ""),
        ("max_bucket_reso = 1000000\nenable_bucket = true\nresolution = 900000", "dataset.bucket-limits"),
    ],
)
def test_numbers_beyond_all_measure_are_told_at_once(place, text, code):
    file = place.root / "presets/data.toml"
    kept = file.read_text().replace("num_repeats = 2\n", "")
    for key in [line.split(" = ")[0] for line in text.splitlines()]:
        kept = "\n".join(line for line in kept.splitlines() if not line.strip().startswith(f"{key} = "))
    file.write_text(kept.replace("[general]", f"[general]\n{text}"))
    assert code in [*examined(place), ""]


def test_more_steps_than_anyone_trains_are_told_at_once(place):
    place.change("tiny", train_network={"max_train_epochs": 10**12, "save_every_n_steps": 1}, expect={"total_steps": 3})
    assert examined(place) == ["plan.too-long"]


def break_dataset_folder(place):
    shutil.rmtree(place.images)
    place.images.write_text("a file")


def break_by_loop(place):
    shutil.rmtree(place.images)
    place.images.symlink_to(place.images)


def put_loops_inside(place):
    (place.images / "loop.png").symlink_to(place.images / "loop.png")
    (place.images / "up").symlink_to(place.images)
    (place.images / "0.txt").unlink()
    (place.images / "0.txt").symlink_to(place.images / "0.txt")


def put_folders_for_files(place):
    (place.images / "folder.png").mkdir()
    (place.images / "1.txt").unlink()
    (place.images / "1.txt").mkdir()


def put_pipes_for_files(place):
    os.mkfifo(place.images / "pipe.png")
    (place.images / "1.txt").unlink()
    os.mkfifo(place.images / "1.txt")


def name_a_pipe_as_dataset(place):
    (place.root / "presets/data.toml").unlink()
    os.mkfifo(place.root / "presets/data.toml")


def name_a_folder_as_dataset(place):
    (place.root / "presets/data.toml").unlink()
    (place.root / "presets/data.toml").mkdir()


def name_a_pipe_as_base(place):
    (place.root / "base.safetensors").unlink()
    os.mkfifo(place.root / "base.safetensors")


def make_output_a_loop(place):
    place.output.symlink_to(place.output)


def lock_the_folder(place):
    place.images.chmod(0)


@pytest.mark.parametrize(
    "harm",
    [
        break_dataset_folder,
        break_by_loop,
        put_loops_inside,
        put_folders_for_files,
        put_pipes_for_files,
        name_a_pipe_as_dataset,
        name_a_folder_as_dataset,
        name_a_pipe_as_base,
        make_output_a_loop,
        pytest.param(lock_the_folder, marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")),
    ],
)
def test_what_is_not_what_its_name_says_is_a_finding(place, harm):
    harm(place)
    assert examined(place) != []


def test_a_device_that_never_ends_is_no_preset(place):
    with soon():
        assert examined(place, "/dev/zero") == ["schema.unreadable"]
