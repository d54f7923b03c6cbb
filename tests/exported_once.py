"""PyTorch's exporter takes seconds: it reads its operators once a process, and each network once a session."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import marshal
import os
import pickle
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
import torch


class _Content(pickle.Pickler):
    """Writes tensors as their numbers; as it stands, pickle writes down where they lie in memory."""

    def reducer_override(self, given: Any) -> Any:
        if isinstance(given, torch.Tensor):
            numbers = given.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            return tuple, ((str(given.dtype), *given.shape, numbers),)
        return NotImplemented


def digest_of(*given: object) -> str:
    """Return what two modules have in common that compute with the same numbers."""
    content = io.BytesIO()
    _Content(content).dump(given)
    return hashlib.sha256(content.getvalue()).hexdigest()


@pytest.fixture(scope="session", autouse=True)
def _exported_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is the same as before comes from before; everything else, and what fails, is exported as always."""
    from landmarks.recognition import export_graph
    from landmarks.support.files import written_whole

    real = export_graph._exported
    base = tmp_path_factory.getbasetemp()  # of a worker, in the folder of the session
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported_once"
    made.mkdir(exist_ok=True)

    def exported(module: torch.nn.Module, *given: Any) -> onnx.ModelProto:
        try:
            same = digest_of(module, *given, *(marshal.dumps(type(part).forward.__code__) for part in module.modules()))
        except (pickle.PicklingError, AttributeError, TypeError):  # it holds what cannot be written down
            return real(module, *given)
        if not (made / same).exists():
            with written_whole(made / same) as aside:
                onnx.save(real(module, *given), aside)
        return onnx.load(made / same)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(export_graph, "_exported", exported)
        with contextlib.suppress(ImportError, AttributeError):  # a room of PyTorch's own, which may move
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            once = functools.cache(ONNXRegistry.from_torchlib)
            patched.setattr(ONNXRegistry, "from_torchlib", staticmethod(once))
        yield
