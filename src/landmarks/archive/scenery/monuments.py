"""The landmarks of the miniature archive: the kinds there are, and one building made from its kind and seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from landmarks.archive.scenery.materials import QUARRIES, ROOFERS, ROOFS, STONES, Character
from landmarks.archive.scenery.solids import Mesh, turned
from landmarks.archive.scenery.tall import campanile, iron_tower, lighthouse, obelisk, pagoda, windmill
from landmarks.archive.scenery.wide import (
    arch_bridge,
    arena,
    castle,
    cathedral,
    domed_hall,
    step_pyramid,
    stone_circle,
    temple,
    triumphal_arch,
)
from landmarks.support.seeds import generator

KINDS: dict[str, Callable[[Character], Mesh]] = {
    "temple": temple,
    "domed hall": domed_hall,
    "step pyramid": step_pyramid,
    "triumphal arch": triumphal_arch,
    "arch bridge": arch_bridge,
    "pagoda": pagoda,
    "obelisk": obelisk,
    "arena": arena,
    "lighthouse": lighthouse,
    "windmill": windmill,
    "castle": castle,
    "cathedral": cathedral,
    "iron tower": iron_tower,
    "campanile": campanile,
    "stone circle": stone_circle,
}

AT_THE_WATER = ("arch bridge", "lighthouse", "castle")


@dataclass(frozen=True)
class Monument:
    """A landmark as it stands: its mesh, height and radius in metres, and whether it is at the water."""

    mesh: Mesh
    height: float
    radius: float
    water: bool


@lru_cache(maxsize=64)
def monument(kind: str, number: int, seed: int) -> Monument:
    """Build one of the landmarks of a kind, `number` counting from 0; the same keys always give the same building.

    Those that share a kind differ in their stone and in their roof.
    """
    shared, rng = generator("monument", kind, seed), generator("monument", kind, seed, number)
    own = Character(
        stone=STONES[QUARRIES[(int(shared.integers(len(QUARRIES))) + number) % len(QUARRIES)]],
        roof=ROOFS[ROOFERS[(int(shared.integers(len(ROOFERS))) + number) % len(ROOFERS)]],
        slim=float(rng.uniform(0.86, 1.2)),
        many=int(rng.integers(3)),
    )
    mesh = turned(KINDS[kind](own), float(rng.uniform(0, 2 * np.pi)))
    return Monument(
        mesh,
        height=float(mesh.corners[..., 2].max()),
        radius=float(np.hypot(mesh.corners[..., 0], mesh.corners[..., 1]).max()),
        water=kind in AT_THE_WATER,
    )
