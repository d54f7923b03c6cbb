"""What the predictions and numbers of a set of photographs are called in a run's folder: no two sets share a name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landmarks.dataset.manifest import PARTS, Dataset
from landmarks.evaluation.lottery import SUFFIX
from landmarks.support.files import read_record
from landmarks.support.tables import read_metadata
from landmarks.training.asked import Asked
from landmarks.training.run import Run


def name_of(run: Run, asked: Asked, part: str | None = None) -> str:
    """Return what the numbers of `asked` (or of another `part` of its dataset) are called.

    In the run's own dataset that is the part; elsewhere the folder's name, with the part behind it unless it is the
    test or all there is, and `data-` before it where a part of the run's own dataset is called so. When numbers of
    another dataset have that name already, the name of the folder above stands before it, or the dataset's digest
    behind it.
    """
    dataset, part = asked.dataset, part or asked.part
    folder, digest = dataset.folder.resolve(), dataset.digest[:8]
    if asked.own:
        names = [part, f"own-{part}"]
    else:
        whole = dataset.split is None or part == "test"
        name = folder.name if whole else f"{folder.name}-{part}"
        own = (run.record.get("data") or {}).get("photographs") or dict.fromkeys(PARTS, 1)
        first = f"data-{name}" if own.get(name) or name == "all" else name
        names = [first, f"{folder.parent.name}-{name}"]
    last = f"{names[0]}-{digest}"
    return next((name for name in names if _is_free(run.folder, name, asked, part)), last)


def _is_free(run: Path, name: str, asked: Asked, part: str) -> bool:
    """Return whether nothing is called `name` yet, or only numbers of the same part of the same dataset."""
    metrics, lottery = run / "metrics" / f"{name}.json", run / "metrics" / f"{name}{SUFFIX}"
    predictions = run / "predictions" / f"{name}.parquet"
    numbers: dict[str, Any] = dict(read_metadata(predictions)) if predictions.exists() else {}
    numbers |= read_record(metrics) if metrics.exists() else {}
    draws = read_record(lottery) if lottery.exists() else {}
    of_part = not numbers or numbers.get("part") == part
    return of_part and all(_is_of(told, asked.dataset, own=asked.own) for told in (numbers, draws) if told)


def _is_of(told: Mapping[str, Any], dataset: Dataset, *, own: bool) -> bool:
    """Return whether numbers are of `dataset`, as it is, or as it was in the same place."""
    if told.get("own_data") in (True, "True"):
        return own
    digests = (told.get("data_digest"), told.get("inputs"))
    place = told.get("data")
    return dataset.digest in digests or (bool(place) and Path(str(place)).resolve() == dataset.folder.resolve())
