"""A dataset: images in shards, their manifest, labels, groups and splits."""
