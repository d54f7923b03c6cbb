"""Which library moves byte ranges: obstore against fsspec, in fair weather and in foul.

    python benchmarks/ranges.py ADDRESS PATH        e.g. http://127.0.0.1:8080 train/images_000.tar, served by nginx

Fair weather: 5,000 ranges of 16 kB, 64 requests under way, per second of wall clock and per second of this processor.
Foul weather: what each library does, left to itself, with the faults of `tests/faulty_server.py`.

fsspec needs aiohttp for HTTP, which is not in the lock: pip install fsspec aiohttp obstore, in an environment aside.

Found with obstore 0.12.1 and fsspec 2026.9.0 on aiohttp 3.14.5, two cores busy with other work, nginx 1.22 on the same
machine (two runs):

| | obstore, threads | obstore, get_ranges | fsspec, cat_ranges |
| --- | --- | --- | --- |
| ranges per second of wall clock | 5,300 … 12,500 | 6,600 … 8,300 | 3,100 |
| ranges per second of processor time | 7,900 … 9,300 | 13,700 … 17,100 | 6,800 … 7,100 |
| 503 with `Retry-After: 1` | right, but asks again after 0.1 s | the same | error at once |
| cut in the middle, stalls | goes on where it broke | the same | error at once |
| the whole file for a range | error at once | the same | WRONG BYTES, no error |
| another range | error | the same | WRONG BYTES, no error |
| fewer bytes than told | SHORT, no error | the same | SHORT, no error |

So obstore, by threads: `get_ranges` hides each answer's ETag and size, without which a mirror that changes is not
noticed. What it lacks is in `support/requests.py` (Retry-After, one pause for all workers, tries after a wrong range or
a cut without an ETag) and `Mirror.range` (short answers).
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import fsspec
import obstore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from faulty_server import Fault, Request, serving

RANGES, LENGTH, UNDER_WAY = 5_000, 16_384, 64
OPTIONS = {"allow_http": True, "read_timeout": timedelta(seconds=1)}

Reader = Callable[[str, str, list[int]], list[bytes]]


def obstore_threads(address: str, path: str, starts: list[int]) -> list[bytes]:
    store = obstore.store.HTTPStore.from_url(address, client_options=OPTIONS)

    def read(start: int) -> bytes:
        return bytes(obstore.get_range(store, path, start=start, length=LENGTH))

    with ThreadPoolExecutor(UNDER_WAY) as pool:
        return list(pool.map(read, starts))


def obstore_get_ranges(address: str, path: str, starts: list[int]) -> list[bytes]:
    store = obstore.store.HTTPStore.from_url(address, client_options=OPTIONS)
    answers = obstore.get_ranges(store, path, starts=starts, lengths=[LENGTH] * len(starts), coalesce=0)
    return [bytes(answer) for answer in answers]


def fsspec_cat_ranges(address: str, path: str, starts: list[int]) -> list[bytes]:
    files = fsspec.filesystem("http", skip_instance_cache=True)
    ends = [start + LENGTH for start in starts]
    return files.cat_ranges([f"{address}/{path}"] * len(starts), starts, ends, batch_size=UNDER_WAY, on_error="raise")


READERS: dict[str, Reader] = {
    "obstore, threads": obstore_threads,
    "obstore, get_ranges": obstore_get_ranges,
    "fsspec, cat_ranges": fsspec_cat_ranges,
}

FOUL: dict[str, Callable[[Request], Fault | None]] = {
    "503 once, Retry-After 1 s": lambda one: Fault(status=503, headers={"Retry-After": "1"}) if one.nth == 0 else None,
    "cut in the middle, once": lambda one: Fault(cut_after=5_000) if one.nth == 0 else None,
    "stalls, once": lambda one: Fault(stall_after=5_000) if one.nth == 0 else None,
    "the whole file for a range": lambda _: Fault(ignore_range=True),
    "another range": lambda _: Fault(shift_range=1),
    "fewer bytes than told": lambda _: Fault(body=lambda data: data[: LENGTH // 2]),
}


def main(address: str, path: str) -> None:
    random.seed(0)
    store = obstore.store.HTTPStore.from_url(address, client_options=OPTIONS)
    size = obstore.head(store, path)["size"]
    starts = list(range(0, size - LENGTH, size // RANGES))[:RANGES]
    assert size >= 2 * RANGES * LENGTH, "the file is too small: the ranges would touch, and be merged"
    random.shuffle(starts)
    print("ranges per second of wall clock / of this process's processor time")
    for name, reader in READERS.items():
        wall, processor = time.perf_counter(), time.process_time()
        assert all(len(answer) == LENGTH for answer in reader(address, path, starts))
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(f"  {name}: {RANGES / wall:,.0f} / {RANGES / processor:,.0f}")
    with tempfile.TemporaryDirectory() as folder:
        data = random.randbytes(2 * LENGTH)
        (Path(folder) / "file").write_bytes(data)
        for weather, plan in FOUL.items():
            print(weather)
            for name, reader in READERS.items():
                with serving(Path(folder), plan) as server:
                    started = time.perf_counter()
                    result = outcome(reader, server.address, data)
                    print(f"  {name}: {result}, {len(server.requests)} requests, ", end="")
                    print(f"{time.perf_counter() - started:.1f} s")


def outcome(reader: Reader, address: str, data: bytes) -> str:
    try:
        answer = reader(address, "file", [100])[0]
    except Exception as error:
        return f"{type(error).__name__}"
    return "right" if answer == data[100 : 100 + LENGTH] else f"WRONG BYTES ({len(answer)}), no error"


if __name__ == "__main__":
    main(*sys.argv[1:3])
