"""From runs to one self-contained page."""
