"""Recipes as files, as the list that `landmarks recipe` prints, and as options of a command."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmarks.cli.main import run as landmarks
from landmarks.support.errors import UsageError
from landmarks.support.files import write_record
from landmarks.training.recipe import HEAD_SETTINGS, SHIPPED, SYNONYMS, Recipe, recipe, recipe_named
from landmarks.training.recipe import settings as settings_of_a_recipe
from landmarks.training.recipes import rows_of, toml_of


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(toml_of(recipe_named(name)), encoding="utf-8")
    assert recipe_named(tmp_path / "mine.toml") == recipe_named(name)
    for encoding in ("utf-8-sig", "utf-16"):  # as Notepad saves it, and `>` of PowerShell
        (tmp_path / "edited.toml").write_text(toml_of(recipe_named(name)), encoding=encoding)
        assert recipe_named(tmp_path / "edited.toml") == recipe_named(name)
    assert recipe_named(str(tmp_path / "mine.toml"), epochs=3, head="arcface", head_solver="gradient") == recipe_named(
        name, epochs=3, head="arcface", head_solver="gradient"
    )


@given(st.text(min_size=1), st.floats(0.001, 100), st.integers(1, 999))
@settings(max_examples=30)
def test_any_text_and_number_comes_back(text: str, rate: float, size: int) -> None:
    try:
        made = recipe_named("default", weights=text, head_learning_rate=rate, image_size=size)
    except UsageError:
        return
    parsed = tomllib.loads(toml_of(made))
    assert (parsed["weights"], parsed["head_learning_rate"], parsed["image_size"]) == (text, rate, size)


def test_a_run_s_record_is_a_recipe(tmp_path: Path) -> None:
    trained = replace(recipe_named("default", flip=False), head="arcface", head_settings={"margin": 0.3})
    write_record(tmp_path / "run.json", {"recipe": trained.record()}, verb="train")
    assert recipe_named(tmp_path) == trained
    assert recipe(str(tmp_path), epochs=2).epochs == 2
    write_record(tmp_path / "run.json", {"recipe": {"epochs": 3, "augmentation": 5}}, verb="train")  # of a stranger's
    assert recipe_named(tmp_path) == recipe_named("default", epochs=3)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("epochs = ", "is no recipe"),
        ("epochs = -1", "epochs cannot be used; received -1"),
        ("lr = 0.1", 'no setting "lr"; it is called learning_rate here'),
        ("name = 'mine'", 'no recipe "mine"'),
        ("[head_settings]\nmargin = 0.3", 'the head mlp has no setting "margin"'),
    ],
)
def test_a_file_that_cannot_be_meant_is_one_line(text: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=error):
        recipe_named(tmp_path / "mine.toml")


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        recipe_named(tmp_path / "mine.toml")


def test_a_folder_that_is_no_run_is_told_as_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no recipe; expected a run's folder, or a TOML file"):
        recipe_named(tmp_path)
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UsageError, match="is a dataset, and no recipe"):
        recipe_named(tmp_path)


def test_a_name_that_no_recipe_has_leads_to_all_that_a_recipe_can_be() -> None:
    with pytest.raises(UsageError, match=r'no recipe "mine\.json"; expected default, .*, a TOML file, or a run'):
        recipe_named("mine.json")


def test_every_setting_has_a_meaning_and_says_what_it_may_be() -> None:
    rows = rows_of(recipe_named("default"))
    assert [row[0] for row in rows] == [*settings_of_a_recipe(), *(f"head.{name}" for name in HEAD_SETTINGS)]
    assert all(meaning and may_be for _, _, may_be, meaning in rows)


def test_what_other_programs_call_a_setting_leads_to_one_that_exists() -> None:
    known = {*settings_of_a_recipe(), *(f"head.{name}" for name in HEAD_SETTINGS)}
    names = [name for theirs in SYNONYMS.values() for name in theirs.split()]
    assert {ours.partition("=")[0] for ours in SYNONYMS} <= known
    assert len(names) == len(set(names)) and not set(names) & set(settings_of_a_recipe())


def test_the_verb_lists_prints_json_and_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert landmarks(["recipe"]) == 0
    assert "label_smoothing" in capsys.readouterr().out
    assert landmarks(["recipe", "study", "--set", "epochs=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epochs"] == 3
    assert landmarks(["recipe", "--toml"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["backbone"] == Recipe(name="x").backbone


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--lr", "0.1"], "it is called learning_rate here"),
        (["--arcface"], "it is called head=arcface here"),
        (["--set", "balanced=1"], "it is called balance here"),
        (["--set", "head.marign=0.3", "--head", "arcface"], 'did you mean "margin"?'),
    ],
)
def test_a_name_people_know_leads_to_ours(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert landmarks(["train", "data", "-o", "run", *words]) == 2
    assert hint in capsys.readouterr().err


def test_the_options_of_a_verb_come_from_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert landmarks(["train", "data", "-o", "run", "--epochs", "x"]) == 2
    assert "epochs" in capsys.readouterr().err
    assert landmarks(["train", "data", "-o", "run", "--epochs", "-3"]) == 2
    assert "the recipe's epochs cannot be used; received -3" in capsys.readouterr().err
