"""OpenVINO's answers from an export against onnxruntime's, with the code of the guide in docs/export.md.

    python benchmarks/openvino_answers.py EXPORT.onnx IMAGES [--environment FOLDER] [--rounds 3]

IMAGES is a folder of JPEG files, which Pillow decodes in full size. OpenVINO, onnxruntime and Pillow are installed into
an environment of their own (`--environment` keeps it). Both answer in turns; the first answer after compiling is
compared too.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from results import run_json, save

GUIDE = Path(__file__).parents[1] / "docs" / "export.md"

COMPARISON = """
import sys, time
from pathlib import Path
import onnxruntime
from PIL import Image
rounds, *paths = sys.argv[1:]
session = onnxruntime.InferenceSession(EXPORT)
images = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
def reference(pixels):
    probabilities = session.run(["probabilities"], {"image": pixels[None]})[0][0]
    return record["labels"][int(probabilities.argmax())]["name"], float(probabilities.max())
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
first = [float(compiled({"image": images[0][None]})["probabilities"].max()) for _ in range(2)]
seconds = {"OpenVINO": [], "onnxruntime": []}
answers = {}
for _ in range(int(rounds)):
    for name, ask in (("OpenVINO", answer), ("onnxruntime", reference)):
        started = time.perf_counter()
        answers[name] = [ask(pixels) for pixels in images]
        seconds[name].append((time.perf_counter() - started) / len(images))
pairs = list(zip(answers["OpenVINO"], answers["onnxruntime"]))
print(json.dumps({
    "version": openvino.__version__, "images": len(images), "same": sum(a[0] == b[0] for a, b in pairs),
    "largest_difference": max(abs(a[1] - b[1]) for a, b in pairs),
    "first_answer_off": abs(first[0] - reference(images[0])[1]),
    "second_answer_off": abs(first[1] - reference(images[0])[1]),
    **{f"{name}, ms": 1000 * min(times) for name, times in seconds.items()},
}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    guide = re.search(
        r"```python\n(import json\n\nimport numpy as np\nimport openvino\n.*?)```", GUIDE.read_text(), re.S
    )
    if guide is None:
        raise SystemExit(f"{GUIDE} has no block of Python for OpenVINO")
    code = guide[1].replace('"mobilenet.onnx"', "EXPORT")
    with tempfile.TemporaryDirectory() as scratch:
        python = environment(chosen.environment or Path(scratch) / "environment")
        paths = sorted(chosen.images.rglob("*.jpg"))
        found = run_json(python, "-c", f"EXPORT = {str(chosen.export)!r}\n{code}{COMPARISON}", chosen.rounds, *paths)
    save("openvino", [{"what": what, "figure": figure} for what, figure in found.items()], export=chosen.export.name)


def environment(folder: Path) -> Path:
    """Return the Python of an environment with OpenVINO, made if necessary."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "openvino", "onnxruntime", "pillow"], check=True)
    return python


if __name__ == "__main__":
    main()
