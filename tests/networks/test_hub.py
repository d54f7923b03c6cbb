"""ImageNet weights from a Hub on this machine that speaks as much of its protocol as downloading needs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

REPOSITORY = "timm/test_resnet.r160_in1k"  # half a million parameters
SCRIPT = """
import sys, torch
from landmarks.networks.network import build_network
from landmarks.support.errors import LandmarksError
for backbone in sys.argv[1:]:
    try:
        network = build_network(backbone, classes=2)
        print("sum", round(float(network.trunk.conv1[0].weight.sum()), 4))
    except LandmarksError as error:
        print("error:", error)
"""


class Hub:
    """Answers HEAD and GET for one file of one repository, and counts what it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                found = self.path == f"/{REPOSITORY}/resolve/main/model.safetensors"
                content = hub.content if found else b""
                self.send_response(200 if found else 404)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
                if not found:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return timm.create_model("test_resnet", pretrained=False)


@pytest.fixture
def hub(model) -> Iterator[Hub]:
    hub = Hub(save(model.state_dict()))
    yield hub
    hub.close()


def build(home: Path, endpoint: str, *backbones: str) -> list[str]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"TORCH_HOME": str(home), "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", SCRIPT, *backbones]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return ended.stdout.splitlines()


@pytest.mark.slow
def test_weights_come_from_the_hub_once_then_from_its_cache_and_failures_name_the_choices(
    tmp_path: Path, hub: Hub, model
):
    expected = f"sum {round(float(model.conv1[0].weight.detach().sum()), 4)}"
    loaded, missing = build(tmp_path, hub.address, "test_resnet", "resnet10t")
    assert loaded == expected
    assert hub.asked.count(f"GET /{REPOSITORY}/resolve/main/model.safetensors") == 1, hub.asked
    assert missing.startswith("error: the ImageNet weights of resnet10t could not be fetched (timm/resnet10t")
    hub.close()

    cached, unreachable = build(tmp_path, hub.address, "test_resnet", "resnet18")
    assert cached == expected
    assert unreachable.startswith("error: the ImageNet weights of resnet18 could not be fetched (")
    for choice in ("--weights FILE.safetensors", "the folder of another run", '"none"'):
        assert choice in missing and choice in unreachable
