"""The page as a file: what it holds, what it says when something is missing, and that strangers' texts stay texts."""

from __future__ import annotations

import copy
import html
import itertools
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import vl_convert
from run_factory import NAMES, NETWORKS, make_dataset, make_run

from landmarks.cli.main import run as run_verb
from landmarks.reporting import report_tables as tables
from landmarks.reporting.page import report, study_lines, study_numbers, study_table
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import read_record, write_record
from landmarks.support.tables import read_table, write_table


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    data = make_dataset(folder / "data", count=200, unknown=20)
    return [make_run(folder / name, data, name, maps=2) for name in NETWORKS]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(runs, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def alone(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about one run, of 20 landmarks."""
    return report(runs[1], tmp_path_factory.mktemp("alone") / "report.html")


class Parsed(HTMLParser):
    """Every start tag with its attributes, and the text of each tag's first level."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_nothing_on_the_page_points_outside_of_it(page: Path) -> None:
    parsed = Parsed(page.read_text(encoding="utf-8"))
    for _, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:", "figures/")) or not value
    assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", page.read_text(encoding="utf-8"))
    assert not parsed.all("iframe") and [tag for tag in parsed.all("link") if tag["rel"] != "icon"] == []


def test_every_anchor_of_the_contents_exists_once_and_no_identifier_twice(page: Path) -> None:
    parsed = Parsed(page.read_text(encoding="utf-8"))
    ids = [attributes["id"] for _, attributes in parsed.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"])[1:] for a in parsed.all("a") if str(a.get("href")).startswith("#")]
    assert len(targets) > 10 and set(targets) <= set(ids)


def test_headings_go_down_one_level_at_a_time_and_every_image_has_words(page: Path) -> None:
    parsed = Parsed(page.read_text(encoding="utf-8"))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(parsed.all("img")) > 40 and all(image["alt"] for image in parsed.all("img"))
    assert len(parsed.all("svg")) > 15
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in parsed.all("svg"))


def test_the_finding_is_about_the_run_that_was_best_on_validation(page: Path, runs: list[Path]) -> None:
    best = max(runs, key=lambda run: read_record(run / "metrics" / "val.json")["top1"]["value"])
    test = read_record(best / "metrics" / "test.json")["top1"]
    finding = re.search(r'class="finding">([^<]+)<', page.read_text(encoding="utf-8"))
    assert finding and best.name in finding[1] and f"{100 * test['value']:.1f}" in finding[1]


def test_the_table_names_every_run_with_its_accuracy_and_interval(page: Path, runs: list[Path]) -> None:
    text = page.read_text(encoding="utf-8")
    table = text[text.index('id="results"') : text.index("</table>")]
    for run in runs:
        top1 = read_record(run / "metrics" / "test.json")["top1"]
        assert run.name in table
        assert f"{100 * top1['value']:.1f}\N{NO-BREAK SPACE}%" in table
        assert f"{100 * top1['low']:.1f}–{100 * top1['high']:.1f}\N{NO-BREAK SPACE}%" in table


def test_every_figure_lies_beside_the_page_as_svg_and_csv(page: Path) -> None:
    linked = {str(a["href"]) for a in Parsed(page.read_text(encoding="utf-8")).all("a")}
    files = sorted(link for link in linked if link.startswith("figures/"))
    assert sum(file.endswith(".svg") for file in files) >= 15
    for file in files:
        assert (page.parent / file).stat().st_size > 0
    confusion = pl.read_csv(page.parent / "figures" / "resnet18-confusion.csv")
    assert confusion["count"].sum() == 200
    assert set(confusion["truth_name"]) <= set(NAMES)


def test_the_page_is_the_same_when_written_again(runs: list[Path], tmp_path: Path) -> None:
    once = report(runs[2], tmp_path / "once.html").read_bytes()
    vl_convert.vegalite_to_svg.forget()  # draw its charts again as well
    assert report(runs[2], tmp_path / "again.html").read_bytes().replace(b"again", b"once") == once


def test_a_run_that_was_only_trained_says_what_is_missing_and_how_to_make_it(runs: list[Path], tmp_path: Path) -> None:
    bare = tmp_path / "a bare run"
    shutil.copytree(runs[0], bare)
    for name in ("metrics", "predictions", "maps"):
        shutil.rmtree(bare / name)
    (bare / "history.parquet").unlink()
    text = report(bare, tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"landmarks evaluate &#39;{bare}&#39;" in text
    assert f"landmarks explain &#39;{bare}&#39;" in text
    assert "has not been evaluated yet" in text


def test_images_that_are_gone_are_told_and_nothing_else_is_lost(runs: list[Path], tmp_path: Path) -> None:
    lonely = tmp_path / "lonely"
    shutil.copytree(runs[2], lonely)
    record = read_record(lonely / "run.json")
    record["data"]["folder"] = str(tmp_path / "nowhere")
    write_record(lonely / "run.json", record, verb="train")
    text = report(lonely, tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"the dataset that lonely was trained on is not at {tmp_path}/nowhere any more" in text
    assert "Most confused pairs" in text and "Most confident mistakes" in text


def test_a_truncated_image_or_heat_map_is_left_out(runs: list[Path], tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=60, unknown=0)
    run = make_run(tmp_path / "run", data, "resnet18", maps=2)
    with open(data.folder / "shards" / "test-000.tar", "rb+") as shard:
        shard.truncate(40_000)
    (run / "maps" / f"{0:016x}.jpg").write_bytes(b"\xff\xd8\xff")
    text = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Images are left out" in text and "shorter than the manifest says" in text
    assert "1 of 2 maps" in text


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "]]> --> </style></svg>",
    "datum['x']; alert(1) // '",
    "&amp; &lt;b&gt; \x00\x1b[31m\u202eevil",
    "Name\nwith\tbreaks",
    "x" * 5_000,
    "",
    "the same",
    "the same",
)


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        ("metrics/test.json", {"confused": [{"truth": 999, "answer": -1, "count": 3}]}),
        ("metrics/test.json", {"confused": 7}),
        ("maps/index.json", {"panels": 5}),
        ("metrics/test.subsets.json", {"accuracies": "x"}),
        ("metrics/test.subsets.json", {"accuracies": [0.5, None]}),
        ("run.json", {"machine": 5}),
    ],
)
def test_records_that_hold_something_else_than_is_read_from_them_are_one_line(
    file: str, wrong: dict[str, Any], runs: list[Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(runs[1], tmp_path / "run"))
    record = read_record(run / file) if (run / file).is_file() else {"format": 3}
    (run / file).write_text(json.dumps(record | wrong))
    with pytest.raises(LandmarksError, match=rf"{re.escape(file)} (holds an invalid value|is not the record of a run)"):
        report(run, tmp_path / "report.html")


def test_a_history_of_other_columns_is_one_line(runs: list[Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs[1], tmp_path / "run"))
    write_table(run / "history.parquet", pl.DataFrame({"phase": ["head"]}))
    with pytest.raises(LandmarksError, match=r"history\.parquet lacks the column"):
        report(run, tmp_path / "report.html")


def test_hostile_names_stay_texts_everywhere(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", landmarks=11, count=150, unknown=10)
    labels = data.labels.with_columns(name=pl.Series(HOSTILE))
    images = read_table(data.folder / "images.parquet")
    images = images.with_columns(author=pl.lit(HOSTILE[1]), license=pl.lit(HOSTILE[0]))
    write_table(data.folder / "images.parquet", images)
    run = make_run(tmp_path / "<b>run", data, "resnet18", labels=labels, maps=8)
    text = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert len(parsed.all("script")) == 1 and len(parsed.all("style")) == 1
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert not parsed.all("b") or all(not attributes for attributes in parsed.all("b"))
    assert "\x00" not in text and "\x1b" not in text and "\u202e" not in text
    shown = "".join(parsed.text)
    assert "<script>alert(1)</script>" in shown and "{{ 7 * 7 }}" in shown
    assert "the same (1063)" in shown and "the same (1070)" in shown and "landmark 1056" in shown
    assert "x" * 121 not in text


def test_a_heat_map_index_cannot_read_files_outside_its_folder(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", count=40, unknown=0)
    run = make_run(tmp_path / "run", data, "resnet18", maps=1)
    shutil.copy(run / "maps" / f"{0:016x}.jpg", tmp_path / "secret.jpg")
    index = json.loads((run / "maps" / "index.json").read_text())
    index["panels"][0]["image"] = "../../secret.jpg"
    write_record(run / "maps" / "index.json", index, verb="explain")
    assert "Where it looked" not in report(run, tmp_path / "report.html").read_text(encoding="utf-8")


def test_wrong_folders_are_errors_of_one_line(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="is not a run"):
        report(tmp_path, tmp_path / "report.html")
    with pytest.raises(UsageError, match="at least one run"):
        report([], tmp_path / "report.html")
    with pytest.raises(UsageError, match="named twice"):
        report([runs[0], runs[0]], tmp_path / "report.html")
    with pytest.raises(UsageError, match="is a folder"):
        report(runs, tmp_path)
    assert not list(tmp_path.iterdir())


def test_runs_of_one_name_are_told_apart_by_their_parents(runs: list[Path], tmp_path: Path) -> None:
    for parent in ("first", "second"):
        shutil.copytree(runs[1], tmp_path / parent / "run")
    page = report([tmp_path / "first" / "run", tmp_path / "second" / "run"], tmp_path / "report.html")
    text = page.read_text(encoding="utf-8")
    assert ">first/run<" in text and ">second/run<" in text
    assert (tmp_path / "figures" / "first-run-confusion.svg").exists()


def test_many_landmarks_get_a_short_table_and_a_whole_csv(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MAX_ROWS", 6)
    for module in ("chapter", "drawings"):
        monkeypatch.setattr(f"landmarks.reporting.{module}.MOST_CELLS", 19)
    text = report(runs[1], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The 3 best and the 3 worst of 20 landmarks" in text
    assert "confusion matrix is drawn up to 19" in text and "Confusion matrix of" not in text
    assert len(pl.read_csv(tmp_path / "figures" / "resnet18-landmarks.csv")) == 20
    assert pl.read_csv(tmp_path / "figures" / "resnet18-confusion.csv")["count"].sum() == 200


def test_the_verb_prints_where_the_page_lies(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(["report", str(runs[2]), "-o", str(tmp_path / "mine.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "mine.html")
    assert run_verb(["report", str(tmp_path / "nothing"), "-o", str(tmp_path / "mine.html")]) == 1


def copied(run: Path, where: Path, **changes: object) -> Path:
    """A copy of a run whose record is changed: `data__photographs={...}` is the entry `images` of `data`."""
    shutil.copytree(run, where)
    record = read_record(where / "run.json")
    for path, value in changes.items():
        *outer, last = path.split("__")
        split = record
        for key in outer:
            split = split[key]
        split[last] = value
    write_record(where / "run.json", record, verb="train")
    return where


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_a_run_from_scratch_is_not_said_to_go_on_where_a_warm_up_ended(
    page: Path, runs: list[Path], tmp_path: Path
) -> None:
    scratch = [copied(runs[0], tmp_path / name) for name in ("a", "b")]
    text = text_of(report(scratch, tmp_path / "scratch.html"))
    assert "Validation accuracy as training went on" in text
    assert (
        "that head training kept" not in text
        and "epochs of head training and" not in text
        and "both phases" not in text
    )
    text = text_of(page)
    assert "that head training kept" in text and "over the epochs of head training and fine-tuning" in text


def test_runs_validated_on_other_images_are_not_said_to_do_worse(runs: list[Path], tmp_path: Path) -> None:
    two = [copied(runs[0], tmp_path / "a"), copied(runs[1], tmp_path / "b")]
    assert "of 2 runs it did best on validation" in finding_of(report(two, tmp_path / "same.html"))
    other = copied(runs[1], tmp_path / "c", data__digest="another split")
    assert "did best on validation" not in text_of(report([two[0], other], tmp_path / "other.html"))


def test_up_to_twenty_landmarks_no_landmark_is_among_the_best_and_the_worst(alone: Path) -> None:
    assert len(pl.read_csv(alone.parent / "figures" / "resnet18-best.csv")) == 20
    assert not (alone.parent / "figures" / "resnet18-worst.csv").exists()


def test_the_epoch_that_was_kept_is_marked(alone: Path, runs: list[Path]) -> None:
    epoch = read_record(runs[1] / "run.json")["best"]["epoch"]
    assert f"The dashed line is the epoch that was kept: {epoch} of " in text_of(alone)
    assert f"kept: epoch {epoch}" in (alone.parent / "figures" / "resnet18-learning-accuracy.svg").read_text()


def test_a_run_without_test_images_is_not_told_to_be_judged_on_them(runs: list[Path], tmp_path: Path) -> None:
    images = {"train": 4_200, "val": 900, "test": 0}
    bare = copied(runs[1], tmp_path / "bare", data__images=images)
    (bare / "metrics" / "test.json").unlink()
    text = text_of(report(bare, tmp_path / "validated.html"))
    assert "Judged on validation images only: no others were kept apart." in text and "--split test" not in text
    shutil.rmtree(bare / "metrics")
    assert f"landmarks evaluate {bare} --split val" in text_of(report(bare, tmp_path / "bare.html"))


def test_accuracy_on_training_images_is_never_called_test_accuracy(runs: list[Path], tmp_path: Path) -> None:
    run = copied(runs[1], tmp_path / "run")
    for path in (run / "metrics").glob("val*"):
        path.unlink()
    for path in (run / "metrics").glob("test*"):
        path.rename(path.with_name(path.name.replace("test", "train")))
    record = read_record(run / "metrics" / "train.json")
    write_record(run / "metrics" / "train.json", {**record, "name": "train", "split": "train"}, verb="evaluate")
    text = text_of(report(run, tmp_path / "report.html"))
    assert "test accuracy" not in text and "test images (95" not in text
    assert "Not evaluated yet, but on images it was trained on." in text


def test_how_many_landmarks_were_judged_is_counted(alone: Path, runs: list[Path], tmp_path: Path) -> None:
    run = copied(runs[1], tmp_path / "run")
    for name in ("val", "test"):
        path = run / "metrics" / f"{name}.json"
        write_record(path, read_record(path) | {"landmarks": 17}, verb="evaluate")
    assert "of 17 of 20 landmarks" in text_of(report(run, tmp_path / "some.html"))
    assert "of 20 landmarks" in text_of(alone)


def test_as_many_answers_are_promised_as_the_heat_maps_have(alone: Path, runs: list[Path], tmp_path: Path) -> None:
    run = copied(runs[1], tmp_path / "run")
    index = read_record(run / "maps" / "index.json")
    for entry in index["panels"]:
        entry["answers"] = entry["answers"][:2]
    write_record(run / "maps" / "index.json", index, verb="explain")
    assert "The 2 best answers of each image" in text_of(report(run, tmp_path / "two.html"))
    assert "The 4 best answers of each image" in text_of(alone)


def test_a_page_without_images_says_nothing_of_their_authors(alone: Path, runs: list[Path], tmp_path: Path) -> None:
    assert "belong to their authors" in text_of(alone)
    bare = copied(runs[1], tmp_path / "bare")
    for name in ("metrics", "predictions", "maps"):
        shutil.rmtree(bare / name)
    assert "authors" not in text_of(report(bare, tmp_path / "without.html"))


@pytest.mark.slow
def test_what_nobody_validated_is_not_said_to_be_best_on_validation(runs: list[Path], tmp_path: Path) -> None:
    unvalidated = []
    for name, run in zip("ab", runs[1:], strict=False):
        unvalidated.append(copied(run, tmp_path / name, best={}))
        for path in (tmp_path / name / "metrics").glob("val*"):
            path.unlink()
    assert "best on validation" not in finding_of(report(unvalidated, tmp_path / "none.html"))
    assert "of 3 runs it did best on validation" in finding_of(report(runs, tmp_path / "all.html"))
    twice = [copied(runs[1], tmp_path / name) for name in "cd"]
    assert "of 2 runs none did better on validation" in finding_of(report(twice, tmp_path / "twice.html"))
    shutil.rmtree(tmp_path / "a" / "metrics")
    assert finding_of(report(tmp_path / "a", tmp_path / "bare.html")) == "resnet18 has not been evaluated yet."


def finding_of(page: Path) -> str:
    found = re.search(r'class="finding">([^<]+)<', text_of(page))
    assert found
    return found[1]


def test_answers_that_no_network_gave_are_not_to_be_explained_or_given_again(runs: list[Path], tmp_path: Path) -> None:
    judged = copied(runs[1], tmp_path / "judged")
    write_record(judged / "run.json", {"data": {"folder": "solution.csv"}}, verb="evaluate")
    shutil.rmtree(judged / "maps")
    shutil.rmtree(judged / "predictions")
    text = text_of(report(judged, tmp_path / "report.html"))
    assert "landmarks explain" not in text and "landmarks evaluate" not in text
    assert "The predictions are gone" in text


def test_a_network_without_maps_is_not_to_be_explained(runs: list[Path], tmp_path: Path) -> None:
    run = copied(runs[1], tmp_path / "run", network__maps=False)
    shutil.rmtree(run / "maps")
    text = text_of(report(run, tmp_path / "report.html"))
    assert "this kind of network has no maps to draw" in text and "landmarks explain" not in text


def test_predictions_that_are_gone_are_made_again_of_the_same_images(runs: list[Path], tmp_path: Path) -> None:
    run = copied(runs[1], tmp_path / "run")
    shutil.rmtree(run / "predictions")
    assert f"landmarks evaluate {run} --split test" in text_of(report(run, tmp_path / "own.html"))
    for path in (run / "metrics").glob("test*"):
        path.rename(path.with_name(path.name.replace("test", "holiday")))
    record = read_record(run / "metrics" / "holiday.json")
    write_record(run / "metrics" / "holiday.json", {**record, "data": "/data/holiday", "split": "all"}, verb="evaluate")
    assert f"landmarks evaluate {run} --data /data/holiday" in text_of(report(run, tmp_path / "another.html"))


def test_a_page_replaces_no_text_but_a_page_of_any_name(runs: list[Path], tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("what I must not forget")
    with pytest.raises(UsageError, match=r"notes.txt is there already and is not .html by its name"):
        report(runs[1], notes)
    assert notes.read_text() == "what I must not forget"
    notes.unlink()
    assert text_of(report(runs[1], notes)) == text_of(report(runs[1], notes))


@pytest.mark.parametrize(
    ("name", "about", "options"),
    [
        ("val-by-classifier", {"own_data": True, "split": "val", "by": "classifier"}, "--split val --by classifier"),
        ("own-test", {"own_data": True, "split": "test", "by": "both"}, "--split test"),
        ("holiday-val", {"own_data": False, "split": "val", "data": "/my data"}, "--data '/my data' --split val"),
        ("test", {"own_data": False, "split": "test", "data": "/a/test"}, "--data /a/test"),
    ],
)
def test_the_command_that_repeats_an_evaluation_names_its_split_and_its_way_of_answering(
    runs: list[Path], tmp_path: Path, name: str, about: dict[str, Any], options: str
) -> None:
    run = copied(runs[1], tmp_path / "run")
    shutil.rmtree(run / "predictions")
    for path in (run / "metrics").glob("*"):
        path.rename(path.with_name(path.name.replace("test", name))) if path.name.startswith("test") else path.unlink()
    record = read_record(run / "metrics" / f"{name}.json")
    write_record(run / "metrics" / f"{name}.json", {**record, "name": name, **about}, verb="evaluate")
    text = html.unescape(text_of(report(run, tmp_path / "report.html")))
    assert f"landmarks evaluate {run} {options}<" in text


def test_a_cost_that_an_earlier_version_counted_in_operations_is_shown_in_multiply_adds(
    runs: list[Path], tmp_path: Path
) -> None:
    earlier = copied(runs[1], tmp_path / "earlier")
    record = read_record(earlier / "run.json")
    record["network"]["gflops"] = 2 * record["network"].pop("gmacs")
    write_record(earlier / "run.json", record, verb="train")
    report([earlier, runs[1]], tmp_path / "report.html")
    costs = pl.read_csv(tmp_path / "figures" / "report-results.csv")["gmacs"].to_list()
    assert costs == [NETWORKS["resnet18"][2]] * 2
    assert "flops" not in text_of(tmp_path / "report.html").lower()


# ── A reproduction on the page ──────────────────────────────────────────────────────────────────────────────────────


SPACE = "\N{NO-BREAK SPACE}"
NOTHING = dict.fromkeys(
    ("run", "parameters", "image_size", "epochs", "validation", "test", "test_set", "head", "seconds")
)
RECORD: dict[str, Any] = {
    "test_set": None,
    "protocols": {"study": "as it was", "corrected": "as it should be"},
    "notes": ["One was left out."],
    "rows": [
        {
            "network": "xception",
            "protocol": "study",
            "published": {"validation": 0.8595, "test": 0.8531},
            "changed": ["160 px, not 299", "3 epochs, not 10"],
            "why": "",
            "run": "study/xception",
            "parameters": 21_866_540,
            "image_size": 160,
            "epochs": [10, 3],
            "validation": {"value": 0.9, "low": 0.88, "high": 0.92},
            "test": {"value": 0.89, "low": 0.86, "high": 0.915},
            "test_set": None,
            "head": 0.84,
            "seconds": 725.0,
        },
        {
            "network": "resnet50",
            "protocol": "study",
            "published": {"validation": None, "test": None},
            "changed": ["160 px, not 224"],
            "why": "the Hub is out of reach",
            **NOTHING,
        },
    ],
}


def test_each_cell_of_the_table_says_what_the_record_holds() -> None:
    reached, missed = study_table(RECORD).rows
    assert [cell.text for cell in reached] == [
        *("xception", "study", f"21.9{SPACE}M", "10+3", f"90.0{SPACE}%", f"89.0{SPACE}%", f"84.0{SPACE}%"),
        *(f"85.31{SPACE}%", "160 px, not 299; 3 epochs, not 10"),
    ]
    assert [cell.note for cell in reached[2:8]] == [
        *("160 px", "12 min 05 s", f"88.0–92.0{SPACE}%", f"86.0–91.5{SPACE}%", "", f"85.95{SPACE}% on validation"),
    ]
    assert [cell.text for cell in missed] == ["resnet50", "study", *["–"] * 5, "not given here", "not done"]


def test_images_of_everyone_get_a_column_on_the_page_and_on_the_screen() -> None:
    record = copy.deepcopy(RECORD) | {"test_set": "holidays"}
    record["rows"][0]["test_set"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    assert [column.title for column in study_table(record).columns][6] == "Test on holidays"
    titles, lines = study_lines(record)
    assert titles[5] == "Test on holidays" and lines[0][5] == f"50.0{SPACE}%\n40.0–60.0{SPACE}%"
    assert {len(line) for line in lines} == {len(titles)}
    assert len(study_lines(RECORD)[0]) == len(titles) - 1


def test_the_numbers_are_shares_and_nothing_stays_nothing() -> None:
    numbers = study_numbers(RECORD)
    assert numbers["test"].to_list() == [0.89, None] and numbers["test_low"].to_list() == [0.86, None]
    assert numbers["published_test"].to_list() == [0.8531, None]
    assert numbers["why"].to_list() == [None, "the Hub is out of reach"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    return make_run(folder / "run", make_dataset(folder / "data", count=60, unknown=0), "resnet18", maps=0)


def test_the_page_shows_the_table_the_figure_and_the_notes(run: Path, tmp_path: Path) -> None:
    write_record(tmp_path / "study.json", RECORD, verb="reproduce")
    words = ["report", str(run), "-o", str(tmp_path / "page.html"), "--study", str(tmp_path / "study.json")]
    assert run_verb(words) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    split = text[text.index('<section id="study">') :]
    split = split[: split.index("</section>")]
    assert 'href="#study"' in text and "One was left out." in split and f"85.31{SPACE}%" in split
    assert "xception, published: 85.3" in split
    assert pl.read_csv(tmp_path / "figures" / "page-study.csv")["network"].to_list() == ["xception", "resnet50"]
    assert 'id="study"' in report(run, tmp_path / "page.html", study=tmp_path).read_text(encoding="utf-8")
    assert 'id="study"' not in report(run, tmp_path / "plain.html").read_text(encoding="utf-8")


def test_a_stranger_s_record_stays_text(run: Path, tmp_path: Path) -> None:
    record = copy.deepcopy(RECORD)
    hostile = "<script>alert(1)</script>\x1b"
    record["notes"] = record["rows"][0]["changed"] = [hostile]
    record["rows"][0]["network"] = record["rows"][0]["protocol"] = hostile
    write_record(tmp_path / "study.json", record, verb="reproduce")
    text = report(run, tmp_path / "page.html", study=tmp_path / "study.json").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in text and "\x1b" not in text and "&lt;script&gt;alert(1)" in text


def test_another_record_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match=r"no reproduction's record"):
        report(run, tmp_path / "page.html", study=run / "run.json")
    with pytest.raises(
        LandmarksError, match=r"there is no .*study\.json; expected study.json, from landmarks reproduce"
    ):
        report(run, tmp_path / "page.html", study=tmp_path)
    assert not (tmp_path / "page.html").exists()
