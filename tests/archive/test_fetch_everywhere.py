"""One dataset from everywhere: a folder, nginx, an S3 look-alike and a Dask cluster, whole, within its memory."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faulty_server import Fault, Request, serving
from s3_server import bucket_of
from tar_mirror import make_mirror, make_selection

from landmarks.archive.fetch import fetch
from landmarks.archive.locate import locate
from landmarks.archive.mirror import open_mirror
from landmarks.dataset.manifest import Dataset, open_dataset
from landmarks.support.tables import read_table

MOST_MEMORY = 600_000_000
"""Bytes above the imports, whatever the number of images."""


def digests(dataset: Dataset | None) -> dict[str, str]:
    assert dataset is not None
    shards = sorted((dataset.folder / "shards").iterdir())
    tables = [dataset.folder / name for name in ("images.parquet", "labels.parquet", "rejected.parquet")]
    return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in [*shards, *tables]}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether it is this process that holds the port: somebody else may have taken it since it was free."""
    assert process.poll() is None
    held = psutil.Process(process.pid).net_connections("tcp4")
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in held)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    make_mirror(tmp_path / "mirror", tars=4, each=10)
    return tmp_path / "mirror"


@pytest.fixture
def selection(tmp_path: Path, mirror: Path) -> Path:
    ids = read_index_ids(locate(mirror, tmp_path / "index.parquet").path)
    return make_selection(tmp_path / "selection.parquet", mirror, ids[::2])


def read_index_ids(path: Path) -> list[str]:
    return [f"{id:016x}" for id in read_table(path)["image_id"]]


@pytest.fixture
def nginx(tmp_path: Path, mirror: Path) -> Iterator[str]:
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path / "nginx"
    folder.mkdir()
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    mirror.parent.chmod(0o755)
    user = "user root;" if os.geteuid() == 0 else ""  # its workers would else be nobody, who may not look in there
    process, port = started_on_a_free_port(program, folder, f"{temporary} root {mirror};", user)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


def started_on_a_free_port(program: str, folder: Path, settings: str, user: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start nginx, which cannot choose a port itself, on one that was free a moment ago; if it is gone, on another."""
    for _ in range(20):
        port = free_port()
        (folder / "conf").write_text(
            f"{user} daemon off; pid {folder}/pid; error_log {folder}/log; events {{}} "
            f"http {{ access_log off; {settings} server {{ listen 127.0.0.1:{port}; }} }}"
        )
        process = subprocess.Popen([program, "-c", folder / "conf"], stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if listens(process, port):
                return process, port
            time.sleep(0.05)
    pytest.fail(f"nginx does not start: {(folder / 'log').read_text()}")


@pytest.fixture
def bucket(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of an S3 look-alike in a process of its own, with the mirror's files under a prefix."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("moto is not installed")
    with bucket_of(mirror) as (address, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield address


@pytest.mark.slow
def test_nginx_streams_and_gives_ranges(tmp_path: Path, selection: Path, nginx: str) -> None:
    plain = digests(fetch(selection, tmp_path / "plain"))
    assert digests(fetch(selection, tmp_path / "streamed", mirror=nginx)) == plain
    index = locate(nginx, tmp_path / "nginx.parquet").path
    assert digests(fetch(selection, tmp_path / "ranged", mirror=nginx, index=index, method="ranges")) == plain
    assert read_table(index).equals(read_table(tmp_path / "index.parquet"))


@pytest.mark.slow
def test_a_bucket_is_a_mirror(tmp_path: Path, selection: Path, bucket: str) -> None:
    plain = digests(fetch(selection, tmp_path / "plain"))
    assert digests(fetch(selection, tmp_path / "streamed", mirror=bucket)) == plain
    index = locate(bucket, tmp_path / "s3.parquet").path
    assert digests(fetch(selection, tmp_path / "ranged", mirror=bucket, index=index, method="ranges")) == plain
    assert not open_mirror(bucket).exists("train/images_004.tar")
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*.json"))


CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        print(*[worker.process.pid for worker in cluster.workers.values()], flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[int]]]:
    """A scheduler's address, and its two workers' process ids."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("distributed is not installed")
    (tmp_path / "cluster.py").write_text(CLUSTER)
    line = [sys.executable, "-W", "ignore", tmp_path / "cluster.py"]
    process = subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    yield process.stdout.readline().strip(), [int(pid) for pid in process.stdout.readline().split()]
    process.stdin.close()
    process.wait()
    process.stdout.close()


def in_another_process(*arguments: object) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-W", "ignore", "-m", "landmarks", "fetch", *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_cluster_does_the_same_work(tmp_path: Path, selection: Path, cluster: tuple[str, list[int]]) -> None:
    plain = digests(fetch(selection, tmp_path / "plain"))
    process = in_another_process(selection, "-o", tmp_path / "data", "--cluster", cluster[0])
    assert process.wait() == 0
    assert digests(open_dataset(tmp_path / "data")) == plain


@pytest.mark.slow
def test_a_lost_worker_and_a_lost_master_cost_nothing_but_time(
    tmp_path: Path, selection: Path, mirror: Path, cluster: tuple[str, list[int]]
) -> None:
    plain = digests(fetch(selection, tmp_path / "plain"))
    slow = {"on": True}

    def plan(request: Request) -> Fault | None:
        late = slow["on"] and request.method == "GET" and request.path.endswith(("images_002.tar", "images_003.tar"))
        return Fault(stall_after=20_000) if late else None

    out = tmp_path / "data"
    with serving(mirror, plan) as server:
        line = [selection, "-o", out, "--cluster", cluster[0], "--mirror", server.address]
        master = in_another_process(*line)
        while sum(request.path.endswith("images_002.tar") for request in server.requests) < 2:
            assert master.poll() is None
            time.sleep(0.05)
        os.kill(cluster[1][0], signal.SIGKILL)
        master.send_signal(signal.SIGKILL)
        master.wait()
        slow["on"] = False
        server.stalls_end.set()
        assert in_another_process(*line).wait() == 0
    assert digests(open_dataset(out)) == plain


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("images", [1000, 3584])
def test_memory_does_not_grow_with_the_images(tmp_path: Path, shared: Path, images: int) -> None:
    script = (
        "import resource, sys, polars as pl, landmarks, landmarks.archive.fetch\n"
        "from landmarks.support.tables import write_table\n"
        "folder, mirror, count = sys.argv[1:]\n"
        "rows = pl.read_csv(f'{mirror}/metadata/train.csv').select(pl.col('id').alias('image_id'), 'landmark_id')\n"
        "rows = rows.sort('image_id')[: int(count)]\n"
        "write_table(f'{folder}/s.parquet', rows, mirror=mirror, set='train')\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "data = landmarks.fetch(f'{folder}/s.parquet', f'{folder}/data')\n"
        "print(peak() - before, len(data.images), len(pl.read_parquet(f'{folder}/data/rejected.parquet')))\n"
    )
    line = [sys.executable, "-c", script, tmp_path, shared / "mirror", str(images)]
    numbers = subprocess.run(line, check=True, capture_output=True, text=True).stdout.split()
    above, kept, lost = map(int, numbers)
    assert above < MOST_MEMORY
    assert kept + lost == images and lost <= 2


@pytest.mark.shared
@pytest.mark.slow
def test_of_the_real_images_only_the_two_broken_ones_are_lost(tmp_path: Path, shared: Path) -> None:
    import landmarks

    landmarks.select(shared / "mirror", tmp_path / "real.parquet")
    data = fetch(tmp_path / "real.parquet", tmp_path / "data")
    assert data is not None
    rejected = read_table(data.folder / "rejected.parquet")
    assert (len(data.images), len(data.labels)) == (3582, 25)
    assert rejected["where"].to_list() == ["train/images_001.tar", "train/images_003.tar"]
    assert ["truncated" in why or "not an image" in why for why in rejected["why"]] == [True, True]
    landmarks.select(shared / "mirror", tmp_path / "test.parquet", set="test")
    test = fetch(tmp_path / "test.parquet", tmp_path / "test")
    assert test is not None
    assert test.images["landmark_id"].count() == 677 and test.images["landmark_id"].null_count() == 520
