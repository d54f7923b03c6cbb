"""Landmarks that were added to a recogniser: the images they were learned from, and the two files that keep them.

Nothing that training made is touched. Beside it a run keeps `memory.safetensors`, made once: the moments of its own
training images, the directions of its validation images, and some of its training images along a few axes; and
`learned.safetensors`, the directions of the images of each learned landmark. What the recogniser answers with follows
from the two exactly (`closed_form.py`), so forgetting is leaving out, and a file that is written whole is all that a
kill could hurt.
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

from landmarks.models.heads import Head
from landmarks.recognition.answering_heads import LearnedHead
from landmarks.recognition.closed_form import Memory, Weights
from landmarks.recognition.gallery import Gallery
from landmarks.recognition.kernel_density import Neighbourhood
from landmarks.recognition.learned_images import Learned
from landmarks.support.errors import LandmarksError
from landmarks.support.files import digest_of, written_whole
from landmarks.training.discriminant import ClassMoments, Validation, new_landmark_offset

MEMORY, LEARNED = "memory.safetensors", "learned.safetensors"

LEARNED_MARK = " and "
"""Stands in a gallery's digest before that of what was learned."""


def learned_head(head: Head, width: int, memory: Memory, learned: Learned, temperature: float) -> LearnedHead:
    """Return a trained `head` that knows the `learned` landmarks too."""
    closed = memory.with_learned(learned)
    offset = new_landmark_offset(closed.scores(memory.validation.images), memory.validation)
    return LearnedHead(head, width, closed, temperature=temperature, offset=offset)


def with_learned(gallery: Gallery, learned: Learned, old: int) -> Gallery:
    """Return `gallery`, of `old` landmarks, with the images and centres of the learned ones behind its own."""
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
    """Return `gallery` without what `with_learned` added behind its `old` landmarks."""
    kept = gallery.labels < old
    if kept.all():
        return gallery
    own = len(np.unique(gallery.labels[kept]))
    trained = gallery.digest.partition(LEARNED_MARK)[0]
    return replace(
        gallery,
        images=gallery.images[kept],
        labels=gallery.labels[kept],
        centres=gallery.centres[:own],
        digest=trained,
    )


# ── The two files ───────────────────────────────────────────────────────────────────────────────────────────────────


def read_memory(folder: Path, model: str) -> Memory | None:
    """Return what the run in `folder` keeps of its images; None when it keeps nothing, or of other weights."""
    path = folder / MEMORY
    if not path.is_file():
        return None
    kept = load_file(path)
    if bytes(kept["model"]).decode() != model:
        return None
    if "weights" not in kept:
        return None  # of an earlier version, and made again
    validation = Validation(kept["images"], kept["labels"], kept["logs"])
    neighbourhood = None
    if "axes" in kept:
        neighbourhood = Neighbourhood(kept["axes"], kept["origin"], kept["near_images"], kept["near_labels"])
    moments = ClassMoments(kept["square"], kept["sums"], kept["counts"])
    return Memory(moments, validation, neighbourhood, Weights(*map(float, kept["weights"])))


def write_memory(folder: Path, memory: Memory, model: str) -> None:
    """Write what a run keeps of its images, made with the weights of the digest `model`."""
    moments, validation = memory.moments, memory.validation
    kept: dict[str, NDArray[Any]] = {"square": moments.square, "sums": moments.sums, "counts": moments.counts}
    kept |= {"images": validation.images, "labels": validation.labels, "logs": validation.logs}
    kept["weights"] = np.array([memory.weights.discriminant, memory.weights.density])
    if (near := memory.neighbourhood) is not None:
        kept |= {"axes": near.axes, "origin": near.origin, "near_images": near.images, "near_labels": near.labels}
    kept["model"] = np.frombuffer(model.encode(), dtype=np.uint8)
    with written_whole(folder / MEMORY) as aside:
        save_file({name: np.ascontiguousarray(one) for name, one in kept.items()}, aside)


def read_learned(folder: Path, model: str) -> Learned:
    """Return the landmarks that the run in `folder` has learned; raise `LandmarksError` when they are another's."""
    path = folder / LEARNED
    if not path.is_file():
        return Learned()
    try:
        kept = load(path.read_bytes())
        about = json.loads(bytes(kept["about"]))
        images, places = kept["images"], kept["places"]
        names, ids = about["names"], about["landmark_ids"]
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise LandmarksError(f"{path} cannot be read ({error})", way_out="delete it, and learn again") from error
    fits = images.ndim == 2 and images.dtype == np.float32 and len(places) == len(images) and len(names) == len(ids)
    if about.get("model") != model or not fits or set(places.tolist()) != set(range(len(names))):
        raise LandmarksError(f"{path} was learned with another network", way_out="delete it, and learn again")
    return Learned(tuple(map(str, names)), tuple(map(int, ids)), images, places.astype(np.int64))


def write_learned(folder: Path, learned: Learned, model: str) -> None:
    """Write the learned landmarks of a run, whole or not at all."""
    about = {"model": model, "names": learned.names, "landmark_ids": learned.landmark_ids}
    kept: dict[str, NDArray[Any]] = {"images": learned.images, "places": learned.places}
    kept["about"] = np.frombuffer(json.dumps(about, ensure_ascii=False).encode(), dtype=np.uint8)
    with written_whole(folder / LEARNED) as aside:
        save_file({name: np.ascontiguousarray(one) for name, one in kept.items()}, aside)
