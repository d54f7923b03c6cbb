from __future__ import annotations

import json
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.special import softmax
from sklearn.linear_model import Ridge

from landmarks.cli.main import run as landmarks
from landmarks.dataset.images import decode, encode
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.dataset.shards import ImageReader, ShardWriter
from landmarks.dataset.split import split
from landmarks.evaluation import audit as module
from landmarks.evaluation.audit import (
    CAPTION,
    COLUMNS,
    HEAD,
    LABEL_ERRORS,
    MOST_ON_SHEET,
    SHEET_MARGIN,
    TILE,
    audit,
    write_sheet,
)
from landmarks.evaluation.doubts import COPIES_FOUND
from landmarks.evaluation.intervals import group_places
from landmarks.evaluation.label_estimates import (
    FOLDS,
    SHARPNESS,
    VOTERS,
    Estimates,
    cross_validated,
    disagreements,
    estimated,
    nearest_others,
)
from landmarks.evaluation.subsets import subsets
from landmarks.recognition.gallery import NEIGHBOURS, WARMTH
from landmarks.recognition.vectors import directions
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.seeds import generator
from landmarks.training import features, ridge
from landmarks.training.machine import Machine
from landmarks.training.recipe import Recipe
from landmarks.training.ridge import PENALTY
from landmarks.training.run import Run
from landmarks.training.train import train


def of_all(images: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int) -> Estimates:
    return estimated(images, labels, groups, classes, nearest_others(images, groups))


def test_falsified_labels_are_found() -> None:
    random = np.random.default_rng(0)
    true = np.arange(600) % 6
    features = random.gamma(1.0, size=(6, 30))[true] + random.gamma(1.0, 0.25, (600, 30))
    labels = true.copy()
    wrong = random.choice(600, 20, replace=False)
    labels[wrong] = (labels[wrong] + random.integers(1, 6, 20)) % 6
    estimates = of_all(directions(features), labels, np.full(600, -1), 6)
    listed, _ = disagreements(estimates, labels)
    found = np.flatnonzero(listed)
    assert len(set(found) & set(wrong)) >= 17
    assert len(set(found) & set(wrong)) / len(found) > 0.85
    assert np.mean(estimates.likeliest[wrong] == true[wrong]) > 0.85


def test_an_image_is_not_judged_by_its_own_group() -> None:
    random = np.random.default_rng(1)
    images = directions(random.gamma(1.0, size=(60, 20)))
    images[1::2] = images[::2]
    labels = np.arange(60) // 2 % 3
    each, pairs = np.full(60, -1), np.arange(60) // 2
    alone = cross_validated(images, labels, each, 3, nearest_others(images, each))
    grouped = cross_validated(images, labels, pairs, 3, nearest_others(images, pairs))
    assert np.mean(alone.own) > 0.6
    assert np.mean(grouped.own) < 0.45


def dense(images: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int, trusted: np.ndarray) -> np.ndarray:
    """The definition, written down for small numbers: every probability (N, K) of every image at once."""
    places = group_places(groups, len(labels))
    fold = generator(0, "audit").permutation(int(places.max()) + 1)[places] % FOLDS
    cosines = np.where(places[:, None] == places[None], -np.inf, images @ images.T)
    votes = np.full((len(labels), classes), 1e-6)
    for row, order in enumerate(np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]):
        nearest = order[trusted[order]][:VOTERS]
        np.add.at(votes[row], labels[nearest], np.exp((cosines[row, nearest] - 1) / WARMTH))
    probabilities = votes / votes.sum(axis=1, keepdims=True)
    for number in range(FOLDS):
        inside, others = fold == number, (fold != number) & trusted
        x = images[others].astype(np.float64)
        penalty = PENALTY * np.square(x - x.mean(axis=0)).sum() / x.shape[1]
        fitted = Ridge(alpha=penalty).fit(x, 2 * np.eye(classes)[labels[others]] - 1)
        probabilities[inside] += softmax(SHARPNESS * fitted.predict(images[inside]), axis=1)
    return probabilities / 2


@pytest.mark.parametrize("compared", [7, 64, 8192])
@pytest.mark.parametrize("block_bytes", [1, 8 * 1024 * 3, 1 << 25])
@pytest.mark.parametrize("classes", [9, 40])
def test_blocks_give_what_the_definition_gives_all_at_once(
    monkeypatch: pytest.MonkeyPatch, compared: int, block_bytes: int, classes: int
) -> None:
    random = np.random.default_rng(2)
    labels = random.integers(0, 9, 150)  # with 40 classes most are shown by nothing
    images = directions(random.gamma(1.0, size=(9, 16))[labels] + random.gamma(1.0, 0.6, (150, 16)))
    groups = random.integers(-1, 40, 150)
    monkeypatch.setattr("landmarks.evaluation.label_estimates.BLOCK", compared)
    monkeypatch.setattr(ridge, "BLOCK_BYTES", block_bytes)
    trusted = random.random(150) < 0.8
    found = cross_validated(images, labels, groups, classes, nearest_others(images, groups), trusted=trusted)
    expected = dense(images, labels, groups, classes, trusted)
    assert found.own == pytest.approx(expected[np.arange(150), labels], abs=1e-6)
    assert found.highest == pytest.approx(expected.max(axis=1), abs=1e-6)
    assert (found.likeliest == expected.argmax(axis=1)).all()


def test_images_without_others_to_learn_from_are_not_doubted() -> None:
    images, groups, trusted = np.eye(3, dtype=np.float32), np.array([0, 0, 0]), np.zeros(3, bool)
    labels = np.arange(3)
    found = cross_validated(images, labels, groups, 3, nearest_others(images, groups), trusted=trusted)
    assert (found.likeliest == labels).all()
    assert not disagreements(found, labels)[0].any()


def test_all_labels_of_the_archive_take_no_more_memory_than_a_block() -> None:
    random = np.random.default_rng(3)
    labels = np.arange(400) % 40 * 5000
    images = directions(random.gamma(1.0, size=(40, 24))[np.arange(400) % 40] + random.gamma(1.0, 0.3, (400, 24)))
    tracemalloc.start()
    found = of_all(images, labels, np.full(400, -1), 203_094)
    listed, _ = disagreements(found, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.mean(found.likeliest == labels) > 0.8 and not listed.all()
    assert peak < 150e6  # images × landmarks are 650 MB, several times over


def test_confident_learning_worked_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95], [0.45, 0.55]])
    labels = np.array([0, 0, 1, 1, 0, 0])
    estimates = Estimates(probabilities[np.arange(6), labels], probabilities.max(axis=1), probabilities.argmax(axis=1))
    wrong, margin = disagreements(estimates, labels)
    # label 1 is 0.85 likely for its own images on average: a lead of 0.9 is more than 0.68, one of 0.1 is not
    assert wrong.tolist() == [False, False, False, False, True, False]
    assert margin[4] == pytest.approx(0.9)


def test_the_verb_writes_a_csv_to_correct_and_changes_nothing(
    run: Run, own_data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_copies(own_data)
    before = own_data.folder.joinpath("images.parquet").read_bytes()
    out = tmp_path / "wrong.csv"
    assert landmarks(["audit", str(run.folder), "-o", str(out)]) == 0
    table = pl.read_csv(out, schema_overrides={"image_id": pl.String})
    assert table.columns == list(LABEL_ERRORS)
    copies = table.filter(pl.col("why").str.starts_with("a copy of")).sort("image_id")
    assert copies["image_id"].to_list() == COPIED
    assert copies["landmark_id"].to_list() == [22, 33] and copies["suggested_landmark_id"].to_list() == [33, 22]
    for why, other in zip(copies["why"], reversed(COPIED), strict=True):
        assert re.fullmatch(rf"a copy of {other} \(\d+ % of what both show agrees\)", why)
    assert "nothing was changed" in capsys.readouterr().out
    assert open_dataset(own_data.folder).folder.joinpath("images.parquet").read_bytes() == before


COPIED = ["0000000000000001", "0000000000000011"]
"""A training image of landmark 22 and one of 33."""


def with_copies(data: Dataset, *shown: bytes) -> Dataset:
    """Let the images `COPIED` be one and the same, the second of them cropped, or what is `shown`; hashes stay."""
    noise = np.random.default_rng(7).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(noise).resize((160, 120), Image.Resampling.BICUBIC))
    shown = shown or (encode(pixels, 95), encode(np.ascontiguousarray(pixels[6:114, 10:154]), 70))
    rows = []
    with ShardWriter(data.folder / "shards" / "1.tar") as shard:
        for image_id, image in zip(COPIED, shown, strict=True):
            height, width = decode(image).shape[:2]
            rows.append((image_id, "1.tar", *shard.add(image_id, image), width, height))
    names = ("image_id", "shard", "offset", "length", "width", "height")
    kinds = {name: data.images.schema[name] for name in names}
    data.images.update(pl.DataFrame(rows, schema=kinds, orient="row"), on="image_id").write_parquet(
        data.folder / "images.parquet"
    )
    return open_dataset(data.folder)


def test_a_copy_with_another_label_is_asked_about_once_on_the_page(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    with_copies(own_data)
    audit(run.folder, tmp_path / "wrong.csv")
    text = (tmp_path / "wrong.html").read_text(encoding="utf-8")
    items = json.loads(text.split('id="items">', 1)[1].split("</script>", 1)[0])["items"]
    assert [item["kind"] for item in items if item["id"] in COPIED and item["kind"] != "nothing"] == ["across"] * 2
    pairs = pl.read_csv(tmp_path / "wrong.copies.csv", infer_schema=False)
    assert (COPIED[1], COPIED[0]) in pairs.select("image_id", "copy_of").rows()


def test_a_training_image_that_is_a_copy_of_a_test_image_with_another_label_is_listed(
    run: Run, own_data: Dataset, tmp_path: Path
) -> None:
    assert own_data.splits is not None
    moved = pl.when(pl.col("image_id") == COPIED[1]).then(pl.lit("test")).otherwise("split")
    own_data.splits.with_columns(split=moved).write_parquet(own_data.folder / "splits.parquet")
    with_copies(own_data)
    table = audit(run.folder, tmp_path / "wrong.csv", data=own_data.folder)
    assert table.filter(pl.col("why").str.starts_with("a copy of"))["image_id"].to_list() == COPIED[:1]


def test_the_sheet_shows_the_listed_images(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    own_data = with_copies(own_data)
    table = audit(run.folder, tmp_path / "wrong.csv")
    with Image.open(tmp_path / "wrong.jpg") as sheet:
        columns = min(COLUMNS, len(table))
        assert sheet.width == SHEET_MARGIN + columns * (TILE + SHEET_MARGIN)
        pixels = np.asarray(sheet)
    image = own_data.images.filter(pl.col("image_id") == table["image_id"][0]).row(0, named=True)
    expected = decode(ImageReader(own_data).read(image["shard"], image["offset"], image["length"]))
    top, left = HEAD + (TILE - expected.shape[0]) // 2, SHEET_MARGIN + (TILE - expected.shape[1]) // 2
    found = pixels[top : top + expected.shape[0], left : left + expected.shape[1]]
    assert np.abs(found.astype(int) - expected).mean() < 15


def test_a_sheet_ends_after_forty_images(own_data: Dataset, tmp_path: Path) -> None:
    ids = [own_data.images["image_id"][number % 30] for number in range(50)]
    table = pl.DataFrame(
        {"image_id": ids, "name": "Łódź", "suggested_name": "京都", "probability": 0.5, "why": "", "landmark_id": 1}
    )
    write_sheet(own_data, table, tmp_path / "many.jpg")
    with Image.open(tmp_path / "many.jpg") as sheet:
        assert sheet.height == HEAD + MOST_ON_SHEET // COLUMNS * (TILE + CAPTION + SHEET_MARGIN)


def test_what_a_person_decided_is_not_listed_again(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    with_copies(own_data)
    out = tmp_path / "wrong.csv"
    first = audit(run.folder, out)
    first.with_columns(correct_landmark_id=pl.col("landmark_id").cast(pl.String)).write_csv(out)
    split(own_data.folder, corrections=out)
    assert not set(audit(run.folder, tmp_path / "again.csv", split="all")["image_id"]) & set(first["image_id"])


def test_decisions_that_no_dataset_holds_yet_are_not_replaced(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    with_copies(own_data)
    out = tmp_path / "wrong.csv"
    audit(run.folder, out).with_columns(correct_landmark_id=pl.col("landmark_id").cast(pl.String)).write_csv(out)
    filled_in = out.read_bytes()
    with pytest.raises(UsageError, match=r"wrong\.csv holds \d+ decisions? that .* does not hold yet; landmarks split"):
        audit(run.folder, out)
    assert out.read_bytes() == filled_in
    split(own_data.folder, corrections=out)
    audit(run.folder, out)
    (tmp_path / "mine.csv").write_text("path,label\n")
    with pytest.raises(UsageError, match=r"mine\.csv is there already, and is no list of doubtful labels"):
        audit(run.folder, tmp_path / "mine.csv")


def test_an_audit_without_doubts_leaves_no_page_or_sheet_of_an_earlier_one(
    run: Run, own_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_copies(own_data)
    out = tmp_path / "wrong.csv"
    audit(run.folder, out)
    assert out.with_suffix(".html").exists() and out.with_suffix(".jpg").exists()
    first = audit(run.folder, out)
    monkeypatch.setattr(module, "_with_names", lambda rows, dataset: first.clear())
    monkeypatch.setattr(module, "copies_in", lambda dataset: pl.DataFrame(schema=COPIES_FOUND))
    assert len(audit(run.folder, out)) == 0
    assert sorted(path.name for path in tmp_path.glob("wrong.*")) == [
        "wrong.copies.csv", "wrong.csv", "wrong.strangers.csv",
    ]  # fmt: skip


def test_images_without_structure_are_no_copies(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    flat = encode(np.full((48, 64, 3), 128, np.uint8))
    with_copies(own_data, flat, flat)
    assert not audit(run.folder, tmp_path / "wrong.csv")["why"].str.starts_with("a copy").any()


def test_hashes_that_are_equal_by_chance_make_no_copies(run: Run, own_data: Dataset, tmp_path: Path) -> None:
    own_data.images.with_columns(phash=pl.lit(7, pl.UInt64)).write_parquet(own_data.folder / "images.parquet")
    assert not audit(run.folder, tmp_path / "wrong.csv")["why"].str.starts_with("a copy").any()


# Label checks and draws of landmarks see what training saw, where training saw it, without computing it again.


SMALL = "test_resnet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = timm.create_model(SMALL, pretrained=False, num_classes=0)
    save_file(network.state_dict(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


@pytest.fixture
def trained(own_data: Dataset, weights: Path, tmp_path: Path) -> Callable[..., Run]:
    def training(**settings: Any) -> Run:
        settings = {"epochs": 0, "head_epochs": 1, "tracking": "none", **settings}
        return train(own_data.folder, tmp_path / "small", backbone=SMALL, weights=weights, image_size=32, **settings)

    return training


@pytest.mark.parametrize("flags", [(), ("avx512_bf16",)], ids=["without bfloat16", "with bfloat16"])
@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_after_a_training_nothing_is_computed_again(
    precision: str,
    flags: tuple[str, ...],
    *,
    trained: Callable[..., Run],
    own_data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("landmarks.training.choices.processor_flags", lambda: frozenset(flags))
    run = trained(precision=precision, device="cpu")
    monkeypatch.setattr(features, "batches", None)  # no image is read for its features any more
    audit(run.folder, tmp_path / "wrong.csv")
    subsets(run.folder, 2, draws=3)
    assert len(list((own_data.folder / "features").iterdir())) == 1


def test_a_backbone_that_was_fine_tuned_looks_once(
    trained: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(epochs=1, batch_size=6)
    audit(run.folder, tmp_path / "wrong.csv")
    monkeypatch.setattr(features, "batches", None)
    audit(run.folder, tmp_path / "again.csv")
    subsets(run.folder, 2, draws=3)


class Elsewhere(Machine):
    """A machine whose tensors lie on another device than the processor."""

    device = torch.device("meta")


@pytest.mark.parametrize("use", ["audit", "subsets"])
def test_the_network_goes_where_the_images_go(
    use: str, run: Run, own_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[torch.device]] = []

    def looked(network: torch.nn.Module, _: Dataset, images: Any, *, machine: Machine) -> features.Features:
        tensors = [*network.parameters(), *network.buffers()]
        seen.append({machine.device, *(tensor.device for tensor in tensors)})
        return features.Features(np.ones((len(images), 4), dtype=np.float16), 0.0)

    monkeypatch.setattr(module, "open_machine", lambda recipe, out: (Elsewhere(None), []))  # type: ignore[arg-type]
    monkeypatch.setattr(module, "cached_features", looked)
    audit(run.folder, tmp_path / "wrong.csv") if use == "audit" else subsets(run.folder, 2, draws=3)
    assert seen == [{Elsewhere.device}]


def test_where_the_training_s_device_is_missing_another_is_taken(
    trained: Callable[..., Run], own_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(device="cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run.record["recipe"]["device"] = "cuda"
    images, values = module.split_features(run, own_data, "train")
    assert len(images) == len(values) == 18


@pytest.mark.parametrize(
    ("wanted", "trained_on", "opened"), [("auto", "cpu", "cpu"), ("mps", "cpu", "mps"), ("auto", "auto", "auto")]
)
def test_the_device_is_the_one_asked_for_or_else_the_training_s(
    wanted: str, trained_on: str, opened: str, *, run: Run, own_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[Recipe] = []

    def looked_at(recipe: Recipe, _: Path) -> tuple[Machine, list[object]]:
        recipes.append(recipe)
        return Elsewhere(None), []  # type: ignore[arg-type]

    run.record["recipe"] = {"device": trained_on, "precision": "bfloat16", "tracking": "wandb"}
    monkeypatch.setattr(module, "open_machine", looked_at)
    monkeypatch.setattr(module, "cached_features", lambda *_, **__: features.Features(np.ones((24, 4)), 0.0))
    module.split_features(run, own_data, "train", wanted)
    assert [(recipe.device, recipe.precision, recipe.tracking) for recipe in recipes] == [(opened, "bfloat16", "none")]


def test_a_part_without_known_landmarks_is_told(run: Run, own_data: Dataset) -> None:
    assert own_data.splits is not None
    without = replace(own_data, splits=own_data.splits.filter(own_data.splits["split"] != "test"))
    with pytest.raises(LandmarksError, match=r"the test split of .* shows no known landmark"):
        module.split_features(run, without, "test")


def test_what_stands_beside_the_table_replaces_neither_it_nor_a_file_of_somebody_elses(tmp_path: Path) -> None:
    run = tmp_path / "run"  # not looked at before
    for ending in (".jpg", ".html"):
        with pytest.raises(UsageError, match=r"is to hold a table; expected a name that ends in \.csv"):
            audit(run, tmp_path / f"doubted{ending}")
    (tmp_path / "holiday.jpg").write_bytes(b"an image of mine")
    with pytest.raises(UsageError, match=r"holiday\.jpg is there already, and one of this name stands beside"):
        audit(run, tmp_path / "holiday.csv")
    (tmp_path / "holiday.csv").write_text("image_id")  # as an earlier audit has left it
    with pytest.raises(LandmarksError, match="there is no run"):
        audit(run, tmp_path / "holiday.csv")
    assert (tmp_path / "holiday.jpg").read_bytes() == b"an image of mine"
