"""`landmarks evaluate`: how good is a run, and how sure is that?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="The run's folder, or a CSV file in the challenge's submission form.")],
    *,
    data: Annotated[
        Path | None, typer.Option(help="Another dataset than the run's own; what the run has seen is left out.")
    ] = None,
    part: Annotated[
        str, typer.Option(help="train, val, test or all; a dataset without parts is taken whole.")
    ] = "test",
    others: Annotated[
        Path | None,
        typer.Option(help="A dataset of other photographs (landmarks import), all of which count as unknown."),
    ] = None,
    false_acceptance: Annotated[
        float | None,
        typer.Option(help="Choose the threshold that lets this share of other photographs pass; keep it for predict."),
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write the answers to this CSV too, in the challenge's submission form.")
    ] = None,
    suspects: Annotated[
        Path | None,
        typer.Option(help="Instead: write the part's likely label errors to this CSV and show them on a sheet."),
    ] = None,
    lottery: Annotated[
        int | None,
        typer.Option(help="Instead: draw so many landmarks 200 times, and say how accuracy varies with the draw."),
    ] = None,
    truth: Annotated[Path | None, typer.Option(help="The solution CSV that a submission is judged by.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="For a submission: a folder to write, which report reads.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON, for programs.")] = False,
) -> None:
    """Answer a part's photographs, write the answers down, and compute every number from them.

    A submission of the challenge is judged by the same code: landmarks evaluate SUBMISSION.csv --truth SOLUTION.csv

    Example: landmarks evaluate runs/mobilenet --data data/test --false-acceptance 0.05
    """
    from landmarks.evaluation.evaluate import evaluate as evaluate_run
    from landmarks.evaluation.judge import judge
    from landmarks.support.errors import UsageError

    if suspects is not None:
        _show_suspects(run, suspects, data, part, device)
        return
    if lottery is not None:
        _show_lottery(run, lottery, data, device, json)
        return
    if truth is not None:
        _show(judge(run, truth, out=out), json)
        return
    if run.is_file() or out is not None:
        raise UsageError(f"{run} is to be judged by what?", expected="--truth with the solution's CSV")
    numbers = evaluate_run(
        run,
        data=data,
        part=part,
        others=others,
        false_acceptance=false_acceptance,
        submission=submission,
        device=device,
    )
    _show(numbers, json)
    if not json:
        print(f"written to {run / 'metrics' / numbers['name']}.json")


def _show(numbers: dict[str, Any], json: bool) -> None:
    import json as json_module

    from landmarks.support.console import print_table

    if json:
        print(json_module.dumps(numbers, indent=2, ensure_ascii=False))
        return
    title = f"{numbers['name']}: {numbers['known']} photographs of {numbers['landmarks']} landmarks"
    title += f", {numbers['unknown']} of anything else" if numbers["unknown"] else ""
    rows = [(name, _percent(numbers[name])) for name in ("top1", "top5", "macro")]
    rows += [(name, _plain(numbers[name])) for name in ("log_loss", "ece", "gap") if numbers[name] is not None]
    print_table(["number", "value"], rows, title)
    confused = [(pair["truth_name"], pair["answer_name"], pair["count"]) for pair in numbers["confused"][:5]]
    if confused:
        print_table(["shows", "taken for", "photographs"], confused, "most confused")
    rejection = [
        (row["score"], _plain(row["auroc"]), _share(row["rejected"]), _share(row["lost"]))
        for row in numbers["rejection"]
    ]
    if rejection:
        on = numbers["rejection_parts"]
        title = f"known or not: threshold from {on['chosen_on']}, numbers from {on['reported_on']}"
        print_table(["score", "AUROC", "others rejected", "landmarks lost"], rejection, title)
    if "threshold" in numbers:
        stored = numbers["threshold"]
        print(
            f"predict now answers by {stored['rule']['name']}: on {stored['reported_on']}, "
            f"{_share(stored['accepted_unknown'])} of other photographs pass, "
            f"{_share(stored['lost_known'])} of landmarks are lost"
        )


def _show_suspects(run: Path, out: Path, data: Path | None, part: str, device: str) -> None:
    from landmarks.evaluation.suspects import suspects as find_suspects
    from landmarks.support.console import print_table

    table = find_suspects(run, out, data=data, part=part, device=device)
    columns = ["id", "name", "suggested_name", "suspicion"]
    rows = [(*row[:3], f"{row[3]:.2f}") for row in table.select(columns).head(10).iter_rows()]
    if rows:
        print_table(["photograph", "labelled", "looks like", "suspicion"], rows, "most suspicious")
    print(f"{len(table)} suspects written to {out}; nothing was changed")
    if rows:
        print(f"look at {out.with_suffix('.jpg')}, fill in correct_landmark_id (an id, or none), then:")
        print(f"landmarks split DATA --corrections {out}")


def _show_lottery(run: Path, landmarks: int, data: Path | None, device: str, json: bool) -> None:
    import json as json_module

    from landmarks.evaluation.luck import luck
    from landmarks.evaluation.names import SUFFIX
    from landmarks.support.console import print_table

    numbers = luck(run, landmarks, data=data, device=device)
    if json:
        print(json_module.dumps(numbers, indent=2, ensure_ascii=False))
        return
    names = {"mean": "mean", "deviation": "standard deviation", "smallest": "smallest", "q05": "5th percentile"}
    names |= {"q25": "25th percentile", "q50": "median", "q75": "75th percentile", "q95": "95th percentile"}
    rows = [(word, _share(numbers[name])) for name, word in (names | {"largest": "largest"}).items()]
    print_table(["accuracy", "value"], rows, f"{numbers['draws']} draws of {landmarks} of {numbers['of']} landmarks")
    if own := numbers["own"]:
        print(
            f"the run's own accuracy, {_share(own['accuracy'])} on {own['landmarks']} landmarks, "
            f"is above that of {_share(own['place'])} of the draws"
        )
    print(f"written to {run / 'metrics' / numbers['name']}{SUFFIX}")


def _percent(number: dict[str, Any]) -> str:
    if number["value"] is None:
        return "-"
    return f"{100 * number['value']:.1f} %  ({100 * number['low']:.1f} to {100 * number['high']:.1f})"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
