"""The metadata of the miniature: names, authors, licences and categories, written as the archive's CSV files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from landmarks.support.files import written_whole
from landmarks.support.seeds import generator

if TYPE_CHECKING:
    from landmarks.miniature.make import MadeUpImage, MadeUpLandmark


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
    _write(metadata / "train.csv", ["id", "url", "landmark_id"], (
        (
            image.shot.id,
            _url(titles[image.shot.id], "http" if rng.random() < 0.3 else "https"),
            image.landmarks[0],
        )
        for image in shuffled
    ))  # fmt: skip
    _write(metadata / "train_attribution.csv", ["id", "url", "author", "license", "title"], (
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
    _write(metadata / "train_clean.csv", ["landmark_id", "images"], _clean_rows(known, shuffled, clean))
    _write(metadata / "train_label_to_category.csv", ["landmark_id", "category"], (
        (landmark.id, category_url(landmark.name)) for landmark in known
    ))  # fmt: skip
    _write(
        metadata / "train_label_to_hierarchical.csv",
        ["landmark_id", "category", "supercategory", "hierarchical_label", "natural_or_human_made"],
        (_hierarchy(landmark) for landmark in known),
    )
    _write(metadata / "test.csv", ["id"], ((image.shot.id,) for image in test))
    _write(folder / "ground_truth" / "recognition_solution_v2.1.csv", ["id", "landmarks", "Usage"], (
        (image.shot.id, " ".join(map(str, image.landmarks)), image.usage)
        for image in sorted(test, key=lambda image: image.shot.id)
    ))  # fmt: skip


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
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
