from __future__ import annotations

import pytest

from landmarks.support.errors import LandmarksError, MissingExtraError, UsageError, did_you_mean, import_extra


def test_an_error_is_one_line_with_what_was_received_expected_and_the_way_out() -> None:
    error = LandmarksError("no split\n 'tset'", received=3, expected="one of\ttrain", way_out="look again")
    assert str(error) == "no split 'tset'; received 3; expected one of train; look again"


def test_exit_codes_follow_the_promise() -> None:
    assert (LandmarksError("x").exit_code, UsageError("x").exit_code, MissingExtraError("x").exit_code) == (1, 2, 2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet5O", 'did you mean "resnet50"?'), ("zebra", ""), ("xceptoin", 'did you mean "xception"?')],
)
def test_a_slip_of_the_pen_is_recognised(name: str, hint: str) -> None:
    assert did_you_mean(name, ["resnet18", "resnet50", "xception"]) == hint


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    assert import_extra("json", "tune").loads("1") == 1
    with pytest.raises(MissingExtraError, match=r'pip install "landmarks\[tune\]"'):
        import_extra("no_such_package", "tune")
