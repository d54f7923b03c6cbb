"""Make a miniature archive in the published layout, of made-up landmarks by made-up authors.

Its TARs hold rendered images (`shots.py`), its CSV files their names, authors, licences and categories.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import math
import multiprocessing.context
import sys
import tarfile
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np

from landmarks.miniature.monuments import KINDS
from landmarks.miniature.shots import Shot, render_shot
from landmarks.support.console import Advance, note, progress
from landmarks.support.errors import LandmarksError, UsageError
from landmarks.support.files import digest_of, held, read_record, write_record, written_whole
from landmarks.support.seeds import generator
from landmarks.support.systems import usable_processors

IMAGES_PER_TAR = 340
MIN_IMAGES_FOR_PROCESSES = 80
"""With fewer images, starting other processes takes longer than it saves."""

FAULTS = ("cut off", "not an image")
"""The faults of two files in the train set: a truncated JPEG, and a text named .jpg."""


@dataclass(frozen=True)
class MadeUpLandmark:
    """A landmark of the miniature: its id, its kind, its number among those of the kind, and its name."""

    id: int
    kind: str
    number: int
    name: str


@dataclass(frozen=True)
class MadeUpImage:
    """An image of the miniature: its shot, the ids of its landmarks, and the fault of its file."""

    shot: Shot
    landmarks: tuple[int, ...]
    usage: str = ""
    fault: str = ""


def make_miniature(
    folder: Path | str,
    *,
    landmarks: int = 12,
    images: int = 120,
    unknown: int = 240,
    size: int = 160,
    seed: int = 0,
) -> Path:
    """Write a mirror with `landmarks` made-up landmarks to `folder` and return it; a seed always gives the same bytes.

    `images` is the mean number of train images per landmark; the test set has a fifth of it, and `unknown` images of no
    landmark. `size` is the longer side of the images in pixels. A folder that already holds the same miniature is left
    unchanged.
    """
    _require_positive(landmarks=landmarks, images=images, size=size)
    settings = {"landmarks": landmarks, "images": images, "unknown": unknown, "size": size, "seed": seed}
    folder = Path(folder)
    with held(folder):
        record_file = folder / "miniature.json"
        if record_file.exists() and read_record(record_file)["inputs"] == digest_of(settings):
            return folder
        known = choose_landmarks(landmarks, seed)
        train = train_images(known, images, size, seed)
        test = test_images(known, images, unknown, size, seed)
        count = len(train) + len(test)
        with progress("rendering the miniature", count) as advance, _renderers(count) as render_all:
            _write_tars(folder, "train", train, render_all, advance)
            _write_tars(folder, "test", test, render_all, advance)
        write_metadata(folder, known, train, test, seed)
        write_record(record_file, settings, verb="demo", inputs=digest_of(settings))
        note(f"miniature: {len(train)} train and {len(test)} test images of {landmarks} landmarks in {folder}")
    return folder


def _require_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise UsageError(f"{name} is too small", received=value, expected="1 or more")


def choose_landmarks(count: int, seed: int) -> list[MadeUpLandmark]:
    """Return `count` landmarks sorted by id, about a sixth of which share their kind with another."""
    rng = generator(seed, "landmarks")
    kinds = [str(kind) for kind in rng.permutation(sorted(KINDS))][: max(1, math.ceil(0.84 * count))]
    ids = rng.choice(203_094, size=count, replace=False)
    result = []
    for position, id in enumerate(ids):
        kind, number = kinds[position % len(kinds)], position // len(kinds)
        result.append(MadeUpLandmark(int(id), kind, number, landmark_name(kind, number)))
    return sorted(result, key=lambda landmark: landmark.id)


def train_images(known: Sequence[MadeUpLandmark], mean: int, size: int, seed: int) -> list[MadeUpImage]:
    """Return the train set in the order of its TARs: 0.6 to 1.5 times `mean` images per landmark, two with a fault."""
    rng = generator(seed, "train")
    spread = np.linspace(0.6, 1.5, len(known)) if len(known) > 1 else np.ones(1)
    counts = np.maximum(1, np.round(rng.permutation(spread) * mean / spread.mean()).astype(int))
    images = [
        MadeUpImage(shot, (landmark.id,))
        for landmark, count in zip(known, counts, strict=True)
        for shot in _album(("train", landmark.id), ((landmark.kind, landmark.number),), int(count), size, seed)
    ]
    images = [images[i] for i in rng.permutation(len(images))]
    faulty = rng.choice(len(images), size=min(len(FAULTS), len(images)), replace=False)
    for fault, position in zip(FAULTS, faulty, strict=False):
        images[position] = replace(images[position], fault=fault)
    return images


def test_images(known: Sequence[MadeUpLandmark], mean: int, unknown: int, size: int, seed: int) -> list[MadeUpImage]:
    """Return the test set: `mean` / 5 images per landmark, some with a second one behind it, and `unknown` others."""
    rng = generator(seed, "test")
    images = []
    for landmark in known:
        first: tuple[tuple[str, int], ...] = ((landmark.kind, landmark.number),)
        for number, shot in enumerate(_album(("test", landmark.id), first, max(1, mean // 5), size, seed)):
            second = known[int(rng.integers(len(known)))]
            if number % 12 == 5 and second.id != landmark.id:
                both = replace(shot, landmarks=(*first, (second.kind, second.number)))
                images.append(MadeUpImage(both, tuple(sorted((landmark.id, second.id)))))
            else:
                images.append(MadeUpImage(shot, (landmark.id,)))
    images += [MadeUpImage(shot, ()) for shot in _album(("test", "others"), (), unknown, size, seed)]
    usage = ["Public" if share < 0.35 else "Private" for share in rng.random(len(images))]
    return [replace(images[i], usage=usage[i]) for i in rng.permutation(len(images))]


def _album(
    key: tuple[object, ...], landmarks: tuple[tuple[str, int], ...], count: int, size: int, seed: int
) -> Iterator[Shot]:
    """Yield `count` shots by several authors, each of whom makes one or more visits and takes bursts now and then."""
    rng = generator(seed, "album", *map(str, key))
    author, visit, stand = "", "", ""
    for number in range(count):
        if not author or rng.random() < 0.16:
            author = AUTHORS[rng.integers(len(AUTHORS))]
            visit = stand = f"{key} {number}"
        elif rng.random() < 0.3 and landmarks:
            pass  # a burst: the same standpoint again
        elif rng.random() < 0.45:
            visit = stand = f"{key} {number}"
        else:
            stand = f"{key} {number}"
        image_id = generator(seed, "id", *map(str, key), number).bytes(8).hex()
        yield Shot(image_id, seed, author, visit, stand, landmarks, size)


@contextlib.contextmanager
def _renderers(images: int) -> Iterator[Callable[[Sequence[Shot]], Iterator[bytes]]]:
    """Yield a function that renders shots in order, in several processes if there are enough images.

    Raises `LandmarksError` when such a process ends before its work, as the system ends one when memory runs out.
    """
    processors = usable_processors()
    if images < MIN_IMAGES_FOR_PROCESSES or processors == 1:
        yield lambda shots: map(render_shot, shots)
        return
    try:
        with ProcessPoolExecutor(processors, mp_context=_SpawnContext()) as pool:
            yield lambda shots: pool.map(render_shot, shots, chunksize=8)
    except BrokenProcessPool as error:
        raise LandmarksError(
            "a process that rendered images was ended from outside, as happens when memory runs out",
            way_out="run the same command again with more memory free",
        ) from error


class _Process(multiprocessing.context.SpawnProcess):
    """A process that does not import the main script, which so needs no `if __name__ == "__main__":`."""

    def start(self) -> None:
        """Start the process; what it imports first is described by the module `__main__` at this moment."""
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main


class _SpawnContext(multiprocessing.context.SpawnContext):
    """Starts processes anew, not as copies of this one: other threads may hold locks."""

    Process = _Process


def _write_tars(
    folder: Path,
    name: str,
    images: Sequence[MadeUpImage],
    render_all: Callable[[Sequence[Shot]], Iterator[bytes]],
    advance: Advance,
) -> None:
    """Write the TARs of one set, and the MD5 file of each."""
    count = max(1, math.ceil(len(images) / IMAGES_PER_TAR))
    for number in range(count):
        images_of_tar = images[number::count]
        jpegs = render_all([image.shot for image in images_of_tar])
        path = folder / name / f"images_{number:03d}.tar"
        with written_whole(path) as temporary:
            _write_tar(temporary, images_of_tar, jpegs, advance)
            md5 = hashlib.md5(temporary.read_bytes(), usedforsecurity=False).hexdigest()
        with written_whole(folder / "md5sum" / name / f"md5.images_{number:03d}.txt") as temporary:
            temporary.write_text(f"{md5}  images_{number:03d}.tar\n", encoding="ascii")


def _write_tar(path: Path, images: Sequence[MadeUpImage], jpegs: Iterable[bytes], advance: Advance) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image, jpeg in zip(images, jpegs, strict=True):
            image_id = image.shot.id
            data = _with_fault(jpeg, image.fault)
            member = tarfile.TarInfo(f"{image_id[0]}/{image_id[1]}/{image_id[2]}/{image_id}.jpg")
            member.size, member.mtime, member.mode = len(data), 1_556_668_800, 0o644
            tar.addfile(member, io.BytesIO(data))
            advance(1)


def _with_fault(jpeg: bytes, fault: str) -> bytes:
    if fault == "cut off":
        return jpeg[: len(jpeg) * 2 // 3]
    if fault == "not an image":
        return b"404: this image has flown south for the winter\n"
    return jpeg


# ── Names, authors, licences and categories ─────────────────────────────────────────────────────────────────────────


NAMES: dict[str, tuple[str, ...]] = {
    "temple": ("Temple of the Quiet Tide", "Ναός των Αλκυόνων", "Temple of Small Hours, Evora Nova"),
    "domed hall": ("Basilica di Santa Lumaca", "Yedi Kırlangıç Camii", "Hall of the Ninth Hour, Orsova-on-the-Hill"),
    "step pyramid": ("Pirámide del Colibrí", "Pyramid of Two Rains, Ixtalán", "The Baker's Pyramid"),
    "triumphal arch": ("Arc des Trois Cigognes", "Porta Meridiana (Vallechiara)", "Gate of the Late Queen"),
    "arch bridge": ("Puente de las Golondrinas, Valdeluz", "Pont du Vieux Héron", "Karlsbrücke zu Nebelthal"),
    "pagoda": ("Pagoda of the Ninth Crane", "鶴の塔", "Pagoda of Falling Plums, Lower Terrace"),
    "obelisk": ("Obelisk of Queen Ysolde", "Aguja de San Telmo", "The Needle, Saltmarket"),
    "arena": ("Arena di Monteluce", "Amphitheatre of Aquae Serenae", "Les Arènes de Brumevent"),
    "lighthouse": ("Świetlik Lighthouse, Port Amaranth", "Phare de l'Île aux Loirs", "Old Lantern of Skarvøy"),
    "windmill": ("De Slapende Reus", "Mlýn u Modré lišky", "Mill of the Four Aunts, Oosterzand"),
    "castle": ("Château de Brumelune", "Schloss Siebenraben", "Hrad Kamenná Růže, Horní Lhota"),
    "cathedral": (
        "Saint Swithin's in the Fields",
        "Kathedrale Unserer Frau vom Regen",
        "Catedral de São Cardo, Vilanova",
    ),
    "iron tower": ("The Iron Giraffe", "Tour Ferrailleuse", "Vasbetű Tower, Kékhegy"),
    "campanile": ("Campanile dei Sette Sospiri", "Torre del Reloj Perdido", "Bell Tower of Saint Ottilie, Middlewater"),
    "stone circle": ("The Nine Gossips", "Cerrig y Wennol", "Steinkreis von Alt-Mönkebüll, Nord"),
}
"""Names of each kind, in the order of the landmarks' numbers."""

SUPERCATEGORIES = {
    "temple": "Temple",
    "domed hall": "Religious buildings",
    "step pyramid": "Archaeological site",
    "triumphal arch": "Gate",
    "arch bridge": "Bridge",
    "pagoda": "Temple",
    "obelisk": "Monument",
    "arena": "Amphitheatre",
    "lighthouse": "Lighthouse",
    "windmill": "Mill",
    "castle": "Castle / fort",
    "cathedral": "Church",
    "iron tower": "Tower",
    "campanile": "Tower",
    "stone circle": "",
}

AUTHORS = (
    "Ada Brightwater", "Émile Lenoir", "Jürgen Weißkopf", "Zofia Żabińska", "M. Okonkwo", "Íñigo de la Vega, Jr.",
    "wanderlust_77", "Tomáš Říha", "Chiara \"Kiki\" Benedetti", "Søren Ålund", "Leila Haddad", "P. van der Meer",
    "Ngozi Eze", "山田 さくら", "Old Tom's Slides", "Beatriz Gonçalves", "Rajiv & Meena", "Fiona O'Hara",
    "Studio Lumen, Ghent", "Ólafur Jónsson", "kestrel", "Marguerite Dupré", "D. Papadopoulou", "Anselm Vogt",
    "Teresa Quispe", "Bartholomew Finch", "نور", "Ilse Winterberg", "Gábor Kővári", "User:Snailmail",
)  # fmt: skip

LICENSES = (
    "https://creativecommons.org/licenses/by/2.0/",
    "https://creativecommons.org/licenses/by/3.0/",
    "https://creativecommons.org/licenses/by/4.0/",
    "https://creativecommons.org/licenses/by-sa/3.0/",
    "https://creativecommons.org/publicdomain/zero/1.0/",
)

_NUMERALS = ("", " II", " III", " IV", " V", " VI", " VII", " VIII", " IX", " X")


def landmark_name(kind: str, number: int) -> str:
    """Return the name of landmark `number` of a kind, counting from 0; names are repeated with a numeral."""
    names = NAMES[kind]
    repetition = number // len(names)
    numeral = _NUMERALS[repetition] if repetition < len(_NUMERALS) else f" {repetition + 1}"
    return names[number % len(names)] + numeral


def category_url(name: str) -> str:
    """Return the URL of the category with this name, percent-encoded as in the archive, which keeps commas."""
    return "http://commons.wikimedia.org/wiki/Category:" + quote(name.replace(" ", "_"), safe="_,()'-")


# ── The CSV files ───────────────────────────────────────────────────────────────────────────────────────────────────


def write_metadata(
    folder: Path, known: Sequence[MadeUpLandmark], train: Sequence[MadeUpImage], test: Sequence[MadeUpImage], seed: int
) -> None:
    """Write all CSV files of the published layout: of the images, authors, landmarks, and the recognition solution."""
    names = {landmark.id: landmark.name for landmark in known}
    rng = generator(seed, "metadata")
    shuffled = [train[i] for i in rng.permutation(len(train))]
    titles = {image.shot.id: _title(names[image.landmarks[0]], image.shot.id) for image in train}
    metadata = folder / "metadata"
    _write_csv(metadata / "train.csv", ["id", "url", "landmark_id"], (
        (
            image.shot.id,
            _url(titles[image.shot.id], "http" if rng.random() < 0.3 else "https"),
            image.landmarks[0],
        )
        for image in shuffled
    ))  # fmt: skip
    _write_csv(metadata / "train_attribution.csv", ["id", "url", "author", "license", "title"], (
        (
            image.shot.id,
            f"https://commons.wikimedia.org/wiki/File:{quote(titles[image.shot.id].replace(' ', '_'), safe='_')}",
            image.shot.author,
            LICENSES[rng.integers(len(LICENSES))],
            f"File:{titles[image.shot.id]}",
        )
        for image in shuffled
    ))  # fmt: skip
    clean = {image.shot.id for image in train if not image.fault and rng.random() > 0.1}
    _write_csv(metadata / "train_clean.csv", ["landmark_id", "images"], _clean_rows(known, shuffled, clean))
    _write_csv(metadata / "train_label_to_category.csv", ["landmark_id", "category"], (
        (landmark.id, category_url(landmark.name)) for landmark in known
    ))  # fmt: skip
    _write_csv(
        metadata / "train_label_to_hierarchical.csv",
        ["landmark_id", "category", "supercategory", "hierarchical_label", "natural_or_human_made"],
        (_hierarchy(landmark) for landmark in known),
    )
    _write_csv(metadata / "test.csv", ["id"], ((image.shot.id,) for image in test))
    _write_csv(folder / "ground_truth" / "recognition_solution_v2.1.csv", ["id", "landmarks", "Usage"], (
        (image.shot.id, " ".join(map(str, image.landmarks)), image.usage)
        for image in sorted(test, key=lambda image: image.shot.id)
    ))  # fmt: skip


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with written_whole(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _title(name: str, image_id: str) -> str:
    return f"{name} ({int(image_id[:4], 16)}).jpg"


def _url(title: str, scheme: str) -> str:
    return f"{scheme}://upload.wikimedia.org/wikipedia/commons/{quote(title.replace(' ', '_'), safe='_')}"


def _clean_rows(
    known: Sequence[MadeUpLandmark], images: Sequence[MadeUpImage], clean: set[str]
) -> Iterable[tuple[int, str]]:
    for landmark in known:
        of_landmark = [image.shot.id for image in images if image.landmarks[0] == landmark.id]
        ids = [id for id in of_landmark if id in clean]
        if ids:
            yield landmark.id, " ".join(ids)


def _hierarchy(landmark: MadeUpLandmark) -> tuple[int, str, str, str, str]:
    supercategory = SUPERCATEGORIES[landmark.kind]
    return (
        landmark.id,
        category_url(landmark.name),
        supercategory,
        supercategory.lower(),
        "human-made" if supercategory else "",
    )
