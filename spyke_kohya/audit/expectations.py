"""What a launch is expected to have: the steps that were said, held-out pictures, the engine of this release."""

from __future__ import annotations

from spyke_kohya.engine.release import COMMIT, RELEASE, Engine
from spyke_kohya.findings import Finding, error, warning
from spyke_kohya.plan.plan import Plan, explain
from spyke_kohya.presets.training import Expect, TrainingPreset


def check_expectations(plan: Plan, expect: Expect, where: str) -> list[Finding]:
    """``plan.unexpected-steps`` when the plan misses ``[expect] total_steps``."""
    if meets(plan, expect) or expect.total_steps is None or not plan.total_steps:
        return []  # a plan of no steps has a finding of its own
    message = f"expected {expect.total_steps} steps, sd-scripts will take {plan.total_steps}: {explain(plan)[0]}"
    remedy = "change the epochs, the repeats or the regularisation images; or set total_steps to what you now expect"
    return [error("plan.unexpected-steps", f"{where}: [expect] total_steps", message, remedy)]


def meets(plan: Plan | None, expect: Expect | None) -> bool:
    """Whether a number of steps was expected, and the plan has it."""
    return plan is not None and expect is not None and expect.total_steps == plan.total_steps


def check_heldout(preset: TrainingPreset, where: str) -> list[Finding]:
    """Warn where no held-out folder is named."""
    if preset.evaluate.heldout_dir is not None:
        return []
    message = "no held-out pictures are named: which checkpoint generalises can't be measured after this training"
    remedy = "set some aside, `spyke-kohya holdout DIR --count 8`, and name their folder: [evaluate] heldout_dir"
    return [warning("evaluate.no-heldout", f"{where}: [evaluate] heldout_dir", message, remedy)]


def check_engine(engine: Engine) -> list[Finding]:
    """Warn when sd-scripts is at another commit than the pin. A copy without git has no commit to compare."""
    if not engine.is_sd_scripts or engine.commit in (None, COMMIT):
        return []
    message = f"sd-scripts is at {engine.commit}, this project is built for {RELEASE} ({COMMIT})"
    return [warning("engine.other-commit", str(engine.directory), message, f"git checkout {RELEASE} in that directory")]
