from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmarks.cli.main import run as landmarks
from landmarks.dataset.manifest import Dataset
from landmarks.evaluation.evaluate import evaluate
from landmarks.evaluation.predictions import read_predictions
from landmarks.evaluation.submission import read_solution, read_submission, score, write_submission
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import read_record
from landmarks.training.run import Run

SOLUTION = """id,landmarks,Usage
000000000000000a,0 12,Public
000000000000000b,"100 200 300",Private
000000000000000c,1,Public
000000000000000d,,Private
000000000000000e,,Private
"""


@pytest.fixture
def solution(tmp_path: Path) -> Path:
    path = tmp_path / "solution.csv"
    path.write_text(SOLUTION)
    return path


def submission(folder: Path, *rows: str) -> Path:
    path = folder / "mine.csv"
    path.write_text("\n".join(["id,landmarks", *rows]) + "\n")
    return path


PUBLISHED = ("000000000000000b,0 0.01", "000000000000000c,1 10.0", "000000000000000d,150 15.0", "000000000000000e,")


def test_the_published_example_by_files(tmp_path: Path, solution: Path) -> None:
    numbers = score(submission(tmp_path, *PUBLISHED), solution).record
    assert numbers["gap"] == pytest.approx(0.166667, abs=1e-6)
    assert numbers["gap_of_known"] == pytest.approx(0.333333, abs=1e-6)
    assert numbers["top1"]["value"] == pytest.approx(0.333333, abs=1e-6)
    assert numbers["gap_of_usage"] == {"Public": pytest.approx(0.5), "Private": 0.0}
    assert (numbers["images"], numbers["known"], numbers["answered"]) == (5, 3, 3)
    assert numbers["log_loss"] is None
    assert numbers["ece"] is None


def test_several_landmarks_and_none_are_read_from_the_solution(solution: Path) -> None:
    table = read_solution(solution)
    assert table["landmarks"].to_list() == [[0, 12], [100, 200, 300], [1], [], []]


def test_a_folder_is_written_that_report_reads(tmp_path: Path, solution: Path) -> None:
    path = submission(tmp_path, *PUBLISHED)
    assert landmarks(["score", str(path), str(solution), "-o", str(tmp_path / "judged")]) == 0
    table = read_predictions(tmp_path / "judged" / "predictions" / "mine.parquet")
    labels = pl.read_parquet(tmp_path / "judged" / "labels.parquet")
    assert labels["landmark_id"].to_list() == [0, 1, 12, 100, 150, 200, 300]
    assert table["truth"].to_list() == [[0, 2], [3, 5, 6], [1], [], []]
    assert table["label"].to_list() == [[], [0], [1], [4], []]
    assert landmarks(["report", str(tmp_path / "judged"), "-o", str(tmp_path / "report.html")]) == 0
    assert (tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("000000000000000b,0 nan", "line 2"),
        ("000000000000000b,0 inf", "line 2"),
        ("000000000000000b,0", "line 2"),
        ("000000000000000b,0 0.5 1 0.4", "line 2"),
        ("000000000000000b,x 0.5", "line 2"),
        ("short,0 0.5", "line 2"),
        ("000000000000000b,0 1e999", "largest number"),
        ("00000000000000ff,0 0.5", "not in the solution"),
    ],
)
def test_what_is_no_prediction_is_refused_by_name(tmp_path: Path, solution: Path, row: str, complaint: str) -> None:
    with pytest.raises(LandmarksError, match=complaint):
        score(submission(tmp_path, row), solution)


def test_an_image_predicted_twice_is_refused(tmp_path: Path, solution: Path) -> None:
    with pytest.raises(LandmarksError, match='"000000000000000b" twice'):
        score(submission(tmp_path, "000000000000000b,0 0.5", "000000000000000b,0 0.4"), solution)


def test_landmarks_of_another_table_are_told(
    tmp_path: Path, solution: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(submission(tmp_path, "000000000000000b,7 0.5", "000000000000000d,"), solution).record["gap"] == 0.0
    assert "none of the landmarks that the submission names" in " ".join(capsys.readouterr().err.split())
    score(submission(tmp_path, "000000000000000b,7 0.5", "000000000000000c,1 0.1"), solution)
    score(submission(tmp_path, "000000000000000b,"), solution)
    assert "none of the landmarks" not in capsys.readouterr().err


def test_an_empty_submission_scores_nothing(tmp_path: Path, solution: Path) -> None:
    numbers = score(submission(tmp_path, "000000000000000b,"), solution).record
    assert numbers["gap"] == numbers["top1"]["value"] == 0.0


def test_a_runs_answers_go_out_and_come_back_with_the_same_numbers(
    run: Run, test_data: Dataset, tmp_path: Path
) -> None:
    exported = tmp_path / "out.csv"
    numbers = evaluate(run.folder, data=test_data.folder, submission=exported).record
    shown = test_data.images.select(
        pl.col("image_id").alias("id"),
        landmarks=pl.when(pl.col("landmarks").is_not_null())
        .then(pl.col("landmarks").cast(pl.List(pl.String)).list.join(" "))
        .when(pl.col("landmark_id") == 44)
        .then(pl.lit(""))
        .otherwise(pl.col("landmark_id").cast(pl.String))
        .fill_null(""),
        Usage="usage",
    )
    shown.write_csv(tmp_path / "solution.csv")
    back = score(exported, tmp_path / "solution.csv").record
    assert back["gap"] == pytest.approx(numbers["gap"])
    assert back["top1"] == numbers["top1"] | {
        "low": back["top1"]["low"],
        "high": back["top1"]["high"],
        "method": back["top1"]["method"],
    }


@given(st.lists(st.tuples(st.none() | st.integers(0, 203_093), st.floats(0, 1, width=32)), min_size=1, max_size=20))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[int | None, float]]
) -> None:
    path = tmp_path_factory.mktemp("submission") / "s.csv"
    ids = pl.Series([f"{number:016x}" for number in range(len(answers))])
    landmark_ids = pl.Series([landmark for landmark, _ in answers], dtype=pl.Int64)
    write_submission(path, ids, landmark_ids, pl.Series([score for _, score in answers], dtype=pl.Float32))
    table = read_submission(path)
    assert table["landmark_id"].to_list() == landmark_ids.to_list()
    for (landmark, sure), read in zip(answers, table["score"], strict=True):
        assert read is None if landmark is None else np.float32(read) == np.float32(sure)


def test_a_score_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(LandmarksError, match="no number"):
        write_submission(tmp_path / "s.csv", pl.Series(["a"]), pl.Series([1]), pl.Series([float("nan")]))


def test_evaluate_refuses_a_submission_and_names_the_verb_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert landmarks(["evaluate", str(submission(tmp_path, *PUBLISHED))]) == 2
    stderr = capsys.readouterr().err
    assert "mine.csv is a CSV file" in stderr and "landmarks score SUBMISSION.csv SOLUTION.csv" in stderr
    assert stderr.count("\n") == 1


CONFUSED = ("000000000000000b,0 0.5", "000000000000000c,1 0.25", "000000000000000d,150 0.75", "000000000000000e,")


def test_the_verb_prints_its_numbers_with_or_without_a_folder(
    tmp_path: Path, solution: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(submission(tmp_path, *CONFUSED))
    assert landmarks(["score", path, str(solution)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "mine: 3 images of" in printed and "2 of anything else" in printed
    assert "top1" in printed and "33.3 %" in printed and "gap" in printed
    assert "landmark 100" in printed and "landmark 0" in printed  # most confused
    assert landmarks(["score", path, str(solution), "-o", str(tmp_path / "scored")]) == 0
    written = f"written to {tmp_path / 'scored' / 'metrics' / 'mine'}.json"
    again = capsys.readouterr().out
    assert " ".join(again.split()).startswith(printed) and written in again.replace("\n", "")


def test_numbers_are_the_same_with_or_without_a_folder(
    tmp_path: Path, solution: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = submission(tmp_path, *CONFUSED)
    alone, kept = score(path, solution).record, score(path, solution, out=tmp_path / "scored").record
    assert {**alone, "seconds": 0} == {**kept, "seconds": 0}
    assert alone["confused"][0]["truth_name"] == "landmark 100"
    assert read_record(tmp_path / "scored" / "metrics" / "mine.json")["verb"] == "score"
    capsys.readouterr()
    assert landmarks(["score", str(path), str(solution), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gap"] == alone["gap"]


@pytest.mark.shared
@pytest.mark.slow
def test_all_test_images_of_the_archive_are_judged_in_a_minute_and_1500_megabytes(shared: Path, tmp_path: Path) -> None:
    solution = shared / "gldv2" / "recognition_solution_v2.1.csv"
    random = np.random.default_rng(0)
    truth = read_solution(solution)
    answers = [
        shown[0] if shown and random.random() < 0.6 else int(random.integers(203_094))
        for shown in truth["landmarks"].to_list()
    ]
    scores = pl.Series(random.random(len(truth)) + truth["landmarks"].list.len().cast(bool).to_numpy())
    write_submission(tmp_path / "s.csv", truth["image_id"], pl.Series(answers), scores)
    script = (
        "import resource, sys, time;"
        "from landmarks.cli.main import run; solution, folder = sys.argv[1:];"
        "assert run(['score', folder + '/s.csv', solution, '-o', folder + '/judged']) == 0;"
        "assert run(['report', folder + '/judged', '-o', folder + '/r.html']) == 0;"
        "print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    command = [sys.executable, "-c", script, str(solution), str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, megabytes = map(float, printed.splitlines()[-1].split())
    assert megabytes < 1500
    assert seconds < 60  # of the processor: a busy machine is no failure


def test_what_is_ignored_counts_nowhere_answered_or_not(tmp_path: Path, solution: Path) -> None:
    path = submission(tmp_path, *PUBLISHED)
    without = score(path, solution).record
    more = "00000000000000f0,0 12,Ignored\n00000000000000f1,,Ignored\n00000000000000f2,None,Ignored\n"
    solution.write_text(SOLUTION + more)
    for answers in (PUBLISHED, (*PUBLISHED, "00000000000000f0,0 99.0", "00000000000000f1,3 98.0")):
        found = score(submission(tmp_path, *answers), solution).record
        assert {**found, "seconds": 0} == {**without, "seconds": 0}


def test_a_solution_in_which_nothing_counts_is_one_line(tmp_path: Path, solution: Path) -> None:
    solution.write_text("id,landmarks,Usage\n000000000000000a,,Ignored\n")
    with pytest.raises(LandmarksError, match=r"no image of .* counts; received 1 of usage Ignored"):
        score(submission(tmp_path, "000000000000000a,1 0.5"), solution)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns id, landmarks; received an empty file"),
        ("id\tlandmarks\n", r'the header "id\\tlandmarks".*save it with commas'),
        ("id;landmarks\n", "save it with commas"),
    ],
)
def test_a_file_that_is_no_such_csv_is_told_with_what_it_is(
    tmp_path: Path, solution: Path, text: str, message: str
) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(LandmarksError, match=message):
        score(path, solution)
    with pytest.raises(LandmarksError, match="is a folder; expected a CSV file"):
        score(tmp_path, solution)
    with pytest.raises(LandmarksError, match="is a folder; expected a CSV file"):
        score(submission(tmp_path, *PUBLISHED), tmp_path)


def test_numbers_of_a_submission_are_written_into_no_run_and_no_dataset(
    run: Run, own_data: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "solution.csv").write_text("id,landmarks,Usage\n00000000000000aa,1,Public\n")
    (tmp_path / "answers.csv").write_text("id,landmarks\n00000000000000aa,1 0.5\n")
    answers, solution = tmp_path / "answers.csv", tmp_path / "solution.csv"
    for folder in (run.folder, own_data.folder):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(
            UsageError, match=r"is a run, whose files would be replaced|holds no numbers of a submission"
        ):
            score(answers, solution, out=folder)
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for _ in range(2):
        assert score(answers, solution, out=tmp_path / "scored").top1.value == 1
