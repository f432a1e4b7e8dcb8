"""Which pictures a run is measured on, held-out ones and trained ones, and how each is cut and captioned.

Pictures that are copies of each other are one group. A held-out picture that was trained on is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from spyke_kohya.dataset.copies import Fingerprint, fingerprint, group_alike, pairs_alike
from spyke_kohya.dataset.scan import Caption, Scan, ScannedSubset, read_captions, scan
from spyke_kohya.engine.batching import BatchingError, Size, size_before_cropping
from spyke_kohya.errors import DatasetError
from spyke_kohya.plan.epoch import bucket_selector
from spyke_kohya.presets.resolved import ResolvedDataset
from spyke_kohya.rank.heldout_file import picture_id

MOST_TRAINED = 8
"""Training pictures that are measured beside held-out ones: enough for the gap, at most a quarter of a training."""
MOST_MEMORISED = 16
"""Training pictures that are measured where there are no held-out ones."""
QUICK_PICTURES = 8


@dataclass(frozen=True)
class Picture:
    """One picture to measure. ``name`` is its path as a person would write it, ``group`` the name of the first picture
    of its group; ``resized`` is its size before its middle is cut out as ``bucket``."""

    name: str
    path: str
    role: Literal["heldout", "trained"]
    group: str
    sha256: str
    bucket: Size
    resized: Size
    interpolation: str | None
    caption: str

    def to_dict(self) -> dict[str, Any]:
        """Return what the program is asked; ``id`` is that of the picture as it is prepared."""
        return asdict(self) | {"id": picture_id(asdict(self))}


@dataclass(frozen=True)
class _Found:
    """A picture on the disk with what is needed to measure it."""

    path: str
    size: Size
    caption: Caption
    dataset: ResolvedDataset
    scanned: ScannedSubset
    print: Fingerprint


def choose_pictures(
    datasets: Sequence[ResolvedDataset],
    heldout_dir: Path | None,
    root: Path,
    *,
    quick: bool = False,
) -> list[Picture]:
    """Return the held-out pictures and as many trained ones, at most 8; without a held-out folder 16 trained ones.

    ``quick`` takes 8 pictures, held-out ones alone where there are any. The choice depends on the pictures' content
    alone. Raises DatasetError for a folder without pictures, a picture that can't be read, a missing caption, and for
    a held-out picture that was trained on.
    """
    train_scan = scan([_without_regularisation(dataset) for dataset in datasets], root)
    heldout_scan = scan([_with_folder(datasets[0], heldout_dir)] if heldout_dir else [], root)
    trained, heldout = _read(train_scan), _read(heldout_scan)
    if heldout_dir and not heldout:
        raise DatasetError(
            "there is no held-out picture here", where=str(heldout_dir), remedy="see spyke-kohya holdout"
        )
    _refuse_trained(heldout, trained)
    if not trained and not heldout:
        raise DatasetError("none of the run's training pictures is there any more", where=str(root))
    chosen = _one_per_group(trained, (0 if quick else MOST_TRAINED) if heldout else _memorised(quick))
    kept = _first_groups(heldout, QUICK_PICTURES) if quick else heldout
    return [*_pictures(kept, "heldout", root), *_pictures(chosen, "trained", root)]


def _memorised(quick: bool) -> int:
    return QUICK_PICTURES if quick else MOST_MEMORISED


def _without_regularisation(dataset: ResolvedDataset) -> ResolvedDataset:
    return replace(dataset, subsets=tuple(subset for subset in dataset.subsets if not subset.is_reg))


def _with_folder(dataset: ResolvedDataset, folder: Path) -> ResolvedDataset:
    """Return the dataset with held-out pictures in the place of its own.

    They are captioned and cut by the same rules.
    """
    own = next((subset for subset in dataset.subsets if not subset.is_reg), dataset.subsets[0])
    return replace(dataset, subsets=(replace(own, image_dir=str(folder), where="heldout_dir"),))


def _read(scanned: Scan) -> list[_Found]:
    captions = iter(read_captions(scanned))
    found = []
    for dataset in scanned.datasets:
        for subset in dataset.subsets:
            for image in subset.images:
                caption = next(captions)
                if image.size is None:
                    raise DatasetError(f"the picture can't be read: {image.problem}", where=image.path)
                print_ = fingerprint(Path(image.path))
                found.append(_Found(image.path, image.size, caption, dataset.dataset, subset, print_))
    return found


def _refuse_trained(heldout: Sequence[_Found], trained: Sequence[_Found]) -> None:
    alike = pairs_alike([one.print for one in heldout], [other.print for other in trained])
    pairs = [(heldout[one], trained[other]) for one, other in alike]
    if not pairs:
        return
    shown = "; ".join(f"{Path(one.path).name} is {Path(other.path).name}" for one, other in pairs[:5])
    more = f"; and {len(pairs) - 5} more" if len(pairs) > 5 else ""
    raise DatasetError(
        f"held-out pictures were trained on, flipped or not: {shown}{more}",
        where=str(Path(pairs[0][0].path).parent),
        remedy="remove them there: what was trained on can't show what is new",
    )


def _groups(found: Sequence[_Found]) -> list[list[_Found]]:
    """Return the groups, in an order that depends on the pictures' content alone."""
    first = group_alike([one.print for one in found])
    groups: dict[int, list[_Found]] = {}
    for index, one in zip(first, found, strict=True):
        groups.setdefault(index, []).append(one)
    return sorted(groups.values(), key=lambda group: hashlib.sha256(group[0].print.sha256.encode()).digest())


def _one_per_group(found: Sequence[_Found], count: int) -> list[_Found]:
    return [group[0] for group in _groups(found)[:count]] if count else []


def _first_groups(found: Sequence[_Found], count: int) -> list[_Found]:
    return [one for group in _groups(found) for one in group][:count]


def _pictures(found: Sequence[_Found], role: Literal["heldout", "trained"], root: Path) -> list[Picture]:
    pictures = []
    for group in _groups(found):
        name = _name(group[0].path, root)
        pictures += [_picture(one, role, name, root) for one in group]
    return sorted(pictures, key=lambda picture: picture.name)


def _picture(found: _Found, role: Literal["heldout", "trained"], group: str, root: Path) -> Picture:
    bucket, resized = _placement(found)
    return Picture(
        name=_name(found.path, root),
        path=found.path,
        role=role,
        group=group,
        sha256=found.print.sha256,
        bucket=bucket,
        resized=resized,
        interpolation=found.scanned.subset.resize_interpolation or found.dataset.resize_interpolation,
        caption=_caption(found),
    )


def _name(path: str, root: Path) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


def _placement(found: _Found) -> tuple[Size, Size]:
    dataset = found.dataset
    try:
        bucket = bucket_selector(dataset)(found.size)
        area = dataset.resolution[0] * dataset.resolution[1]
        shrinks = dataset.enable_bucket and dataset.bucket_no_upscale
        steps = dataset.bucket_reso_steps
        resized = size_before_cropping(found.size, bucket, no_upscale=shrinks, max_area=area, steps=steps)
    except BatchingError as fault:
        raise DatasetError(str(fault), where=found.path, remedy="crop it, enlarge it, or remove it") from fault
    if 0 in bucket:
        raise DatasetError("the picture is smaller than bucket_reso_steps", where=found.path, remedy="remove it")
    return bucket, resized


def _caption(found: _Found) -> str:
    """Return the caption as it is trained, its tags in their own order (sd-scripts v0.10.1 train_util.py:835)."""
    caption, subset = found.caption, found.scanned.subset
    if caption.problem:
        remedy = "write one: a held-out picture is captioned as the training pictures are"
        raise DatasetError(f"the caption is {caption.problem}", where=found.path, remedy=remedy)
    parts = (subset.caption_prefix, caption.text.split("\n")[0], subset.caption_suffix)
    return " ".join(part for part in parts if part)
