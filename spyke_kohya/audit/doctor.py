"""Can this machine, this Python and this sd-scripts train at all? One check a line, each with what to do."""

from __future__ import annotations

import json
import platform
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from spyke_kohya.audit.base import check_base_model
from spyke_kohya.audit.output import nearest_that_stands
from spyke_kohya.engine.base_model import inspect_base_model
from spyke_kohya.engine.command import path_option
from spyke_kohya.engine.imports import required_modules
from spyke_kohya.engine.release import COMMIT, RELEASE, SCRIPT, Engine
from spyke_kohya.errors import EngineError
from spyke_kohya.formats.clip_tokens import TOKENIZER, hub_home, tokenizer_directories
from spyke_kohya.presets.training import TrainingPreset
from spyke_kohya.process.engine_process import ask

Status = Literal["ok", "warning", "fault"]

# Every run logs to TensorBoard, and the launcher is accelerate's own command.
_ALSO_NEEDED = frozenset({"tensorboard", "accelerate", "rich"})
_PROBE = """
import importlib.util, json, sys
wanted = json.loads(sys.argv[1])
found = {name: importlib.util.find_spec(name) is not None for name in wanted}
answer = {"python": sys.version.split()[0], "missing": sorted(name for name in wanted if not found[name])}
if found.get("torch"):
    import torch
    answer["torch"] = torch.__version__
    answer["devices"] = [
        name for name, usable in (
            ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True)
        ) if usable
    ]
print(json.dumps(answer))
"""
_PROBE_TIMEOUT_S = 120.0
_FEW_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: ``remedy`` is empty for what is ok."""

    subject: str
    status: Status
    message: str
    remedy: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def reaches(host: str) -> bool:
    """Check whether a host answers within 3 seconds."""
    try:
        with socket.create_connection((host, 443), timeout=3.0):
            return True
    except OSError:
        return False


@dataclass(frozen=True)
class Checkup:
    """What is examined. ``find_engine`` may raise EngineError; ``preset`` is None when none was named."""

    find_engine: Callable[[], Engine]
    preset: TrainingPreset | None
    root: Path
    environment: Mapping[str, str]
    home: Path
    reaches: Callable[[str], bool] = reaches


def examine(checkup: Checkup) -> Iterator[Check]:
    """Every check, as it is made. Those that need an engine are left out when there is none."""
    yield _own_python()
    needs_tokenizer = True
    try:
        engine = checkup.find_engine()
    except EngineError as fault:
        yield Check("sd-scripts", "fault", f"{fault.what}: {fault.where}", fault.remedy)
    else:
        yield _engine_commit(engine)
        yield from _engine_python(engine, checkup)
        needs_tokenizer = engine.is_sd_scripts  # the miniature takes the one beside its base model
    yield _accelerate_config(checkup)
    yield from _base_model(checkup)
    if needs_tokenizer:
        yield _tokenizer(checkup)
    yield _disk(checkup)
    yield _sleep(checkup)


def _own_python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Check("Python", "ok", f"{version} at {sys.executable}")
    return Check(
        "Python", "fault", f"{version} is not 3.11, 3.12 or 3.13", "make clean, then make setup PYTHON=python3.12"
    )


def _engine_commit(engine: Engine) -> Check:
    if engine.commit == COMMIT:
        return Check("sd-scripts", "ok", f"{RELEASE} at {engine.directory}")
    if engine.commit is None:
        message = f"{engine.directory} is no git checkout, so its release is unknown"
    else:
        message = f"{engine.directory} is at {engine.commit[:12]}, this project is built for {RELEASE} ({COMMIT[:12]})"
    return Check("sd-scripts", "warning", message, f"git checkout {RELEASE} there, or `make engine`")


def _engine_python(engine: Engine, checkup: Checkup) -> Iterator[Check]:
    wanted = sorted(required_modules(engine.directory, SCRIPT) | _ALSO_NEEDED)
    try:
        answer = ask(
            [str(engine.python), "-c", _PROBE, json.dumps(wanted)],
            env=checkup.environment,
            cwd=checkup.root,
            timeout_s=_PROBE_TIMEOUT_S,
        )
    except EngineError as fault:
        yield _unusable(engine, fault.what)
        return
    try:
        found: dict[str, Any] = json.loads(answer.stdout)
    except ValueError:
        last_words = answer.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        yield _unusable(engine, last_words or f"it ended with exit code {answer.returncode} and no answer")
        return
    yield _modules(engine, wanted, found)
    if "torch" in found:
        yield _device(found, checkup)
    yield _launcher(engine)


def _unusable(engine: Engine, why: str) -> Check:
    remedy = "set SPYKE_ENGINE_PYTHON to a Python in which `import torch` works"
    return Check("engine's Python", "fault", f"{engine.python}: {why}", remedy)


def _modules(engine: Engine, wanted: list[str], found: Mapping[str, Any]) -> Check:
    about = f"Python {found['python']} at {engine.python}"
    if not found["missing"]:
        return Check("engine's Python", "ok", f"{about} has all {len(wanted)} modules that sd-scripts imports")
    remedy = f"{engine.python} -m pip install -r {engine.directory}/requirements.txt, or `make setup`"
    return Check("engine's Python", "fault", f"{about} lacks {', '.join(found['missing'])}", remedy)


def _device(found: Mapping[str, Any], checkup: Checkup) -> Check:
    about = f"torch {found['torch']} can use {', '.join(found['devices'])}"
    target = checkup.preset.launch.target if checkup.preset else None
    if target is None or target in found["devices"]:
        return Check("device", "ok", about)
    remedy = f'set [launch] target = "{found["devices"][0]}", or train where there is {target}'
    return Check("device", "fault", f"{about}; the preset's target is {target}", remedy)


def _launcher(engine: Engine) -> Check:
    if engine.accelerate.is_file():
        return Check("accelerate", "ok", str(engine.accelerate))
    return Check(
        "accelerate", "fault", f"{engine.accelerate} is missing", f"{engine.python} -m pip install accelerate==1.6.0"
    )


def _accelerate_config(checkup: Checkup) -> Check:
    subject = "accelerate config"
    path = accelerate_user_config(checkup.environment, checkup.home)
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Check(subject, "ok", "no user config")
    troubles = [line.strip() for line in text.splitlines() if _INTERFERES.match(line)]
    if not troubles:
        return Check(subject, "ok", f"{path} does not interfere")
    message = f"{path} says {'; '.join(troubles)}: spyke-kohya's runs ignore it, a bare `accelerate launch` does not"
    return Check(subject, "warning", message, "remove that file, or run `accelerate config` again")


_INTERFERES = re.compile(
    r"\s*(use_cpu:\s*true|use_mps_device:|distributed_type:\s*['\"]?(?!['\"]?NO\b)\w+)", re.IGNORECASE
)


def accelerate_user_config(environment: Mapping[str, str], home: Path) -> Path:
    """Where accelerate 1.6.0 looks for a user's config (config_args.py:30-40)."""
    return hub_home(environment, home) / "accelerate" / "default_config.yaml"


def _base_model(checkup: Checkup) -> Iterator[Check]:
    if checkup.preset is None:
        return
    options = checkup.preset.effective_options
    findings = check_base_model(options, checkup.root, "preset")
    for finding in findings:
        status: Status = "fault" if finding.severity == "error" else "warning"
        yield Check("base model", status, finding.message, finding.remedy)
    if not findings:
        name = path_option(options, "pretrained_model_name_or_path", Path())
        header = inspect_base_model(checkup.root / name)
        yield Check("base model", "ok", f"{name}: {header.family}, {header.form}")


def _tokenizer(checkup: Checkup) -> Check:
    for place in _tokenizer_places(checkup):
        if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
            return Check("CLIP tokenizer", "ok", str(place))
    remedy = (
        "connect once, or set [train_network] tokenizer_cache_dir to a folder that holds openai_clip-vit-large-patch14"
    )
    if checkup.reaches("huggingface.co"):
        return Check(
            "CLIP tokenizer", "warning", f"{TOKENIZER} will be downloaded at the first run", "nothing, while online"
        )
    return Check("CLIP tokenizer", "fault", f"{TOKENIZER} is neither on this disk nor within reach", remedy)


def _tokenizer_places(checkup: Checkup) -> Iterator[Path]:
    options = checkup.preset.effective_options if checkup.preset else {}
    under = path_option(options, "tokenizer_cache_dir", checkup.root) if options.get("tokenizer_cache_dir") else None
    return tokenizer_directories(under, checkup.environment, checkup.home)


def _disk(checkup: Checkup) -> Check:
    options = checkup.preset.options if checkup.preset else {"output_dir": "."}
    place = nearest_that_stands(path_option(options, "output_dir", checkup.root))
    free = shutil.disk_usage(place).free
    about = f"{free / 1e9:.0f} GB free at {place}"
    if free > _FEW_BYTES:
        return Check("disk", "ok", about)
    return Check(
        "disk", "warning", about, "make room: a run of 10 checkpoints at dim 32 needs 0.8 GB, and a full disk ends it"
    )


def _sleep(checkup: Checkup) -> Check:
    if platform.system() != "Darwin":
        return Check("sleep", "ok", "not a Mac: nothing to look at")
    settings = ask(["pmset", "-g"], env=checkup.environment, cwd=checkup.root, timeout_s=10.0).stdout.decode(
        errors="replace"
    )
    minutes = re.search(r"^\s*sleep\s+(\d+)", settings, re.MULTILINE)
    if minutes is None or minutes[1] == "0":
        return Check("sleep", "ok", "this Mac does not sleep by itself")
    message = f"this Mac sleeps after {minutes[1]} minutes, and a sleeping Mac trains nothing"
    return Check("sleep", "warning", message, "start with `caffeinate -i make train PRESET=...`, plugged in, lid open")
