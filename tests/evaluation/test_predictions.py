"""Landmarks are judged by what they are, and the numbers of two sets of images never share a name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made_up_runs import make_run

from landmarks.dataset.images import encode, resize
from landmarks.dataset.importing import import_
from landmarks.dataset.manifest import open_dataset
from landmarks.dataset.split import split
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.subsets import subsets
from landmarks.explanation.explain import images_in_turn
from landmarks.reporting.page import report
from landmarks.support.errors import LandmarksError
from landmarks.support.files import read_record, write_record
from landmarks.support.tables import read_metadata
from landmarks.training.eligible_images import eligible_images
from landmarks.training.run import Run


def album(folder: Path, *names: str, each: int = 6, first: int = 0) -> Path:
    """Write images that have nothing in common, a folder per name."""
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + each):
            spots = np.random.default_rng([number, *name.encode()]).integers(0, 256, (12, 16, 3), dtype=np.uint8)
            (folder / name / f"{name}{number}.jpg").write_bytes(encode(resize(spots, 64, 48)))
    return folder


@pytest.fixture
def fruit(tmp_path: Path) -> Run:
    """An untrained run on an imported dataset of three kinds of fruit."""
    import_(album(tmp_path / "fruit", "apple", "pear", "plum"), tmp_path / "data")
    return make_run(tmp_path / "run", split(tmp_path / "data", by="random", val=0.2, test=0.2))


def truths(run: Run, name: str) -> dict[str, list[str]]:
    table = pl.read_parquet(run.folder / "predictions" / f"{name}.parquet")
    return {id: run.name_of(truth) for id, truth in table.select("image_id", "truth").rows()}


def test_a_run_of_fruit_is_not_judged_on_animals(fruit: Run, tmp_path: Path) -> None:
    animals = import_(album(tmp_path / "animals", "cat", "dog"), tmp_path / "pets")
    with pytest.raises(LandmarksError, match=r"no landmark has the same name; received cat, dog; .* apple, pear, plum"):
        evaluate(fruit.folder, data=animals.folder)


def test_a_test_folder_that_lacks_a_landmark_shifts_no_label(
    fruit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = import_(album(tmp_path / "some", "pear", "quince", each=2, first=50), tmp_path / "fewer")
    numbers = evaluate(fruit.folder, data=fewer.folder).record
    assert truths(fruit, "fewer") == {"pear50": ["pear"], "pear51": ["pear"], "quince50": [], "quince51": []}
    assert numbers["matched"] == {"by": "name", "landmarks": 1, "of": 2, "without_partner": ["quince"]}
    assert (numbers["known"], numbers["unknown"]) == (2, 2)
    stderr = capsys.readouterr().err
    assert "1 of the 2 landmarks" in stderr and "matched by name; without a partner, so unknown to it: quince" in stderr


def test_landmarks_in_another_spelling_are_named(
    fruit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = import_(album(tmp_path / "some", "Apple", "pear", each=2, first=50), tmp_path / "other")
    evaluate(fruit.folder, data=other.folder)
    assert '"Apple" may be "apple": if so, rename its folder' in capsys.readouterr().err
    none = import_(album(tmp_path / "none", "Apple", "kiwi", each=2, first=50), tmp_path / "others")
    with pytest.raises(LandmarksError, match=r'apple, pear, plum; "Apple" may be "apple": if so'):
        evaluate(fruit.folder, data=none.folder)


def test_what_is_explained_is_matched_by_name_too(fruit: Run, tmp_path: Path) -> None:
    fewer = import_(album(tmp_path / "some", "pear", "quince", each=2, first=50), tmp_path / "fewer")
    images = images_in_turn(fruit, eligible_images(fruit, fewer.folder, "test"))
    assert {image.id: fruit.name_of([image.truth]) for image in images} == {"pear50": ["pear"], "pear51": ["pear"]}


def test_the_submission_holds_the_judged_part_and_nothing_of_the_others(fruit: Run, tmp_path: Path) -> None:
    judged = import_(album(tmp_path / "sa", "pear", "plum", each=2, first=50), tmp_path / "a" / "holiday")
    others = import_(
        album(tmp_path / "sb", "_unknown", each=5, first=50), tmp_path / "b" / "holiday", labels=fruit.folder
    )
    evaluate(fruit.folder, data=judged.folder, unknown=others.folder, submission=tmp_path / "s.csv")
    assert set(pl.read_csv(tmp_path / "s.csv")["id"]) == {"pear50", "pear51", "plum50", "plum51"}
    assert set(truths(fruit, "holiday")) == set(pl.read_csv(tmp_path / "s.csv")["id"])
    assert len(truths(fruit, "b-holiday")) == 5


def test_a_second_dataset_of_the_same_folder_name_replaces_no_numbers(fruit: Run, tmp_path: Path) -> None:
    for place, first in (("a", 50), ("b", 60), ("c/b", 70)):
        import_(album(tmp_path / "from" / place, "pear", each=2, first=first), tmp_path / place / "holiday")
    names = [evaluate(fruit.folder, data=tmp_path / place / "holiday").record["name"] for place in ("a", "b", "c/b")]
    assert names[:2] == ["holiday", "b-holiday"] and len(set(names)) == 3
    for name, place in zip(names, ("a", "b", "c/b"), strict=True):
        assert read_record(fruit.folder / "metrics" / f"{name}.json")["data"] == str(tmp_path / place / "holiday")
    again = [evaluate(fruit.folder, data=tmp_path / place / "holiday").record["name"] for place in ("c/b", "a", "b")]
    assert again == [names[2], *names[:2]]


def test_two_parts_of_another_dataset_keep_their_own_numbers(fruit: Run, tmp_path: Path) -> None:
    import_(album(tmp_path / "from", "pear", "plum", each=10, first=50), tmp_path / "holiday")
    split(tmp_path / "holiday", by="random", val=0.2, test=0.2)
    names = {
        split: evaluate(fruit.folder, data=tmp_path / "holiday", split=split).record["name"]
        for split in ("test", "val", "all")
    }
    assert names == {"test": "holiday", "val": "holiday-val", "all": "holiday-all"}
    numbers = {name: read_record(fruit.folder / "metrics" / f"{name}.json")["images"] for name in names.values()}
    assert numbers == {"holiday": 4, "holiday-val": 4, "holiday-all": 20}


def test_subsets_of_another_dataset_of_one_name_replaces_nothing(fruit: Run, tmp_path: Path) -> None:
    for place, first in (("a", 50), ("b", 60)):
        import_(album(tmp_path / "from" / place, "pear", "plum", each=3, first=first), tmp_path / place / "holiday")
    evaluate(fruit.folder, data=tmp_path / "a" / "holiday")
    drawn = subsets(fruit.folder, 2, data=tmp_path / "b" / "holiday", draws=2).record
    assert (drawn["name"], drawn["own"]) == ("b-holiday", None)
    assert subsets(fruit.folder, 2, data=tmp_path / "a" / "holiday", draws=2).record["own"] is not None


def test_a_dataset_that_moved_keeps_its_name(fruit: Run, tmp_path: Path) -> None:
    import_(album(tmp_path / "from", "pear", each=2, first=50), tmp_path / "a" / "holiday")
    first = evaluate(fruit.folder, data=tmp_path / "a" / "holiday").record
    shutil.move(tmp_path / "a", tmp_path / "moved")
    again = evaluate(fruit.folder, data=tmp_path / "moved" / "holiday").record
    assert again["name"] == first["name"] == "holiday"
    assert again["data"] == str(tmp_path / "moved" / "holiday")


def test_numbers_of_an_earlier_version_keep_their_name_when_everything_moved(fruit: Run, tmp_path: Path) -> None:
    evaluate(fruit.folder)
    metrics = fruit.folder / "metrics" / "test.json"
    kept = {name: value for name, value in read_record(metrics).items() if name not in ("own_data", "data_digest")}
    write_record(metrics, kept, verb="evaluate")
    path = fruit.folder / "predictions" / "test.parquet"
    metadata = {
        name: value for name, value in read_metadata(path).items() if name in ("run", "data", "split", "data_digest")
    }
    pl.read_parquet(path).write_parquet(path, metadata=metadata)
    (tmp_path / "moved").mkdir()
    for name in ("run", "data"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert evaluate(tmp_path / "moved" / "run").record["name"] == "test"


def test_the_page_shows_no_images_of_another_dataset_in_the_same_place(fruit: Run, tmp_path: Path) -> None:
    judged = import_(album(tmp_path / "from", "pear", "plum", each=4, first=50), tmp_path / "holiday")
    evaluate(fruit.folder, data=judged.folder)
    shutil.rmtree(judged.folder)
    import_(album(tmp_path / "other", "pear", "plum", each=4, first=50), judged.folder, max_side=20)
    page = report(fruit.folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "is not as it was when run was judged on it" in page
    assert "data:image/jpeg" not in page


def test_numbers_that_were_matched_by_position_are_made_again(fruit: Run, tmp_path: Path) -> None:
    """What an earlier version left under the same name must not be taken for the right answers."""
    fewer = import_(album(tmp_path / "some", "pear", each=2, first=50), tmp_path / "fewer")
    evaluate(fruit.folder, data=fewer.folder)
    path = fruit.folder / "predictions" / "fewer.parquet"
    metadata = dict(pl.read_parquet_metadata(path))
    metadata.pop("images")
    wrong = pl.read_parquet(path).with_columns(truth=pl.lit([0], dtype=pl.List(pl.UInt32)))
    wrong.write_parquet(path, metadata={key: value for key, value in metadata.items() if key != "ARROW:schema"})
    evaluate(fruit.folder, data=fewer.folder)
    assert truths(fruit, "fewer") == {"pear50": ["pear"], "pear51": ["pear"]}


def test_ids_of_the_archive_match_whatever_they_are_called(run: Run, tmp_path: Path) -> None:
    numbered = import_(album(tmp_path / "numbers", "22", "44", each=2, first=50), tmp_path / "elsewhere")
    assert evaluate(run.folder, data=numbered.folder).record["matched"]["by"] == "id"
    assert truths(run, "elsewhere")["2250"] == ["Tower 22"]
    assert open_dataset(numbered.folder).labels["landmark_id"].to_list() == [22, 44]
    assert read_record(run.folder / "metrics" / "elsewhere.json")["known"] == 2


def test_damaged_numbers_are_refused_with_the_way_out(fruit: Run, tmp_path: Path) -> None:
    some = import_(album(tmp_path / "some", "pear", each=2, first=50), tmp_path / "torn")
    evaluate(fruit.folder, data=some.folder)
    (fruit.folder / "metrics" / "torn.json").write_text('{"format": ')
    with pytest.raises(LandmarksError, match=r"cannot be read as JSON .*remove it: evaluate writes it anew"):
        evaluate(fruit.folder, data=some.folder)
    (fruit.folder / "metrics" / "torn.json").unlink()
    assert evaluate(fruit.folder, data=some.folder).record["known"] == 2
