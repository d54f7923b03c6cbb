"""Landmarks of two places matched by what they are: the archive's by their ids, others by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from landmarks.dataset.naming import ARCHIVE_IDS, NUMBERS, SORTED_NAMES, Landmark, landmarks_of, plain, safe_name


@dataclass(frozen=True)
class Matching:
    """Which landmarks of another place (theirs) are which labels of ours."""

    by: str  # id or name
    labels: pl.DataFrame  # landmark_id (theirs) → label (ours)
    matched: int  # of their landmarks, so many have a partner
    alone: list[str]  # names of those that have none, in the order of their labels


def match_landmarks(ours: pl.DataFrame, ours_by: str, theirs: pl.DataFrame, theirs_by: str) -> Matching:
    """Match two tables of labels, of which `naming.KINDS` say what identifies their landmarks.

    Ids decide where both sides have ids of the archive, or numbers for names. Elsewhere an id may be no more than the
    position of a name, so names decide; of landmarks with one name the one with the same id is meant, and a landmark
    that has only a number for a name is found by it. A name may stand behind the id, as `unpack` names its folders.
    """
    of_theirs = landmarks_of(theirs)
    if {ours_by, theirs_by} <= {ARCHIVE_IDS, NUMBERS}:
        known = set(ours["landmark_id"])
        alone = [one.name for one in of_theirs if one.landmark_id not in known]
        return Matching("id", ours.select("landmark_id", "label"), len(of_theirs) - len(alone), alone)
    labels = dict(zip(ours.sort("label")["landmark_id"], ours.sort("label")["label"], strict=True))
    with_ids = SORTED_NAMES not in (ours_by, theirs_by)
    partner = _Partners(landmarks_of(ours), with_ids=with_ids)
    pairs = [(one, partner.of(one)) for one in of_theirs]
    rows = [(one.landmark_id, labels[other.landmark_id]) for one, other in pairs if other is not None]
    table = pl.DataFrame(rows, schema={"landmark_id": pl.Int64, "label": pl.UInt32}, orient="row")
    return Matching("name", table, len(rows), [one.name for one, other in pairs if other is None])


class _Partners:
    """Finds among our landmarks the one that another place means."""

    def __init__(self, ours: list[Landmark], *, with_ids: bool) -> None:
        self.exact = {(one.landmark_id, plain(one.name)): one for one in ours}
        self.by_name = _unique((plain(one.name), one) for one in ours)
        self.by_folder = _unique((name, one) for one in ours for name in (_as_folder(one), _unpadded(plain(one.name))))
        self.by_id = {one.landmark_id: one for one in ours} if with_ids else {}

    def of(self, theirs: Landmark) -> Landmark | None:
        """Return our landmark that is `theirs`, or None."""
        name = plain(theirs.name)
        found = self.exact.get((theirs.landmark_id, name)) or self.by_name.get(name)
        found = found or self.by_folder.get(_unpadded(name)) or self.by_folder.get(_as_folder(theirs))
        same_id = self.by_id.get(theirs.landmark_id)
        if found is None and same_id is not None and (_nameless(theirs) or _nameless(same_id)):
            return same_id
        return found


def _unique(called: Iterable[tuple[str, Landmark]]) -> dict[str, Landmark]:
    """Return name → landmark without the names that several landmarks have."""
    every: dict[str, set[Landmark]] = {}
    for name, landmark in called:
        every.setdefault(name, set()).add(landmark)
    return {name: next(iter(landmarks)) for name, landmarks in every.items() if len(landmarks) == 1}


def _as_folder(landmark: Landmark) -> str:
    """Return `6051 Colosseum`, the name of its folder without the zeros in front."""
    return f"{landmark.landmark_id} {safe_name(landmark.name)}"


def _unpadded(name: str) -> str:
    return re.sub(r"^0+(?=[0-9])", "", name)


def _nameless(landmark: Landmark) -> bool:
    return _unpadded(landmark.name) == str(landmark.landmark_id)
