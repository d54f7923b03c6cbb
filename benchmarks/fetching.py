"""The cost of reading images out of the archive at its true size: by ranges, by walking headers, by streaming.

    python benchmarks/fetching.py [ranges] [hopping] [streaming] [--metadata FOLDER]

A server on this machine, which shares its processors, simulates the archive (see `simulated_archive.py`).
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import obstore.store
import polars as pl
from results import landmarks, measured, save
from simulated_archive import BLOCK, Archive, Simulated
from simulated_tables import write_tables

from landmarks.archive.executors import default_tar_workers, workforce
from landmarks.archive.fetch_plan import FetchPlan, make_plan
from landmarks.archive.locate import MEMBERS, IndexedTar, TarIndex, walk_headers, write_index
from landmarks.archive.mirror import open_mirror, tar_path
from landmarks.archive.tar_to_shard import TarTask
from landmarks.archive.transfer import Contents, request_images, stream_images
from landmarks.dataset.groups import perceptual_hash
from landmarks.dataset.images import prepare

STUDY = ("--skip", "49", "--take", "100", "--choose", "20")
CONNECTIONS = 64
HEADERS_AT = {0: 400, 20: 200, 80: 60}
"""Latency in milliseconds → headers that each connection reads."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("parts", nargs="*", default=["ranges", "hopping", "streaming"])
    options.add_argument("--metadata", type=Path, default=Path(tempfile.gettempdir()) / "landmarks-simulated")
    chosen = options.parse_args()
    if not (chosen.metadata / "metadata/train.csv").exists():
        write_tables(chosen.metadata, Archive())
    with tempfile.TemporaryDirectory() as temporary:
        for part in chosen.parts:
            {"ranges": ranges, "hopping": hopping, "streaming": streaming}[part](chosen.metadata, Path(temporary))


def ranges(metadata: Path, folder: Path) -> None:
    """Fetch the study's selection with a known index; then the same ranges without decoding, and in a bare loop."""
    archive = Archive()
    selection = folder / "selection.parquet"
    measured(landmarks("select", metadata, "-o", selection, *STUDY))
    with Simulated(archive) as server:
        index = write_known_index(archive, server.address, folder / "index.parquet")
        plan = planned(server.address, selection, index)
        wanted = sum(int(task.places.lengths.sum()) for task in plan.tasks if task.places is not None)
        images = sum(len(task.places) for task in plan.tasks if task.places is not None)
        imports = measured([sys.executable, "-c", "import landmarks.archive.fetch"])[2]
        options = ("--mirror", server.address, "--index", index.path, "--method", "ranges")
        command = landmarks("fetch", selection, "-o", folder / "data", *options)
        rows: list[dict[str, Any]] = []

        def add(way: str, seconds: float, processor: float, megabytes: float | None) -> None:
            counts = server.counts()
            rows.append(
                {
                    "way": way,
                    "images_per_second": round(images / seconds),
                    "seconds": round(seconds, 1),
                    "processor_seconds": round(processor, 1),
                    "server_processor_seconds": round(server.seconds_of_processor() - before, 1),
                    "requests_per_image": round(counts["requests"] / images, 3),
                    "bytes_ratio": round(counts["bytes"] / wanted, 4),
                    "mb_above_imports": None if megabytes is None else round(megabytes - imports),
                }
            )

        server.reset()
        before = server.seconds_of_processor()
        add("landmarks fetch", *measured(command))
        shutil.rmtree(folder / "data")
        for way, walk in (("ranges alone", ranges_alone), ("bare loop", bare_loop)) * 5:
            server.reset()
            before, own, started = server.seconds_of_processor(), time.process_time(), time.perf_counter()
            walk(server.address, plan)
            add(way, time.perf_counter() - started, time.process_time() - own, None)
    middle = medians(rows, "images_per_second")
    save(
        "fetching_ranges",
        rows,
        images=images,
        wanted_bytes=wanted,
        workers=default_tar_workers(),
        prepared_per_second_and_processor=prepared_per_second(archive),
        ranges_to_bare_loop=round(middle["ranges alone"] / middle["bare loop"], 3),
    )


def write_known_index(archive: Archive, address: str, path: Path) -> TarIndex:
    """Write the byte index that walking the headers would find, from the layout of the simulation."""
    mirror = open_mirror(address)
    members, tars = {}, {}
    etag = mirror.head(tar_path("train", 0))[1] or ""
    for tar in range(archive.tars):
        layout = archive.layout(tar)
        columns = {"image_id": layout.ids, "offset": layout.headers + BLOCK, "length": layout.sizes}
        members[tar] = pl.DataFrame(columns).cast(MEMBERS)  # type: ignore[arg-type]
        tars[tar] = IndexedTar(tar, layout.bytes, etag.replace(f"{archive.layout(0).bytes:x}", f"{layout.bytes:x}"))
    return write_index(path, members, tars, set="train", mirror=mirror.place, count=archive.tars)


def planned(address: str, selection: Path, index: TarIndex) -> FetchPlan:
    """Return the requests that `fetch` would make."""
    ids = np.sort(pl.read_parquet(selection)["image_id"].str.to_integer(base=16, dtype=pl.UInt64).to_numpy())
    blank = TarTask(out=Path(), mirror=open_mirror(address), set="train", tar=0, max_side=512, digest="")
    return make_plan(blank, ids, index, "ranges")


def ranges_alone(address: str, plan: FetchPlan) -> None:
    """Request and check what `fetch` does, with its workers, and drop the images."""
    mirror = open_mirror(address)

    def one(task: TarTask) -> int:
        assert task.places is not None
        path = tar_path("train", task.tar)
        images = request_images(
            mirror,
            path,
            places=task.places,
            spans=task.spans,
            is_indexed_tar=lambda answer: (answer.size, answer.etag) == (task.size, task.etag),
            report=lambda *_: None,
        )
        return sum(1 for _ in images)

    with workforce(None, None) as pool:
        list(pool.map(one, plan.tasks))


def bare_loop(address: str, plan: FetchPlan) -> None:
    """Request the same ranges with obstore through as many connections, and drop the bytes."""
    store = obstore.store.HTTPStore.from_url(address, client_options={"allow_http": True})
    spans = [(tar_path("train", task.tar), span.start, span.end) for task in plan.tasks for span in task.spans]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for _ in pool.map(lambda span: obstore.get_range(store, span[0], start=span[1], end=span[2]), spans):
            pass


def prepared_per_second(archive: Archive) -> dict[str, int]:
    """Return the images per second that one processor decodes, shrinks and encodes, and that it hashes."""
    layout = archive.layout(0)
    jpegs = [archive.image(int(layout.ids[row]), int(layout.sizes[row])) for row in range(200)]
    started = time.process_time()
    images = [prepare(jpeg, 512)[1] for jpeg in jpegs]
    prepared = time.process_time()
    for image in images:
        perceptual_hash(image)
    hashed = time.process_time()
    return {"prepared": round(200 / (prepared - started)), "hashed": round(200 / (hashed - prepared))}


def hopping(metadata: Path, folder: Path) -> None:
    """Walk headers through 64 connections at several latencies, and one TAR to its end."""
    archive = Archive()
    rows = []
    with Simulated(archive) as server:
        mirror = open_mirror(server.address)
        layout = archive.layout(0)
        server.reset()
        started = time.perf_counter()
        path = tar_path("train", 0)
        found = [member.offset for member in walk_headers(mirror, path, *mirror.head(path))]
        alone = time.perf_counter() - started
        assert found == (layout.headers + BLOCK).tolist()
        counts = server.counts()
        one_tar = {
            "headers": len(found),
            "share_of_the_tar": round(counts["bytes_with_headers"] / layout.bytes, 5),
            "bytes_per_header": round(counts["bytes"] / len(found), 1),
            "bytes_per_header_with_http": round(counts["bytes_with_headers"] / len(found), 1),
            "seconds_through_one_connection": round(alone, 1),
        }
        for milliseconds, each in HEADERS_AT.items():
            server.latency(milliseconds)
            heads = [(tar_path("train", tar), *mirror.head(tar_path("train", tar))) for tar in range(CONNECTIONS)]
            own, started = time.process_time(), time.perf_counter()
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                list(pool.map(lambda head: list(itertools.islice(walk_headers(mirror, *head), each)), heads))  # noqa: B023
            seconds = time.perf_counter() - started
            rate = CONNECTIONS * each / seconds
            every = archive.images + archive.tars
            rows.append(
                {
                    "latency_ms": milliseconds,
                    "headers_per_second": round(rate),
                    "processor_share": round((time.process_time() - own) / seconds, 2),
                    "minutes_for_500_tars": round(every / rate / 60),
                    "gb_for_500_tars": round(every * one_tar["bytes_per_header_with_http"] / 1e9, 2),
                }
            )
    save("fetching_hopping", rows, connections=CONNECTIONS, one_tar=one_tar)


def streaming(metadata: Path, folder: Path) -> None:
    """Stream one TAR of 1 GB from a folder, against `md5sum` and `tar -t` in one pipe over the same bytes."""
    archive = Archive(images=Archive().first(1), tars=1)
    mirror = folder / "mirror"
    (mirror / "train").mkdir(parents=True)
    tar = mirror / tar_path("train", 0)
    with open(tar, "wb") as file:
        for piece in archive.files(0, 0, archive.layout(0).bytes):
            file.write(piece)
    size, md5 = tar.stat().st_size, hashlib.md5(tar.read_bytes(), usedforsecurity=False).hexdigest()
    rows = []
    for way, walk in (("md5sum and tar -t in one pipe", pipe), ("streamed", stream)) * 3:
        started = time.perf_counter()
        walk(tar, md5)
        seconds = time.perf_counter() - started
        rows.append({"way": way, "mb_per_second": round(size / seconds / 1e6), "seconds": round(seconds, 2)})
    middle = medians(rows, "mb_per_second")
    save(
        "fetching_streaming",
        rows,
        bytes=size,
        streamed_to_pipe=round(middle["streamed"] / middle["md5sum and tar -t in one pipe"], 3),
    )


def medians(rows: list[dict[str, Any]], column: str) -> dict[str, float]:
    """Return way → the median of its values in `column`."""
    return {row["way"]: statistics.median(each[column] for each in rows if each["way"] == row["way"]) for row in rows}


def pipe(tar: Path, md5: str) -> None:
    """Read the TAR once with the usual programs."""
    command = 'tee -p >(tar -t > /dev/null) < "$1" | md5sum'
    ran = subprocess.run(["bash", "-c", command, "bash", str(tar)], check=True, capture_output=True, text=True)
    assert ran.stdout.split()[0] == md5


def stream(tar: Path, md5: str) -> None:
    """Read the TAR once as `fetch` does, keeping one image in 256."""
    images = stream_images(
        open_mirror(tar.parent.parent),
        f"train/{tar.name}",
        md5=md5,
        wanted=lambda name: name.startswith("00"),
        contents=Contents(),
        report=lambda *_: None,
    )
    for _ in images:
        pass


if __name__ == "__main__":
    main()
