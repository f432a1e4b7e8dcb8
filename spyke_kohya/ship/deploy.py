"""Deploy a chosen checkpoint to where ComfyUI, A1111 or Forge looks for LoRAs, with its history, and undo that."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from spyke_kohya import __version__
from spyke_kohya.engine.base_model import inspect_base_model
from spyke_kohya.engine.lora_file import (
    LoraFile,
    alphas_of,
    data_sha256,
    first_not_finite,
    read_lora,
    write_with_metadata,
)
from spyke_kohya.errors import DeployError, UsageError
from spyke_kohya.files import sha256_of, write_whole
from spyke_kohya.formats.tensor_file import TensorFileError
from spyke_kohya.ship.choose import Shipment, check_name, place_on_record

PROVENANCE_SUFFIX = ".spyke.json"
SCHEMA_VERSION = 1
_SUFFIX = ".safetensors"
_SPARE_BYTES = 1 << 20
_NEW = re.compile(r"\.[0-9a-f]{16}\.new")  # of ``_prepared`` and ``files.write_whole``
_LEFT_AGE_S = 24 * 3600.0

Ui = Literal["ComfyUI", "A1111 or Forge"]
State = Literal["as deployed", "changed since", "missing", "unreadable"]

# Where each keeps its LoRAs, and what else shows which it is: a fresh install has no LoRA folder yet.
_LAYOUTS: tuple[tuple[Ui, str, tuple[str, ...]], ...] = (
    ("ComfyUI", "loras", ("comfy", "custom_nodes", "models/checkpoints")),
    ("A1111 or Forge", "Lora", ("webui.py", "models/Stable-diffusion", "extensions-builtin")),
)


@dataclass(frozen=True)
class LoraFolder:
    """A folder of LoRAs and the UI that reads it."""

    ui: Ui
    folder: Path

    def file(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    def provenance(self, name: str) -> Path:
        return self.folder / f"{name}{PROVENANCE_SUFFIX}"


@dataclass(frozen=True)
class Deployed:
    """A deployed file and its provenance; ``state`` is true of it now, and ``problem`` says why it is unreadable."""

    name: str
    file: Path
    state: State
    provenance: Mapping[str, Any]
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        problem = {"problem": self.problem} if self.problem else {}
        return {"name": self.name, "file": str(self.file), "state": self.state, **problem, **self.provenance}


class _Provenance(BaseModel):
    """The keys of a provenance that are used when it is read back; the rest of it stays as it is."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, defer_build=True)

    sha256: str
    how: Literal["copied", "linked", "was there"]
    replaced: Annotated[str, Field(pattern=r"^[^/\\]+\.replaced-[^/\\]+$")] | None
    source: str = ""
    run: str | None = None
    run_directory: str | None = None
    step: int | None = None


def find_place(directory: Path) -> LoraFolder:
    """Find the LoRA folder of a UI's directory, or take that folder itself. Raises DeployError for any other."""
    if not directory.is_dir():
        remedy = "name the directory of ComfyUI, A1111 or Forge"
        raise DeployError("no such directory", where=str(directory), remedy=remedy)
    for ui, folder, signs in _LAYOUTS:
        if directory.name == folder and directory.parent.name == "models":
            return LoraFolder(ui, directory)
        loras = directory / "models" / folder
        if loras.is_dir() or ((directory / "models").is_dir() and any((directory / sign).exists() for sign in signs)):
            return LoraFolder(ui, loras)
    message = "neither ComfyUI nor A1111 or Forge: there is no models/loras and no models/Lora in it"
    raise DeployError(message, where=str(directory), remedy="name the directory that holds its `models` folder")


def place_of(directory: Path, to: Path | None) -> LoraFolder:
    """Return the LoRA folder of ``to``, or of [deploy] to of the preset that was trained. Raises UsageError."""
    target = to or place_on_record(directory)
    if target is None:
        remedy = "name it: --to ~/tools/ComfyUI, or [deploy] to = ..."
        raise UsageError("no directory to deploy to is named", remedy=remedy)
    return find_place(Path(target).expanduser())


def deploy(
    shipment: Shipment,
    place: LoraFolder,
    *,
    now: datetime,
    replace: bool = False,
    link: bool = False,
    metadata: bool = False,
) -> Deployed:
    """Check the checkpoint, then put it into the place under its name, all of it or nothing.

    The same file may be there already. A different one is an error, unless ``replace``, which keeps it beside the new
    one. ``link`` makes a symbolic link; ``metadata`` adds the trigger and the run to the file's header. Raises
    DeployError.
    """
    lora = check_lora(shipment.checkpoint, shipment.base)
    if link and metadata:
        raise DeployError("a link can't have a header of its own", remedy="deploy with --link or with --metadata")
    header = _metadata_of(shipment) if metadata else {}
    with _held(place.folder):
        _sweep(place.folder, now)
        with _prepared(lora, place.folder, header, link=link) as fresh:
            return _put(fresh, lora, shipment, place, now, replace=replace, how="linked" if link else "copied")


def check_lora(path: Path, base: Path | None = None) -> LoraFile:
    """Return the checkpoint's header if the file is whole, finite, of a known rank, and made for the base's family.

    Raises DeployError.
    """
    where = str(path)
    try:
        lora = read_lora(path)
        alphas_of(lora)
        broken = first_not_finite(lora)
    except TensorFileError as fault:
        raise DeployError(str(fault), where=where, remedy="deploy another checkpoint with --step N") from fault
    if broken:
        message = f"its weights are not all numbers (the first such tensor is {broken}): it would draw black pictures"
        raise DeployError(message, where=where, remedy="deploy a checkpoint from before training diverged: --step N")
    family = inspect_base_model(base).family if base else "unknown"
    if "unknown" not in (family, lora.family) and family != lora.family:
        message = f"its keys are those of a LoRA for {lora.family}, and its base model {base} is {family}"
        raise DeployError(message, where=where, remedy="check that this is the file that the preset trained")
    return lora


def undo(place: LoraFolder, name: str) -> str:
    """Take a deployed file away and put back what was there before it. Returns what was done. Raises DeployError."""
    file, note = place.file(name), place.provenance(name)
    record = _read_provenance(note)
    if _state_of(file, record) == "changed since":
        remedy = "move it away yourself, then undo again"
        raise DeployError("this file is not the one that was deployed", where=str(file), remedy=remedy)
    mark = (record["replaced"] or "").rpartition(".replaced-")[2]
    if mark and not os.path.lexists(_aside(file, mark)):
        remedy = f"to do without it, delete {file.name} and {note.name} yourself"
        raise DeployError("the file that it replaced is gone", where=str(_aside(file, mark)), remedy=remedy)
    with _held(place.folder):
        if record["how"] != "was there":
            _restore(file, mark)
        _restore(note, mark)
    if record["how"] == "was there":
        return f"{file} was there before it was deployed, and stays"
    return f"removed what was deployed, and put back what {file} was before" if mark else f"removed {file}"


def undo_from(directory: Path, to: Path | None, name: str | None) -> str:
    """Undo the deployment of a run's or an output directory's checkpoint; ``name`` where several are deployed."""
    place = place_of(directory, to)
    return undo(place, name_of(directory, place) if name is None else check_name(name))


def deployed_in(place: LoraFolder) -> list[Deployed]:
    """Return what this project deployed there, by name; the files are read to see whether they are still the same."""
    return [_deployed(place, name) for name in _names(place)]


def name_of(directory: Path, place: LoraFolder) -> str:
    """Return the name under which a checkpoint of an output or run directory is deployed.

    Raises DeployError where none is, and UsageError where several are.
    """
    names = [name for name in _names(place) if _is_from(directory.resolve(), place.provenance(name))]
    if not names:
        remedy = f"`spyke-kohya list {place.folder}` shows what was; name it with --name"
        raise DeployError(f"nothing from {directory} is deployed there", where=str(place.folder), remedy=remedy)
    if len(names) > 1:
        raise UsageError(f"several are from {directory}: {', '.join(names)}", remedy="name one with --name")
    return names[0]


def _names(place: LoraFolder) -> list[str]:
    return sorted(note.name.removesuffix(PROVENANCE_SUFFIX) for note in place.folder.glob(f"*{PROVENANCE_SUFFIX}"))


def _deployed(place: LoraFolder, name: str) -> Deployed:
    file, record = place.file(name), {}
    try:
        record = _read_provenance(place.provenance(name))
        return Deployed(name, file, _state_of(file, record), record)
    except DeployError as fault:
        return Deployed(name, file, "unreadable", record, f"{fault.what}: {fault.where}")


def _is_from(directory: Path, note: Path) -> bool:
    with suppress(DeployError):
        record = _read_provenance(note)
        return record["run_directory"] == str(directory) or directory in Path(record["source"]).parents
    return False


def _metadata_of(shipment: Shipment) -> dict[str, str]:
    """``modelspec.trigger_phrase`` is the standard's own key (sd-scripts v0.10.1 sai_model_spec.py:57)."""
    known = {
        "modelspec.trigger_phrase": shipment.trigger,
        "spyke_kohya.run": shipment.run.name if shipment.run else None,
        "spyke_kohya.step": str(shipment.step) if shipment.step is not None else None,
    }
    return {name: value for name, value in known.items() if value}


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Let one process at a time change a folder, which is made if need be. Raises DeployError for any OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network shares know no locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
            with suppress(OSError):  # nor can their folders be synced
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as fault:
        full = fault.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "make room, or deploy with --link" if full else "give yourself the right to write there"
        message = f"can't write there: {fault.strerror}; nothing was changed"
        raise DeployError(message, where=str(folder), remedy=remedy) from fault


def _sweep(folder: Path, now: datetime) -> None:
    """Remove the new files of a deployment that was killed a day ago or earlier."""
    for left in folder.glob(".*.new"):
        if _NEW.fullmatch(left.name) and now.timestamp() - left.lstat().st_mtime > _LEFT_AGE_S:
            left.unlink(missing_ok=True)


@contextmanager
def _prepared(lora: LoraFile, folder: Path, header: Mapping[str, str], *, link: bool) -> Iterator[Path]:
    """Write the new file under a name of its own, and verify it; it is removed unless it is moved from there."""
    fresh = folder / f".{secrets.token_hex(8)}.new"
    try:
        if link:
            fresh.symlink_to(lora.path.resolve())
        else:
            _check_space(lora, folder)
            with fresh.open("xb") as stream:
                _write(lora, header, stream)
            _verify(lora, fresh, header)
        yield fresh
    finally:
        fresh.unlink(missing_ok=True)


def _write(lora: LoraFile, header: Mapping[str, str], stream: BinaryIO) -> None:
    if header:
        write_with_metadata(lora, header, stream)
    else:
        with lora.path.open("rb") as source:
            shutil.copyfileobj(source, stream, 1 << 22)
    stream.flush()
    os.fsync(stream.fileno())


def _verify(lora: LoraFile, fresh: Path, header: Mapping[str, str]) -> None:
    try:
        if header:
            same = data_sha256(read_lora(fresh)) == data_sha256(lora)
        else:
            same = sha256_of(fresh) == sha256_of(lora.path)
    except TensorFileError:
        same = False
    if not same:
        raise DeployError("the copy differs from the checkpoint", where=str(fresh), remedy="check the disk, try again")


def _put(
    fresh: Path, lora: LoraFile, shipment: Shipment, place: LoraFolder, now: datetime, *, replace: bool, how: str
) -> Deployed:
    file, note = place.file(shipment.name), place.provenance(shipment.name)
    record = _provenance(fresh, lora, shipment, place, now, how)
    if file.is_file() and sha256_of(file) == record["sha256"]:
        if not note.is_file():
            write_whole(note, _text(record | {"how": "was there"}))
        return Deployed(shipment.name, file, "as deployed", _read_provenance(note))
    mark = _free_mark(file, note, now)
    if os.path.lexists(file):
        if not replace:
            remedy = "choose another --name, or --replace it (the old one is kept)"
            raise DeployError("there is a different file of this name", where=str(file), remedy=remedy)
        record["replaced"] = _aside(file, mark).name
    _move_in(fresh, file, note, _text(record), mark)
    return Deployed(shipment.name, file, "as deployed", record)


def _move_in(fresh: Path, file: Path, note: Path, text: bytes, mark: str) -> None:
    """Put the new file and its history in the place of the old ones, which are set aside. All of it, or nothing.

    The history comes first: a process that is killed in between leaves a history that names the old file.
    """
    if note.is_file():
        write_whole(_aside(note, mark), note.read_bytes())
    try:
        write_whole(note, text)
        if os.path.lexists(file):
            file.replace(_aside(file, mark))
        fresh.replace(file)
    except BaseException:
        if os.path.lexists(_aside(file, mark)):
            _restore(file, mark)
        _restore(note, mark)
        raise


def _restore(path: Path, mark: str) -> None:
    """Put back what was set aside, or remove the new one where there was nothing before."""
    if os.path.lexists(_aside(path, mark)):
        _aside(path, mark).replace(path)
    else:
        path.unlink(missing_ok=True)


def _aside(path: Path, mark: str) -> Path:
    """Return an old file's name while another file has its place; no UI lists it."""
    return path.with_name(f"{path.name}.replaced-{mark}")


def _free_mark(file: Path, note: Path, now: datetime) -> str:
    stamp = now.strftime("%Y%m%d-%H%M%S")
    marks = (stamp if number == 1 else f"{stamp}-{number}" for number in count(1))
    return next(mark for mark in marks if not any(os.path.lexists(_aside(path, mark)) for path in (file, note)))


def _provenance(
    fresh: Path, lora: LoraFile, shipment: Shipment, place: LoraFolder, now: datetime, how: str
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "name": shipment.name,
        "ui": place.ui,
        "how": how,
        "deployed_at": now.isoformat(timespec="seconds"),
        "sha256": sha256_of(fresh),
        "tensors_sha256": data_sha256(lora),
        "source": str(shipment.checkpoint.resolve()),
        "source_sha256": sha256_of(shipment.checkpoint),
        "run": shipment.run.name if shipment.run else None,
        "run_directory": str(shipment.run.resolve()) if shipment.run else None,
        "output_name": shipment.output_name,
        "step": shipment.step,
        "trigger": shipment.trigger,
        "verdict": shipment.verdict,
        "family": lora.family,
        "ranks": list(lora.ranks),
        "alphas": list(alphas_of(lora)),
        "replaced": None,
        "spyke_kohya": __version__,
    }


def _text(record: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(record, indent=2, ensure_ascii=False)}\n".encode(errors="backslashreplace")


def _read_provenance(path: Path) -> dict[str, Any]:
    if not os.path.lexists(path):
        remedy = "`spyke-kohya list DIR` shows what was deployed"
        raise DeployError("nothing was deployed here under this name", where=str(path), remedy=remedy)
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        return _Provenance.model_validate(json.loads(path.read_bytes())).model_dump()
    except ValidationError as fault:
        first = fault.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError, RecursionError) as fault:
        reason = str(fault)
    remedy = "move it away; the LoRA stays as it is"
    raise DeployError(f"the history of this LoRA can't be read: {reason}", where=str(path), remedy=remedy)


def _state_of(file: Path, record: Mapping[str, Any]) -> State:
    if not file.exists():
        return "missing"
    try:
        if not file.is_file():
            raise OSError(errno.EINVAL, "it is no file")
        return "as deployed" if sha256_of(file) == record["sha256"] else "changed since"
    except OSError as fault:
        remedy = "move it away, or give yourself the right to read it"
        raise DeployError(f"this LoRA can't be read: {fault.strerror}", where=str(file), remedy=remedy) from fault


def _check_space(lora: LoraFile, folder: Path) -> None:
    needed, free = lora.path.stat().st_size + _SPARE_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        message = f"the disk is full: {free / 1e6:.0f} MB are free, {needed / 1e6:.0f} MB are needed"
        raise DeployError(message, where=str(folder), remedy="make room, or deploy with --link")
