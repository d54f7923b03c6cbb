from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from csv_mirror import COMMONS, IMAGES, image, write_mirror

from landmarks.archive.mirror import PUBLISHED_BYTES
from landmarks.archive.select import SELECTION, select
from landmarks.cli.main import run
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import file_digest
from landmarks.support.tables import read_metadata, read_table


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mirror(tmp_path_factory.mktemp("mirror"))


def chosen(mirror: Path, out: Path, **rule: object) -> list[int]:
    return select(mirror, out / "s.parquet", **rule).landmarks["landmark_id"].to_list()  # type: ignore[arg-type]


def test_no_rule_selects_everything_ranked_by_images_and_then_by_id(mirror: Path, tmp_path: Path) -> None:
    selection = select(mirror, tmp_path / "all.parquet")
    assert selection.landmarks.select("landmark_id", "images").rows() == [(7, 6), (3, 4), (9, 4), (1, 3), (20, 1)]
    expected = sorted(image(landmark, n) for landmark, images in IMAGES.items() for n in range(images))
    assert selection.images["image_id"].to_list() == expected


def test_a_selection_says_what_it_is_in_a_line_and_shows_its_landmarks(mirror: Path, tmp_path: Path) -> None:
    selection = select(mirror, tmp_path / "s.parquet", take=2)
    assert repr(selection) == f"Selection({tmp_path / 's.parquet'}: 10 images of 2 landmarks; --set train --take 2)"
    assert "10 images" in selection._repr_html_() and "Saint Peter&#x27;s Basilica" in selection._repr_html_()


def test_the_file_holds_the_selection_and_says_how_it_was_made(mirror: Path, tmp_path: Path) -> None:
    selection = select(mirror, tmp_path / "s.parquet", skip=1, take=3, choose=2, seed=5)
    assert read_table(selection.path, SELECTION).equals(selection.images)
    metadata = read_metadata(selection.path)
    assert metadata["mirror"] == str(mirror)
    assert (metadata["set"], metadata["landmarks"]) == ("train", "2")
    assert metadata["rule"] == "--set train --skip 1 --take 3 --choose 2 --seed 5"
    digests = json.loads(metadata["digests"])
    assert digests["metadata/train.csv"] == file_digest(mirror / "metadata/train.csv")
    assert sorted(digests) == [
        f"metadata/{name}.csv"
        for name in ("train", "train_attribution", "train_label_to_category", "train_label_to_hierarchical")
    ]


def test_the_same_rule_writes_the_same_bytes(mirror: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        select(mirror, tmp_path / name, skip=1, take=4, choose=2, seed=1)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_table_that_is_no_selection_is_not_replaced_by_one(mirror: Path, tmp_path: Path) -> None:
    out = tmp_path / "images [1].parquet"
    pl.DataFrame({"image_id": ["a"], "shard": ["b"]}).write_parquet(out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"is there already and is another table; received columns image_id, shard"):
        select(mirror, out)
    assert out.read_bytes() == before
    out.write_bytes(before[:20])  # nothing is lost with a damaged one
    for _ in range(2):
        select(mirror, out)


def test_names_and_credits_stand_beside_each_image(mirror: Path, tmp_path: Path) -> None:
    rows = select(mirror, tmp_path / "s.parquet", landmarks=[7]).images.rows(named=True)
    assert rows[1] == {
        "image_id": image(7, 1),
        "landmark_id": 7,
        "usage": None,
        "landmarks": None,
        "name": "Saint Peter's Basilica",
        "category": COMMONS + "Saint_Peter%27s_Basilica",
        "author": 'Ann "the lens", 7',
        "license": "https://creativecommons.org/licenses/by-sa/3.0",
        "title": "File:1\n.jpg",
    }
    assert rows[5]["author"] is None


def test_train_csv_alone_is_enough(tmp_path: Path) -> None:
    bare = write_mirror(tmp_path / "bare", optional=False)
    selection = select(bare, tmp_path / "s.parquet", take=1)
    assert selection.images.schema == pl.Schema(SELECTION)
    assert selection.images["name"].null_count() == 6


@pytest.mark.parametrize(
    ("rule", "landmarks"),
    [
        ({"skip": 1}, [3, 9, 1, 20]),
        ({"skip": 1, "take": 2}, [3, 9]),
        ({"min_images": 3, "max_images": 4}, [3, 9, 1]),
        ({"landmarks": "3, 20"}, [3, 20]),
        ({"landmarks": [20, 3], "min_images": 2}, [3]),
        ({"exclude": "7,20"}, [3, 9, 1]),
        ({"name": "göttingen"}, [9]),
        ({"name": "(rome)"}, [3]),
        ({"name": "(Rome"}, [3]),
        ({"name": "^(obersee|saint)"}, [7, 1]),
        ({"name": "K%C3%B6nig"}, [1]),
        ({"supercategory": "Church"}, [7]),
        ({"kind": "natural"}, [1]),
        ({"kind": "human-made", "skip": 1}, [3, 9]),
        ({"clean": True}, [9, 7]),
        ({"license": "/by/2"}, [7, 1, 3, 9, 20]),
        ({"license": "/by-sa/"}, [3, 7, 9, 1]),
    ],
)
def test_each_condition_keeps_what_it_says(
    mirror: Path, tmp_path: Path, rule: dict[str, object], landmarks: list[int]
) -> None:
    assert chosen(mirror, tmp_path, **rule) == landmarks


def test_a_landmark_has_as_many_images_as_the_conditions_on_images_leave(mirror: Path, tmp_path: Path) -> None:
    clean = select(mirror, tmp_path / "s.parquet", clean=True)
    assert clean.landmarks["images"].to_list() == [3, 2]
    assert clean.images["image_id"].to_list() == [image(7, n) for n in range(2)] + [image(9, n) for n in range(3)]
    free = select(mirror, tmp_path / "s.parquet", license="/by-sa/", min_images=2)
    assert free.landmarks.rows() == [
        (3, "Colosseum (Rome)", 2),
        (7, "Saint Peter's Basilica", 2),
        (9, "Sparkassen-Arena, Göttingen", 2),
    ]


def test_the_draw_depends_on_the_seed_alone_and_every_landmark_has_its_chance(mirror: Path, tmp_path: Path) -> None:
    draws = [tuple(chosen(mirror, tmp_path, take=4, choose=2, seed=seed)) for seed in range(24)]
    assert draws == [tuple(chosen(mirror, tmp_path, take=4, choose=2, seed=seed)) for seed in range(24)]
    assert len(set(draws)) == 6  # all pairs out of four
    assert draws[0] == tuple(sorted(draws[0], key=(7, 3, 9, 1).index))


def test_asking_for_more_landmarks_than_there_are_takes_all_and_says_so_however_it_is_asked(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rule in ({"take": 9}, {"choose": 9}):
        assert len(chosen(mirror, tmp_path, **rule)) == 5
        assert f"--{next(iter(rule))} 9: only 5 landmarks were there to" in capsys.readouterr().err


def test_a_landmark_has_at_most_as_many_images_as_asked_for_drawn_by_the_seed(mirror: Path, tmp_path: Path) -> None:
    whole = select(mirror, tmp_path / "w.parquet")
    some = select(mirror, tmp_path / "s.parquet", images_per_landmark=2)
    sizes = {row[0]: row[2] for row in whole.landmarks.iter_rows()}
    assert {row[0]: row[2] for row in some.landmarks.iter_rows()} == {id: min(2, n) for id, n in sizes.items()}
    assert some.images.group_by("landmark_id").len()["len"].max() == 2
    assert set(some.images["image_id"]) <= set(whole.images["image_id"])
    assert "--images-per-landmark 2 --seed 0" in some.rule
    draws = {
        tuple(select(mirror, tmp_path / "d.parquet", images_per_landmark=2, seed=seed).images["image_id"])
        for seed in range(8)
    }
    assert len(draws) > 1
    with pytest.raises(UsageError, match="--images-per-landmark: only with --set train"):
        select(mirror, tmp_path / "t.parquet", set="test", images_per_landmark=2)


def test_a_seed_means_the_same_landmarks_whatever_the_order_of_the_rows(mirror: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned"
    shutil.copytree(mirror, turned)
    header, *rows = (mirror / "metadata/train.csv").read_text().splitlines(keepends=True)
    order = np.random.default_rng(3).permutation(len(rows))
    (turned / "metadata/train.csv").write_text(header + "".join(rows[row] for row in order))
    same = select(mirror, tmp_path / "a.parquet", choose=3, seed=8)
    assert select(turned, tmp_path / "b.parquet", choose=3, seed=8).images.equals(same.images)


def test_the_test_set_keeps_every_image_and_its_usage(mirror: Path, tmp_path: Path) -> None:
    selection = select(mirror, tmp_path / "s.parquet", set="test")
    assert selection.images.select("image_id", "landmark_id", "usage", "landmarks").rows() == [
        ("a" * 16, 7, "Public", [7]),
        ("b" * 16, 3, "Private", [3, 9]),
        ("c" * 16, None, "Private", None),
        ("d" * 16, None, "Public", None),
        ("e" * 16, 555, "Public", [555]),
        ("f" * 16, 9, "Private", [9]),
    ]
    assert selection.images["name"].to_list()[:2] == ["Saint Peter's Basilica", "Colosseum (Rome)"]
    assert selection.landmarks.select("landmark_id", "images").rows() == [(9, 2), (3, 1), (7, 1), (555, 1)]


def test_test_images_that_count_nowhere_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = write_mirror(tmp_path / "mirror")
    with open(mirror / "ground_truth/recognition_solution_v2.1.csv", "a") as file:
        file.write(f"{'1' * 16},7,Ignored\n{'2' * 16},None,Ignored\n")
    assert len(select(mirror, tmp_path / "s.parquet", set="test").images) == 6
    assert "2 test images of usage Ignored are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "rule", [{"landmarks": [9, 7]}, {"clean": True}, {"exclude": [3, 555]}, {"name": "basilica|arena"}]
)
def test_in_the_test_set_other_landmarks_count_as_nothing_known(
    mirror: Path, tmp_path: Path, rule: dict[str, object]
) -> None:
    images = select(mirror, tmp_path / "s.parquet", set="test", **rule).images  # type: ignore[arg-type]
    assert images["landmark_id"].to_list() == [7, 9, None, None, None, 9]
    assert images["landmarks"].to_list() == [[7], [9], None, None, None, [9]]


def test_the_landmarks_of_a_selection_count_as_known(mirror: Path, tmp_path: Path) -> None:
    select(mirror, tmp_path / "train.parquet", landmarks="9,20")
    test = select(mirror, tmp_path / "test.parquet", set="test", landmarks=tmp_path / "train.parquet")
    assert test.landmarks["landmark_id"].to_list() == [9]


def test_others_are_drawn_by_the_seed(mirror: Path, tmp_path: Path) -> None:
    def others(seed: int) -> list[str]:
        images = select(mirror, tmp_path / "s.parquet", set="test", landmarks=[7], unknown=2, seed=seed).images
        assert images["landmark_id"].count() == 1
        return images.filter(pl.col("landmark_id").is_null())["image_id"].to_list()

    assert all(len(others(seed)) == 2 for seed in range(3))
    assert others(1) == others(1)
    assert len({tuple(others(seed)) for seed in range(20)}) > 3


def test_a_test_set_without_anything_known_is_told(
    mirror: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = select(mirror, tmp_path / "s.parquet", set="test", landmarks=[20]).images
    assert images["landmark_id"].null_count() == 6
    notes = capsys.readouterr().err
    assert "1 of the 1 landmarks have no image here: 20" in notes
    assert "no test image shows a landmark that counts as known" in notes


def test_bytes_are_told_from_the_tars_where_they_are_there(mirror: Path, tmp_path: Path) -> None:
    assert select(mirror, tmp_path / "s.parquet", take=1).expected_bytes == 6 * PUBLISHED_BYTES["train"]
    with_tars = tmp_path / "tars"
    shutil.copytree(mirror, with_tars)
    for tar in range(20):
        (with_tars / "train").mkdir(exist_ok=True)
        (with_tars / "md5sum/train").mkdir(exist_ok=True, parents=True)
        (with_tars / f"train/images_{tar:03d}.tar").write_bytes(bytes(1800))
        (with_tars / f"md5sum/train/md5.images_{tar:03d}.txt").write_text("0" * 32 + f"  images_{tar:03d}.tar\n")
    assert select(with_tars, tmp_path / "s.parquet", take=1).expected_bytes == 6 * 20 * 1800 / 18


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"skip": 5}, "--skip 5 leaves none of the 5 landmarks there are; leave it out, or skip fewer"),
        ({"min_images": 7}, "no landmark was chosen; received --set train --min-images 7; change --min-images"),
        ({"name": "nowhere"}, "no landmark was chosen; received --set train --name nowhere; loosen the rule"),
        ({"landmarks": "4,5"}, "are these the ids of landmarks in this archive"),
        ({"license": "GPL"}, "no landmark was chosen"),
    ],
)
def test_a_rule_that_leaves_nothing_is_one_line_and_writes_nothing(
    mirror: Path, tmp_path: Path, rule: dict[str, object], message: str
) -> None:
    with pytest.raises(LandmarksError) as error:
        select(mirror, tmp_path / "s.parquet", **rule)  # type: ignore[arg-type]
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_supercategory_that_is_none_gets_the_closest(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='no landmark has the supercategory "churhc"; did you mean "church"'):
        select(mirror, tmp_path / "s.parquet", supercategory="churhc")


@pytest.mark.parametrize(
    ("rule", "needed"),
    [
        ({"clean": True}, "train_clean.csv, which --clean needs"),
        ({"name": "x"}, "train_label_to_category.csv, which --name needs"),
        ({"kind": "natural"}, "train_label_to_hierarchical.csv, which --supercategory and --kind need"),
        ({"license": "by"}, "train_attribution.csv, which --license needs"),
        ({"set": "test"}, "recognition_solution_v2.1.csv, which says what the test images show"),
    ],
)
def test_a_missing_file_is_named_with_what_needs_it(tmp_path: Path, rule: dict[str, object], needed: str) -> None:
    bare = write_mirror(tmp_path / "bare", optional=False)
    with pytest.raises(LandmarksError, match=needed):
        select(bare, tmp_path / "s.parquet", **rule)  # type: ignore[arg-type]


def test_the_folder_inside_a_mirror_is_answered_with_the_mirror(mirror: Path, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match=rf"has no metadata/train\.csv.*did you mean {mirror}"):
        select(mirror / "metadata", tmp_path / "s.parquet")
    with pytest.raises(LandmarksError, match=r"has no metadata/train\.csv.*is it a mirror of the archive"):
        select(tmp_path, tmp_path / "s.parquet")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0123,http://x,7", 'line 20 is invalid; received id "0123"'),
        (f"{'0' * 15}G,http://x,7", 'line 20 is invalid; received id "000000000000000G"'),
        ("0123456789abcdef,http://x,", 'line 20 is invalid; received landmark_id ""'),
        ("0123456789abcdef,http://x,x", 'line 20 is invalid; received landmark_id "x"'),
        ("0123456789abcdef,http://a,b,7", "line 20 is invalid; received 4 cells; expected 3"),
        (f"{image(7, 0)},http://x,7", f"holds the image {image(7, 0)} more than once (lines 2, 20)"),
        (f"{image(7, 0)},http://x,9", f"holds the image {image(7, 0)} more than once (lines 2, 20)"),
    ],
)
def test_an_invalid_row_of_train_csv_is_named(tmp_path: Path, row: str, message: str) -> None:
    broken = write_mirror(tmp_path / "broken", optional=False)
    with open(broken / "metadata/train.csv", "a") as file:
        file.write(row + "\n")
    with pytest.raises(LandmarksError) as error:
        select(broken, tmp_path / "s.parquet")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0123456789abcdef,7 x,Public", 'line 8 is invalid; received landmarks "7 x"'),
        (
            "0123456789abcdef,7,Secret",
            'line 8 is invalid; received Usage "Secret"; expected Public, Private or Ignored',
        ),
        ("abc,7,Public", 'line 8 is invalid; received id "abc"'),
        (f"{'a' * 16},7,Public", "more than once (lines 2, 8)"),
    ],
)
def test_an_invalid_row_of_the_ground_truth_is_named(tmp_path: Path, row: str, message: str) -> None:
    broken = write_mirror(tmp_path / "broken")
    with open(broken / "ground_truth/recognition_solution_v2.1.csv", "a") as file:
        file.write(row + "\n")
    with pytest.raises(LandmarksError) as error:
        select(broken, tmp_path / "s.parquet", set="test")
    assert message in str(error.value)


@pytest.mark.shared
def test_the_published_ground_truth_has_the_published_numbers(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "ground_truth").mkdir()
    truth = shared / "gldv2/recognition_solution_v2.1.csv"
    (tmp_path / "ground_truth/recognition_solution_v2.1.csv").symlink_to(truth)
    selection = select(tmp_path, tmp_path / "s.parquet", set="test")
    known = selection.images.drop_nulls("landmark_id")
    assert len(selection.images) == 117_577
    assert len(selection.landmarks) == 852
    assert known["usage"].value_counts().sort("usage").rows() == [("Private", 1300), ("Public", 672)]
    assert known.filter(pl.col("landmarks").list.len() > 1).height == 317


@pytest.fixture(scope="module")
def mirror_of_select_command(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_mirror(tmp_path_factory.mktemp("mirror")))


def test_select_prints_what_it_chose(
    mirror_of_select_command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "two.parquet"
    assert run(["select", mirror_of_select_command, "-o", str(out), "--skip", "1", "--take", "2"]) == 0
    printed = capsys.readouterr()
    assert "Colosseum (Rome)" in printed.out
    assert "Sparkassen-Arena, Göttingen" in printed.out
    assert "8 images of 2 landmarks, about 1.0 MB in the mirror" in printed.out
    assert f"written to {out}" in printed.err.replace("\n", "")
    assert read_metadata(out)["rule"] == "--set train --skip 1 --take 2"


def test_select_tells_how_many_images_show_nothing_known(
    mirror_of_select_command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(["select", mirror_of_select_command, "-o", str(tmp_path / "t"), "--set", "test", "--landmarks", "7"]) == 0
    )
    assert "1 image of 1 landmark and 5 images of nothing known" in capsys.readouterr().out


def test_select_prints_json_for_programs(
    mirror_of_select_command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["select", mirror_of_select_command, "-o", str(tmp_path / "t"), "--name", "rome", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(tmp_path / "t"),
        "rule": "--set train --name rome",
        "images": 4,
        "unknown": 0,
        "expected_bytes": 4 * 121_000,
        "landmarks": [{"landmark_id": 3, "name": "Colosseum (Rome)", "images": 4}],
    }


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--skip", "9"], 1, "error: --skip 9 leaves none of the 5 landmarks there are"),
        (["--set", "tset"], 2, 'error: no set "tset"; expected train or test; did you mean "test"?'),
        (["--landmarks", "rome"], 2, 'error: no landmarks "rome"'),
        (["--take", "many"], 2, "error: Invalid value for '--take'"),
    ],
)
def test_a_clumsy_command_ends_in_one_line(
    mirror_of_select_command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    options: list[str],
    code: int,
    message: str,
) -> None:
    assert run(["select", mirror_of_select_command, "-o", str(tmp_path / "t"), *options]) == code
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "t").exists()


def test_a_path_that_is_no_mirror_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["select", str(tmp_path / "nowhere"), "-o", str(tmp_path / "t")]) == 1
    assert capsys.readouterr().err.startswith(f"error: there is no mirror at {tmp_path / 'nowhere'}")


def test_credits_of_a_folder_that_is_no_dataset_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["credits", str(tmp_path)]) == 1
    assert "there is no dataset.json" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["chosen.csv", "chosen.JSON"])
def test_a_selection_is_not_called_what_it_is_not(mirror: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"a table in parquet, .*-o .*chosen\.parquet"):
        select(mirror, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_usages_may_be_written_in_any_case(tmp_path: Path) -> None:
    changed = write_mirror(tmp_path / "changed")
    solution = changed / "ground_truth/recognition_solution_v2.1.csv"
    text = f"{solution.read_text()}{'0' * 16},7,Ignored\n"
    solution.write_text(text)
    before = select(changed, tmp_path / "before.parquet", set="test")
    for usage, respelled in (("Ignored", " IGNORED"), ("Public", "public "), ("Private", "PRIVATE")):
        text = text.replace(f",{usage}", f",{respelled}")
    solution.write_text(text)
    assert select(changed, tmp_path / "after.parquet", set="test").images.equals(before.images)


def test_a_selection_is_no_mirror_and_is_told_what_fetches_it(mirror: Path, tmp_path: Path) -> None:
    path = select(mirror, tmp_path / "s.parquet").path
    with pytest.raises(LandmarksError, match=r"there is no mirror at .*s\.parquet; .* landmarks fetch .*s\.parquet"):
        select(path, tmp_path / "again.parquet")
