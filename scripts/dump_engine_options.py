"""Print every option of sd-scripts' train_network.py as JSON; run it with the engine's own Python.

    python scripts/dump_engine_options.py third_party/sd-scripts > spyke_kohya/engine/train_network_options.json

An option is its flag, the name it is stored under, its kind (Store, StoreTrue), type, nargs, choices, default, and
whether it is required. The order is the engine's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, metavar="ENGINE_DIR")
    engine = parser.parse_args().engine.resolve()
    if not (engine / "train_network.py").is_file():
        sys.exit(f"{engine}: has no train_network.py")
    options = [describe(action) for action in engine_actions(engine) if action.dest != "help"]
    sys.stdout.write(json.dumps(options, indent=0))


def engine_actions(engine: Path) -> list[argparse.Action]:
    """The actions of the engine's parser. Its imports chatter on stdout now and then, so that goes to stderr."""
    sys.dont_write_bytecode = True  # the engine's folder is a submodule, and stays as it is
    sys.path.insert(0, str(engine))
    os.chdir(engine)
    stdout, sys.stdout = sys.stdout, sys.stderr
    import train_network

    sys.stdout = stdout
    actions: list[argparse.Action] = train_network.setup_parser()._actions
    return actions


def describe(action: argparse.Action) -> dict[str, Any]:
    return {
        "flag": action.option_strings[0],
        "dest": action.dest,
        "kind": type(action).__name__.strip("_").removesuffix("Action"),
        "type": getattr(action.type, "__name__", None),
        "nargs": action.nargs,
        "choices": list(action.choices) if action.choices else None,
        "default": action.default,
        "required": action.required,
    }


if __name__ == "__main__":
    main()
