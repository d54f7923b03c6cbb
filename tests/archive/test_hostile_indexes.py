"""Byte indexes from strangers: what cannot be is refused in one line, and what is merely wrong costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tar_mirror import make_mirror, make_selection

from landmarks.cli.main import run
from landmarks.dataset.manifest import open_dataset

METADATA, PLACE = "is not that of a byte index", "that cannot be"


@dataclass(frozen=True)
class Index:
    """A byte index: its rows and its metadata."""

    rows: pl.DataFrame
    metadata: dict[str, str]


def column(name: str, value: object) -> Callable[[Index], Index]:
    """Return a change of a column's first value."""

    def change(index: Index) -> Index:
        first = pl.int_range(pl.len()) == 0
        column = pl.when(first).then(pl.lit(value, index.rows.schema[name])).otherwise(name).alias(name)
        return Index(index.rows.with_columns(column), index.metadata)

    return change


def metadata(**texts: str) -> Callable[[Index], Index]:
    return lambda index: Index(index.rows, index.metadata | texts)


def tars(**fields: Any) -> Callable[[Index], Index]:
    """Return a change of what is said about all TARs."""
    return lambda index: metadata(tars=json.dumps([one | fields for one in json.loads(index.metadata["tars"])]))(index)


def without(name: str) -> Callable[[Index], Index]:
    return lambda index: Index(index.rows, {key: text for key, text in index.metadata.items() if key != name})


HOSTILE: dict[str, tuple[Callable[[Index], Index], str | None]] = {
    "an image at the very beginning": (column("offset", 0), PLACE),
    "an image within the first header": (column("offset", 5), PLACE),
    "an image beyond the TAR": (column("offset", 10**12), PLACE),
    "an image beyond all numbers": (column("offset", 2**64 - 1), PLACE),
    "an image nowhere": (column("offset", None), PLACE),
    "an image of four gigabytes": (column("length", 2**32 - 1), PLACE),
    "an image of no length": (column("length", None), PLACE),
    "an image in a TAR that is not indexed": (column("tar", 999), PLACE),
    "an image in a TAR that cannot be": (column("tar", 65_535), PLACE),
    "an image of no bytes": (column("length", 0), None),
    "an image in another's place": (column("offset", 512 + 10_240), None),
    "TARs that are no JSON": (metadata(tars="{"), METADATA),
    "TARs of brackets in brackets": (metadata(tars="[" * 100_000), METADATA),
    "TARs that are nothing": (metadata(tars="null"), METADATA),
    "TARs that are numbers": (metadata(tars="[1]"), METADATA),
    "TARs of other fields": (metadata(tars='[{"x": 1}]'), METADATA),
    "TARs whose size is text": (tars(size="many"), METADATA),
    "TARs of negative size": (tars(size=-1), METADATA),
    "TARs of more than all disks": (tars(size=10**30), METADATA),
    "a negative TAR": (tars(tar=-1), METADATA),
    "a TAR of a truth": (tars(tar=True), METADATA),
    "TARs whose ETag is a number": (tars(etag=5), METADATA),
    "TARs of another size": (tars(size=900_000), None),
    "TARs of another ETag": (tars(etag="\x1b[2J"), None),
    "a number of TARs that is text": (metadata(tar_count="many\x1b[2J"), METADATA),
    "a negative number of TARs": (metadata(tar_count="-5"), METADATA),
    "a number of TARs without end": (metadata(tar_count="9" * 5000), METADATA),
    "a trillion TARs": (metadata(tar_count="9" * 12), METADATA),
    "no set": (without("set"), METADATA),
    "no mirror": (without("mirror"), METADATA),
    "a set of escapes": (metadata(set="\x1b[2J"), "is of another set"),
    "a set that climbs": (metadata(set="../../etc"), "is of another set"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Index]:
    """A selection, beside its mirror, and a sound index of that."""
    folder = tmp_path_factory.mktemp("sound")
    selection = make_selection(folder / "selection.parquet", folder / "mirror", make_mirror(folder / "mirror", 2, 4))
    assert run(["locate", str(folder / "mirror"), "-o", str(folder / "index.parquet")]) == 0
    texts = pl.read_parquet_metadata(folder / "index.parquet")
    rows = pl.read_parquet(folder / "index.parquet")
    return selection, Index(rows, {name: text for name, text in texts.items() if name != "ARROW:schema"})


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_index_is_refused_in_one_line_or_costs_nothing(
    what: str, sound: tuple[Path, Index], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change, refused = HOSTILE[what]
    selection, index = sound
    changed = change(index)
    changed.rows.write_parquet(tmp_path / "index.parquet", metadata=changed.metadata)
    line = ["fetch", str(selection), "-o", str(tmp_path / "data"), "--index", str(tmp_path / "index.parquet")]
    assert run([*line, "--method", "ranges"]) == (refused is not None)
    said = "".join(capfd.readouterr())
    assert not any(character < " " and character != "\n" for character in said)
    assert "unforeseen" not in said
    if refused is None:
        assert len(open_dataset(tmp_path / "data").images) == 8
    else:
        assert said.count("\n") == 1 and refused in said and "index.parquet" in said
