"""Recognise landmarks in photographs: from the published archive to a trained recogniser and a report.

Everything the command line does is one function here, with the same name and the same words for its parameters
(`import` and `select` read `landmarks.import_` and `landmarks.select`). Functions are loaded when first used, so
that `import landmarks` is quick.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    "select": "landmarks.archive.choose",
    "locate": "landmarks.archive.locate",
    "fetch": "landmarks.archive.fetch",
    "import_": "landmarks.dataset.folders",
    "split": "landmarks.dataset.split",
    "unpack": "landmarks.dataset.unpack",
    "credits": "landmarks.dataset.credits",
    "networks": "landmarks.networks.catalogue",
    "plan": "landmarks.training.plan",
    "train": "landmarks.training.train",
    "tune": "landmarks.training.tune",
    "evaluate": "landmarks.evaluation.evaluate",
    "predict": "landmarks.evaluation.predict",
    "compare": "landmarks.evaluation.compare",
    "explain": "landmarks.explanation.explain",
    "report": "landmarks.report.page",
    "reproduce": "landmarks.study.reproduce",
    "demo": "landmarks.study.demo",
}


class _Package(types.ModuleType):
    """The package: a verb is its function, also where a room has the same name (`networks`, `report`)."""

    def __getattribute__(self, name: str) -> Any:
        if name in _PLACES:
            return getattr(importlib.import_module(_PLACES[name]), name)
        return super().__getattribute__(name)

    def __dir__(self) -> list[str]:
        return ["__version__", *_PLACES]


sys.modules[__name__].__class__ = _Package
