"""The errors that users see: one line with what is wrong, what was received, what was expected, and a way out.

    LandmarksError          exit code 1: the input is invalid, or the work was done only in part
    ├── StaleError          something computed earlier no longer belongs to what it was computed from
    ├── DifferentAnswersError   an export answers differently from its run
    ├── BusyError           another process is working on the same output
    ├── NothingThereError   there is nothing to work on
    └── UsageError          exit code 2: the command is wrong
        └── MissingExtraError   an extra of the package is not installed

Any other exception that reaches the shell is a bug.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator


class LandmarksError(Exception):
    """An error with a message of one line: `what` is wrong, what was `received` and `expected`, and a `way_out`."""

    exit_code = 1

    def __init__(self, what: str, *, received: object = None, expected: object = None, way_out: str = "") -> None:
        parts = [what]
        if received is not None:
            parts.append(f"received {received}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if way_out:
            parts.append(way_out)
        super().__init__(" ".join("; ".join(parts).split()))


class StaleError(LandmarksError):
    """Something computed earlier no longer belongs to what it was computed from."""


class DifferentAnswersError(LandmarksError):
    """An export answers differently from its run, and is not written."""


class BusyError(LandmarksError):
    """Another process is working on the same output."""


class NothingThereError(LandmarksError):
    """There is nothing to work on, such as a folder without images. A scheduled job may want to ignore this error."""


class UsageError(LandmarksError):
    """The command is wrong: an unknown name, an invalid value, or options that contradict each other."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An extra of the package is not installed."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return `did you mean "resnet50"?` for the closest of `choices`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else ""


EXTRAS = {
    "train": (
        "accelerate",
        "altair",
        "faiss",
        "huggingface_hub",
        "jinja2",
        "markupsafe",
        "onnx",
        "onnxscript",
        "psutil",
        "safetensors",
        "sklearn",
        "timm",
        "torch",
        "vl_convert",
    ),
    "tune": ("optuna",),
    "cluster": ("distributed",),
    "tracking": ("tensorboard",),
    "serve": ("fastapi", "h11", "prometheus_client", "python_multipart", "starlette", "uvicorn"),
    "verify": ("cv2",),
    "heic": ("pillow_heif",),
}
"""Extra → the modules that it adds to the base install."""


@contextlib.contextmanager
def naming_the_extra(what: str) -> Iterator[None]:
    """Raise `MissingExtraError`, which says that `what` needs it, if the block fails to import a module of an extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = next((extra for extra, modules in EXTRAS.items() if error.name in modules), None)
        if extra is None:
            raise
        raise MissingExtraError(
            f'{what} needs the extra "{extra}", which is not installed (no module named {error.name})',
            way_out=f'install it with: pip install "landmarks[{extra}]"',
        ) from error
