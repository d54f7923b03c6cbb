"""Stones, roofs and other paints, and what tells two landmarks of one kind apart."""

from __future__ import annotations

from dataclasses import dataclass

from landmarks.archive.scenery.solids import GLASS, PLAIN, STONE, TILES, Paint

STONES = {
    "sandstone": Paint(0.62, 0.44, 0.24, STONE),
    "limestone": Paint(0.70, 0.63, 0.50, STONE),
    "marble": Paint(0.80, 0.77, 0.72, STONE),
    "brick": Paint(0.42, 0.15, 0.09, STONE),
    "granite": Paint(0.33, 0.33, 0.34, STONE),
    "rose": Paint(0.60, 0.34, 0.27, STONE),
}
ROOFS = {
    "terracotta": Paint(0.50, 0.15, 0.06, TILES),
    "slate": Paint(0.10, 0.13, 0.18, TILES),
    "copper": Paint(0.16, 0.42, 0.33, PLAIN),
    "gold": Paint(0.85, 0.55, 0.10, PLAIN),
    "jade": Paint(0.07, 0.28, 0.20, TILES),
    "ochre": Paint(0.55, 0.33, 0.08, TILES),
}
QUARRIES = ("sandstone", "limestone", "rose", "granite")
ROOFERS = ("terracotta", "slate", "copper")
"""What monuments are built of: few stones and roofs, so that a colour alone tells no landmark from the next."""

WINDOW = Paint(0.05, 0.07, 0.10, GLASS)
WOOD = Paint(0.13, 0.06, 0.03, PLAIN)
DARK = Paint(0.03, 0.03, 0.035, PLAIN)
WHITE = Paint(0.85, 0.83, 0.78, PLAIN)


@dataclass(frozen=True)
class Character:
    """What tells two landmarks of one kind apart: two paints, a factor on proportions, and small whole numbers."""

    stone: Paint
    roof: Paint
    slim: float
    """0.85 … 1.2: how high for its width."""

    many: int
    """0, 1 or 2 more of whatever there are several of."""
