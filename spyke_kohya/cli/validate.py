"""`validate`: everything wrong with presets, all at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spyke_kohya.cli.group import JSON, PICKLE, ROOT, SET, STRICT, cli, preset_names
from spyke_kohya.cli.terminal import open_session, print_json
from spyke_kohya.errors import UsageError, exit_code_of
from spyke_kohya.findings import count_text
from spyke_kohya.report.plain_text import findings_text

if TYPE_CHECKING:
    from spyke_kohya.audit.examine import Examination


@cli.command(epilog="Example: spyke-kohya validate spyke_plasma_v1")
@click.argument("presets", nargs=-1, metavar="PRESET...", shell_complete=preset_names)
@click.option("--quick", is_flag=True, help="Decode no image: read only headers and captions.")
@click.option("--hash", "with_hash", is_flag=True, help="Show the SHA-256 of the base model.")
@click.option("-v", "--verbose", is_flag=True, help="Show how often each tag is in the captions.")
@click.option("--explain", metavar="CODE", help="Explain a finding: why it matters, where it was seen.")
@PICKLE
@SET
@ROOT
@STRICT
@JSON
def validate(
    presets: Sequence[str],
    quick: bool,
    with_hash: bool,
    verbose: bool,
    explain: str | None,
    allow_pickle: bool,
    settings: Sequence[str],
    root: Path,
    strict: bool,
    as_json: bool,
) -> None:
    """Show everything wrong with presets, all at once.

    PRESET is a dataset preset or a training preset. Every image is decoded; one that has not changed is not decoded
    again.
    """
    if explain:
        click.echo(_explanation(explain))
        return
    if not presets:
        raise click.UsageError("Missing argument 'PRESET...'.")
    session = open_session(root)
    loaded = [session.load(name, settings) for name in presets]
    examined = [session.examine(one, quick=quick, allow_pickle=allow_pickle) for one in loaded]
    hashes = [_base_hash(one, root) if with_hash else {} for one in examined]
    if as_json:
        print_json([one.to_dict() | digests for one, digests in zip(examined, hashes, strict=True)])
    else:
        for one, digests in zip(examined, hashes, strict=True):
            click.echo(f"{one.loaded.name}: {count_text(one.findings)}")
            if one.findings:
                click.echo(findings_text(one.findings))
            for name, digest in digests.items():
                click.echo(f"{name}: {digest}")
            if verbose:
                _show_tags(one)
    worst = [exit_code_of(one.findings, strict=strict) for one in examined]
    sys.exit(min((code for code in worst if code), default=0))


def _explanation(code: str) -> str:
    from difflib import get_close_matches

    from spyke_kohya.audit.catalogue import CATALOGUE, explanation

    if code in CATALOGUE:
        return explanation(code)
    close = get_close_matches(code, CATALOGUE, n=1)
    remedy = f"did you mean {close[0]}?" if close else "docs/findings.md lists them all"
    raise UsageError(f"there is no finding `{code}`", remedy=remedy)


def _base_hash(examined: Examination, root: Path) -> dict[str, str | None]:
    from spyke_kohya.audit.base import base_path, file_hash

    training = examined.loaded.training
    return {"base_sha256": file_hash(base_path(training.effective_options, root.absolute()))} if training else {}


def _show_tags(examined: Examination) -> None:
    from spyke_kohya.audit.tags import tag_tables
    from spyke_kohya.report.plain_text import tag_table_text

    for table in tag_tables(examined.scan, examined.captions) if examined.scan else []:
        click.echo(f"\n{tag_table_text(table)}")
