"""A run is asked about images that it has not seen, whatever was done to its dataset since it was trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from landmarks.cli.main import run as landmarks
from landmarks.dataset.importing import import_
from landmarks.dataset.manifest import Dataset, open_dataset, write_dataset
from landmarks.dataset.split import split
from landmarks.evaluation.audit import audit
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.subsets import subsets
from landmarks.explanation.explain import explain
from landmarks.explanation.faithfulness import faithfulness
from landmarks.reporting.page import report
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, write_record
from landmarks.support.tables import read_table, write_table
from landmarks.training.eligible_images import copies_of_seen
from landmarks.training.run import open_run
from landmarks.training.train import train

NAMES = ("arch", "bridge", "castle")
SMALL = {"backbone": "test_resnet", "weights": "none", "image_size": 32, "batch_size": 8, "tracking": "none"}


def put(path: Path, seed: int, side: int = 96) -> None:
    """Write a made-up image: six by six soft spots drawn from `seed`."""
    spots = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(spots).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=92)


def album(folder: Path, names: tuple[str, ...] = NAMES, *, each: int = 12, first: int = 0) -> Path:
    for place, name in enumerate(names):
        for number in range(first, first + each):
            put(folder / name / f"{name}{number:02d}.jpg", 1000 * place + number)
    return folder


@dataclass(frozen=True)
class Place:
    """A folder with a dataset that was imported and divided, and a run trained on it."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def splits(self) -> dict[str, set[str]]:
        table = pl.read_parquet(self.data / "splits.parquet")
        return {split: set(table.filter(pl.col("split") == split)["image_id"]) for split in ("train", "val", "test")}

    def answered(self, name: str) -> set[str]:
        return set(pl.read_parquet(self.run / "predictions" / f"{name}.parquet")["image_id"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("made")
    import_(album(folder / "album"), folder / "data")
    split(folder / "data", by="random", val=0.2, test=0.2)
    train(folder / "data", folder / "run", **SMALL, epochs=1)  # type: ignore[arg-type]
    return Place(folder)


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Place:
    """A copy of dataset and run, as if the run had been trained on the copy."""
    shutil.copytree(made.folder, tmp_path / "here")
    here = Place(tmp_path / "here")
    point_to(here.run, here.data)
    return here


def point_to(run: Path, data: Path) -> None:
    """Make a run's record say that its dataset lies at `data`."""
    record = read_record(run / "run.json")
    record["data"]["folder"] = str(data)
    write_record(run / "run.json", record, verb="train", inputs=record["inputs"])


def forget(run: Path) -> None:
    """Make of a run what an earlier version wrote: it does not say what it was trained on."""
    (run / "images.parquet").unlink(missing_ok=True)
    record = read_record(run / "run.json")
    for name in ("seen", "content_digest", "relative", "identified_by"):
        record["data"].pop(name, None)
    write_record(run / "run.json", record, verb="train", inputs=record["inputs"])


ASKING: dict[str, Callable[[Path], Any]] = {
    "evaluate": evaluate,
    "subsets": lambda run: subsets(run, 2, draws=2),
    "explain": explain,
    "faithfulness": lambda run: faithfulness(run, count=2),
}


@pytest.mark.parametrize("verb", ASKING)
def test_a_dataset_that_was_divided_anew_is_refused(place: Place, verb: str) -> None:
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    with pytest.raises(LandmarksError, match=r"divided anew after run was trained: \d+ images") as refused:
        ASKING[verb](place.run)
    assert f"landmarks split {place.data} --by random --val 0.2 --test 0.2 --seed 0" in str(refused.value)
    assert f"--data {place.data}" in str(refused.value)
    assert not list(place.run.rglob("predictions/*"))


def test_the_refusal_counts_what_it_was_trained_on_and_would_be_tested_with(place: Place) -> None:
    before = place.splits
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    after = place.splits
    moved = (before["train"] - after["train"]) | (before["val"] - after["val"])
    tested = (before["train"] | before["val"]) & after["test"]
    assert tested
    with pytest.raises(LandmarksError, match=f": {len(moved)} images .* now, {len(tested)} of them in test"):
        evaluate(place.run)


def test_divided_back_by_the_command_that_is_named_it_is_evaluated(place: Place) -> None:
    first = evaluate(place.run).record["top1"]
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    with pytest.raises(LandmarksError) as refused:
        evaluate(place.run)
    command = str(refused.value).partition("landmarks split ")[2].partition(",")[0]
    assert landmarks(["split", *command.split()]) == 0
    assert evaluate(place.run).record["top1"] == first


def test_with_data_a_dataset_divided_anew_is_judged_without_what_the_run_has_seen(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = place.splits
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    after = place.splits
    seen = after["test"] - before["test"]
    assert seen and after["test"] - seen
    numbers = evaluate(place.run, data=place.data).record
    assert numbers["name"] == "data"
    assert place.answered("data") == after["test"] - seen
    assert numbers["seen"] == {"images": len(seen), "copies": 0, "first": sorted(seen)}
    assert read_record(place.run / "metrics" / "data.json")["seen"] == numbers["seen"]
    stderr = capsys.readouterr().err
    assert f"{len(seen)} of the {len(after['test'])} images of {place.data} are left out" in stderr
    assert all(name in stderr for name in sorted(seen)[:5])
    page = report(place.run, place.folder / "report.html").read_text(encoding="utf-8")
    assert "were left out of the numbers of run, because its training had seen them" in page


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_part_of_an_untouched_dataset_can_be_judged(
    place: Place, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(place.run, split=split).record["seen"]["images"] == 0
    assert place.answered(split) == place.splits[split]
    assert ("the numbers say little about new images" in capsys.readouterr().err) == (split != "test")


def test_of_all_parts_together_what_was_seen_is_left_out(place: Place) -> None:
    evaluate(place.run, split="all")
    assert place.answered("all") == place.splits["test"]


def grow(dataset: Dataset, more: Path, splits: dict[str, str]) -> None:
    """Add the images of `more`, imported with the same labels, to a dataset, in the splits that are named."""
    added = import_(more, dataset.folder.parent / "more", labels=dataset.folder)
    table, record_before = read_table(dataset.folder / "splits.parquet"), dataset.record
    shards = pl.lit(str(added.folder / "shards") + "/") + pl.col("shard")
    images = pl.concat([dataset.as_fetched(), added.images.with_columns(shard=shards)])
    rejected = read_table(dataset.folder / "rejected.parquet")
    kept = {name: record_before[name] for name in ("set", "origin", "rule", "max_side")}
    kept["images_in"] = str(added.folder)
    write_dataset(dataset.folder, verb="import", images=images, labels=dataset.labels, rejected=rejected, record=kept)
    new = pl.DataFrame({"image_id": list(splits), "split": list(splits.values())})
    write_table(dataset.folder / "splits.parquet", pl.concat([table, new]).sort("image_id"), rule="grown", seed=0)


def test_a_dataset_that_only_grew_is_evaluated_and_told(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    tested = place.splits["test"]
    album(place.folder / "new", each=2, first=50)
    new = [f"{name}{number}" for name in NAMES for number in (50, 51)]
    grow(
        open_dataset(place.data), place.folder / "new", dict.fromkeys(new[:4], "test") | dict.fromkeys(new[4:], "train")
    )
    capsys.readouterr()
    evaluate(place.run)
    assert place.answered("test") == tested | set(new[:4])
    assert "6 images were added, 4 of them to test" in capsys.readouterr().err
    assert len(explain(place.run, count=1)["made"]) == 1


def test_a_grown_datasets_copies_of_what_was_trained_on_are_left_out(place: Place) -> None:
    train_id = min(place.splits["train"])
    source = place.folder / "album" / train_id[:-2] / f"{train_id}.jpg"
    (place.folder / "new" / train_id[:-2]).mkdir(parents=True)
    shutil.copy(source, place.folder / "new" / train_id[:-2] / "copy.jpg")
    tested = place.splits["test"]
    grow(open_dataset(place.data), place.folder / "new", {"copy": "test"})
    assert evaluate(place.run).record["seen"] == {"images": 1, "copies": 0, "first": ["copy"]}
    assert place.answered("test") == tested


def test_what_the_gallery_and_the_temperature_come_from_does_not_change_with_the_split(place: Place) -> None:
    others = import_(album(place.folder / "strange", ("arch", "_unknown"), each=5, first=80), place.folder / "other")
    evaluate(place.run, data=others.folder)
    model, gallery = read_record(place.run / "model.json"), (place.run / "gallery.safetensors").read_bytes()
    fresh = place.folder / "fresh"
    shutil.copytree(place.run, fresh, ignore=shutil.ignore_patterns("reference*", "metrics", "predictions"))
    write_record(fresh / "model.json", {k: v for k, v in model.items() if k != "temperature"}, verb="train")
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    evaluate(fresh, data=others.folder)
    assert read_record(fresh / "model.json")["temperature"] == model["temperature"]
    assert (fresh / "gallery.safetensors").read_bytes() == gallery


def test_an_image_that_was_seen_is_known_under_another_name(place: Place) -> None:
    splits = place.splits
    for name in (min(splits["train"]), min(splits["val"]), min(splits["test"])):
        folder = place.folder / "renamed" / name[:-2]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(place.folder / "album" / name[:-2] / f"{name}.jpg", folder / f"again-{name}.jpg")
    renamed = import_(place.folder / "renamed", place.folder / "elsewhere", labels=place.run)
    numbers = evaluate(place.run, data=renamed.folder).record
    assert numbers["seen"]["first"] == sorted(f"again-{min(splits[split])}" for split in ("train", "val"))
    assert place.answered("elsewhere") == {f"again-{min(splits['test'])}"}


def test_another_image_of_the_same_name_is_judged(place: Place) -> None:
    for number in range(4):
        put(place.folder / "others" / "arch" / f"arch{number:02d}.jpg", 90_000 + number)
    others = import_(place.folder / "others", place.folder / "elsewhere")
    assert evaluate(place.run, data=others.folder).record["seen"]["images"] == 0
    assert place.answered("elsewhere") == {f"arch{number:02d}" for number in range(4)}


def test_when_it_has_seen_every_image_nothing_is_judged(place: Place) -> None:
    name = min(place.splits["train"])
    (place.folder / "one" / name[:-2]).mkdir(parents=True)
    shutil.copy(place.folder / "album" / name[:-2] / f"{name}.jpg", place.folder / "one" / name[:-2])
    one = import_(place.folder / "one", place.folder / "elsewhere")
    with pytest.raises(LandmarksError, match=f"has seen every image of the split .* received {name}"):
        evaluate(place.run, data=one.folder)


def test_what_it_was_trained_on_never_counts_as_unknown(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    strange = album(place.folder / "strange", ("_unknown",), each=8, first=70)
    for name in (min(place.splits["train"]), min(place.splits["test"])):
        shutil.copy(place.folder / "album" / name[:-2] / f"{name}.jpg", strange / "_unknown" / f"{name}.jpg")
    others = import_(strange, place.folder / "street", labels=place.run)
    numbers = evaluate(place.run, unknown=others.folder).record
    assert numbers["unknown"] == 8
    assert numbers["unknown_data"]["seen"]["first"] == [min(place.splits["train"])]
    assert place.answered("street") == {f"_unknown{number}" for number in range(70, 78)}
    assert "1 of the 9 images" in capsys.readouterr().err


def test_images_of_one_name_in_both_datasets_are_two(place: Place) -> None:
    name = min(place.splits["test"])
    put(place.folder / "strange" / "_unknown" / f"{name}.jpg", 70_000)
    others = import_(place.folder / "strange", place.folder / "street", labels=place.run)
    assert evaluate(place.run, unknown=others.folder).record["unknown"] == 1


def test_labels_of_what_it_was_trained_on_can_be_checked_however_it_is_divided(place: Place) -> None:
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    audit(place.run, place.folder / "wrong.csv")
    assert (place.folder / "wrong.csv").exists()


def test_a_label_check_says_what_the_run_was_fine_tuned_on(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    audit(place.run, place.folder / "wrong.csv", split="train")
    count = len(place.splits["train"])
    assert f"{count} of the {count} images checked are ones that run was fine-tuned on" in capsys.readouterr().err


def test_a_draw_of_landmarks_leaves_out_what_a_fine_tuned_backbone_has_seen(place: Place) -> None:
    again = import_(album(place.folder / "album", each=4, first=30), place.folder / "larger")
    numbers = subsets(place.run, 2, data=again.folder, draws=2).record
    assert numbers["seen"]["images"] == len(place.splits["train"] | place.splits["val"])


def test_a_run_that_was_begun_from_another_has_seen_what_that_was_trained_on(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = place.splits
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    now = place.splits
    settings = {**SMALL, "weights": str(place.run), "epochs": 1, "head_epochs": 1}
    later = Place(place.folder)
    train(place.data, place.folder / "later", **settings)  # type: ignore[arg-type]
    numbers = evaluate(place.folder / "later").record
    seen = now["test"] & (earlier["train"] | earlier["val"])
    assert seen and numbers["seen"]["first"] == sorted(seen)
    answered = pl.read_parquet(later.folder / "later" / "predictions" / "test.parquet")["image_id"]
    assert set(answered) == now["test"] - seen
    assert evaluate(place.folder / "later", split="train").record["images"] == len(now["train"])


def test_an_earlier_versions_run_is_judged_on_its_untouched_dataset(place: Place) -> None:
    forget(place.run)
    assert evaluate(place.run).record["images"] == len(place.splits["test"])


def test_an_earlier_versions_run_is_refused_on_a_dataset_that_changed(place: Place) -> None:
    forget(place.run)
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    with pytest.raises(LandmarksError, match=r"cannot be known: .* --seed 0, or train again"):
        evaluate(place.run)


def test_an_earlier_versions_run_is_known_by_its_untouched_dataset(place: Place) -> None:
    forget(place.run)
    again = import_(album(place.folder / "album", each=2, first=30), place.folder / "larger")
    seen = evaluate(place.run, data=again.folder).record["seen"]
    assert seen["images"] == len(place.splits["train"] | place.splits["val"])


def test_what_an_earlier_versions_run_has_seen_is_said_to_be_unknown(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    forget(place.run)
    others = import_(album(place.folder / "strange", ("arch", "bridge"), each=4, first=80), place.folder / "other")
    split(place.data, by="random", val=0.2, test=0.2, seed=5)
    numbers = evaluate(place.run, data=others.folder).record
    stderr = capsys.readouterr().err
    assert numbers["temperature"] == 1.0
    assert "cannot be known" in stderr and "train again" in stderr


def test_a_table_of_what_was_seen_that_is_gone_or_another_is_refused(place: Place) -> None:
    table = read_table(place.run / "images.parquet")
    write_table(place.run / "images.parquet", table.head(3))
    with pytest.raises(LandmarksError, match=r"images\.parquet is not the table .* received another one"):
        evaluate(place.run)
    (place.run / "images.parquet").unlink()
    with pytest.raises(LandmarksError, match=r"received none; take the run's folder anew"):
        evaluate(place.run)


def test_a_pair_that_was_moved_together_is_found(place: Place, tmp_path: Path) -> None:
    place.folder.rename(tmp_path / "elsewhere")
    moved = Place(tmp_path / "elsewhere")
    for ask in ASKING.values():
        ask(moved.run)
    assert read_record(moved.run / "metrics" / "test.json")["data"] == str(moved.data.resolve())
    page = report(moved.run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Images are left out" not in page


def test_of_two_places_the_one_with_its_own_images_is_taken(place: Place, tmp_path: Path) -> None:
    alone = place.run.rename(tmp_path / "run")
    import_(album(tmp_path / "strange", ("x", "y")), tmp_path / "data")
    evaluate(alone)
    assert read_record(alone / "metrics" / "test.json")["data"] == str(place.data.resolve())


def test_a_dataset_that_is_gone_is_the_same_sentence_everywhere(place: Place) -> None:
    evaluate(place.run)
    place.data.rename(place.folder / "moved")
    asking = {**ASKING, "audit": lambda run: audit(run, place.folder / "wrong.csv")}
    messages = set()
    for ask in asking.values():
        with pytest.raises(LandmarksError) as refused:
            ask(place.run)
        messages.add(str(refused.value))
    (sentence,) = messages
    assert f"run was trained on is not at {place.data} any more" in sentence and "--data" in sentence
    page = report(place.run, place.folder / "report.html").read_text(encoding="utf-8")
    assert f"Images are left out: {sentence}" in page
    assert evaluate(place.run, data=place.folder / "moved").record["name"] == "test"


def test_a_dataset_that_took_the_place_of_its_own_is_told(place: Place, tmp_path: Path) -> None:
    shutil.rmtree(place.data)
    import_(album(place.folder / "strange", ("x", "y")), place.data)
    with pytest.raises(LandmarksError, match=r"is not the one that run was trained on.*--data DATA"):
        evaluate(place.run)


@pytest.mark.parametrize(
    "fields", [{"relative": 7}, {"relative": ["data"]}, {"relative": "da\x00ta", "folder": "\x00"}, {}]
)
def test_a_record_that_tells_nonsense_about_the_dataset_is_one_line(place: Place, fields: dict[str, object]) -> None:
    record = read_record(place.run / "run.json")
    record["data"] = {"digest": "0", **fields}
    write_record(place.run / "run.json", record, verb="train")
    with pytest.raises(LandmarksError, match="the dataset that run was trained on is not at"):
        evaluate(place.run)


def test_runs_judged_on_two_datasets_of_one_name_do_not_compare(place: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "there")
    for number in range(12):
        for place_, name in enumerate(NAMES):
            put(other.folder / "album" / name / f"{name}{number:02d}.jpg", 50_000 + 1000 * place_ + number)
    import_(other.folder / "album", other.data)
    split(other.data, by="random", val=0.2, test=0.2)
    train(other.data, other.folder / "second", **SMALL, epochs=1)  # type: ignore[arg-type]
    evaluate(place.run)
    evaluate(other.folder / "second")
    assert landmarks(["compare", str(place.run), str(other.folder / "second")]) == 1


def test_the_record_is_json_for_programs(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert landmarks(["evaluate", str(place.run), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["own_data"] is True and numbers["matched"]["of"] == 3


@pytest.fixture
def elsewhere(place: Place) -> Dataset:
    """Nine images that no run has seen, and one, `cut`, that is a training image cropped and compressed anew."""
    name = sorted(place.splits["train"])[0]
    source = next(path for path in (place.folder / "album").glob("*/*.jpg") if path.stem in name)
    album(place.folder / "other", each=3, first=50)
    with Image.open(source) as image:
        cut = image.crop((7, 3, 90, 93))
    cut.save(place.folder / "other" / NAMES[0] / "cut.jpg", quality=60)
    return import_(place.folder / "other", place.folder / "elsewhere")


COPY_TOLD = "(1 of them cropped, framed, recoloured or otherwise changed)"


def test_a_changed_copy_of_a_training_image_that_the_runs_dataset_grew_by_is_left_out(
    place: Place, elsewhere: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = place.splits["test"]
    grow(open_dataset(place.data), place.folder / "other", dict.fromkeys(elsewhere.images["image_id"], "test"))
    capsys.readouterr()
    assert evaluate(place.run).record["seen"] == {"images": 1, "copies": 1, "first": ["cut"]}
    assert place.answered("test") == tested | set(elsewhere.images["image_id"]) - {"cut"}
    assert COPY_TOLD in capsys.readouterr().err


def test_a_changed_copy_of_a_training_image_in_another_dataset_is_left_out(
    place: Place, elsewhere: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(place.run, data=elsewhere.folder)
    answered = set().union(*(place.answered(path.stem) for path in (place.run / "predictions").glob("*.parquet")))
    assert answered == set(elsewhere.images["image_id"]) - {"cut"}
    assert COPY_TOLD in capsys.readouterr().err


def test_a_changed_copy_of_a_training_image_is_not_explained(
    place: Place, elsewhere: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    made = explain(place.run, data=elsewhere.folder, count=10)["made"]
    stderr = capsys.readouterr().err
    assert COPY_TOLD in stderr
    assert f"only {len(made)} of 9 images are recognised" in stderr
    assert "cut" not in {entry["image_id"] for entry in made}


def test_draws_leave_out_a_changed_copy_of_what_the_backbone_was_fine_tuned_on(
    place: Place, elsewhere: Dataset
) -> None:
    seen = subsets(place.run, 2, data=elsewhere.folder, draws=2).record["seen"]
    assert seen == {"images": 1, "copies": 1, "first": ["cut"]}


def test_draws_keep_copies_of_what_a_backbone_that_was_not_fine_tuned_has_seen(
    place: Place, elsewhere: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_record(place.run / "run.json")
    record["best"]["phase"] = "head"
    write_record(place.run / "run.json", record, verb="train", inputs=record["inputs"])
    seen = subsets(place.run, 2, data=elsewhere.folder, draws=2).record["seen"]
    assert seen == {"images": 0, "copies": 0, "first": []}
    assert not (elsewhere.folder / "copies").exists()
    assert "left out" not in capsys.readouterr().err


@pytest.mark.parametrize("unreadable", ["data", "elsewhere"])
def test_where_no_image_can_be_read_copies_of_what_was_seen_are_said_not_to_be_known(
    place: Place, elsewhere: Dataset, unreadable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run, gone = open_run(place.run), place.folder / unreadable
    assert run.seen is not None
    for shard in gone.glob("shards/*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    shutil.rmtree(gone / "copies", ignore_errors=True)  # what `split` saw of them
    for _ in range(2):  # what was kept of the first time is silent no more than that
        assert not len(copies_of_seen(run, elsewhere, elsewhere.images, run.seen))
        notes = [line for line in capsys.readouterr().err.splitlines() if "not known" in line or "could not" in line]
        assert notes == [
            f"whether some are changed copies of images run has seen is not known: no image of {gone} can be read"
        ]
