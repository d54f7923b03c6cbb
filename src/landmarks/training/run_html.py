"""A run in a notebook: a table of its key facts, and its accuracy curves."""

from __future__ import annotations

import polars as pl

from landmarks.support.console import html_table
from landmarks.training.run import Run

WIDTH, HEIGHT, MARGIN = 420, 160, 28
"""Size of the curves in pixels."""

CURVES = {"train_accuracy": "#e8a33d", "val_accuracy": "#2f6db5"}
"""Column of the history → its colour."""


def run_html(run: Run) -> str:
    """Return a table of the run's key facts and its accuracy curves, as self-contained HTML."""
    record = run.record
    network, best, data = (record.get(name) or {} for name in ("network", "best", "data"))
    rows: list[tuple[str, object]] = [
        ("network", f"{network.get('backbone')}, {network.get('image_size')} pixels"),
        ("landmarks", len(run.labels)),
        ("dataset", data.get("folder")),
    ]
    if best.get("val_accuracy") is not None:
        phase = "head training" if best.get("phase") == "head" else f"epoch {best.get('epoch')}"
        rows.append(("validation", f"{100 * best['val_accuracy']:.1f} % after {phase}"))
    seconds = (record.get("seconds") or {}).get("total")
    if seconds is not None:
        rows.append(("trained in", f"{seconds / 60:.1f} min"))
    has_history = (run.folder / "history.parquet").is_file()  # a folder assembled by hand may lack it
    return html_table(["run", run.name], rows, "") + (curves_svg(run.history) if has_history else "")


def curves_svg(history: pl.DataFrame) -> str:
    """Return the accuracy over the epochs of fine-tuning as SVG, or an empty text for fewer than two epochs."""
    epochs = history.filter(pl.col("phase") == "finetune").sort("epoch")
    curves = {name: epochs.drop_nulls(name).select("epoch", name).rows() for name in CURVES}
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return ""
    last = max(epoch for points in curves.values() for epoch, _ in points)
    lowest = min(value for points in curves.values() for _, value in points)
    floor = max(0.0, min(lowest, 0.95) - 0.05)

    def point(epoch: float, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * epoch / max(last, 1)
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - floor) / (1 - floor):.1f}"

    lines = []
    for number, (name, points) in enumerate(curves.items()):
        path = " ".join(point(*pair) for pair in points)
        label = f"{name.removesuffix('_accuracy')} {100 * points[-1][1]:.1f} %"
        lines.append(f'<polyline points="{path}" fill="none" stroke="{CURVES[name]}" stroke-width="2"/>')
        lines.append(f'<text x="{MARGIN + 110 * number}" y="14" fill="{CURVES[name]}">{label}</text>')
    axis = f'<text x="{MARGIN}" y="{HEIGHT - 8}">epoch 0 to {last}; accuracy {100 * floor:.0f} to 100 %</text>'
    style = 'font-family="sans-serif" font-size="12" fill="#777"'
    return (
        f'<svg role="img" aria-label="accuracy over the epochs" width="{WIDTH}" height="{HEIGHT}" {style}>'
        f"{''.join(lines)}{axis}</svg>"
    )
