"""TARs from strangers: nothing is read or written outside, nothing hangs, what is sound is kept, what is lost named."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from faulty_server import serving
from tar_mirror import image, made_up_id, make_selection, member_name, put_tar, tar_of

from landmarks.cli.main import run

NEIGHBOURS = 4
"""Sound images: two in the TAR before the hostile one, two in the TAR behind it."""

BEFORE, ODD, AFTER = (made_up_id(seed) for seed in (100, 101, 102))
SOUND = {BEFORE: image(100), ODD: image(101), AFTER: image(102)}
"""What a sound TAR in the place of the hostile one would hold, in this order; `ODD` is what something is wrong with."""

SECRET = b"the canary's own song"


@dataclass(frozen=True)
class Kind:
    """A hostile TAR, and what must come out: which images are kept, why others are not, what else is said."""

    data: bytes | Callable[[Path], object]  # of the TAR, or a function that puts something in the place of its path
    kept: dict[str, bytes]
    lost: str = ""  # words in the reason of all others
    failed: bool = False  # the TAR contributes nothing
    said: str = ""


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "", **odd: Any) -> bytes:
    """Return a member with its data; `size` and `checksum` replace the bytes of these fields of its header."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"))
    if "size" in odd:
        at = len(header) - 512
        header[at + 124 : at + 136] = odd["size"].ljust(12, b"\0")
        header[at + 148 : at + 156] = b" " * 8
        header[at + 148 : at + 156] = b"%06o\0 " % sum(header[at:])
    if "checksum" in odd:
        header[-512 + 148 : -512 + 156] = odd["checksum"]
    return bytes(header) + data + bytes(-len(data) % 512)


def pax(**records: bytes) -> bytes:
    """Return an extra header with these records, for the member behind it."""
    text = b""
    for key, value in records.items():
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest)
        while length != len(rest) + len(str(length)):
            length = len(rest) + len(str(length))
        text += str(length).encode() + rest
    return member("PaxHeader", text, tarfile.XHDTYPE)


def sound(id: str) -> bytes:
    return member(member_name(id), SOUND[id])


def archive(*odd: bytes, after: bool = True) -> bytes:
    """Return a TAR of `BEFORE`, something odd and `AFTER`."""
    return b"".join([sound(BEFORE), *odd, sound(AFTER) if after else b"", bytes(1024)])


def without(*lost: str, **others: bytes) -> dict[str, bytes]:
    return {id: data for id, data in {**SOUND, **others}.items() if id not in lost}


def not_there(*odd: bytes, said: str = "") -> Kind:
    """Return the kind of a TAR whose odd member is no image, and does no harm to the others."""
    return Kind(archive(*odd), without(ODD), "in no TAR", said=said)


def damaged(*odd: bytes, lost: Sequence[str] = (ODD,)) -> Kind:
    """Return the kind of a TAR with a header that cannot be read."""
    return Kind(archive(*odd), without(*lost), "damaged)", said="damaged header at byte")


def rejected(data: bytes, why: str) -> Kind:
    return Kind(archive(member(NAME, data)), without(ODD), why)


def linked(kind: bytes, to: str, data: bytes = b"") -> Kind:
    return not_there(member(NAME, data, kind, to))


def instead(make: Callable[[Path], object], why: str) -> Kind:
    """Return the kind of something else that lies where the TAR should."""
    return Kind(make, {}, "that could be had (train/images_001.tar could not)", failed=True, said=why)


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + pixels + chunk(b"IEND", b"")


NAME, DATA = member_name(ODD), SOUND[ODD]
LONG = "x" * 3_000_000
CLIMBS = "climb out of it"
OVERLAP = archive(member(NAME, DATA, size=b"%011o" % (len(DATA) + -len(DATA) % 512 + 512)))
FIRST = len(sound(BEFORE)) + 512  # the position of the odd member's data, where nothing comes before its header

HOSTILE: dict[str, Kind] = {
    "a name that climbs": not_there(member(f"../../x/{ODD}.jpg", DATA), said=CLIMBS),
    "a name that climbs in the middle": not_there(member(f"a/../../{ODD}.jpg", DATA), said=CLIMBS),
    "an absolute name": not_there(member(f"/tmp/{ODD}.jpg", DATA), said=CLIMBS),
    "a name that climbs and clears the screen": not_there(member(f"../\x1b[2J\r\n/{ODD}.jpg", DATA), said=CLIMBS),
    "a folder that clears the screen": Kind(archive(member(f"\x1b[2J\x1b]0;x\x07/{ODD}.jpg", DATA)), SOUND),
    "a folder with a newline": Kind(archive(member(f"a\nerror: b/{ODD}.jpg", DATA)), SOUND),
    "a newline behind the name": not_there(member(f"{ODD}.jpg\n", DATA)),
    "a folder that is not UTF-8": Kind(archive(member(f"\udcff\udcfe/{ODD}.jpg", DATA)), SOUND),
    "a NUL within a name": not_there(pax(path=f"{ODD}\0.jpg".encode()), member("x", DATA)),
    "a long name of megabytes": damaged(member(f"{LONG}/{ODD}.jpg", DATA)),
    "a long link of megabytes": linked(tarfile.SYMTYPE, LONG),
    "a long name that claims gigabytes": damaged(member("x", b"", b"L", size=b"77777777777"), member("y", DATA)),
    "a name of a thousand letters": Kind(archive(member(f"{LONG[:1000]}/{ODD}.jpg", DATA)), SOUND),
    "a pax header that renames an image": not_there(pax(path=b"../../x.jpg"), member(NAME, DATA), said=CLIMBS),
    "a pax header that names an image": Kind(archive(pax(path=NAME.encode()), member("notes.txt", DATA)), SOUND),
    "a pax header of megabytes": damaged(pax(comment=LONG.encode(), path=NAME.encode()), member("x", DATA)),
    "a pax size that is negative": Kind(archive(pax(size=b"-512"), member(NAME, DATA)), SOUND),
    "a pax size that is no number": Kind(archive(pax(size=b"\xd9\xa3many"), member(NAME, DATA)), SOUND),
    "a pax size that is huge": Kind(
        archive(pax(size=b"9" * 18), member(NAME, DATA)), without(ODD, AFTER), "claims 9999|damaged)"
    ),
    "a pax size beyond all numbers": Kind(archive(pax(size=b"9" * 5000), member(NAME, DATA)), SOUND),
    "a pax size of nothing": Kind(
        archive(pax(size=b"0"), member(NAME, DATA)), without(ODD), "an empty file", said="damaged header"
    ),
    "a pax header of rubbish": Kind(archive(member("x", b"9 \0=\xff\n-3 a=b\n" * 9, b"x"), member(NAME, DATA)), SOUND),
    "pax headers for all": Kind(archive(member("x", b"30 path=../../../../etc/x.jpg\n", b"g"), sound(ODD)), SOUND),
    "a sparse member": damaged(member(NAME, DATA, tarfile.GNUTYPE_SPARSE)),
    "a hard link outside": linked(tarfile.LNKTYPE, "/etc/passwd"),
    "a hard link with data": Kind(
        archive(member(NAME, DATA, tarfile.LNKTYPE, "/etc/passwd")), without(ODD), "damaged)"
    ),
    "a symbolic link outside": linked(tarfile.SYMTYPE, "../../../canary"),
    "a symbolic link to another member": linked(tarfile.SYMTYPE, member_name(BEFORE)),
    "a symbolic link to itself": linked(tarfile.SYMTYPE, f"{ODD}.jpg"),
    "a pipe": linked(tarfile.FIFOTYPE, ""),
    "a device": linked(tarfile.CHRTYPE, ""),
    "a folder": linked(tarfile.DIRTYPE, ""),
    "a member of an unknown kind": not_there(member(NAME, DATA, b"Z")),
    "a member that claims gigabytes": Kind(
        archive(member(NAME, DATA, size=b"77777777777")), without(ODD, AFTER), "claims 8589934591|damaged)"
    ),
    "a member that claims more than all disks": Kind(
        archive(member(NAME, DATA, size=b"\x80" + b"\x7f" * 11)), without(ODD, AFTER), "claims 1541|damaged)"
    ),
    "a negative size": damaged(member(NAME, DATA, size=b"\xff" * 12)),
    "a negative octal size": damaged(member(NAME, DATA, size=b"-0000001000")),
    "a size with underscores": damaged(member(NAME, DATA, size=b"1_0")),
    "a size of letters": damaged(member(NAME, DATA, size=b"0000zzzz99")),
    "a checksum of letters": damaged(member(NAME, DATA, checksum=b"\xffchecks\0")),
    "a size that overlaps the next header": Kind(
        OVERLAP,
        {BEFORE: SOUND[BEFORE], ODD: OVERLAP[FIRST : FIRST + len(DATA) + -len(DATA) % 512 + 512]},
        "damaged)",
    ),
    "an image twice": Kind(archive(sound(ODD), member(NAME, image(9))), SOUND, said="twice; the first is kept"),
    "an image twice, broken and sound": Kind(archive(member(NAME, DATA[:-300]), sound(ODD)), SOUND, said="twice"),
    "an image a hundred times": Kind(archive(sound(ODD), member(NAME) * 100), SOUND, said="twice; the first is kept"),
    "a hundred damaged headers": Kind(
        archive((b"?" * 512 + member("x")) * 100), without(ODD), "damaged)", said="has 95 more damaged headers"
    ),
    "cut in a header": Kind(archive()[: len(sound(BEFORE)) + 100], without(ODD, AFTER), "in no TAR"),
    "cut in the data": Kind(archive(sound(ODD))[: FIRST + 2000], without(ODD, AFTER), "truncated|damaged)"),
    "without end blocks": Kind(sound(BEFORE) + sound(ODD) + sound(AFTER), SOUND),
    "members behind the end blocks": Kind(archive(bytes(1024), sound(ODD)), without(ODD, AFTER), "in no TAR"),
    "zeros": Kind(bytes(20_480), {}, "in no TAR"),
    "an empty file": Kind(b"", {}, "in no TAR"),
    "a gzip": Kind(gzip.compress(archive(sound(ODD)), mtime=0), {}, "damaged)"),
    "text": Kind(b"404 Not Found\n", {}, "in no TAR"),
    "a web page": instead(lambda path: path.write_text("<!DOCTYPE html><p>\x1b[2J"), "a web page came"),
    "a TAR within the TAR": not_there(member("inner.tar", tar_of([(NAME, DATA)]))),
    "an id in upper case": not_there(member(f"{ODD.upper()}.jpg", DATA)),
    "another suffix": not_there(member(f"{ODD}.png", DATA), member(f"{ODD}.jpg.exe", DATA)),
    "a member that is a web page": rejected(b"<!DOCTYPE html>\x1b[2J<p>Sign in</p>", "a web page"),
    "a member that is text with escapes": rejected(b"error\x1b[2J\x1b[31m\n", "not an image"),
    "a member that is nothing": rejected(b"", "an empty file"),
    "a PNG that is a bomb": rejected(png_of(60_000, 60_000), "too large"),
    "a JPEG that claims to be huge": rejected(DATA.replace(b"\0\x96\0\xc8", b"\xea\x60\xea\x60", 1), "too large"),
    "a pipe in the TAR's place": instead(os.mkfifo, "no plain file"),
    "a folder in the TAR's place": instead(Path.mkdir, "no plain file"),
    "a device in the TAR's place": instead(lambda path: path.symlink_to("/dev/zero"), "no plain file"),
    "a link to itself in the TAR's place": instead(lambda path: path.symlink_to(path.name), "images_001.tar"),
}


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The images of the TARs beside the hostile one."""
    ids = [made_up_id(seed) for seed in range(NEIGHBOURS)]
    return {id: image(seed) for seed, id in enumerate(ids)}


@pytest.fixture
def sandbox(tmp_path: Path, neighbours: dict[str, bytes]) -> Path:
    """A folder with a mirror of two sound TARs, a selection, and a file that nothing may touch."""
    ids = list(neighbours)
    for tar, some in ((0, ids[:2]), (1, []), (2, ids[2:])):
        put_tar(tmp_path / "box/mirror", tar, tar_of([(member_name(id), neighbours[id]) for id in some]))
    make_selection(tmp_path / "box/selection.parquet", tmp_path / "box/mirror", [*ids, *SOUND])
    (tmp_path / "box/canary").write_bytes(SECRET)
    return tmp_path / "box"


def listing(folder: Path) -> dict[str, object]:
    """Return what lies in a folder, without what verbs have written, and the bytes of its plain files."""
    found: dict[str, object] = {}
    for path in sorted(folder.parent.rglob("*")):
        if path.relative_to(folder.parent).parts[1:2] not in (("out",), ("index.parquet",)):
            plain = path.is_file() and not path.is_symlink()
            found[str(path)] = hashlib.md5(path.read_bytes()).hexdigest() if plain else path.lstat().st_mode
    return found


def ways() -> list[Any]:
    """Return each kind with each method; two thirds of those by ranges, which differ less, are slow."""
    by_ranges = [
        pytest.param(what, "ranges", marks=pytest.mark.slow if number % 3 else ())
        for number, what in enumerate(HOSTILE)
    ]
    return [*(pytest.param(what, "stream") for what in HOSTILE), *by_ranges]


@pytest.mark.linux
@pytest.mark.parametrize(("what", "method"), ways())
def test_a_hostile_tar_harms_nothing_and_loses_what_is_not_sound_by_name(
    what: str,
    method: str,
    sandbox: Path,
    neighbours: dict[str, bytes],
    capfd: pytest.CaptureFixture[str],
) -> None:
    kind, place = HOSTILE[what], sandbox / "mirror/train/images_001.tar"
    if isinstance(kind.data, bytes):
        put_tar(sandbox / "mirror", 1, kind.data)
    else:
        place.unlink()
        kind.data(place)
    before, out = listing(sandbox), sandbox / "out"
    with serving(sandbox / "mirror") as server:
        by_http = method == "ranges" and isinstance(kind.data, bytes)
        mirror = server.address if by_http else str(sandbox / "mirror")
        line = ["fetch", str(sandbox / "selection.parquet"), "-o", str(out), "--mirror", mirror, "--method", method]
        if method == "ranges":
            assert run(["locate", mirror, "-o", str(sandbox / "index.parquet")]) in (0, 1)
            line += ["--index", str(sandbox / "index.parquet")]
        assert run(line) == int(kind.failed)
    assert listing(sandbox) == before and not Path(f"/tmp/{ODD}.jpg").exists()
    said = "".join(capfd.readouterr())
    assert not any(character < " " and character != "\n" for character in said)
    assert said.count("\n") < 30
    assert "unforeseen" not in said and "Traceback" not in said
    assert kind.said in said or (method == "ranges" and not kind.failed)  # as ranges read what is wanted alone
    assert stored(out) == {**neighbours, **kind.kept}
    reasons = dict(pl.read_parquet(out / "rejected.parquet").select("image_id", "why").iter_rows())
    assert set(reasons) == set(SOUND) - set(kind.kept)
    for why in reasons.values():
        assert any(words in why for words in kind.lost.split("|"))
    assert not any(SECRET in path.read_bytes() for path in out.rglob("*") if path.is_file())


MD5_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (os.mkfifo, "no plain file"),
    "a folder": (Path.mkdir, "no plain file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "no plain file"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "gigabytes": (lambda path: (path.touch(), os.truncate(path, 1 << 32)), "too large"),
    "escapes": (lambda path: path.write_bytes(b"\x1b[2J\x1b]0;x\x07" * 9), "holds no MD5"),
    "nothing": (Path.touch, "holds no MD5"),
    "a web page": (lambda path: path.write_text("<html>\x1b[2J"), "a web page came"),
}


@pytest.mark.linux
@pytest.mark.parametrize("what", MD5_FILES)
def test_a_mirror_with_a_hostile_md5_file_is_refused_in_one_line(
    what: str, sandbox: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, words = MD5_FILES[what]
    place = sandbox / "mirror/md5sum/train/md5.images_001.txt"
    place.unlink()
    make(place)
    for verb, source in (("locate", sandbox / "mirror"), ("fetch", sandbox / "selection.parquet")):
        assert run([verb, str(source), "-o", str(sandbox / "out" / verb)]) == 1
        said = "".join(capfd.readouterr())
        assert said.count("\n") == 1 and "md5.images_001.txt" in said and words in said
        assert not any(character < " " and character != "\n" for character in said)
        assert "unforeseen" not in said
    assert not (sandbox / "out/locate").exists() and not (sandbox / "out/fetch/dataset.json").exists()


def stored(out: Path) -> dict[str, bytes]:
    """Return the bytes of the images of a dataset, which tarfile finds in its shards where the table says."""
    by_place = {}
    for shard in (out / "shards").iterdir():
        with tarfile.open(shard) as tar:
            for one in tar:
                by_place[shard.name, one.offset_data, one.size] = (
                    one.name,
                    shard.read_bytes()[one.offset_data :][: one.size],
                )
    images = {}
    for id, *place in (
        pl.read_parquet(out / "images.parquet").select("image_id", "shard", "offset", "length").iter_rows()
    ):
        name, images[id] = by_place[tuple(place)]
        assert name == f"{id}.jpg"
    return images
