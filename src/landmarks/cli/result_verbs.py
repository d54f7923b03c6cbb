"""The verbs that measure runs and submissions and show what they reached."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landmarks.cli.everywhere import Json, print_json
from landmarks.support.errors import UsageError
from landmarks.support.terminal import show, show_lines

if TYPE_CHECKING:
    from landmarks.evaluation.results import Evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    *,
    data: Annotated[
        Path | None, typer.Option(help="Another dataset than the run's own; what the run has seen is left out.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="train, val, test or all; a dataset without splits is taken whole.")
    ] = "test",
    unknown: Annotated[
        Path | None,
        typer.Option(help="A dataset (landmarks import) whose images all count as unknown, whatever they show."),
    ] = None,
    false_acceptance: Annotated[
        float | None,
        typer.Option(help="Choose the threshold that lets this share of unknown images pass; keep it for predict."),
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write the answers to this CSV too, in the challenge's submission form.")
    ] = None,
    wrong: Annotated[
        Path | None, typer.Option(help="Write the images answered wrong to this CSV, the surest first.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="classifier, neighbours or both; else as validation chose.")] = None,
    retrieval: Annotated[
        bool, typer.Option("--retrieval", help="Recall and GAP by the nearest training images too.")
    ] = False,
    references: Annotated[
        Path | None, typer.Option(help="mAP@100 of images of one landmark among this dataset's images too.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Answer a split's images, write the answers down, and compute every number from them.

    Example: landmarks evaluate runs/mobilenet --data data/test --false-acceptance 0.05
    """
    from landmarks.evaluation.evaluate import evaluate as evaluate_run

    numbers = evaluate_run(
        run,
        data=data,
        split=split,
        unknown=unknown,
        false_acceptance=false_acceptance,
        submission=submission,
        wrong=wrong,
        by=by,
        retrieval=retrieval,
        references=references,
        device=device,
    )
    _show(numbers, json)
    if not json:
        show(f"written to {run / 'metrics' / numbers.name}.json")


def _show(numbers: Evaluation, json: bool) -> None:

    from landmarks.evaluation.results import MEANINGS
    from landmarks.support.console import print_table

    if json:
        print_json(numbers.record)
        return
    rows = [(name, value, MEANINGS[name]) for name, value in numbers.rows()]
    print_table(["number", "value", "what it says"], rows, numbers.title)
    nearest = _nearest_rows(numbers.record)
    if nearest:
        print_table(["number", "value"], nearest, "by the nearest images")
    confused = [(pair.truth, pair.answer, pair.images) for pair in numbers.confused[:5]]
    if confused:
        print_table(["shows", "taken for", "images"], confused, "most confused")
    if numbers.halves is not None:
        title = f"known or not: threshold from {numbers.halves[0]}, numbers from {numbers.halves[1]}"
        print_table(["score", "AUROC", "unknown rejected", "landmarks lost"], numbers.score_rows(), title)
        if all(one.rejected is None for one in numbers.known_scores):
            show("no threshold: fewer than 20 known images to choose one on, of which 5 % is less than one")
    if stored := numbers.threshold:
        show(stored)


def _nearest_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the nearest images are worth as (name, text), where that was measured."""
    rows: list[tuple[str, str]] = []
    for name in ("neighbour_recall_at", "neighbour_gap", "neighbour_gap_penalised", "map_at_100", "recall_at"):
        told = record.get(name)
        for key, value in (told if isinstance(told, dict) else {"": told}).items():
            if value is not None:
                rows.append((f"{name} {key}".strip(), f"{value:.3f}"))
    return rows


# ── `landmarks score`: a submission of the challenge against its solution ───────────────────────────────────────────


def score(
    submission: Annotated[Path, typer.Argument(help="A CSV file in the challenge's form: id,landmarks or id,images.")],
    truth: Annotated[
        Path, typer.Argument(metavar="SOLUTION", help="The solution: recognition_solution_v2.1.csv of the archive.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder to write, which report reads.")] = None,
    *,
    json: Json = False,
) -> None:
    """Compute the numbers of a challenge submission against the solution, by the code that evaluate uses.

    Example: landmarks score submission.csv recognition_solution_v2.1.csv -o scored
    """
    from landmarks.evaluation.retrieval import is_retrieval
    from landmarks.evaluation.submission import score as score_submission

    if truth.is_file() and is_retrieval(truth):
        if out is not None:
            raise UsageError("a retrieval submission makes no folder for report", way_out="leave out -o")
        _show_retrieval(submission, truth, json)
        return
    numbers = score_submission(submission, truth, out=out)
    _show(numbers, json)
    if out is not None and not json:
        show(f"written to {out / 'metrics' / numbers.name}.json")


def _show_retrieval(submission: Path, truth: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from landmarks.evaluation.retrieval import DEFINITIONS, score_retrieval
    from landmarks.support.console import print_table

    found = asdict(score_retrieval(submission, truth))
    if as_json:
        print_json({**found, "definitions": DEFINITIONS})
        return
    rows: list[tuple[str, str]] = []
    for name, value in found.items():
        told = value if isinstance(value, dict) else {"": value}
        rows += [
            (f"{name} {key}".strip(), f"{one:.3f}" if isinstance(one, float) else str(one)) for key, one in told.items()
        ]
    print_table(["number", "value"], rows, f"retrieval: {found['queries']} queries")


# ── `landmarks subsets`: how accuracy varies with the landmarks that are drawn ──────────────────────────────────────


def subsets(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    *,
    landmarks: Annotated[int, typer.Option(help="Landmarks in each of the 200 draws.")] = 20,
    data: Annotated[Path | None, typer.Option(help="Draw from this dataset, not the run's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Draw landmarks 200 times, and show how accuracy varies with which of them are drawn.

    Example: landmarks subsets runs/mobilenet --landmarks 20
    """

    from landmarks.evaluation.predictions import SUBSETS_SUFFIX
    from landmarks.evaluation.results import format_share
    from landmarks.evaluation.subsets import subsets as draw_subsets
    from landmarks.support.console import print_table

    numbers = draw_subsets(run, landmarks, data=data, device=device)
    if json:
        print_json(numbers.record)
        return
    print_table(["accuracy", "value"], numbers.rows(), numbers.title)
    if numbers.place is not None:
        show(
            f"the run's own accuracy, {format_share(numbers.own_accuracy)} on {numbers.record['own']['landmarks']} "
            f"landmarks, is above that of {format_share(numbers.place)} of the draws"
        )
    show(f"written to {run / 'metrics' / numbers.record['name']}{SUBSETS_SUFFIX}")


# ── `landmarks explain`: where a network looked ─────────────────────────────────────────────────────────────────────


def explain(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Images and folders of them.")] = None,
    *,
    data: Annotated[Path | None, typer.Option(help="Take the gallery from this dataset, not the run's own.")] = None,
    split: Annotated[str, typer.Option(help="Take the gallery from this split: train, val, test or all.")] = "test",
    count: Annotated[int | None, typer.Option(help="Images: 12 in a gallery, 200 measured.")] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Measure instead how far the maps can be believed.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> int:
    """Draw heat maps of the four best answers for images, or for a gallery of recognised ones.

    Example: landmarks explain runs/resnet50 holiday/*.jpg
    """

    from landmarks.explanation.explain import explain as draw
    from landmarks.support.console import print_table

    result = draw(run, images, data=data, split=split, count=count, faithfulness=faithfulness, device=device)
    if json:
        print_json(result)
    elif faithfulness:
        _show_faithfulness(result)
        return 0
    else:
        rows = [
            [entry["image"], entry["answers"][0]["name"], f"{100 * entry['answers'][0]['probability']:.1f} %"]
            for entry in result["made"]
        ]
        print_table(["image", "answer", "probability"], rows, title=f"{run / 'maps'}: {result['method']}")
    return 1 if result.get("rejected") else 0


def _show_faithfulness(record: dict[str, Any]) -> None:
    from landmarks.support.console import print_table

    rows = [[each["map"], *(_told(each[curve]) for curve in ("deletion", "insertion"))] for each in record["maps"]]
    title = f"{record['images']} images: area under the curve (what the heat map gains, 95 % interval)"
    print_table(["map", "deletion, less is better", "insertion, more is better"], rows, title=title)


def _told(curve: dict[str, float | None]) -> str:
    if "gain" not in curve:
        return f"{curve['area']:.3f}"
    interval = "" if curve["low"] is None else f"; {curve['low']:+z.3f} to {curve['high']:+z.3f}"
    return f"{curve['area']:.3f} ({curve['gain']:+z.3f}{interval})"


# ── `landmarks compare`: is one run really better than another? ─────────────────────────────────────────────────────


def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another run's folder.")],
    name: Annotated[str | None, typer.Option(help="Which predictions: val, test, or a dataset's folder name.")] = None,
    json: Json = False,
) -> None:
    """Say whether the difference between two runs is real, by paired tests over the same images.

    Example: landmarks compare runs/baseline runs/mobilenet
    """

    from landmarks.evaluation.compare import compare as compare_runs
    from landmarks.support.console import plural, print_table

    numbers = compare_runs(first, second, name=name)
    if json:
        print_json(numbers.record)
        return
    columns = ["run", "top-1", "right where the other is wrong"]
    print_table(columns, numbers.rows(), f"{numbers.name}: {plural(numbers.images, 'image')}")
    show(numbers.verdict)


# ── `landmarks report`: runs become one page ────────────────────────────────────────────────────────────────────────


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that `landmarks train` made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    study: Annotated[
        Path | None, typer.Option(help="The study.json of a reproduction: its table is shown beside the results.")
    ] = None,
    json: Json = False,
) -> None:
    """Write one HTML page about one or several runs: tables, charts, images, and what the numbers mean.

    The page needs no network. Every figure also lies beside it, under figures/, as SVG and as CSV.

    Example: landmarks report runs/resnet50 runs/xception -o report.html
    """
    from landmarks.reporting.page import report as write_report

    page = write_report(runs, out, study=study)
    if json:
        print_json({"page": page, "runs": runs})
    else:
        show(page)


# ── `landmarks reproduce`: the study's table, under its own protocol and under a corrected one ──────────────────────


def reproduce(
    data: Annotated[Path, typer.Argument(help="A dataset folder; its own splits are not used.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write everything to.")] = Path("reproduction"),
    *,
    test: Annotated[
        Path | None, typer.Option(help="Another dataset folder, all of which every run is judged on too.")
    ] = None,
    networks: Annotated[
        str,
        typer.Option(
            help="Names with commas between; inception_resnet_v2 and nasnet_large, which the study "
            "gave up, can be among them."
        ),
    ] = "baseline,resnet18,resnet50,xception,inception_v3",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square image, in pixels, for all networks.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes of fine-tuning, for all networks.")] = None,
    weights: Annotated[
        str, typer.Option(help="imagenet, none, or NETWORK=FILE for each network with weights of its own.")
    ] = "imagenet",
    seed: Annotated[int, typer.Option(help="Of the splits and of every draw.")] = 0,
    json: Json = False,
) -> int:
    """Train the study's networks as it did, and as it should be done, and show both beside what it published.

    Images are not copied. Killed and run again, it goes on and trains nothing twice. Ends with exit code 1 when a
    network could not be trained.

    Example: landmarks reproduce twenty -o reproduction --networks baseline,xception --image-size 160
    """

    from landmarks.reporting.study_table import study_lines
    from landmarks.study.reproduce import reproduce as run_study
    from landmarks.support.console import print_table

    record = run_study(
        data, out, test=test, networks=networks, image_size=image_size, epochs=epochs, weights=weights, seed=seed
    )
    if json:
        print_json(record)
    else:
        print_table(*study_lines(record))
        show_lines("\n".join(record["notes"]))
        show(record["report"] or "no report: no network was trained")
    return 1 if any(row["why"] for row in record["rows"]) else 0


# ── `landmarks demo`: the whole way on a made-up archive ────────────────────────────────────────────────────────────


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write everything to.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Of the made-up archive.")] = 0,
    json: Json = False,
) -> None:
    """Walk the whole way in a few minutes: a made-up archive, two networks from scratch, a report.

    Every step is printed as the command that does the same. Run again after an interruption, it goes on.

    landmarks demo -o demo
    """
    from landmarks.study.demo import demo as walk

    page = walk(out, seed=seed)
    if json:
        print_json({"page": page})
    else:
        show(page)
