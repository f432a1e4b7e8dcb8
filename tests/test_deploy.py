"""A checkpoint goes into a UI's folder whole, checked, with its history, and can be taken back."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from spyke_kohya.engine.lora_file import alphas_of, data_sha256, read_lora, write_with_metadata
from spyke_kohya.errors import DeployError, NothingToRank, UsageError
from spyke_kohya.presets.training import Deploy
from spyke_kohya.ship.choose import choose
from spyke_kohya.ship.deploy import check_lora, deploy, deployed_in, find_place, undo
from tests.commands import PROJECT, spyke
from tests.recorded import record_run, write_lora

NOW = datetime(2026, 2, 21, 9, 0, 0)
LATER = datetime(2026, 2, 22, 9, 0, 0)


@pytest.fixture
def run(tmp_path) -> Path:
    return record_run(tmp_path)


@pytest.fixture
def comfy(tmp_path) -> Path:
    (tmp_path / "ComfyUI" / "models" / "loras").mkdir(parents=True)
    return tmp_path / "ComfyUI"


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_top_of_the_test_order_is_deployed_under_the_output_name(run, comfy):
    shipment = choose(run)
    done = deploy(shipment, find_place(comfy), now=NOW)
    assert done.file == comfy / "models/loras/spyke.safetensors"
    assert done.file.read_bytes() == shipment.checkpoint.read_bytes()
    note = json.loads((comfy / "models/loras/spyke.spyke.json").read_text())
    assert note["run"] == run.name
    assert note["step"] == shipment.step == 80
    assert note["trigger"] == "spyke"
    assert note["sha256"] == hashlib.sha256(done.file.read_bytes()).hexdigest()
    assert "cannot show generalisation" in note["verdict"]
    assert (note["ranks"], note["alphas"], note["family"]) == ([4], [2.0], "SD1.5")


def test_a_step_and_a_name_can_be_chosen(run, comfy):
    shipment = choose(run.parent.parent, step=40, name="spyke_v1")
    assert shipment.checkpoint.name == "spyke-step00000040.safetensors"
    assert deploy(shipment, find_place(comfy), now=NOW).file.name == "spyke_v1.safetensors"


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(run):
    with pytest.raises(NothingToRank) as fault:
        choose(run, step=41)
    assert fault.value.remedy == "there are: 20, 40, 60, 80, 100, 120"


@pytest.mark.parametrize(
    ("layout", "folder", "ui"),
    [
        ("models/loras", "models/loras", "ComfyUI"),
        ("models/checkpoints", "models/loras", "ComfyUI"),
        ("models/Lora", "models/Lora", "A1111 or Forge"),
        ("models/Stable-diffusion", "models/Lora", "A1111 or Forge"),
    ],
)
def test_the_known_layouts_are_recognised(tmp_path, layout, folder, ui):
    (tmp_path / layout).mkdir(parents=True)
    place = find_place(tmp_path)
    assert (place.folder, place.ui) == (tmp_path / folder, ui)
    place.folder.mkdir(exist_ok=True)
    assert find_place(place.folder) == place


def test_any_other_directory_is_refused(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(DeployError, match="neither ComfyUI nor A1111"):
        find_place(tmp_path)
    with pytest.raises(DeployError, match="no such directory"):
        find_place(tmp_path / "nowhere")


def test_a_different_file_is_never_overwritten_without_replace(run, comfy):
    old = write_lora(comfy / "models/loras/spyke.safetensors", seed=5)
    before = files_in(old.parent)
    with pytest.raises(DeployError, match="different file"):
        deploy(choose(run), find_place(comfy), now=NOW)
    assert files_in(old.parent) == before


def test_replace_keeps_the_old_file_and_undo_puts_it_back(run, comfy):
    place = find_place(comfy)
    write_lora(place.file("spyke"), seed=5)
    before = files_in(place.folder)
    done = deploy(choose(run), place, now=NOW, replace=True)
    assert done.file.read_bytes() != before["spyke.safetensors"]
    assert (place.folder / done.provenance["replaced"]).read_bytes() == before["spyke.safetensors"]
    undo(place, "spyke")
    assert files_in(place.folder) == before


def test_two_deployments_are_undone_one_by_one(run, comfy):
    place = find_place(comfy)
    deploy(choose(run, step=40), place, now=NOW)
    first = files_in(place.folder)
    deploy(choose(run, step=60), place, now=LATER, replace=True)
    undo(place, "spyke")
    assert files_in(place.folder) == first
    undo(place, "spyke")
    assert files_in(place.folder) == {}
    with pytest.raises(DeployError, match="nothing was deployed"):
        undo(place, "spyke")


def test_deploying_the_same_file_again_changes_nothing(run, comfy):
    place = find_place(comfy)
    deploy(choose(run), place, now=NOW)
    before = files_in(place.folder)
    deploy(choose(run), place, now=LATER)
    assert files_in(place.folder) == before


def test_a_file_that_was_there_already_survives_the_undo(run, comfy):
    place, shipment = find_place(comfy), choose(run)
    place.file("spyke").write_bytes(shipment.checkpoint.read_bytes())
    before = files_in(place.folder)
    deploy(shipment, place, now=NOW)
    undo(place, "spyke")
    assert files_in(place.folder) == before


def test_undo_does_not_take_away_what_someone_put_there_since(run, comfy):
    place = find_place(comfy)
    deploy(choose(run), place, now=NOW)
    write_lora(place.file("spyke"), seed=9)
    with pytest.raises(DeployError, match="not the one that was deployed"):
        undo(place, "spyke")
    assert deployed_in(place)[0].state == "changed since"


def test_a_link_points_at_the_checkpoint(run, comfy):
    done = deploy(choose(run), find_place(comfy), now=NOW, link=True)
    assert done.file.is_symlink()
    assert done.file.resolve() == choose(run).checkpoint.resolve()
    undo(find_place(comfy), "spyke")
    assert choose(run).checkpoint.is_file()
    with pytest.raises(DeployError, match="header of its own"):
        deploy(choose(run), find_place(comfy), now=NOW, link=True, metadata=True)


def test_metadata_is_added_and_no_tensor_byte_touched(run, comfy):
    shipment = choose(run)
    done = deploy(shipment, find_place(comfy), now=NOW, metadata=True)
    before, after = read_lora(shipment.checkpoint), read_lora(done.file)
    assert data_sha256(before) == data_sha256(after)
    added = {"modelspec.trigger_phrase": "spyke", "spyke_kohya.run": run.name, "spyke_kohya.step": "80"}
    assert after.metadata == {**before.metadata, **added}
    with safe_open(shipment.checkpoint, "numpy") as old, safe_open(done.file, "numpy") as new:
        assert set(old.keys()) == set(new.keys())
        assert all(np.array_equal(old.get_tensor(name), new.get_tensor(name)) for name in old.keys())  # noqa: SIM118


@pytest.mark.parametrize("trigger", ["x", "xy", 'a «quoted» "trigger"\n', "é" * 1001])
def test_any_metadata_keeps_the_tensors_aligned_and_readable(tmp_path, trigger):
    lora = read_lora(write_lora(tmp_path / "x.safetensors"))
    with (tmp_path / "y.safetensors").open("wb") as stream:
        write_with_metadata(lora, {"modelspec.trigger_phrase": trigger}, stream)
    written = read_lora(tmp_path / "y.safetensors")
    assert written.data_start % 8 == 0
    assert written.metadata["modelspec.trigger_phrase"] == trigger
    assert data_sha256(written) == data_sha256(lora)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_checkpoint_with_numbers_that_are_none_is_refused(tmp_path, value, dtype):
    path = write_lora(tmp_path / "nan.safetensors", **{"lora_unet_x.lora_up.weight": np.array([0, value], dtype)})
    with pytest.raises(DeployError, match=r"not all numbers .*lora_unet_x\.lora_up\.weight"):
        check_lora(path)


def test_bfloat16_is_read_too(tmp_path):
    sound, infinite = np.array([0x3FC0], np.uint16), np.array([0x7F80], np.uint16)
    module = {"lora_unet_z.lora_down.weight": np.zeros((4, 8), np.uint16), "lora_unet_z.alpha": sound}
    assert alphas_of(check_lora(as_bfloat16(write_lora(tmp_path / "x.safetensors", **module)))) == (1.5, 2.0)
    broken = as_bfloat16(write_lora(tmp_path / "y.safetensors", **module | {"lora_unet_z.alpha": infinite}))
    with pytest.raises(DeployError, match="not all numbers"):
        check_lora(broken)


def as_bfloat16(path: Path) -> Path:
    """The same file with its U16 tensors called BF16, which numpy can't write."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    return path


def test_a_lora_for_another_family_than_its_base_is_refused(tmp_path):
    base = tmp_path / "base"
    (base / "text_encoder").mkdir(parents=True)
    (base / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    (base / "text_encoder" / "config.json").write_text('{"hidden_size": 768}')
    check_lora(write_lora(tmp_path / "fits.safetensors"), base)
    with pytest.raises(DeployError, match="a LoRA for SDXL"):
        check_lora(write_lora(tmp_path / "xl.safetensors", context=2048), base)


def test_a_file_that_is_no_whole_lora_is_refused(tmp_path):
    whole = write_lora(tmp_path / "whole.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole[:-4])
    with pytest.raises(DeployError, match="its header promises"):
        check_lora(cut)
    cut.write_bytes(b"not a safetensors file at all")
    with pytest.raises(DeployError, match="not a readable safetensors file"):
        check_lora(cut)
    without = write_lora(tmp_path / "without.safetensors", **{"lora_unet_y.lora_down.weight": np.zeros((4, 8), "f4")})
    with pytest.raises(DeployError, match="have no alpha, the first is lora_unet_y"):
        check_lora(without)


def test_a_disk_that_fills_up_leaves_everything_as_it_was(run, comfy):
    old = write_lora(comfy / "models/loras/spyke.safetensors", seed=5)
    before = files_in(old.parent)
    done = spyke("deploy", str(run), "--to", str(comfy), "--replace", most_bytes=2000)
    assert done.returncode == 8
    assert "can't write there: File too large; nothing was changed" in done.stderr
    assert files_in(old.parent) == before


def test_the_command_line_deploys_lists_and_undoes(run, comfy):
    done = spyke("deploy", str(run), "--to", str(comfy), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 80
    listed = spyke("list", str(comfy))
    assert listed.stdout.splitlines()[0].split() == ["spyke", "as", "deployed", "step", "80", "of", run.name]
    assert spyke("deploy", str(run), "--to", str(comfy), "--undo").returncode == 0
    assert spyke("list", str(comfy), "--json").stdout == "[]\n"
    assert spyke("deploy", str(run)).returncode == 2


def test_the_preset_can_name_the_place(tmp_path, comfy):
    run = record_run(tmp_path)
    record = json.loads((run / "run.json").read_text())
    record["preset"]["document"]["deploy"] = {"to": str(comfy), "name": "named"}
    (run / "run.json").write_text(json.dumps(record))
    assert spyke("deploy", str(run)).returncode == 0
    assert (comfy / "models/loras/named.safetensors").is_file()


BAD_NAMES = [
    "", ".", "..", "../../x", "/abs/x", "char/x", "char\\x", ".hidden", "a\nb", "\x1b[2J", "\udcff", "x" * 201,
    "\u00e9" * 101,
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_plain_file_name_is_refused_wherever_it_comes_from(run, comfy, name):
    with pytest.raises(UsageError, match="--name"):
        choose(run, name=name)
    with pytest.raises(ValueError, match="name"):
        Deploy(to=str(comfy), name=name)
    change_record(run, preset={"document": {"deploy": {"to": str(comfy), "name": name}}})
    if name == "\udcff":  # that is no JSON
        with pytest.raises(NothingToRank, match="record can't be read"):
            choose(run)
        return
    with pytest.raises(DeployError, match=r"\[deploy\] name") as fault:
        choose(run)
    assert "--name" in fault.value.remedy


@pytest.mark.parametrize("name", ["x" * 200, "spyke v1.5 (best)", "\u30b9\u30d1\u30a4\u30af"])
def test_any_other_name_is_taken_replaced_and_undone(run, comfy, name):
    place = find_place(comfy)
    write_lora(place.file(name), seed=5)
    before = files_in(place.folder)
    deploy(choose(run, name=name), place, now=NOW, replace=True)
    assert Deploy(to="x", name=name).name == name
    undo(place, name)
    assert files_in(place.folder) == before


def test_a_name_that_leaves_the_folder_writes_and_removes_nothing(tmp_path, run, comfy):
    deploy(choose(run, name="kept"), find_place(comfy), now=NOW)
    before = sorted(tmp_path.rglob("*"))
    for words in ((), ("--undo",)):
        done = spyke("deploy", run, "--to", comfy, "--name", "char/kept", *words)
        assert (done.returncode, "--name" in done.stderr) == (2, True), done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def change_record(run: Path, **parts: object) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | parts))


def test_what_was_deployed_is_taken_back_when_its_runs_are_gone(run, comfy):
    output = run.parents[1]
    assert spyke("deploy", output, "--to", comfy, "--name", "spyke_v1").returncode == 0
    shutil.rmtree(output / "runs")
    for file in output.glob("*.safetensors"):
        file.unlink()
    done = spyke("deploy", output, "--to", comfy, "--undo")
    assert done.returncode == 0, done.stderr
    assert list((comfy / "models/loras").iterdir()) == []
    done = spyke("deploy", output, "--to", comfy, "--undo")
    assert (done.returncode, "nothing" in done.stderr) == (8, True)


def test_an_undo_needs_no_losses_to_find_the_place_and_the_name(run, comfy):
    change_record(run, preset={"document": {"deploy": {"to": str(comfy), "name": "named"}}})
    assert spyke("deploy", run).returncode == 0
    (run / "losses.csv").unlink()
    (run / "console.log").unlink()
    done = spyke("deploy", run.parents[1], "--undo")
    assert done.returncode == 0, done.stderr
    assert list((comfy / "models/loras").iterdir()) == []


def test_an_undo_of_one_of_several_asks_which(run, comfy):
    for name in ("one", "two"):
        deploy(choose(run, name=name), find_place(comfy), now=NOW)
    done = spyke("deploy", run, "--to", comfy, "--undo")
    assert (done.returncode, "one, two" in done.stderr, "--name" in done.stderr) == (2, True, True)
    assert len(deployed_in(find_place(comfy))) == 2


BROKEN_NOTES = {
    "cut": b"{",
    "empty": b"",
    "no table": b"[]",
    "nested": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "without a hash": b'{"how": "copied", "replaced": null, "deployed_at": ""}',
    "of other types": b'{"sha256": 1, "how": "thrown", "replaced": 3, "deployed_at": null}',
    "leading away": b'{"sha256": "", "how": "copied", "replaced": "../../x.replaced-1", "deployed_at": ""}',
}


@pytest.mark.parametrize("content", BROKEN_NOTES.values(), ids=BROKEN_NOTES)
def test_a_history_that_cannot_be_read_costs_its_own_line_alone(run, comfy, content):
    place = find_place(comfy)
    deploy(choose(run), place, now=NOW)
    place.provenance("broken").write_bytes(content)
    assert [(one.name, one.state) for one in deployed_in(place)] == [("broken", "unreadable"), ("spyke", "as deployed")]
    with pytest.raises(DeployError, match="history"):
        undo(place, "broken")
    assert place.provenance("broken").read_bytes() == content


def test_a_history_of_an_older_release_or_of_none_is_listed(run, comfy):
    place = find_place(comfy)
    deploy(choose(run), place, now=NOW)
    place.provenance("old").write_text('{"sha256": "", "how": "copied", "replaced": null, "deployed_at": ""}')
    listed = spyke("list", comfy)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["old", "spyke"]


def test_a_lora_or_a_history_that_is_no_file_is_said_and_stops_nothing(run, comfy):
    place = find_place(comfy)
    for name in ("folder", "pipe", "spyke"):
        deploy(choose(run, name=name), place, now=NOW)
    for make, name in ((Path.mkdir, "folder"), (os.mkfifo, "pipe")):
        place.file(name).unlink()
        make(place.file(name))
    os.mkfifo(place.provenance("nothing"))
    listed = spyke("list", comfy)
    assert listed.returncode == 0, listed.stderr
    lines = {line.split()[0]: line for line in listed.stdout.splitlines()}
    assert all("unreadable" in lines[name] for name in ("folder", "pipe", "nothing"))
    assert "as deployed" in lines["spyke"]
    assert {one["state"] for one in json.loads(spyke("list", comfy, "--json").stdout)} == {"unreadable", "as deployed"}


def spyke_program(program: str, *words: object) -> subprocess.CompletedProcess[str]:
    """``spyke-kohya WORDS`` in an interpreter whose files do what ``program`` says."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip


SPOILING = """
import sys
from pathlib import Path
spoilt = []
def spoil(event, args):
    if event == "open" and args[1] == "r" and Path(str(args[0])).name.startswith(".") and not spoilt:
        spoilt.append(args[0])
        with open(args[0], "r+b") as copy:
            copy.seek(-1, 2)
            copy.write(b"?")
sys.addaudithook(spoil)
from spyke_kohya.cli import main
main()
"""


@pytest.mark.parametrize("words", [[], ["--metadata"]])
def test_a_copy_that_differs_from_its_source_is_refused_and_removed(run, comfy, words):
    """The copy's last byte changes on the disk before it is read back for the first time."""
    old = write_lora(comfy / "models/loras/spyke.safetensors", seed=5)
    before = files_in(old.parent)
    done = spyke_program(SPOILING, "deploy", run, "--to", comfy, "--replace", *words)
    assert (done.returncode, "the copy differs from the checkpoint" in done.stderr) == (8, True), done.stderr
    assert files_in(old.parent) == before


def test_a_disk_without_room_is_said_before_anything_is_written(tmp_path, run, comfy):
    """A file system of 900 kB has room for this LoRA of 60 kB, and not for the megabyte to spare."""
    mounted = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        'mount -t tmpfs -o size=900k tmpfs "$0" && mkdir -p "$0/models/loras" && "$@"',
    ]
    if not shutil.which("unshare") or subprocess.run([*mounted, comfy, "true"], capture_output=True).returncode:
        pytest.skip("needs Linux and the right to mount in a namespace of its own")
    command = [sys.executable, "-m", "spyke_kohya.cli", "deploy", run, "--to", comfy]
    script = '"$@"; code=$?; ls -A "$0/models/loras"; exit $code'
    done = subprocess.run(
        [*mounted, comfy, "sh", "-c", script, comfy, *command],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (8, ""), done.stderr
    assert "the disk is full: 1 MB are free, 1 MB are needed" in done.stderr


def test_two_replacements_in_one_second_keep_both_old_files(run, comfy):
    place = find_place(comfy)
    write_lora(place.file("spyke"), seed=5)
    before = files_in(place.folder)
    for step in (40, 60):
        deploy(choose(run, step=step), place, now=NOW, replace=True)
    undo(place, "spyke")
    undo(place, "spyke")
    assert files_in(place.folder) == before


WAITING = """
import sys
def told(event, args):
    if event == "fcntl.flock":
        print("waiting", flush=True)
sys.addaudithook(told)
from spyke_kohya.cli import main
main()
"""


def test_two_deployments_at_once_take_turns(run, comfy):
    """The second looks at what is there when the first is done, so it doesn't write over it."""
    place = find_place(comfy)
    handle = os.open(place.folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    command = [sys.executable, "-c", WAITING, "deploy", str(run), "--to", str(comfy)]
    second = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    assert second.stdout is not None
    assert second.stdout.readline() == b"waiting\n"
    write_lora(place.file("spyke"), seed=5)
    before = files_in(place.folder)
    os.close(handle)
    second.communicate(timeout=60)
    assert (second.returncode, files_in(place.folder)) == (8, before)


def test_an_undo_without_the_file_that_was_replaced_changes_nothing(run, comfy):
    place = find_place(comfy)
    write_lora(place.file("spyke"), seed=5)
    done = deploy(choose(run), place, now=NOW, replace=True)
    (place.folder / done.provenance["replaced"]).unlink()
    before = files_in(place.folder)
    with pytest.raises(DeployError, match="is gone"):
        undo(place, "spyke")
    assert files_in(place.folder) == before


FAILING = """
import os, sys
how, step, done = sys.argv.pop(1), int(sys.argv.pop(1)), []
def fail(event, args):
    if event == "os.rename" or (event == "open" and args[1] == "x"):
        done.append(event)
        if len(done) == step:
            if how == "killed":
                os._exit(9)
            raise OSError(5, "Input/output error")
sys.addaudithook(fail)
from spyke_kohya.cli import main
main()
"""


@pytest.mark.parametrize("step", range(1, 9))
def test_a_disk_that_fails_at_any_moment_leaves_everything_as_it_was(run, comfy, step):
    place = find_place(comfy)
    deploy(choose(run, step=20), place, now=NOW)
    before = files_in(place.folder)
    done = spyke_program(FAILING, "fails", step, "deploy", run, "--to", comfy, "--replace")
    if step == 8:
        undo(place, "spyke")
    assert (done.returncode, "nothing was changed" in done.stderr) == ((0, False) if step == 8 else (8, True))
    assert files_in(place.folder) == before


@pytest.mark.parametrize("step", range(1, 8))
def test_a_deployment_that_is_killed_loses_no_file(run, comfy, step):
    old = write_lora(comfy / "models/loras/spyke.safetensors", seed=5).read_bytes()
    assert spyke_program(FAILING, "killed", step, "deploy", run, "--to", comfy, "--replace").returncode in (9, 0)
    assert old in files_in(comfy / "models/loras").values()


def test_the_next_deployment_removes_what_a_killed_one_left_a_day_ago(run, comfy):
    place, day = find_place(comfy), 24 * 3600
    ages = {".0123456789abcdef.new": 2 * day, ".fedcba9876543210.new": day // 2, ".my-notes.new": 2 * day}
    for name, age in ages.items():
        (place.folder / name).write_bytes(b"half a LoRA")
        os.utime(place.folder / name, times=(NOW.timestamp() - age,) * 2)
    deploy(choose(run), place, now=NOW)
    assert sorted(files_in(place.folder).keys() & ages.keys()) == [".fedcba9876543210.new", ".my-notes.new"]


def test_a_folder_that_cannot_be_synced_is_no_fault(run, comfy, monkeypatch):
    """Some network shares refuse it."""
    sync = os.fsync

    def refuse_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(22, "Invalid argument")
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert deploy(choose(run), find_place(comfy), now=NOW).state == "as deployed"
