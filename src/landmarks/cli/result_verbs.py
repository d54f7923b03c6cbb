"""The verbs that evaluate runs and submissions, and show the results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landmarks.cli.everywhere import Json, print_json
from landmarks.support.console import plural, print_table, show, show_lines
from landmarks.support.errors import UsageError

if TYPE_CHECKING:
    from landmarks.evaluation.results import Evaluation


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Another dataset than the run's own; images that the run was trained on are left out."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="train, val, test or all; of a dataset without splits, all images are used.")
    ] = "test",
    unknown: Annotated[
        Path | None,
        typer.Option(help="A dataset (landmarks import) whose images all count as unknown, whatever they show."),
    ] = None,
    false_acceptance: Annotated[
        float | None,
        typer.Option(help="Choose the threshold that accepts this share of unknown images, and keep it for predict."),
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Also write the answers to this CSV, in the challenge's submission format.")
    ] = None,
    wrong: Annotated[
        Path | None, typer.Option(help="Write the images answered wrong to this CSV, the most confident first.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="classifier, neighbours or both; without it, the choice made in validation.")
    ] = None,
    retrieval: Annotated[
        bool, typer.Option("--retrieval", help="Also measure recall and GAP by the nearest training images.")
    ] = False,
    references: Annotated[
        Path | None,
        typer.Option(help="Also measure mAP@100 of images of the same landmark among this dataset's images."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Answer a split's images, write the answers, and compute all metrics from them.

    Example: landmarks evaluate runs/mobilenet --data data/test --false-acceptance 0.05
    """
    from landmarks.evaluation.evaluate import evaluate as evaluate_run
    from landmarks.evaluation.predictions import results_folder

    evaluation = evaluate_run(
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
    _show_evaluation(evaluation, json)
    if not json:
        show(f"written to {results_folder(run) / 'metrics' / evaluation.name}.json")


def _show_evaluation(evaluation: Evaluation, as_json: bool) -> None:
    from landmarks.evaluation.results import MEANINGS

    if as_json:
        print_json(evaluation.record)
        return
    rows = [(name, value, MEANINGS[name]) for name, value in evaluation.rows()]
    print_table(["number", "value", "what it says"], rows, evaluation.title)
    nearest = _nearest_rows(evaluation.record)
    if nearest:
        print_table(["number", "value"], nearest, "by the nearest images")
    confused = [(pair.truth, pair.answer, pair.images) for pair in evaluation.confused[:5]]
    if confused:
        print_table(["shows", "taken for", "images"], confused, "most confused")
    if evaluation.halves is not None:
        columns = ["score", "AUROC", "unknown rejected", "landmarks lost"]
        print_table(columns, evaluation.score_rows(), evaluation.known_title)
        if all(score.rejected is None for score in evaluation.known_scores):
            show("no threshold: fewer than 20 known images to choose one on, of which 5 % is less than one")
    if stored := evaluation.threshold:
        show(stored)


def _nearest_rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (name, value) of the metrics by the nearest images, where they were measured."""
    rows: list[tuple[str, str]] = []
    for name in ("neighbour_recall_at", "neighbour_gap", "neighbour_gap_penalised", "map_at_100", "recall_at"):
        metric = record.get(name)
        for key, value in (metric if isinstance(metric, dict) else {"": metric}).items():
            if value is not None:
                rows.append((f"{name} {key}".strip(), f"{value:.3f}"))
    return rows


# ── `landmarks score`: a submission of the challenge against its solution ───────────────────────────────────────────


def score(
    submission: Annotated[
        Path, typer.Argument(help="A CSV file in the challenge's format: id,landmarks or id,images.")
    ],
    truth: Annotated[
        Path, typer.Argument(metavar="SOLUTION", help="The solution: recognition_solution_v2.1.csv of the archive.")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder to write, for landmarks report.")] = None,
    *,
    json: Json = False,
) -> None:
    """Compute the metrics of a challenge submission against the solution, with the code that evaluate uses.

    Example: landmarks score submission.csv recognition_solution_v2.1.csv -o scored
    """
    from landmarks.evaluation.retrieval import is_retrieval
    from landmarks.evaluation.submission import score as score_submission

    if truth.is_file() and is_retrieval(truth):
        if out is not None:
            raise UsageError("a retrieval submission makes no folder for report", way_out="leave out -o")
        _show_retrieval(submission, truth, json)
        return
    evaluation = score_submission(submission, truth, out=out)
    _show_evaluation(evaluation, json)
    if out is not None and not json:
        show(f"written to {out / 'metrics' / evaluation.name}.json")


def _show_retrieval(submission: Path, truth: Path, as_json: bool) -> None:
    from dataclasses import asdict

    from landmarks.evaluation.retrieval import RETRIEVAL_DEFINITIONS, score_retrieval

    metrics = asdict(score_retrieval(submission, truth))
    if as_json:
        print_json({**metrics, "definitions": RETRIEVAL_DEFINITIONS})
        return
    rows: list[tuple[str, str]] = []
    for name, metric in metrics.items():
        for key, value in (metric if isinstance(metric, dict) else {"": metric}).items():
            rows.append((f"{name} {key}".strip(), f"{value:.3f}" if isinstance(value, float) else str(value)))
    print_table(["number", "value"], rows, f"retrieval: {metrics['queries']} queries")


# ── `landmarks subsets`: how accuracy varies with the landmarks drawn ───────────────────────────────────────────────


def subsets(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    *,
    landmarks: Annotated[int, typer.Option(help="Landmarks in each of the 200 draws.")] = 20,
    data: Annotated[Path | None, typer.Option(help="Draw from this dataset, not the run's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Draw landmarks 200 times, and show how the accuracy varies between the draws.

    Example: landmarks subsets runs/mobilenet --landmarks 20
    """
    from landmarks.evaluation.predictions import SUBSETS_SUFFIX
    from landmarks.evaluation.results import format_share
    from landmarks.evaluation.subsets import subsets as draw_subsets

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


# ── `landmarks explain`: which parts of an image decided ────────────────────────────────────────────────────────────


def explain(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Images and folders of them.")] = None,
    *,
    data: Annotated[
        Path | None, typer.Option(help="Take images from this dataset, not the run's own, if none are named.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Take images from this split if none are named: train, val, test or all.")
    ] = "test",
    count: Annotated[
        int | None, typer.Option(help="Number of images to take (default: 12, or 200 with --faithfulness).")
    ] = None,
    faithfulness: Annotated[
        bool, typer.Option("--faithfulness", help="Measure how faithful the maps are instead of drawing them.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> int:
    """Draw heat maps of the four best answers for images; if none are named, for recognised images of the dataset.

    Example: landmarks explain runs/resnet50 holiday/*.jpg
    """
    from landmarks.explanation.explain import explain as draw

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

    rows = [
        [heat_map["map"], *(_format_curve(heat_map[curve]) for curve in ("deletion", "insertion"))]
        for heat_map in record["maps"]
    ]
    title = f"{record['images']} images: area under the curve (what the heat map gains, 95 % interval)"
    print_table(["map", "deletion, less is better", "insertion, more is better"], rows, title=title)


def _format_curve(curve: dict[str, float | None]) -> str:
    if "gain" not in curve:
        return f"{curve['area']:.3f}"
    interval = "" if curve["low"] is None else f"; {curve['low']:+z.3f} to {curve['high']:+z.3f}"
    return f"{curve['area']:.3f} ({curve['gain']:+z.3f}{interval})"


# ── `landmarks compare`: is one run really better than another? ─────────────────────────────────────────────────────


def compare(
    first: Annotated[Path, typer.Argument(help="A run's folder.")],
    second: Annotated[Path, typer.Argument(help="Another run's folder.")],
    name: Annotated[
        str | None, typer.Option(help="The predictions to compare: val, test, or a dataset's folder name.")
    ] = None,
    json: Json = False,
) -> None:
    """Tell whether the difference between two runs is significant, by paired tests on the same images.

    Example: landmarks compare runs/baseline runs/mobilenet
    """
    from landmarks.evaluation.compare import compare as compare_runs

    comparison = compare_runs(first, second, name=name)
    if json:
        print_json(comparison.record)
        return
    columns = ["run", "top-1", "right where the other is wrong"]
    print_table(columns, comparison.rows(), f"{comparison.name}: {plural(comparison.images, 'image')}")
    show(comparison.verdict)


# ── `landmarks report`: one page about runs ─────────────────────────────────────────────────────────────────────────


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders that `landmarks train` made.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    study: Annotated[
        Path | None,
        typer.Option(help="The folder of a reproduction, or its study.json, whose table is added to the page."),
    ] = None,
    json: Json = False,
) -> None:
    """Write one HTML page about one or several runs: tables, charts, images, and what the numbers mean.

    The page works offline. Every figure is also written to figures/, next to the page, as SVG and CSV.

    Example: landmarks report runs/resnet50 runs/xception -o report.html
    """
    from landmarks.reporting.page import report as write_report

    page = write_report(runs, out, study=study)
    if json:
        print_json({"page": page, "runs": runs})
    else:
        show(page)


# ── `landmarks reproduce`: the study's table, by its own protocol and by a corrected one ────────────────────────────


def reproduce(
    data: Annotated[Path, typer.Argument(help="A dataset folder; its own splits are not used.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write everything to.")] = Path("reproduction"),
    *,
    test: Annotated[
        Path | None, typer.Option(help="Another dataset folder; every run is evaluated on all its images too.")
    ] = None,
    networks: Annotated[
        str,
        typer.Option(
            help="Names separated by commas; inception_resnet_v2 and nasnet_large, which the study gave up, are "
            "possible too."
        ),
    ] = "baseline,resnet18,resnet50,xception,inception_v3",
    image_size: Annotated[
        int | None, typer.Option(help="Side of the square image, in pixels, for all networks.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of fine-tuning, for all networks.")] = None,
    weights: Annotated[
        str, typer.Option(help="imagenet, none, or NETWORK=FILE for each network with weights of its own.")
    ] = "imagenet",
    seed: Annotated[int, typer.Option(help="Seed of the splits and of every draw.")] = 0,
    json: Json = False,
) -> int:
    """Train the study's networks by its own protocol and by a corrected one, and compare with its published results.

    Images are not copied. When it was stopped and is run again, it continues without repeating finished trainings.
    The exit code is 1 when a network could not be trained.

    Example: landmarks reproduce twenty -o reproduction --networks baseline,xception --image-size 160
    """
    from landmarks.reporting.page import study_lines
    from landmarks.study.reproduce import reproduce as run_study

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


# ── `landmarks demo`: all steps on a made-up archive ────────────────────────────────────────────────────────────────


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write everything to.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the made-up archive.")] = 0,
    json: Json = False,
) -> None:
    """Show all steps in a few minutes: make up a small archive, train two networks from scratch, write a report.

    Every step is printed as the command that does the same. After an interruption, running it again continues.

    Example: landmarks demo -o demo
    """
    from landmarks.study.demo import demo as run_demo

    page = run_demo(out, seed=seed)
    if json:
        print_json({"page": page})
    else:
        show(page)
