"""`Learned`: landmarks added to a recogniser, with the directions of the images they were learned from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from landmarks.support.errors import LandmarksError, did_you_mean

FIRST_ID = -2
"""Ids of learned landmarks count down from here: archives have no negative ids, and -1 stands for no label."""


def free_landmark_id(taken: Iterable[int]) -> int:
    """Return an id for a further learned landmark: the one below all that are `taken`, and below -1.

    Where the smallest integer of 64 bits is taken, it is the greatest free one below -1.
    """
    used = set(taken)
    below = min([FIRST_ID + 1, *used]) - 1
    return below if below >= -(2**63) else next(id for id in itertools.count(FIRST_ID, -1) if id not in used)


@dataclass(frozen=True)
class Learned:
    """L landmarks that were added to a recogniser, learned from m images in total."""

    names: tuple[str, ...] = ()
    landmark_ids: tuple[int, ...] = ()
    images: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """The directions of a run's features, or an export's whitened features, (m, C)."""
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """The position, among these landmarks, of the one that each image shows, (m,)."""

    def plus(self, images: NDArray[np.float32], name: str, landmark_id: int | None = None) -> Learned:
        """Return these with `images` `(n, C)` added to the landmark `name`, which is new or was learned before.

        Images that it has already are skipped. Without a `landmark_id` a new landmark gets the next free one.
        """
        names, ids = self.names, self.landmark_ids
        if name not in names:
            free = landmark_id if landmark_id is not None else free_landmark_id(ids)
            names, ids = (*names, name), (*ids, free)
        place = names.index(name)
        present = {row.tobytes() for row in self.images[self.places == place]}
        new = list({row.tobytes(): row for row in images if row.tobytes() not in present}.values())
        if not new:
            return self
        combined = np.concatenate([self.images.reshape(-1, images.shape[1]), np.stack(new)])
        places = np.concatenate([self.places, np.full(len(new), place, dtype=np.int64)])
        return Learned(names, ids, combined.astype(np.float32), places)

    def without(self, name: str) -> Learned:
        """Return these without the landmark `name`; raise `LandmarksError` when it was not learned."""
        if name not in self.names:
            raise LandmarksError(
                f'no landmark "{name}" was learned',
                expected=", ".join(self.names) or "none was",
                way_out=did_you_mean(name, self.names),
            )
        place = self.names.index(name)
        kept = self.places != place
        places = self.places[kept]
        return Learned(
            tuple(other for other in self.names if other != name),
            tuple(id for position, id in enumerate(self.landmark_ids) if position != place),
            self.images[kept],
            places - (places > place),
        )

    def counts(self) -> list[int]:
        """Return how many images each landmark was learned from."""
        return [int(count) for count in np.bincount(self.places, minlength=len(self.names))]
