"""How much busy programs slow down training, with threads that spin while they wait and with threads that sleep.

    python benchmarks/busy.py [ROUNDS]   # a few minutes; prints JSON

Every combination takes its steps in a process of its own: of a small network, and of mobilenetv2_100 at 160 pixels in
batches of 32, while 0, 1 or 2 busy loops run on the same machine. The combinations alternate, so that a machine that
slows down affects all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

POLICIES = {"as it comes": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": ""}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"}}
BUSY = (0, 1, 2)
SMALL = """
import time, torch
from landmarks.models.network import build_network
network = build_network("baseline", classes=3, weights="none", image_size=96).train()
images, labels = torch.randn(14, 3, 96, 96), torch.arange(14) % 3
def steps(count):
    for _ in range(count):
        torch.nn.functional.cross_entropy(network(images), labels).backward()
steps(1)
start = time.perf_counter(); steps(6); print(time.perf_counter() - start)
"""
LARGE = """
import time, torch
from landmarks.models.network import build_network
network = build_network("mobilenetv2_100", classes=20, weights="none", image_size=160).train()
network.to(memory_format=torch.channels_last)
images = torch.randn(32, 3, 160, 160).contiguous(memory_format=torch.channels_last)
labels = torch.arange(32) % 20
def steps(count):
    for _ in range(count):
        torch.nn.functional.cross_entropy(network(images), labels).backward()
steps(1)
start = time.perf_counter(); steps(4); print(time.perf_counter() - start)
"""


def seconds(code: str, policy: dict[str, str]) -> float:
    environment = {**os.environ, **{name: value for name, value in policy.items() if value}}
    for name, value in policy.items():
        if not value:
            environment.pop(name, None)
    environment.pop("OMP_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(rounds):
        for busy in BUSY:
            programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
            time.sleep(0.2)
            try:
                for network, code in {"small": SMALL, "mobilenetv2_100": LARGE}.items():
                    for name, policy in POLICIES.items():
                        found.setdefault(f"{network}, {name}", {}).setdefault(f"{busy} busy", []).append(
                            seconds(code, policy)
                        )
            finally:
                for program in programs:
                    program.kill()
                    program.wait()
    best = {name: {busy: min(each) for busy, each in row.items()} for name, row in found.items()}
    idle = {name: row["0 busy"] for name, row in best.items()}
    slower = {name: {busy: round(value / idle[name], 2) for busy, value in row.items()} for name, row in best.items()}
    print(json.dumps({"seconds": best, "times slower than idle": slower, "cores": os.cpu_count()}, indent=2))


if __name__ == "__main__":
    main()
