"""The archive: select images of a mirror, locate them in its TARs, and fetch them into a dataset."""
