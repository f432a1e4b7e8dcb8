"""How long something took, or will take, for a person to read."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return ``1:02:03``, or ``2:03`` under an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
