from __future__ import annotations

import io
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from scipy.stats import skew

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from simulated_archive import Archive, Simulated
from simulated_tables import FROM_RANK_34, class_sizes

SMALL = Archive(seed=3, images=60, tars=3)


def test_a_tar_is_read_by_the_standard_library_and_its_jpegs_decode() -> None:
    layout = SMALL.layout(1)
    whole = SMALL.read(1, 0, layout.bytes)
    assert len(whole) == layout.bytes
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        members = tar.getmembers()
        assert [member.size for member in members] == layout.sizes.tolist()
        assert [member.name for member in members] == [
            f"{name[0]}/{name[1]}/{name[2]}/{name}.jpg" for name in (f"{id:016x}" for id in layout.ids.tolist())
        ]
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            assert max(simplejpeg.decode_jpeg(file.read(), strict=True).shape) == 800


def test_any_range_is_the_same_bytes() -> None:
    whole = SMALL.read(2, 0, SMALL.layout(2).bytes)
    random = np.random.default_rng(0)
    for _ in range(300):
        start = int(random.integers(0, len(whole)))
        end = start + int(random.integers(0, 2000 if random.random() < 0.8 else len(whole)))
        assert SMALL.read(2, start, end) == whole[start:end]


def test_an_id_leads_back_to_its_image() -> None:
    archive = Archive()
    ids = archive.ids(1_000_000, 1_000_100)
    assert [archive.number(int(id)) for id in ids] == list(range(1_000_000, 1_000_100))


def test_class_sizes_have_the_true_statistics() -> None:
    sizes = class_sizes()
    assert (len(sizes), sizes.sum(), sizes[0], sizes[-1]) == (203_094, 4_132_914, 10_247, 1)
    counts = np.bincount(sizes)
    assert counts[1:9].tolist() == [18_894, 17_737, 15_804, 13_526, 11_402, 9_976, 8_759, 7_654]
    assert (counts[9] + counts[10], counts[11:].sum()) == (12_538, 86_804)
    assert tuple(sizes[33:55]) == FROM_RANK_34
    assert (sizes[49:149].sum(), sizes[148], sizes[149] < 595) == (76_316, 595, True)
    assert sizes.var() == pytest.approx(2742.2, abs=0.5)
    assert skew(sizes) == pytest.approx(50.4, abs=0.05)


@pytest.mark.slow
def test_the_server_answers_ranges_heads_and_absent_files_and_counts_them() -> None:
    with Simulated(SMALL) as server:
        path = f"{server.address}/train/images_001.tar"
        with urllib.request.urlopen(urllib.request.Request(path, headers={"Range": "bytes=100-1099"})) as answer:
            assert answer.status == 206
            assert answer.headers["Content-Range"] == f"bytes 100-1099/{SMALL.layout(1).bytes}"
            assert answer.read() == SMALL.read(1, 100, 1100)
        with urllib.request.urlopen(urllib.request.Request(path, method="HEAD")) as answer:
            assert int(answer.headers["Content-Length"]) == SMALL.layout(1).bytes
        with urllib.request.urlopen(path) as answer:
            assert answer.read() == SMALL.read(1, 0, SMALL.layout(1).bytes)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{server.address}/train/images_003.tar")
        counts = server.counts()
        assert counts["requests"] == 4
        assert counts["bytes"] == 1000 + SMALL.layout(1).bytes
