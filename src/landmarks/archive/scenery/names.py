"""What the made-up landmarks and photographers are called, and how the archive writes it down."""

from __future__ import annotations

from urllib.parse import quote

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
"""Each kind's names, in the order in which landmarks of that kind are made."""

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


def name_of(kind: str, number: int) -> str:
    """Return the name of the landmark of this kind, `number` counting from 0; names repeat with a numeral."""
    names = NAMES[kind]
    again = number // len(names)
    return names[number % len(names)] + (_NUMERALS[again] if again < len(_NUMERALS) else f" {again + 1}")


def category_url(name: str) -> str:
    """Return the address of the category of this name, percent-encoded as the archive has it: commas stay."""
    return "http://commons.wikimedia.org/wiki/Category:" + quote(name.replace(" ", "_"), safe="_,()'-")
