from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.archive.rules import Rule, drawn
from landmarks.support.errors import UsageError


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"set": "tests"}, 'no set "tests"; expected train or test; did you mean "test"?'),
        ({"set": "index"}, 'no set "index"'),
        ({"kind": "natrual"}, 'no kind of landmark "natrual"; expected natural or human-made'),
        ({"skip": -1}, "--skip -1 is impossible; expected 0 or more"),
        ({"choose": 0}, "--choose 0 is impossible"),
        ({"take": 10, "choose": 11}, "--choose 11 cannot be more than --take 10"),
        ({"min_images": 5, "max_images": 4}, "--min-images 5 is more than --max-images 4"),
        ({"others": 5}, "--others belongs to --set test"),
        ({"set": "test", "take": 5, "choose": 2}, "--take, --choose: only with --set train"),
    ],
)
def test_an_impossible_rule_is_refused_with_its_reason(rule: dict[str, object], told: str) -> None:
    with pytest.raises(UsageError) as error:
        Rule(**rule)  # type: ignore[arg-type]
    assert told in str(error.value)


def test_a_rule_reads_as_its_command() -> None:
    assert str(Rule()) == "--set train"
    assert str(Rule(clean=True, name="St. Peter's", skip=49, take=100, choose=20)) == (
        "--set train --clean --name 'St. Peter'\"'\"'s' --skip 49 --take 100 --choose 20 --seed 0"
    )
    assert str(Rule(set="test", landmarks=range(25))) == "--set test --landmarks 0,1,2,3,4,5,6,7,8,9,… (25)"


@given(
    st.dictionaries(st.integers(0, 10**6), st.integers(1, 5), min_size=1, max_size=40),
    st.integers(0, 5),
    st.integers(1, 40),
)
def test_ranking_is_by_photographs_and_then_by_landmark(images: dict[int, int], skip: int, take: int) -> None:
    landmarks = pl.DataFrame({"landmark_id": list(images), "images": list(images.values())})
    expected = sorted(images, key=lambda landmark: (-images[landmark], landmark))[skip : skip + take]
    if expected:
        assert drawn(Rule(skip=skip, take=take), landmarks)["landmark_id"].to_list() == expected


def test_the_draw_of_seed_0_is_pinned() -> None:
    landmarks = pl.DataFrame({"landmark_id": range(100), "images": [1] * 100})
    assert drawn(Rule(choose=5, seed=0), landmarks)["landmark_id"].to_list() == [16, 29, 36, 50, 78]
