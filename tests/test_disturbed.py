"""Nothing lost: each verb is killed at events of the file system, meets a full and a read-only disk, and is run again.

The result must be the one of an undisturbed run, nothing half-finished may be left, and a refusal of the disk is one
line with exit code 1. A few instants of the data verbs are tried here; the slow tests try many, of every verb.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from landmarks.cli.main import run
from landmarks.miniature.make import make_miniature

pytestmark = pytest.mark.linux

HERE = Path(__file__).parent
DATA_ROOMS = (
    "cli.main",
    "archive.fetch",
    "archive.select",
    "archive.locate",
    "dataset.importing",
    "dataset.storing",
    "dataset.unpack",
)
TRAINED_ROOMS = (
    *DATA_ROOMS,
    *("training.train", "evaluation.evaluate", "evaluation.audit", "explanation.explain", "reporting.page"),
    *("recognition.predict", "evaluation.subsets"),
)
TRAINING = (
    *("--backbone", "test_resnet", "--weights", "w.safetensors", "--image-size", "32", "--epochs", "1"),
    *("--batch-size", "8", "--tracking", "none", "--device", "cpu", "--set", "head_epochs=3"),
)
DATA_VERBS = {
    "select": ["select", "mirror", "-o", "new.parquet"],
    "locate": ["locate", "mirror", "-o", "index.parquet"],
    "fetch": ["fetch", "chosen.parquet", "-o", "new", "--mirror", "mirror"],
    "import": ["import", "folder", "-o", "new"],
    "import --reference": ["import", "folder", "-o", "new", "--reference"],
    "split": ["split", "data", "--seed", "1"],
    "unpack": ["unpack", "data", "-o", "new"],
    "credits": ["credits", "data", "-o", "new.csv"],
}
TRAINED_VERBS = {
    "train": ["train", "data", "-o", "new", *TRAINING],
    "evaluate": ["evaluate", "run", "--submission", "new.csv"],
    "predict": ["predict", "run", "folder", "--csv", "new.csv"],
    "explain": ["explain", "run"],
    "audit": ["audit", "run", "-o", "new.csv", "--split", "all"],
    "subsets": ["subsets", "run", "--landmarks", "2"],
    "report": ["report", "judged", "-o", "new.html"],
}
OF_THIS_PROCESS = ("transfer.json", "report.html", "new.html")
"""Files that tell what one process did, or when."""


@dataclass(frozen=True)
class Sweep:
    """What came of the attempts on one verb."""

    undisturbed: dict[str, Any]
    attempts: list[dict[str, Any]]

    @property
    def faults(self) -> list[str]:
        """A line for each attempt that did not go well."""
        return [line for one in self.attempts for line in self._faults_of(one)]

    def _faults_of(self, one: dict[str, Any]) -> list[str]:
        what = f"{one['how']} at {one['instant']}: "
        errors = [line for line in one["last_lines"] if line.startswith("error")]
        found = []
        if one["how"] == "kill" and one["code"] != -9:
            found.append(f"not killed but {one['code']}")
        if one["how"] != "kill" and one["code"] and (one["code"] != 1 or len(errors) != 1 or "unforeseen" in errors[0]):
            found.append(f"ended with {one['code']}, {one['last_lines']}")
        if one["again"] != self.undisturbed["code"]:
            found.append(f"run again it ended with {one['again']}, {one['last_lines_again']}")
        if one["leftovers"] != self.undisturbed["leftovers"]:
            found.append(f"left {one['leftovers']}")
        names = set(one["digests"]) ^ set(self.undisturbed["digests"])
        names |= {name for name, digest in one["digests"].items() if self.undisturbed["digests"].get(name) != digest}
        differ = [name for name in sorted(names) if Path(name).name not in OF_THIS_PROCESS]
        if differ:
            found.append(f"other files: {differ[:5]}")
        return [what + each for each in found]


@pytest.fixture(scope="session")
def disturber() -> Iterator[subprocess.Popen[str]]:
    """The process that does the jobs of all tests: what is imported for one is there for the next."""
    line = [sys.executable, str(HERE / "disturbed.py")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def sweep(
    disturber: subprocess.Popen[str],
    base: Path,
    place: Path,
    arguments: list[str],
    *,
    rooms: tuple[str, ...],
    most: int,
    hows: list[str],
) -> Sweep:
    """Disturb the command at up to `most` instants, drawn from a seed, in each of the ways `hows`."""
    modules = [f"landmarks.{room}" for room in rooms]
    job = {"base": str(base), "place": str(place), "arguments": arguments, "modules": modules}
    place.with_suffix(".job").write_text(json.dumps({**job, "most": most, "hows": hows}))
    assert disturber.stdin is not None and disturber.stdout is not None
    print(place.with_suffix(".job"), file=disturber.stdin, flush=True)
    lines = list(itertools.takewhile("\n".__ne__, disturber.stdout))
    assert disturber.poll() is None, "the process that does the jobs has ended"
    undisturbed, *tried = [json.loads(each) for each in lines]
    return Sweep(undisturbed, tried)


def do(*arguments: str) -> None:
    assert run(list(arguments)) == 0, arguments


def make_base(base: Path, images: int) -> None:
    """A mirror of three landmarks, its selection, its dataset divided, and some of it as folders."""
    make_miniature(base / "mirror", landmarks=3, images=images, unknown=2, size=64)
    before = Path.cwd()
    os.chdir(base)
    try:
        do("select", "mirror", "-o", "chosen.parquet")
        do("fetch", "chosen.parquet", "-o", "data", "--mirror", "mirror")
        do("split", "data", "--by", "random", "--val", "0.2", "--test", "0.3", "--copies", "no")
        do("unpack", "data", "-o", "unpacked")
        (base / "unpacked" / "train").rename(base / "folder")
        shutil.rmtree(base / "unpacked")
    finally:
        os.chdir(before)


@pytest.fixture(scope="session")
def data_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verbs of data begin with."""
    base = tmp_path_factory.mktemp("disturbed") / "base"
    make_base(base, images=8)
    return base


@pytest.fixture(scope="session")
def trained_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the verbs of runs begin with: the same with a run, one evaluated, and groups enough for `subsets`."""
    import timm
    import torch
    from safetensors.torch import save_file

    base = tmp_path_factory.mktemp("disturbed-run") / "base"
    make_base(base, images=16)
    torch.manual_seed(0)
    drawn = timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in drawn.items()}, base / "w.safetensors")
    before = Path.cwd()
    os.chdir(base)
    try:
        do("train", "data", "-o", "run", *TRAINING)
        shutil.rmtree(base / "data" / "features")
        shutil.copytree(base / "run", base / "judged")
        do("evaluate", "judged")
    finally:
        os.chdir(before)
    return base


@pytest.mark.parametrize("verb", DATA_VERBS)
def test_a_data_verb_killed_or_refused_by_the_disk_goes_on_to_the_same(
    verb: str, disturber: subprocess.Popen[str], data_base: Path, tmp_path: Path
) -> None:
    result = sweep(
        disturber, data_base, tmp_path / "w", DATA_VERBS[verb], rooms=DATA_ROOMS, most=2, hows=["kill", "ENOSPC"]
    )
    assert result.undisturbed["code"] == 0
    assert result.faults == []
    assert len(result.attempts) == 4


@pytest.mark.slow
@pytest.mark.parametrize("verb", DATA_VERBS)
def test_a_data_verb_killed_or_refused_at_many_instants_goes_on_to_the_same(
    verb: str, disturber: subprocess.Popen[str], data_base: Path, tmp_path: Path
) -> None:
    result = sweep(
        disturber,
        data_base,
        tmp_path / "w",
        DATA_VERBS[verb],
        rooms=DATA_ROOMS,
        most=40,
        hows=["kill", "ENOSPC", "EROFS", "EACCES"],
    )
    print(f"{verb}: {len(result.attempts)} attempts, {len(result.faults)} faults")
    assert result.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("verb", TRAINED_VERBS)
def test_a_verb_of_runs_killed_or_refused_at_many_instants_goes_on_to_the_same(
    verb: str, disturber: subprocess.Popen[str], trained_base: Path, tmp_path: Path
) -> None:
    result = sweep(
        disturber,
        trained_base,
        tmp_path / "w",
        TRAINED_VERBS[verb],
        rooms=TRAINED_ROOMS,
        most=25,
        hows=["kill", "ENOSPC", "EROFS"],
    )
    print(f"{verb}: {len(result.attempts)} attempts, {len(result.faults)} faults")
    assert result.undisturbed["code"] == 0
    assert result.faults == []
