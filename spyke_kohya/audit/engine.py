"""Is the engine that was found the release that this project is built for?"""

from __future__ import annotations

from spyke_kohya.engine.release import COMMIT, RELEASE, Engine
from spyke_kohya.findings import Finding, warning


def check_engine(engine: Engine) -> list[Finding]:
    """A warning when sd-scripts is at another commit than the pin. A copy without git has no commit to compare."""
    if not engine.is_sd_scripts or engine.commit in (None, COMMIT):
        return []
    message = f"sd-scripts is at {engine.commit}, this project is built for {RELEASE} ({COMMIT})"
    return [warning("engine.other-commit", str(engine.directory), message, f"git checkout {RELEASE} in that directory")]
