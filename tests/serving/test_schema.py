"""The OpenAPI description against the server that it describes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import patient
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from made_up_runs import _short_features
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving.conftest import Running

import landmarks
from landmarks.serving.app import create_app

__all__ = ["_short_features"]

PATHS = [
    ("post", "/recognise"),
    ("get", "/landmarks"),
    ("post", "/landmarks"),
    ("delete", "/landmarks/{name}"),
    ("get", "/healthz"),
    ("get", "/metrics"),
]


@pytest.fixture(scope="module")
def address(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that answers with a run, and may be taught."""
    place = tmp_path_factory.mktemp("described") / "run"
    shutil.copytree(run_folder, place)

    def load() -> Any:
        return landmarks.load(place, device="cpu")

    running = Running(create_app(load(), place=place, load=load, teach=True, device="cpu"), seconds=30)
    yield running.url
    running.stop()


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_no_request_that_can_be_made_from_the_description_ends_in_a_fault(address: str, method: str, path: str) -> None:
    described = schemathesis.openapi.from_url(f"{address}/openapi.json")
    (operation,) = (
        one.ok() for one in described.get_all_operations() if (one.ok().method, one.ok().path) == (method, path)
    )
    statuses = set()

    examples = 12 if path.startswith("/landmarks") and method != "get" else 60  # each may open the run again

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        # A schema cannot say which bytes are an image, so some of what it allows is rightly refused with 422.
        statuses.add(case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=None).status_code)

    ask()
    assert statuses
    assert max(statuses) < 500


def test_the_description_has_every_path_with_examples_and_errors(address: str) -> None:
    described = patient.get(f"{address}/openapi.json").json()
    assert set(described["paths"]) == {path for _, path in PATHS}
    operation = described["paths"]["/recognise"]["post"]
    assert set(operation["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "500", "503"}
    assert {"image/*", "multipart/form-data"} <= set(operation["requestBody"]["content"])
    models = described["components"]["schemas"]
    assert models["Recognised"]["examples"][0]["images"][0]["answers"]
    assert set(models["Problem"]["properties"]) == {"what", "received", "expected", "way_out"}
