"""The audit of captions: what stops sd-scripts, what it doesn't read, and where the trigger is or isn't."""

import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workplace import make_workplace

from spyke_kohya.audit.examine import AuditTools, examine
from spyke_kohya.audit.tags import tag_tables
from spyke_kohya.formats.clip_tokens import TokenCounter, read_token_counter, tokenizer_directories
from spyke_kohya.presets.loading import load
from spyke_kohya.report.plain_text import tag_table_text


@pytest.fixture
def place(tmp_path):
    return make_workplace(tmp_path)


def findings_of(place, *settings, **tools):
    return list(examine(load("tiny", place.root, settings), place.root, tools=AuditTools(**tools)).findings)


def only(place, *settings, **tools):
    (finding,) = findings_of(place, *settings, **tools)
    return finding


def caption(place, index, text):
    (place.images / f"{index}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


def set_general(place, **keys):
    place.change("data", general=keys)


def add_regularisation(place, *captions):
    reg = place.root / "dataset/reg"
    reg.mkdir()
    for index, text in enumerate(captions):
        shutil.copy(place.images / f"{index}.png", reg / f"{index}.png")
        if text is not None:
            (reg / f"{index}.txt").write_text(text)
    with (place.root / "presets/data.toml").open("a") as file:
        file.write('\n[[datasets.subsets]]\nis_reg = true\nimage_dir = "dataset/reg"\n')
    place.change("tiny", expect={"total_steps": None})
    return reg


def test_captions_with_another_ending_are_an_error_that_names_it(place):
    set_general(place, caption_extension=None)
    place.change("tiny", expect={"trigger": None})
    finding = only(place)
    assert (finding.code, finding.severity) == ("captions.extension", "error")
    assert finding.message == (
        "the captions end with .txt, and sd-scripts looks for .caption: all train without one (4)"
    )
    assert finding.remedy == 'set caption_extension = ".txt"'
    set_general(place, class_tokens="spyke")
    assert only(place).severity == "warning"


def test_only_the_first_line_is_used_unless_lines_are_drawn_from(place):
    caption(place, 1, "spyke, one\nspyke, two\n")
    assert only(place).message == "it has 2 lines, and only the first is used"
    set_general(place, enable_wildcard=True)
    assert findings_of(place) == []


@pytest.mark.parametrize(
    ("text", "words"), [(" \n\n", "it holds only blanks"), ("\nspyke, there", "its first line is blank")]
)
def test_a_caption_that_begins_with_nothing(place, text, words):
    place.change("tiny", expect={"trigger": None})
    caption(place, 1, text)
    finding = only(place)
    assert finding.code == "captions.blank"
    assert words in finding.message


def test_a_byte_order_mark_spoils_the_trigger(place):
    caption(place, 1, b"\xef\xbb\xbfspyke, standing")
    assert [finding.code for finding in findings_of(place)] == ["captions.byte-order-mark", "captions.trigger-missing"]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here that nobody can read")
def test_a_caption_that_can_not_be_read_stops_the_launch(place):
    (place.images / "0.txt").unlink()
    (place.images / "0.txt").symlink_to("/proc/self/mem")  # a plain file whose first byte is an I/O error
    finding = only(place)
    assert (finding.code, finding.severity) == ("captions.unreadable", "error")
    assert finding.where.endswith("0.txt")


def test_a_shuffled_or_dropped_trigger_must_be_kept(place):
    set_general(place, shuffle_caption=True)
    assert only(place).message == "keep_tokens is 0, so the trigger 'spyke' is moved by shuffle_caption"
    set_general(place, caption_tag_dropout_rate=0.1)
    assert "moved by shuffle_caption and dropped by caption_tag_dropout_rate" in only(place).message
    set_general(place, keep_tokens=1)
    assert findings_of(place) == []


def test_a_trigger_among_regularisation_captions_is_named(place):
    add_regularisation(place, "creature, tall", "creature, spyke", "spyker")
    finding = only(place)
    assert finding.code == "captions.trigger-in-regularisation"
    assert finding.message == "1 of 3 regularisation captions hold the trigger 'spyke'"
    assert "1.txt" in finding.remedy


def test_regularisation_without_captions_is_one_line_and_none_with_class_tokens(place):
    add_regularisation(place, None, None, None)
    finding = only(place)
    assert (finding.code, finding.severity) == ("captions.missing", "warning")
    assert "3 of 3 images" in finding.message
    assert "set class_tokens" in finding.remedy
    file = place.root / "presets/data.toml"
    file.write_text(file.read_text() + 'class_tokens = "creature"\n')
    assert findings_of(place) == []


def test_tags_in_every_caption_are_one_finding_without_the_trigger(place):
    for index in range(4):
        caption(place, index, f"spyke, solo, number {index}, 1girl")
    finding = only(place)
    assert finding.code == "captions.tag-everywhere"
    assert finding.message.startswith("'solo', '1girl' in each of 4 captions")
    place.change("tiny", expect={"trigger": None})
    assert only(place) == finding  # the first tag of all of them is the trigger, said or not


def test_the_tag_table_counts_captions(place):
    caption(place, 0, "spyke, red, red")
    examined = examine(load("tiny", place.root), place.root)
    (table,) = tag_tables(examined.scan, examined.captions)
    assert (table.captions, table.tags[0], dict(table.tags)["red"]) == (4, ("spyke", 4), 1)
    assert "       4  100%  spyke" in tag_table_text(table)


def test_a_caption_is_too_long_at_76_words_and_not_at_75(place):
    caption(place, 1, "spyke, " + " ".join(["word"] * 73))  # spyke and the comma are two
    assert findings_of(place) == []
    caption(place, 1, "spyke, " + " ".join(["word"] * 74))
    finding = only(place)
    assert finding.code == "captions.too-long"
    assert "at least 76 tokens: the text encoder does not see those after 75" in finding.message
    assert findings_of(place, "train_network.max_token_length=150") == []


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """CLIP's own merges, from the package that has them, as the hub's file lists them."""
    gzip, package = pytest.importorskip("gzip"), pytest.importorskip("importlib.util").find_spec("open_clip")
    packed = Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")[: 49152 - 256 - 2 + 1]
    folder = tmp_path_factory.mktemp("cache") / "openai_clip-vit-large-patch14"
    folder.mkdir()
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines[1:]]), encoding="utf-8")
    return folder


def test_with_the_vocabulary_at_hand_the_count_is_exact(place, vocabulary):
    tokenize = pytest.importorskip("open_clip").tokenizer.SimpleTokenizer().encode
    text = "spyke, " + "qzxwv " * 30  # 32 words
    caption(place, 1, text)
    finding = only(place, f"train_network.tokenizer_cache_dir={vocabulary.parent}")
    assert f"it has {len(tokenize(text))} tokens" in finding.message
    assert len(tokenize(text)) > 75


CAPTIONS = [
    "spyke_plasma_v1, 1girl, solo, looking at viewer, it's a don't, (masterpiece:1.2), <lora:x>",
    "Émile naïve café 日本語 テスト 🎉🎉 a_b__c",
    "",
    "  x\ty\n z 100%",
    "a" * 200,
]


def test_tokens_are_counted_as_clip_does(vocabulary):
    tokenize = pytest.importorskip("open_clip").tokenizer.SimpleTokenizer().encode
    counter = read_token_counter([vocabulary.parent, vocabulary])
    chance = random.Random(1)
    letters = "abcdefgh ,.'_-!?éñ日語1234🎉ABC()"
    captions = CAPTIONS + ["".join(chance.choices(letters, k=chance.randint(0, 80))) for _ in range(500)]
    compared = [(counter.count(text), len(tokenize(text))) for text in captions]
    assert counter.is_exact
    assert [one for one, other in compared] == [other for one, other in compared]
    assert all(TokenCounter().count(text) <= count for text, (count, _) in zip(captions, compared, strict=True))
    assert len(compared) == 505


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_no_text_breaks_the_counting(text):
    assert TokenCounter({}).count(text) >= TokenCounter().count(text) >= 0


def test_a_vocabulary_that_is_none_is_as_none(tmp_path):
    (tmp_path / "merges.txt").write_bytes(b"\xff\xfe")
    assert not read_token_counter([tmp_path]).is_exact
    (tmp_path / "merges.txt").write_text("a b c\n")
    assert not read_token_counter([tmp_path, tmp_path / "none"]).is_exact


def test_the_vocabulary_is_looked_for_where_sd_scripts_finds_it(tmp_path):
    hub = tmp_path / "hub/models--openai--clip-vit-large-patch14/snapshots/abc"
    hub.mkdir(parents=True)
    found = list(tokenizer_directories(tmp_path / "cache", {"HF_HOME": str(tmp_path)}, tmp_path))
    assert found == [tmp_path / "cache/openai_clip-vit-large-patch14", hub]
