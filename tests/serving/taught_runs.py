"""A run that has seen the miniature but for one landmark, which it can be taught."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import timm
import torch
from safetensors.torch import save_file

import landmarks
from landmarks.dataset.images import ImageError, decode

NETWORK = "test_resnet"


@dataclass(frozen=True)
class HeldOut:
    """A run's folder, and images of what it has not seen."""

    run: Path
    images: list[Path]
    """Of one landmark: five to learn from, and the rest to recognise it in."""
    nothing: list[Path]
    """Of nothing in particular."""
    trained: dict[str, Path]
    """An image of each landmark that it was trained for, by its name."""


def run_that_can_learn(miniature: Path, folder: Path, *, size: int = 96) -> HeldOut:
    """Train a run in `folder` on frozen random features of the miniature, but for the landmark with most images."""
    table = pl.read_csv(miniature / "metadata" / "train.csv")
    solution = pl.read_csv(next(miniature.rglob("recognition_solution*.csv")))
    shown = dict(zip(table["id"], map(str, table["landmark_id"]), strict=True))
    shown |= {id: "nothing" for id, landmark in solution.select("id", "landmarks").iter_rows() if landmark is None}
    files: dict[str, list[Path]] = {}
    for archive in sorted(miniature.glob("*/*.tar")):
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name)
                if name.suffix != ".jpg" or name.stem not in shown:
                    continue
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                try:
                    decode(data)
                except ImageError:
                    continue
                path = folder / "album" / shown[name.stem] / name.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                files.setdefault(shown[name.stem], []).append(path)
    nothing = files.pop("nothing")
    for path in nothing:
        path.rename(folder / path.name)
    nothing = [folder / path.name for path in nothing]
    held = max(files, key=lambda landmark: (len(files[landmark]), landmark))
    images = files.pop(held)
    images[0].parent.rename(folder / "held")
    images = sorted((folder / "held").iterdir())
    torch.manual_seed(0)
    weights = timm.create_model(NETWORK, pretrained=False, num_classes=0).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "weights.safetensors")
    landmarks.import_(folder / "album", folder / "data")
    landmarks.split(folder / "data")
    run = landmarks.train(
        folder / "data", folder / "run", recipe="instant", backbone=NETWORK, weights=folder / "weights.safetensors",
        image_size=size, tracking="none", device="cpu",
    )  # fmt: skip
    return HeldOut(run.folder, images, nothing, {landmark: paths[0] for landmark, paths in files.items()})
