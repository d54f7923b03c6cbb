"""The verbs that use a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landmarks.cli.everywhere import Json, print_json
from landmarks.support.console import note, plural, print_table, show, show_lines
from landmarks.support.errors import UsageError

if TYPE_CHECKING:
    import polars as pl


def predict(
    run: Annotated[Path, typer.Argument(help="The run's folder, or an export (NAME.onnx).")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    *,
    top: Annotated[int, typer.Option(help="Answers per image, 1 to 5.")] = 3,
    csv: Annotated[
        Path | None,
        typer.Option(help="Write the answers to this CSV file, and print only their counts; - is standard output."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="classifier, neighbours or both; without it, the choice made in validation.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> int:
    """Recognise the landmark in each image, with a probability.

    Images that cannot be decoded are named, and the exit code is then 1 (0 with --partial-ok).

    Example: landmarks predict runs/mobilenet holiday/ --csv answers.csv
    """
    from landmarks.recognition.answers import NOT_KNOWN
    from landmarks.recognition.predict import counts
    from landmarks.recognition.predict import predict as predict_images
    from landmarks.support.errors import UsageError
    from landmarks.support.tables import csv_text

    to_stdout = str(csv) == "-"
    if json and to_stdout:
        raise UsageError("--json and --csv - cannot both be printed", way_out="name a file for one of them")
    table = predict_images(run, images, csv=None if to_stdout else csv, top=top, by=by, device=device)
    failed = table.filter(table["problem"].is_not_null())
    if json:
        print_json(_answers_by_image(table))
    elif to_stdout:
        show_lines(csv_text(table))
    elif csv is not None:
        print_table(["landmark", "images"], counts(table).rows(), f"{csv}: best answers")
    else:
        rows: list[tuple[object, ...]] = []
        for row in table.filter(table["problem"].is_null()).iter_rows(named=True):
            path = row["path"] if row["rank"] == 1 else ""
            if path and row["known"] is False:
                rows.append((path, "", NOT_KNOWN, ""))
                path = ""
            rows.append((path, row["rank"], row["name"], f"{100 * row['probability']:.1f} %"))
        if rows:
            print_table(["image", "rank", "landmark", "probability"], rows)
    for path, problem in failed.select("path", "problem").iter_rows():
        note(f"{path}: {problem}")
    if len(failed):
        note(f"{len(failed)} of {plural(table['path'].n_unique(), 'image')} could not be answered")
    return 1 if len(failed) else 0


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN|NAME.onnx", help="The run's folder, or an export.")],
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 stands for all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes any free one.")] = 8000,
    threads: Annotated[
        int | None, typer.Option(help="Batches answered at a time (default: the number of processors).")
    ] = None,
    queue: Annotated[int, typer.Option(help="Images that may wait; further requests get status 503.")] = 128,
    max_bytes: Annotated[int, typer.Option(help="Largest request, in bytes.")] = 20_000_000,
    max_pixels: Annotated[int, typer.Option(help="Largest image, width times height.")] = 50_000_000,
    seconds: Annotated[
        float, typer.Option(help="Time limit for receiving a request's headers, and again for its body.")
    ] = 30.0,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin whose pages may send requests; may be repeated.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    teach: Annotated[
        bool, typer.Option("--teach", help="Everyone who may send requests may also teach it landmarks.")
    ] = False,
) -> int:
    """Recognise images over HTTP, and serve a page to upload them.

    Requests need the token in the environment variable LANDMARKS_TOKEN, if it is set. No image is kept. When the run
    or export is replaced, the new one is used from then on. SIGTERM and Ctrl-C finish the requests accepted so far.

    Example: landmarks serve runs/mobilenet --port 8000
    """
    from landmarks.serving.server import serve as serve_recogniser

    serve_recogniser(
        run,
        host=host,
        port=port,
        threads=threads,
        queue=queue,
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        seconds=seconds,
        allow_origin=allow_origin or (),
        device=device,
        teach=teach,
    )
    return 0


def _answers_by_image(table: pl.DataFrame) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = []
    for row in table.iter_rows(named=True):
        if row["rank"] in (None, 1):
            images.append({name: row[name] for name in ("path", "known", "problem")} | {"answers": []})
        if row["rank"] is not None:
            images[-1]["answers"].append({name: row[name] for name in ("landmark_id", "name", "probability")})
    return images


# ── `landmarks learn` and `landmarks forget`: a new landmark from a few images, without training ────────────────────


def learn(
    run: Annotated[Path, typer.Argument(metavar="RUN|NAME.onnx", help="The run's folder, or an export.")],
    images: Annotated[list[Path] | None, typer.Argument(help="Images of the new landmark, or folders of them.")] = None,
    *,
    name: Annotated[
        str | None, typer.Option(help="The landmark's name; one that was learned before gets these images too.")
    ] = None,
    landmark_id: Annotated[
        int | None, typer.Option(help="The landmark's id; without it, it gets a number below -1.")
    ] = None,
    from_: Annotated[
        Path | None, typer.Option("--from", help="A file saved by an export's page, instead of images.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Teach a run or an export a new landmark from one or a few images, in about a second and without training.

    An export must have been written with --learning; what it learns is kept in a file next to it.

    Example: landmarks learn runs/mobilenet belem/*.jpg --name "Torre de Belém"
    landmarks learn mobilenet.onnx --from learned.json
    """
    from landmarks.recognition.learn import learn as learn_landmark

    table = learn_landmark(run, images, name=name, landmark_id=landmark_id, from_=from_, device=device)
    _show_learned(table, json)


def forget(
    run: Annotated[Path, typer.Argument(metavar="RUN|NAME.onnx", help="The run's folder, or an export.")],
    name: Annotated[str | None, typer.Argument(help="The name of a landmark that it learned.")] = None,
    *,
    name_option: Annotated[str | None, typer.Option("--name", help="The same, as for learn.")] = None,
    json: Json = False,
) -> None:
    """Remove a learned landmark from a run or an export.

    Example: landmarks forget runs/mobilenet "Torre de Belém"
    """
    from landmarks.recognition.learn import forget as forget_landmark

    if name is None:
        name, name_option = name_option, None
    if name is None or name_option is not None:
        raise UsageError("one landmark is forgotten at a time", expected="its name, as learn shows it")
    _show_learned(forget_landmark(run, name), json)


def _show_learned(table: pl.DataFrame, as_json: bool) -> None:

    if as_json:
        print_json(table)
    else:
        print_table(["label", "landmark_id", "learned", "images"], table.rows())


# ── `landmarks export`: a run as one file with the same answers everywhere ──────────────────────────────────────────


def export(
    run: Annotated[Path, typer.Argument(help="The run's folder; with --page also an export.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The ONNX file to write, NAME.onnx; a folder with --timm.")
    ] = None,
    *,
    page: Annotated[
        Path | None, typer.Option(help="Write an HTML file instead that recognises images by itself.")
    ] = None,
    runtime: Annotated[
        Path | None, typer.Option(help="Folder with onnxruntime-web for --page; without it, npm downloads it once.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to 8 bits, a quarter of the size.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store weights in half precision, half the size.")] = False,
    timm: Annotated[bool, typer.Option("--timm", help="Write a folder for timm and the Hub instead.")] = False,
    learning: Annotated[bool, typer.Option("--learning", help="Let the file or page learn new landmarks.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Verify on this dataset's images, not on the run's own validation split.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Number of images to verify on (default: 64, or 256 with --int8).")
    ] = None,
    json: Json = False,
) -> None:
    """Write a run as one file that gives the same answers everywhere; whether it does is verified first.

    Example: landmarks export runs/mobilenet -o mobilenet.onnx
    landmarks export runs/mobilenet --page mobilenet.html
    """
    from dataclasses import asdict

    if page is not None:
        from landmarks.serving.one_page import export_page

        _refuse_together("--page", {"-o": out, "--int8": int8, "--half": half, "--timm": timm, "--images": images})
        exported = export_page(run, page, runtime=runtime, data=data, learning=learning)
        if json:
            print_json(exported)
            return
        network_mb = exported.network_bytes / 1e6
        show(f"{exported.path}: {exported.bytes / 1e6:.1f} MB, of which {network_mb:.1f} MB are the network")
        return
    if out is None:
        raise UsageError("nothing to write", expected="-o NAME.onnx, or --page NAME.html")
    _refuse_together("-o", {"--runtime": runtime})
    if timm:
        _refuse_together("--timm", {"--half": half, "--learning": learning, "--data": data, "--images": images})
    from landmarks.recognition.export import export as export_run

    written = export_run(run, out, int8=int8, half=half, timm=timm, learning=learning, data=data, images=images)
    if json:
        print_json({**asdict(written), "path": str(written.path)})
        return
    checked = written.verification
    if checked is None:
        show(f"{written.path}: {written.bytes / 1e6:.1f} MB, with a model card; timm gives the run's logits from it")
        return
    show(
        f"{written.path}: {written.bytes / 1e6:.1f} MB, {written.kind}; {100 * checked.agreement:.1f} % agreement with "
        f"the run on {checked.images} images, largest difference of a probability {checked.largest_difference:.4f}"
    )


def _refuse_together(option: str, others: dict[str, object]) -> None:
    """Raise `UsageError` if one of `others` was given, which has no effect together with `option`."""
    for name, value in others.items():
        if value not in (None, False):
            raise UsageError(f"{name} has no effect with {option}", way_out=f"leave one of them out: {name}")


# ── `landmarks index` and `landmarks search`: neighbours among any number of images ─────────────────────────────────


def index(
    data: Annotated[list[Path] | None, typer.Argument(help="Dataset folders.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The index folder to write, or to add to.")],
    run: Annotated[Path | None, typer.Option(help="The run whose network computes the features.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="The id of an image to remove; may be repeated.")] = None,
    dimensions: Annotated[int, typer.Option(help="Numbers kept per image, of two bytes each.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> None:
    """Make an index of all images of datasets, or add them to one; landmarks search finds similar images in it.

    An existing index needs no --run. Images that were removed (--remove) are not found any more.

    Example: landmarks index data testdata --run runs/mobilenet -o images.index
    """
    from landmarks.recognition.indexing import index as index_images

    gallery = index_images(data or [], out, run=run, remove=remove or (), dimensions=dimensions, device=device)
    if json:
        print_json({"folder": gallery.folder, "images": len(gallery), "landmarks": gallery.landmarks})
    else:
        show(f"{out} holds {plural(len(gallery), 'image')} of {plural(gallery.landmarks, 'landmark')}")


def search(
    index: Annotated[Path, typer.Argument(help="The index folder.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.")],
    *,
    top: Annotated[int, typer.Option(help="Images to find for each.")] = 10,
    verify: Annotated[bool, typer.Option("--verify", help="Match local features with the best ten images.")] = False,
    drawings: Annotated[Path | None, typer.Option(help="Write drawings of the matches to this folder.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    json: Json = False,
) -> int:
    """Find the images of an index that are most similar to each of these, with their landmarks.

    Images that cannot be decoded are named, and the exit code is then 1.

    Example: landmarks search images.index holiday/1.jpg --top 5
    """
    from landmarks.recognition.searching import search as search_images

    table = search_images(index, images, top=top, verify=verify, drawings=drawings, device=device)
    failed = table.filter(table["problem"].is_not_null())
    if json:
        print_json(table.to_dicts())
    else:
        columns = ["path", "rank", "image_id", "name", "inliers", "cosine"]
        rows = [
            (path, rank, image_id, name or "", "" if inliers is None else inliers, f"{cosine:.3f}")
            for path, rank, image_id, name, inliers, cosine in table.drop_nulls("rank").select(columns).iter_rows()
        ]
        if rows:
            print_table(["image", "rank", "found", "landmark", "points", "cosine"], rows)
    for problem in failed["problem"]:  # it names the image
        note(problem)
    return 1 if len(failed) else 0
