"""Recognise landmarks in images: from the published archive to a trained recogniser and a report.

Each verb of the command line is a function here, with the same name and the same names of parameters (`import` is
`landmarks.import_`). Functions are loaded on first use, so that `import landmarks` is fast.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Without this, onnxruntime 1.32 writes a device id into the home folder as soon as it is loaded, and sends telemetry.
# It is set here because any import from the package runs this file first. A value that the user has set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from landmarks.archive.fetch import fetch as fetch
    from landmarks.archive.locate import locate as locate
    from landmarks.archive.select import select as select
    from landmarks.dataset.credits import credits as credits
    from landmarks.dataset.importing import import_ as import_
    from landmarks.dataset.joining import join as join
    from landmarks.dataset.manifest import open_dataset as open_dataset
    from landmarks.dataset.split import split as split
    from landmarks.dataset.unpack import unpack as unpack
    from landmarks.evaluation.audit import audit as audit
    from landmarks.evaluation.compare import compare as compare
    from landmarks.evaluation.evaluate import evaluate as evaluate
    from landmarks.evaluation.submission import score as score
    from landmarks.evaluation.subsets import subsets as subsets
    from landmarks.explanation.explain import explain as explain
    from landmarks.models.catalogue import networks as networks
    from landmarks.recognition.export import export as export
    from landmarks.recognition.indexing import index as index
    from landmarks.recognition.learn import forget as forget
    from landmarks.recognition.learn import learn as learn
    from landmarks.recognition.predict import predict as predict
    from landmarks.recognition.recogniser import load as load
    from landmarks.recognition.searching import search as search
    from landmarks.reporting.page import report as report
    from landmarks.serving.one_page import export_page as export_page
    from landmarks.serving.server import serve as serve
    from landmarks.study.demo import demo as demo
    from landmarks.study.reproduce import reproduce as reproduce
    from landmarks.support.errors import LandmarksError as LandmarksError
    from landmarks.training.plan import plan as plan
    from landmarks.training.recipe import Recipe as Recipe
    from landmarks.training.recipe import recipe as recipe
    from landmarks.training.run import open_run as open_run
    from landmarks.training.train import train as train
    from landmarks.training.tune import tune as tune

__version__ = "0.1.0"

_MODULES = {
    "select": "landmarks.archive.select",
    "locate": "landmarks.archive.locate",
    "fetch": "landmarks.archive.fetch",
    "import_": "landmarks.dataset.importing",
    "join": "landmarks.dataset.joining",
    "split": "landmarks.dataset.split",
    "unpack": "landmarks.dataset.unpack",
    "credits": "landmarks.dataset.credits",
    "audit": "landmarks.evaluation.audit",
    "networks": "landmarks.models.catalogue",
    "recipe": "landmarks.training.recipe",
    "plan": "landmarks.training.plan",
    "train": "landmarks.training.train",
    "tune": "landmarks.training.tune",
    "evaluate": "landmarks.evaluation.evaluate",
    "score": "landmarks.evaluation.submission",
    "subsets": "landmarks.evaluation.subsets",
    "explain": "landmarks.explanation.explain",
    "export": "landmarks.recognition.export",
    "export_page": "landmarks.serving.one_page",
    "predict": "landmarks.recognition.predict",
    "learn": "landmarks.recognition.learn",
    "forget": "landmarks.recognition.learn",
    "index": "landmarks.recognition.indexing",
    "search": "landmarks.recognition.searching",
    "load": "landmarks.recognition.recogniser",
    "serve": "landmarks.serving.server",
    "compare": "landmarks.evaluation.compare",
    "report": "landmarks.reporting.page",
    "reproduce": "landmarks.study.reproduce",
    "demo": "landmarks.study.demo",
    "open_dataset": "landmarks.dataset.manifest",
    "open_run": "landmarks.training.run",
    "Recipe": "landmarks.training.recipe",
    "LandmarksError": "landmarks.support.errors",
}
"""Name → the module that defines it. The same names are imported above for type checkers and editors."""


if not TYPE_CHECKING:  # with `__getattr__` a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'landmarks' has no attribute {name!r}")
        from landmarks.support.errors import naming_the_extra
        from landmarks.support.systems import wait_without_spinning

        wait_without_spinning()

        with naming_the_extra(f"landmarks.{name}"):
            value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value


def __dir__() -> list[str]:
    return ["__version__", *_MODULES]
