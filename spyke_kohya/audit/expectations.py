"""The plan against what the person said to expect."""

from __future__ import annotations

from spyke_kohya.findings import Finding, error
from spyke_kohya.plan.plan import Plan, explain
from spyke_kohya.presets.training import Expect


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
