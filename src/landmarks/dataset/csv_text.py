"""Reading the text of a CSV in any encoding, and refusing files that are no CSV."""

from __future__ import annotations

from pathlib import Path

from landmarks.dataset.formats import kind_of_file
from landmarks.support.errors import LandmarksError
from landmarks.support.systems import decode_text

SEPARATORS = ",;\t|"
_OTHER_FILES = {
    b"PK\3\4": "unpack the archive and give its folder; a spreadsheet is to be saved as CSV",
    b"\x1f\x8b": "unpack the archive, and give its folder or the CSV in it",
    b"BZh": "unpack the archive, and give its folder",
    b"\xfd7zXZ": "unpack the archive, and give its folder",
    b"(\xb5/\xfd": "unpack the archive, and give its folder",
    b"7z\xbc\xaf": "unpack the archive, and give its folder",
    b"Rar!": "unpack the archive, and give its folder",
    b"\xd0\xcf\x11\xe0": "save the spreadsheet as CSV",
    b"PAR1": "save the table as CSV; what landmarks select wrote is fetched with: landmarks fetch",
    b"\x89HDF": "save the table as CSV",
    b"\xff\xd8\xff": "give the folder that the image lies in",
    b"\x89PNG": "give the folder that the image lies in",
    b"SQLite": "save the table as CSV",
    b"%PDF": "save the table as CSV",
}


def text_of(source: Path) -> str:
    """Return the text of a CSV in any encoding that spreadsheets write; raise `LandmarksError` if it is none."""
    try:
        data = source.read_bytes()
    except FileNotFoundError as error:
        raise LandmarksError(f"there is no {source}") from error
    except OSError as error:
        raise LandmarksError(f"{source} cannot be read as a CSV ({error.strerror})") from error
    _refuse_other_files(source, data)
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        line, begin = data.count(b"\n", 0, error.start) + 1, data.rfind(b"\n", 0, error.start) + 1
        raise LandmarksError(
            f"{source} cannot be read as a CSV: line {line} is not UTF-8",
            received=repr(data[begin : error.start + 20].splitlines()[0][-80:])[2:-1],
            way_out="save it as CSV UTF-8",
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise LandmarksError(
            f"{source} cannot be read as a CSV: line {line} holds a byte of zero, as no text does",
            way_out="save it as CSV UTF-8",
        )
    return text


def _refuse_other_files(source: Path, data: bytes) -> None:
    """Raise if `data` are the bytes of an archive, a spreadsheet, an image or anything else that is no text."""
    way_out = next((way_out for start, way_out in _OTHER_FILES.items() if data.startswith(start)), "")
    if data[257:262] == b"ustar":
        way_out = "unpack the archive, and give its folder"
    if way_out:
        raise LandmarksError(f"{source} cannot be read as a CSV", way_out=way_out)
    what = "JSON" if data[:1] in (b"{", b"[") else kind_of_file(data[:64]) if data else ""
    if what:
        raise LandmarksError(
            f"{source} cannot be read as a CSV: it is {what}",
            expected="columns path and label",
            way_out="write the path and the label of each image into a CSV" if what == "JSON" else "",
        )
