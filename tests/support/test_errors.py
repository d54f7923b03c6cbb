from __future__ import annotations

import pytest

from landmarks.support.errors import LandmarksError, MissingExtraError, UsageError, did_you_mean, naming_the_extra


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
    line = 'a search needs the extra "tune", .*no module named optuna.*pip install "landmarks\\[tune\\]"'
    with pytest.raises(MissingExtraError, match=line), naming_the_extra("a search"):
        raise ModuleNotFoundError("No module named 'optuna'", name="optuna")


@pytest.mark.parametrize("module", ["landmarks.no_such_room", "numpy", "torch.no_such_part"])
def test_a_missing_module_of_no_extra_is_not_blamed_on_one(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named"), naming_the_extra("a search"):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
