"""Machines that are not here: the verbs without POSIX, on Apple's graphics processor, and with nowhere to write."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import files, packages_distributions, requires
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from made_up_exports import by_hand
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import landmarks
from landmarks.cli.main import VERBS, run
from landmarks.dataset.images import encode, resize
from landmarks.miniature.make import make_miniature
from landmarks.support.errors import EXTRAS
from landmarks.training.checkpoint import State, copy_of_weights, load_checkpoint, save_checkpoint, tensors_of

SCRIPTS = Path(__file__).parent / "elsewhere"
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TRAINED = ["--backbone", "test_resnet", "--weights", "none", "--image-size", "32", "--epochs", "2", "--batch-size", "8",
           "--tracking", "none"]  # fmt: skip


def on(machine: str, *commands: list[str | Path], code: int = 0, **environment: str) -> str:
    """Run commands one after the other in a process that plays another machine; return what stood on its errors."""
    ended = subprocess.run(
        [sys.executable, SCRIPTS / f"{machine}.py", json.dumps([[str(word) for word in words] for words in commands])],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    assert "unforeseen" not in ended.stderr
    assert ended.returncode == code, ended.stderr
    return ended.stderr


def album(folder: Path, seed: int = 0) -> Path:
    """Write images of noise drawn from `seed`, six in a folder per landmark."""
    for number, name in enumerate(("Arch", "Tower")):
        (folder / name).mkdir(parents=True)
        for one in range(6):
            noise = np.random.default_rng([seed, number, one]).integers(0, 256, (4, 5, 3), dtype=np.uint8)
            (folder / name / f"{name}{one}.jpg").write_bytes(encode(resize(noise, 60, 40)))
    return folder


def program(*commands: list[str | Path], code: int = 0, **environment: str) -> str:
    """Run commands one after the other in a process with another environment; the last one ends with `code`."""
    return on("nowhere", *commands, code=code, **environment)


@pytest.mark.linux
def test_images_become_a_run_that_answers_without_posix(tmp_path: Path) -> None:
    place, images = tmp_path, album(tmp_path / "images")
    on(
        "windows",
        ["import", images, "-o", place / "data"],
        ["split", place / "data", "--by", "random", "--val", "0.3", "--test", "0.3"],
        ["train", place / "data", "-o", place / "run", *TRAINED, "--epochs", "1"],
        ["predict", place / "run", images, "--csv", place / "answers.csv"],
        ["unpack", place / "data", "-o", place / "unpacked"],
    )
    assert pl.read_csv(place / "answers.csv")["path"].n_unique() == 12
    assert len(list((place / "unpacked").rglob("*.jpg"))) == 12
    assert json.loads((place / "run" / "run.json").read_text())["peak_memory_mb"] > 10


@pytest.mark.slow
@pytest.mark.linux
def test_the_verbs_need_no_posix_and_no_file_is_replaced_while_it_is_open(tmp_path: Path) -> None:
    place, images = tmp_path, album(tmp_path / "images")
    on(
        "windows",
        ["import", images, "-o", place / "data"],
        ["import", album(tmp_path / "street", seed=7), "-o", place / "strangers"],
        ["split", place / "data", "--by", "random", "--val", "0.3", "--test", "0.3"],
        ["train", place / "data", "-o", place / "run", *TRAINED],
        ["train", place / "data", "-o", place / "warm", *TRAINED, "--weights", place / "run", "--head", "linear"],
        ["predict", place / "run", images, "--csv", place / "answers.csv"],
        ["evaluate", place / "run", "--false-acceptance", "0.25", "--unknown", place / "strangers"],
        ["explain", place / "run", images / "Arch"],
        ["audit", place / "warm", "-o", place / "wrong.csv"],
        ["unpack", place / "data", "-o", place / "unpacked"],
        ["import", place / "unpacked", "-o", place / "again", "--labels", place / "run"],
        ["report", place / "run", "-o", place / "report.html"],
    )
    assert pl.read_csv(place / "answers.csv")["path"].n_unique() == 12
    assert len(list((place / "unpacked").rglob("*.jpg"))) == 12
    assert pl.read_parquet(place / "again" / "labels.parquet")["name"].to_list() == ["Arch", "Tower"]
    assert json.loads((place / "run" / "run.json").read_text())["peak_memory_mb"] > 10


@pytest.mark.linux
def test_the_archive_is_located_chosen_and_fetched_without_posix(tmp_path: Path) -> None:
    mirror, chosen, index = tmp_path / "mirror", tmp_path / "two.parquet", tmp_path / "index.parquet"
    make_miniature(mirror, landmarks=2, images=4, unknown=2, size=64)
    on(
        "windows",
        ["select", mirror, "-o", chosen, "--take", "2"],
        ["locate", mirror, "-o", index],
        ["fetch", chosen, "-o", tmp_path / "streamed"],
        ["fetch", chosen, "-o", tmp_path / "ranges", "--index", index],
        ["fetch", chosen, "-o", tmp_path / "ranges", "--index", index],
    )
    streamed, ranges = (pl.read_parquet(tmp_path / name / "images.parquet") for name in ("streamed", "ranges"))
    assert len(streamed) > 0
    assert streamed.equals(ranges)


@pytest.mark.linux
def test_a_checkpoint_that_was_read_is_not_mapped_any_more(tmp_path: Path) -> None:
    network = torch.nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    save_checkpoint(tmp_path, tensors_of(network, optimizer, copy_of_weights(network)), State(8, step=1))
    best, state = load_checkpoint(tmp_path, network, optimizer) or ({}, None)
    assert state == State(8, step=1)
    assert torch.equal(best["weight"], network.weight)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.slow
def test_training_and_looking_need_no_number_that_apples_processor_lacks(tmp_path: Path) -> None:
    """The stand-in refuses 64-bit floating point numbers there as the device does, and counts what is sent to it."""
    place, images = tmp_path, album(tmp_path / "images")
    run(["import", str(images), "-o", str(place / "data")])
    run(["split", str(place / "data"), "--by", "random", "--val", "0.3", "--test", "0.3"])
    output = on(
        "mps",
        ["train", place / "data", "-o", place / "run", *TRAINED, "--device", "mps"],
        ["train", place / "data", "-o", place / "warm", *TRAINED, "--weights", place / "run", "--head", "arcface"],
        ["evaluate", place / "run", "--device", "mps"],
        ["audit", place / "warm", "-o", place / "wrong.csv", "--device", "mps"],
        ["subsets", place / "warm", "--landmarks", "2"],
        ["explain", place / "run", images / "Arch", "--device", "mps"],
        ["explain", place / "run", "--split", "all", "--count", "4", "--faithfulness"],
        ["predict", place / "run", images, "--csv", place / "on_mps.csv"],
        ["predict", place / "run", images, "--csv", place / "on_cpu.csv", "--device", "cpu"],
    )
    sent = [int(count) for count in re.findall(r"tensors sent to mps by \w+: (\d+)", output)]
    assert len(sent) == 9
    assert min(sent[:8]) > 10
    assert sent[8] == 0
    on_mps, on_cpu = (pl.read_csv(place / f"{name}.csv") for name in ("on_mps", "on_cpu"))
    assert on_mps.drop("probability").equals(on_cpu.drop("probability"))
    np.testing.assert_allclose(on_mps["probability"], on_cpu["probability"], rtol=1e-5)
    output = on(
        "mps",
        ["train", place / "data", "-o", place / "short", *TRAINED, "--device", "mps"],
        ["predict", place / "run", images],
        code=1,
        OUT_OF_MEMORY="3",
    )
    assert "out of memory: going on with 2 images at a time" in output
    assert "error: memory ran out (MPS backend out of memory" in output


@pytest.mark.slow
@pytest.mark.linux
def test_the_verbs_need_no_home_and_no_dataset_that_can_be_written(
    tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    place, images = tmp_path, album(tmp_path / "images")
    (place / "home").write_text("a file, in which nobody can make a folder")
    home = {"HOME": str(place / "home"), "XDG_CACHE_HOME": "", "HF_HOME": "", "TORCH_HOME": ""}
    run(["import", str(images), "-o", str(place / "data")])
    run(["split", str(place / "data"), "--by", "random", "--val", "0.3", "--test", "0.3"])
    read_only(place / "data")
    warm = ["train", place / "data", "-o", place / "warm", *TRAINED, "--weights", place / "run"]
    output = program(
        ["train", place / "data", "-o", place / "run", *TRAINED],
        ["predict", place / "run", images],
        ["evaluate", place / "run"],
        ["explain", place / "run", "--split", "all", "--count", "1"],
        ["report", place / "run", "-o", place / "report.html"],
        ["unpack", place / "data", "-o", place / "unpacked"],
        warm,
        code=1,
        **home,
    )
    assert "cannot be written, where copies are kept; name another folder in the environment: XDG_CACHE_HOME" in output
    assert "head training" in program(warm, **home | {"XDG_CACHE_HOME": str(place / "cache")})
    read_only(place / "run")
    output = program(["evaluate", place / "run"], code=1, **home)
    assert re.search(r"error: .*run cannot be written \(Read-only file system\); choose a folder", output)
    assert not list(place.glob("home/*"))


def installed_with(requirements: list[str]) -> set[str]:
    """Return the modules that pip installs for `requirements`, and for what these require in turn."""
    names, waiting = set(), list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and canonicalize_name(requirement.name) not in names:
            names.add(canonicalize_name(requirement.name))
            waiting += requires(requirement.name) or []
    paths = [path for name in names for path in files(name) or []]
    return {path.parts[0] if len(path.parts) > 1 else str(inspect.getmodulename(path.name)) for path in paths}


def test_the_base_install_takes_images_from_the_archive_to_splits_and_names_the_extra_for_the_rest(
    tmp_path: Path,
) -> None:
    mirror, chosen, index, data = (tmp_path / name for name in ("mirror", "two.parquet", "index.parquet", "data"))
    make_miniature(mirror, landmarks=2, images=6, unknown=2, size=64)
    installed = installed_with(PROJECT["dependencies"])
    assert {"numpy", "polars", "rich", "pygments"} <= installed
    assert not installed & {module for modules in EXTRAS.values() for module in modules}
    verbs = [verb for _, verbs in VERBS.values() for verb in verbs]
    output = on(
        "base",
        ["-h"],
        *([verb, "-h"] for verb in verbs),
        ["select", mirror, "-o", chosen, "--take", "2"],
        ["locate", mirror, "-o", index],
        ["fetch", chosen, "-o", data, "--index", index],
        ["split", data, "--val", "0.3", "--test", "0.3"],
        ["credits", data],
        ["unpack", data, "-o", tmp_path / "unpacked"],
        ["import", tmp_path / "unpacked", "-o", tmp_path / "again"],
        ["train", data, "-o", tmp_path / "run"],
        code=2,
        MODULES=" ".join(installed),
    )
    assert re.fullmatch(
        r'error: landmarks train needs the extra "train", which is not installed \(no module named (timm|torch)\); '
        r'install it with: pip install "landmarks\[train\]"',
        output.splitlines()[-1],
    )
    fetched, again = (len(pl.read_parquet(folder / "images.parquet")) for folder in (data, tmp_path / "again"))
    assert 0 < fetched == again


def test_the_base_install_answers_from_an_export(tmp_path: Path) -> None:
    export, album_of_one = tmp_path / "one.onnx", tmp_path / "album" / "Tower"
    export.write_bytes(by_hand())
    album_of_one.mkdir(parents=True)
    for number in range(3):
        pixels = np.full((30, 40, 3), 9 * number, np.uint8)
        (album_of_one / f"{number}.jpg").write_bytes(encode(pixels))
    on(
        "base",
        ["predict", export, album_of_one, "--csv", tmp_path / "answers.csv"],
        ["import", tmp_path / "album", "-o", tmp_path / "data"],
        ["evaluate", export, "--data", tmp_path / "data"],
        MODULES=" ".join(installed_with(PROJECT["dependencies"])),
    )
    assert pl.read_csv(tmp_path / "answers.csv")["name"].to_list().count("Tower") == 3
    (written,) = (tmp_path / "one.evaluation" / "metrics").glob("*.json")
    assert json.loads(written.read_text(encoding="utf-8"))["known"] == 3


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_missing_module_leads_to_the_extra_that_installs_it(extra: str) -> None:
    required = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"][extra]}
    distributions = packages_distributions()
    if missing := set(EXTRAS[extra]) - set(distributions):
        pytest.skip(f"{', '.join(missing)} is not installed")
    # Another package may bring the same module too, as OpenCV's do.
    by_module = [{canonicalize_name(name) for name in distributions[module]} for module in EXTRAS[extra]]
    assert required - {"landmarks"} <= set().union(*by_module)
    assert all(required & names for names in by_module)


def imported_modules() -> set[str]:
    """Return the top of every module of others that stands in an import of ours, wherever it stands."""
    found = set()
    for path in Path(landmarks.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"landmarks"}


def test_whatever_is_imported_is_declared_and_its_extra_is_known() -> None:
    base = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    distributions = packages_distributions()
    of_the_base = {module for module, names in distributions.items() if base & set(map(canonicalize_name, names))}
    of_an_extra = {module for modules in EXTRAS.values() for module in modules}
    of_fastapi = {"pydantic"}  # which is part of its documented interface, and of what typer needs
    assert sorted(imported_modules() - of_the_base - of_an_extra - of_fastapi) == []
