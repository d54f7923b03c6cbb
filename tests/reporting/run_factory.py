"""Run folders as training, evaluation and explanation leave them, made from a seed without training anything."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import polars as pl

from landmarks.dataset.images import encode
from landmarks.dataset.manifest import IMAGES, LABELS, REJECTED, Dataset, write_dataset
from landmarks.dataset.shards import ShardWriter
from landmarks.support.files import write_record
from landmarks.support.tables import write_table

NAMES = (
    "Eiffel Tower",
    "Colosseum",
    "Brandenburg Gate",
    "Hagia Sophia",
    "Sagrada Família",
    "Charles Bridge",
    "Neuschwanstein Castle",
    "Tower Bridge",
    "Taj Mahal",
    "Golden Gate Bridge",
    "St. Peter's Basilica",
    "Alhambra",
    "Moscow Kremlin",
    "Machu Picchu",
    "Edinburgh Castle",
    "Mont-Saint-Michel",
    "Golden Temple",
    "Trevi Fountain",
    "Matka Canyon",
    "Faisal Mosque",
)

NETWORKS = {  # backbone → (skill, parameters, GMACs, seconds)
    "baseline": (0.9, 1_068_468, 0.21, 412.0),
    "resnet18": (2.6, 11_449_428, 1.81, 1_260.0),
    "legacy_xception": (4.2, 21_866_540, 4.6, 5_204.0),
}


def make_dataset(folder: Path, landmarks: int = 20, count: int = 400, unknown: int = 60, seed: int = 0) -> Dataset:
    """A dataset whose images are little painted towers in the colours of their landmark."""
    random = np.random.default_rng(seed)
    labels = labels_table(landmarks)
    rows = []
    with ShardWriter(folder / "shards" / "test-000.tar") as shard:
        for number in range(count + unknown):
            known = number < count
            label = int(random.integers(landmarks)) if known else -1
            data = encode(_painting(label, random), 85)
            offset, length = shard.add(f"{number:016x}", data)
            rows.append(
                {
                    "image_id": f"{number:016x}",
                    "landmark_id": 1000 + 7 * label if known else None,
                    "shard": "test-000.tar",
                    "offset": offset,
                    "length": length,
                    "width": 240,
                    "height": 180,
                    "author": f"Photographer {number % 23}" if number % 5 else None,
                    "license": "CC BY-SA 4.0" if number % 5 else None,
                    "usage": "Public" if number % 3 else "Private",
                }
            )
    images = pl.DataFrame(rows, schema=IMAGES)
    return write_dataset(
        folder,
        verb="fetch",
        images=images,
        labels=labels,
        rejected=pl.DataFrame(schema=REJECTED),
        record={"set": "test", "origin": "a made-up mirror", "rule": "all", "max_side": 240},
    )


def labels_table(landmarks: int) -> pl.DataFrame:
    names = [NAMES[i] if i < len(NAMES) else f"Church of St. Somebody No. {i}" for i in range(landmarks)]
    columns = {
        "label": range(landmarks),
        "landmark_id": [1000 + 7 * label for label in range(landmarks)],
        "name": names,
        "category": ["http://commons.wikimedia.org/wiki/Category:X"] * landmarks,
        "images": [600] * landmarks,
    }
    return pl.DataFrame(columns, schema=LABELS)


def _painting(label: int, random: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[0:180, 0:240] / np.array([180, 240])[:, None, None]
    sky = np.array(colorsys.hsv_to_rgb(0.55 + 0.08 * random.random(), 0.45, 0.95))
    image = sky * (1 - 0.4 * rows[..., None]) + 0.25 * rows[..., None]
    image[rows > 0.8] = (0.36, 0.44, 0.28)
    if label >= 0:
        colour = np.array(colorsys.hsv_to_rgb(label / 20, 0.55, 0.75))
        left, wide, top = 0.3 + 0.2 * random.random(), 0.12 + 0.01 * (label % 9), 0.15 + 0.02 * (label % 14)
        image[(abs(columns - left) < wide) & (rows > top) & (rows < 0.85)] = colour
        image[(abs(columns - left) < wide * (rows - top + 0.16) / 0.16) & (rows < top) & (rows > top - 0.16)] = (
            colour * 0.7
        )
    return (255 * np.clip(image + random.normal(0, 0.02, image.shape), 0, 1)).astype(np.uint8)


def make_run(
    folder: Path,
    dataset: Dataset,
    backbone: str = "legacy_xception",
    *,
    labels: pl.DataFrame | None = None,
    split: str = "random",
    maps: int = 4,
    seed: int = 0,
) -> Path:
    """A complete run folder judged on `dataset` (as `test`) and on half of it (as `val`)."""
    skill, parameters, gmacs, seconds = NETWORKS.get(backbone, NETWORKS["resnet18"])
    labels = dataset.labels if labels is None else labels
    write_table(folder / "labels.parquet", labels)
    top1 = {
        name: _judge(folder, dataset, labels, name, step=step, skill=skill, seed=seed)
        for name, step in (("val", 2), ("test", 1))
    }
    write_table(folder / "history.parquet", _history(top1["val"], warm=backbone != "baseline"))
    write_record(
        folder / "run.json",
        {
            "recipe": {
                "backbone": backbone,
                "epochs": 8,
                "batch_size": 64,
                "optimizer": {"name": "adamw", "weight_decay": 0.05},
            },
            "data": {
                "folder": str(dataset.folder),
                "digest": dataset.digest,
                "origin": "a made-up mirror",
                "landmarks": len(labels),
                "images": {"train": 4_200, "val": 900, "test": 400},
                "split": {"rule": split, "seed": 0, "leakage": 37 if split == "random" else 0},
            },
            "network": {
                "backbone": backbone,
                "head": "mlp",
                "weights": "none" if backbone == "baseline" else "imagenet",
                "parameters": parameters,
                "trainable": parameters - 20_000,
                "gmacs": gmacs,
                "image_size": 160,
            },
            "machine": {"processor": "two AVX2 cores", "memory_gb": 8, "device": "cpu"},
            "versions": {"python": "3.11.9", "torch": "2.8.0", "timm": "1.0.20"},
            "choices": [
                {"what": "precision", "value": "float32", "why": "this processor has no bfloat16 instructions"},
                {"what": "memory layout", "value": "channels last", "why": "convolutions are 1.4 times faster with it"},
            ],
            "seconds": {"features": seconds / 9, "head": seconds / 30, "finetune": seconds * 0.85, "total": seconds},
            "peak_memory_mb": 1_840,
            "head": {"val_accuracy": top1["val"] - 0.03, "val_loss": 0.4, "epochs": 24},
            "best": {"phase": "finetune", "epoch": 7, "val_accuracy": top1["val"], "val_loss": 0.31},
        },
        verb="train",
    )
    write_record(folder / "model.json", {"backbone": backbone, "parameters": parameters}, verb="train")
    if maps:
        _maps(folder, labels["name"].to_list(), maps, seed)
    return folder


def _judge(
    folder: Path, dataset: Dataset, labels: pl.DataFrame, name: str, *, step: int, skill: float, seed: int
) -> float:
    random = np.random.default_rng(seed + step)
    images = dataset.split("all").gather_every(step)
    truth = images["label"].fill_null(-1).to_numpy().astype(int)
    landmarks = len(dataset.labels)
    logits = random.normal(0, 1, (len(truth), landmarks)) * 1.2
    known = truth >= 0
    hard = np.random.default_rng(5).uniform(0.2, 1.9, landmarks)
    logits[known, truth[known]] += skill * hard[truth[known]]
    logits[known, (truth[known] * 3 + 1) % landmarks] += 1.1
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    scores = np.take_along_axis(probabilities, order, axis=1)
    predictions = pl.DataFrame(
        {
            "image_id": images["image_id"],
            "truth": [[label] if label >= 0 else [] for label in truth.tolist()],
            "label": order.tolist(),
            "score": scores.tolist(),
            "max_probability": scores[:, 0],
        },
        schema_overrides={"truth": pl.List(pl.UInt32), "label": pl.List(pl.UInt32), "score": pl.List(pl.Float32)},
    )
    write_table(folder / "predictions" / f"{name}.parquet", predictions, run=folder, data=dataset.folder, split=name)
    right, confidence = order[known, 0] == truth[known], scores[known, 0]
    five = (order[known] == truth[known][:, None]).any(1)
    per = [(label, right[truth[known] == label]) for label in range(landmarks)]
    shares = {label: float(hits.mean()) for label, hits in per if len(hits)}
    pairs, counts = np.unique(np.stack([truth[known], order[known, 0]], 1), axis=0, return_counts=True)
    write_table(
        folder / "metrics" / f"{name}.confusion.parquet",
        pl.DataFrame(
            {"truth": pairs[:, 0], "answer": pairs[:, 1], "count": counts},
            schema={"truth": pl.UInt32, "answer": pl.UInt32, "count": pl.UInt32},
        ),
    )
    ids, names = labels["landmark_id"].to_list(), labels["name"].to_list()
    write_table(
        folder / "metrics" / f"{name}.landmarks.parquet",
        pl.DataFrame(
            [
                {
                    "label": label,
                    "landmark_id": ids[label],
                    "name": names[label],
                    "images": len(hits),
                    "correct": int(hits.sum()),
                    "accuracy": float(hits.mean()) if len(hits) else None,
                    "low": _wilson(hits)[0],
                    "high": _wilson(hits)[1],
                }
                for label, hits in per
            ],
            schema_overrides={"label": pl.UInt32},
        ),
    )
    wrong = sorted((-int(n), int(t), int(a)) for (t, a), n in zip(pairs, counts, strict=True) if t != a)[:50]
    surest = np.argsort(-confidence, kind="stable")
    risk = np.cumsum(~right[surest]) / np.arange(1, len(right) + 1)
    bins = np.minimum((confidence * 10).astype(int), 9)
    write_record(
        folder / "metrics" / f"{name}.json",
        {
            "name": name,
            "split": name,
            "data": str(dataset.folder),
            "images": len(truth),
            "known": int(known.sum()),
            "unknown": int((~known).sum()),
            "landmarks": landmarks,
            "top1": _value(right),
            "top5": _value(five),
            "macro": {**_value(right), "value": float(np.mean(list(shares.values())))},
            "log_loss": float(-np.log(probabilities[known, truth[known]]).mean()),
            "ece": 0.041,
            "temperature": 1.27,
            "gap": 0.71,
            "confused": [
                {"truth": t, "answer": a, "truth_name": names[t], "answer_name": names[a], "count": -n}
                for n, t, a in wrong
            ],
            "reliability": [
                {
                    "confidence": float(confidence[bins == b].mean()),
                    "accuracy": float(right[bins == b].mean()),
                    "images": int((bins == b).sum()),
                }
                for b in range(10)
                if (bins == b).any()
            ],
            "risk_coverage": {
                "coverage": (np.arange(1, len(risk) + 1) / len(risk)).tolist(),
                "risk": risk.tolist(),
                "area": float(risk.mean()),
            },
            "rejection": [
                {"score": "max_probability", "auroc": 0.91, "rejected_at_5": 0.62},
                {"score": "knn", "auroc": 0.964, "rejected_at_5": 0.83},
            ]
            if name == "test"
            else [],
            "seconds": 3.2,
            "definitions": {
                "top1": "Share of known images whose most probable answer is one of the landmarks they show.",
                "macro": "Mean over landmarks of the share of a landmark's images whose best answer is right.",
                "ece": "Mean distance between stated probability and share of right answers over 15 bins.",
            },
        },
        verb="evaluate",
    )
    return float(right.mean())


def _wilson(hits: np.ndarray) -> tuple[float, float]:
    n, z = max(len(hits), 1), 1.96
    share = hits.mean() if len(hits) else 0.5
    centre, half = share + z * z / (2 * n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float((centre - half) / (1 + z * z / n)), float((centre + half) / (1 + z * z / n))


def _value(hits: np.ndarray) -> dict[str, object]:
    low, high = _wilson(hits)
    return {"value": float(hits.mean()), "low": low, "high": high, "method": "bootstrap over groups"}


def _history(final: float, warm: bool) -> pl.DataFrame:
    random = np.random.default_rng(3)
    rows = []
    for phase, epochs, start, end in (("head", 24, 0.2, final - 0.03), ("finetune", 8, final - 0.03, final)):
        if phase == "head" and not warm:
            continue
        for epoch in range(1, epochs + 1):
            accuracy = end - (end - start) * np.exp(-3.5 * epoch / epochs) + random.normal(0, 0.003)
            rows.append(
                {
                    "phase": phase,
                    "epoch": epoch,
                    "step": epoch * 66,
                    "seconds": epoch * 90.0,
                    "learning_rate": 1e-3,
                    "train_loss": 2.2 * (1.02 - accuracy),
                    "train_accuracy": min(0.999, accuracy + 0.03),
                    "val_loss": 2.6 * (1.02 - accuracy),
                    "val_accuracy": accuracy,
                }
            )
    return pl.DataFrame(rows, schema_overrides={"epoch": pl.UInt32, "step": pl.UInt32})


def _maps(folder: Path, names: list[str], count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    panels = []
    for number in range(count):
        label = number % len(names)
        image = np.concatenate([_painting(label, random) for _ in range(5)], axis=1)
        path = folder / "maps" / f"{number:016x}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(image))
        answers = [
            {"label": (label + place) % len(names), "name": names[(label + place) % len(names)], "probability": p}
            for place, p in enumerate((0.81, 0.09, 0.04, 0.01))
        ]
        panels.append(
            {
                "image_id": f"{number:016x}",
                "image": path.name,
                "truth": label,
                "truth_name": names[label],
                "answers": answers,
                "correct": True,
            }
        )
    write_record(folder / "maps" / "index.json", {"method": "Grad-CAM, analytic", "panels": panels}, verb="explain")
