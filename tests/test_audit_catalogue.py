"""Every finding has its why and its source; what is made from the code is what is in the repository."""

import ast
import json
import re
from pathlib import Path

import jsonschema
import pytest
import toml
from make_docs import made_files
from preset_schemas import dataset_schema, training_schema
from workplace import PROJECT, make_workplace

from spyke_kohya.audit.catalogue import CATALOGUE, explanation

ROOMS = "schema|dataset|images|captions|repeats|plan|target|options|base|output|engine|machine|evaluate|preset"
CODE = re.compile(rf"({ROOMS})\.[a-z0-9]+(-[a-z0-9]+)*")


def codes_in(file):
    """Every text in the source that has a code's form, less file names."""
    constants = (node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant))
    texts = {value for value in constants if isinstance(value, str) and CODE.fullmatch(value)}
    return {text for text in texts if not text.endswith((".toml", ".json", ".py", ".log", ".csv"))}


def test_every_code_is_in_the_catalogue_and_every_entry_is_a_code():
    sources = [file for file in (PROJECT / "spyke_kohya").rglob("*.py") if file.name != "catalogue.py"]
    emitted = set().union(*map(codes_in, sources))
    assert emitted == set(CATALOGUE)


def test_every_entry_says_why_and_where_it_was_seen():
    for code, entry in CATALOGUE.items():
        assert entry.why.rstrip(")").endswith("."), code
        assert re.search(
            r"sd-scripts v0\.10\.1|measured|own rule|accelerate|pytorch#|argparse|format|sizes", entry.source
        ), code
        assert explanation(code).startswith(f"{code}\n  ")


def test_every_code_is_found_by_a_test():
    here = Path(__file__)
    tests = " ".join(file.read_text(encoding="utf-8") for file in here.parent.rglob("test_*.py") if file != here)
    untested = [code for code in CATALOGUE if not re.search(rf"\b{re.escape(code)}\b(?!-)", tests)]
    assert untested == []
    assert len(CATALOGUE) > 110


def test_a_code_is_explained_and_an_unknown_one_is_a_usage_error(tmp_path):
    place = make_workplace(tmp_path)
    told = place.spyke("validate", "--explain", "dataset.reg-unused")
    assert (told.returncode, "source: sd-scripts v0.10.1 train_util.py:2166" in told.stdout) == (0, True)
    unknown = place.spyke("validate", "--explain", "dataset.reg-unusd")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "did you mean dataset.reg-unused?" in unknown.stderr


def test_what_is_made_from_the_code_is_up_to_date():
    stale = [name for name, text in made_files().items() if (PROJECT / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


SCHEMAS = {"dataset": dataset_schema(), "training": training_schema()}


@pytest.mark.parametrize("file", sorted((PROJECT / "presets").glob("*.toml")), ids=lambda file: file.name)
def test_a_shipped_preset_names_its_schema_and_is_valid_by_it(file):
    head = re.match(r"#:schema (\.\./schemas/(\w+)\.schema\.json)\n", file.read_text())
    assert head, "the first line names the schema"
    schema = json.loads((file.parent / head[1]).read_text())
    assert schema == SCHEMAS[head[2]]
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(toml.loads(file.read_text()), schema)


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("dataset", {"general": {"enable_buckets": True}}),
        ("dataset", {"datasets": [{"resolution": "512"}]}),
        ("dataset", {"datasets": [{"subsets": [{}]}]}),
        ("dataset", {"datasets": [{"resolution": [1, 2, 3]}]}),
        ("training", {}),
        ("training", {"dataset": "d", "launch": {"target": "tpu"}, "train_network": {}}),
        ("training", {"dataset": "d", "launch": {"target": "mps"}, "train_network": {"learning_rat": 1}}),
    ],
)
def test_a_schema_refuses_what_the_model_refuses(kind, document):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMAS[kind])


def test_a_schema_takes_what_sd_scripts_takes():
    for document in ({}, {"datasets": []}, {"datasets": [{"resolution": [512, 768], "subsets": []}]}):
        jsonschema.validate(document, SCHEMAS["dataset"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_and_presets(tmp_path, shell):
    place = make_workplace(tmp_path)
    script = place.spyke("completion", shell)
    assert script.returncode == 0
    assert "_SPYKE_KOHYA_COMPLETE" in script.stdout
    words = {"COMP_WORDS": "spyke-kohya validate t", "COMP_CWORD": "2" if shell != "fish" else "t"}
    answer = place.spyke(**words, _SPYKE_KOHYA_COMPLETE=f"{shell}_complete")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "tiny" in answer.stdout


def test_the_page_is_written_for_people():
    page = (Path(PROJECT) / "docs/findings.md").read_text()
    assert page.count("\n| `") == len(CATALOGUE)
