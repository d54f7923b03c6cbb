"""Landmarks that a run has learned, and the two files that store them.

Learning changes nothing that training wrote. A run keeps two more files. `memory.safetensors`, made once, holds the
moments of its training images, the directions of its validation images, and some of its training images projected onto
a few axes. `learned.safetensors` holds the directions of the images of each learned landmark. The learned head is
computed exactly from these two (`closed_form.py`), so a landmark is forgotten by deleting its images; and as the files
are written atomically, an interruption leaves the run as it was.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save_file

from landmarks.recognition.closed_form import Memory, Neighbourhood, Weights
from landmarks.recognition.gallery import Gallery
from landmarks.recognition.learned_images import Learned
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, written_whole
from landmarks.training.discriminant import ClassMoments, Validation

MEMORY, LEARNED = "memory.safetensors", "learned.safetensors"

LEARNED_MARK = " and "
"""Precedes the digest of the learned landmarks in a gallery's digest."""


def with_learned(gallery: Gallery, learned: Learned, old: int) -> Gallery:
    """Return `gallery`, of `old` landmarks, with the images and centres of the learned ones appended."""
    means = np.stack([learned.images[learned.places == place].mean(axis=0) for place in range(len(learned.names))])
    return replace(
        gallery,
        images=np.concatenate([gallery.images, learned.images.astype(np.float16)]),
        labels=np.concatenate([gallery.labels, old + learned.places]),
        centres=np.concatenate([gallery.centres, (means @ gallery.within).astype(np.float32)]),
        digest=gallery.digest
        + LEARNED_MARK
        + digest_of(learned.names, [row.tobytes().hex() for row in learned.images]),
    )


def without_learned(gallery: Gallery, old: int) -> Gallery:
    """Return `gallery` without what `with_learned` appended to its `old` landmarks."""
    kept = gallery.labels < old
    if kept.all():
        return gallery
    return replace(
        gallery,
        images=gallery.images[kept],
        labels=gallery.labels[kept],
        centres=gallery.centres[: len(np.unique(gallery.labels[kept]))],
        digest=gallery.digest.partition(LEARNED_MARK)[0],
    )


# ── The two files ───────────────────────────────────────────────────────────────────────────────────────────────────


def read_memory(folder: Path, model: str) -> Memory | None:
    """Return the memory of the run in `folder`; None when it has none, or one of other weights."""
    path = folder / MEMORY
    if not path.is_file():
        return None
    arrays = load_file(path)
    if bytes(arrays["model"]).decode() != model:
        return None
    if "weights" not in arrays:
        return None  # written by an earlier version; it is made again
    validation = Validation(arrays["images"], arrays["labels"], arrays["logs"])
    neighbourhood = None
    if "axes" in arrays:
        neighbourhood = Neighbourhood(arrays["axes"], arrays["origin"], arrays["near_images"], arrays["near_labels"])
    moments = ClassMoments(arrays["square"], arrays["sums"], arrays["counts"])
    return Memory(moments, validation, neighbourhood, Weights(*map(float, arrays["weights"])))


def write_memory(folder: Path, memory: Memory, model: str) -> None:
    """Write the memory of a run, made with the weights that have the digest `model`."""
    moments, validation = memory.moments, memory.validation
    arrays: dict[str, NDArray[Any]] = {"square": moments.square, "sums": moments.sums, "counts": moments.counts}
    arrays |= {"images": validation.images, "labels": validation.labels, "logs": validation.logs}
    arrays["weights"] = np.array([memory.weights.discriminant, memory.weights.density])
    if (near := memory.neighbourhood) is not None:
        arrays |= {"axes": near.axes, "origin": near.origin, "near_images": near.images, "near_labels": near.labels}
    arrays["model"] = np.frombuffer(model.encode(), dtype=np.uint8)
    with written_whole(folder / MEMORY) as aside:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, aside)


def read_learned(folder: Path, model: str) -> Learned:
    """Return what the run in `folder` has learned. Raises `LandmarksError` if it was learned with other weights."""
    path = folder / LEARNED
    if not path.is_file():
        return Learned()
    try:
        arrays = load(path.read_bytes())
        record = json.loads(bytes(arrays["about"]))
        images, places = arrays["images"], arrays["places"]
        names, ids = record["names"], record["landmark_ids"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise LandmarksError(f"{path} cannot be read ({error})", way_out="delete it, and learn again") from error
    fits = images.ndim == 2 and images.dtype == np.float32 and len(places) == len(images) and len(names) == len(ids)
    if record.get("model") != model or not fits or set(places.tolist()) != set(range(len(names))):
        raise LandmarksError(f"{path} was learned with another network", way_out="delete it, and learn again")
    return Learned(tuple(map(str, names)), tuple(map(int, ids)), images, places.astype(np.int64))


def write_learned(folder: Path, learned: Learned, model: str) -> None:
    """Write the learned landmarks of a run atomically."""
    record = {"model": model, "names": learned.names, "landmark_ids": learned.landmark_ids}
    arrays: dict[str, NDArray[Any]] = {"images": learned.images, "places": learned.places}
    arrays["about"] = np.frombuffer(json.dumps(record, ensure_ascii=False).encode(), dtype=np.uint8)
    with written_whole(folder / LEARNED) as aside:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, aside)
