"""The made-up world of the miniature archive: solids, monuments, what stands around them, light and cameras."""
