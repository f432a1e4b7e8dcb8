"""How often each tag is in the captions of a folder."""

from __future__ import annotations

from spyke_kohya.audit.tags import TagTable

_SHOWN = 30


def tag_table_text(table: TagTable) -> str:
    """One line a tag, the most frequent first, with the number of captions and their share."""
    lines = [f"{table.folder}: {len(table.tags)} tags in {table.captions} captions"]
    for tag, count in table.tags[:_SHOWN]:
        lines.append(f"  {count:>6}  {count / table.captions:>4.0%}  {tag}")
    if len(table.tags) > _SHOWN:
        lines.append(f"  ... and {len(table.tags) - _SHOWN} rarer ones")
    return "\n".join(lines)
