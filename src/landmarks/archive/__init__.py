"""From a mirror of the archive to a dataset: choose landmarks, locate and fetch their images."""
