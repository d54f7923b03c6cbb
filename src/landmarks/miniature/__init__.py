"""The made-up archive: rendered monuments with their surroundings, light and cameras, in the published layout."""
