"""The images that landmarks were learned from, by their directions: what is added to a recogniser, and taken out."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from landmarks.support.errors import LandmarksError, did_you_mean

FIRST_ID = -2
"""Landmark ids of learned landmarks count down from here: no archive has them, and -1 stands for no label."""


@dataclass(frozen=True)
class Learned:
    """Landmarks that were added to a recogniser: L of them, of m images together."""

    names: tuple[str, ...] = ()
    landmark_ids: tuple[int, ...] = ()
    images: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """Directions (m, C)."""
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Which of the landmarks each image shows (m,)."""

    def plus(self, images: NDArray[np.float32], name: str, landmark_id: int | None = None) -> Learned:
        """Return these with directions `images` `(n, C)` of the landmark `name`, new or learned before.

        An image that is there already is passed by. Without a `landmark_id` a new landmark gets one of its own.
        """
        names, ids = self.names, self.landmark_ids
        if name not in names:
            free = landmark_id if landmark_id is not None else min(ids, default=FIRST_ID + 1) - 1
            names, ids = (*names, name), (*ids, free)
        place = names.index(name)
        known = {row.tobytes() for row in self.images[self.places == place]}
        fresh = list({row.tobytes(): row for row in images if row.tobytes() not in known}.values())
        if not fresh:
            return self
        whole = [self.images.reshape(-1, images.shape[1]), np.stack(fresh)]
        places = np.concatenate([self.places, np.full(len(fresh), place, dtype=np.int64)])
        return Learned(names, ids, np.concatenate(whole).astype(np.float32), places)

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
            tuple(one for one in self.names if one != name),
            tuple(one for at, one in enumerate(self.landmark_ids) if at != place),
            self.images[kept],
            places - (places > place),
        )

    def counts(self) -> list[int]:
        """Return how many images each landmark was learned from."""
        return [int(count) for count in np.bincount(self.places, minlength=len(self.names))]
