"""A dataset: photographs in shards, their manifest, labels, groups and parts."""
