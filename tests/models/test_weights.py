"""Weights from files, from another run, and what is said when they do not fit."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save, save_file, save_model

from landmarks.models.network import build_network, load_network, save_network
from landmarks.models.weights import epsilon_of, unfold_epsilon
from landmarks.support.errors import LandmarksError, UsageError


@pytest.fixture(scope="module")
def resnet():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return timm.create_model("resnet18", pretrained=False).eval()  # with its 1,000-way classifier


def backbone_of(weights: Path, backbone: str = "resnet18", **settings):
    return build_network(backbone, classes=2, weights=weights, **settings).backbone.eval()


def same(backbone, model, tolerance: float = 0.0) -> bool:
    theirs = model.state_dict()
    return all(
        torch.allclose(tensor.float(), theirs[name].float(), atol=tolerance, rtol=tolerance)
        for name, tensor in backbone.state_dict().items()
    )


def test_a_safetensors_file_with_its_classifier_fills_the_backbone(tmp_path: Path, resnet):
    save_file(resnet.state_dict(), tmp_path / "w.safetensors")
    assert same(backbone_of(tmp_path / "w.safetensors"), resnet)


def test_half_precision_becomes_float32(tmp_path: Path, resnet):
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in resnet.state_dict().items()
    }
    save_file(half, tmp_path / "w.safetensors")
    backbone = backbone_of(tmp_path / "w.safetensors")
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
    assert same(backbone, resnet, tolerance=1e-3)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_pth_file_is_read_as_training_scripts_write_it(tmp_path: Path, resnet, wrapper, prefix):
    tensors = {prefix + name: tensor for name, tensor in resnet.state_dict().items() if not name.startswith("fc.")}
    torch.save(tensors if wrapper is None else {wrapper: tensors, "epoch": 3}, tmp_path / "w.pth")
    assert same(backbone_of(tmp_path / "w.pth"), resnet)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    with open(tmp_path / "w.pth", "wb") as file:
        pickle.dump({"fc.weight": Evil()}, file, protocol=2)
    with pytest.raises(LandmarksError, match="cannot be read as weights") as caught:
        backbone_of(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists() and "weights_only" not in str(caught.value)


def test_another_runs_backbone_is_taken_and_its_head_is_not(tmp_path: Path):
    first = build_network("resnet18", classes=7, weights="none", seed=5)
    save_network(first, tmp_path / "run")
    second = build_network("resnet18", classes=3, weights=tmp_path / "run", seed=6)
    assert same(second.backbone, first.backbone)
    assert second.classes == 3


def test_a_file_may_hold_weights_that_are_used_in_several_places_once(tmp_path: Path):
    model = timm.create_model("coat_lite_tiny", pretrained=False)
    save_model(model, str(tmp_path / "w.safetensors"))
    assert len(load_file(tmp_path / "w.safetensors")) < len(model.state_dict())
    assert same(backbone_of(tmp_path / "w.safetensors", "coat_lite_tiny", image_size=32), model)


def test_a_vision_transformers_positions_are_stretched_to_another_image_size(tmp_path: Path):
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    backbone = backbone_of(tmp_path / "w.safetensors", "vit_tiny_patch16_224", image_size=96)
    assert backbone.pos_embed.shape == (1, 37, 192)
    torch.testing.assert_close(backbone.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight)


def test_weights_of_another_network_are_refused_with_how_many_of_them_fit(tmp_path: Path, resnet):
    save_file(resnet.state_dict(), tmp_path / "w.safetensors")
    message = r"w.safetensors does not fit the network resnet34; received \d+ of its 180 tensors by name and shape"
    with pytest.raises(LandmarksError, match=message):
        backbone_of(tmp_path / "w.safetensors", "resnet34")


@pytest.mark.parametrize(
    "content, name",
    [
        (b"not weights", "w.safetensors"),
        (b"not weights", "w.pth"),
        (b"hello\n", "w.pth"),
        (b"epochs = 1\n", "recipe.toml"),
        (b"PK\x03\x04 cut off", "w.pth"),
        (b"", "w.safetensors"),
    ],
)
def test_a_file_that_holds_no_weights_is_told_in_one_line(tmp_path: Path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LandmarksError, match="cannot be read as weights") as caught:
        backbone_of(tmp_path / name)
    assert "\n" not in str(caught.value) and len(str(caught.value).replace(str(tmp_path), "")) < 250


def test_a_pth_of_something_else_is_told(tmp_path: Path):
    torch.save([1, 2, 3], tmp_path / "w.pth")
    with pytest.raises(LandmarksError, match="holds no weights"):
        backbone_of(tmp_path / "w.pth")


def test_a_path_that_is_not_there_names_the_choices():
    with pytest.raises(UsageError, match=r'no weights "nowhere.pth"; name "imagenet", or give a file .*"none"'):
        backbone_of(Path("nowhere.pth"))


def test_the_baseline_has_no_imagenet_weights():
    with pytest.raises(UsageError, match='train it from scratch: weights "none"'):
        build_network("baseline", classes=2)


def test_an_epsilon_that_was_not_folded_in_is_not_taken_out(resnet):
    mine = copy.deepcopy(resnet)
    with torch.no_grad():
        mine.bn1.running_var.zero_()
    with pytest.raises(LandmarksError, match=r"no epsilon of 0\.001"):
        unfold_epsilon(mine, 1e-3)


@pytest.mark.shared
@pytest.mark.parametrize("name, side", [("mobilenetv2_100", 160), ("tf_efficientnet_lite0", 192)])
def test_the_real_weights_fill_their_networks(shared: Path, name, side):
    path = shared / "weights" / f"{name}.safetensors"
    backbone = backbone_of(path, name, image_size=side)
    file = load_file(path)
    assert all(torch.equal(tensor, file[key].to(tensor.dtype)) for key, tensor in backbone.state_dict().items())


@pytest.mark.shared
def test_xceptions_epsilon_is_restored_and_its_answers_stay(shared: Path, tmp_path: Path):
    path = shared / "weights" / "legacy_xception.safetensors"
    as_stored = timm.create_model("legacy_xception", pretrained=False, num_classes=0).eval()
    as_stored.load_state_dict({key: tensor.float() for key, tensor in load_file(path).items()}, strict=False)
    network = build_network("xception", classes=2, weights=path, image_size=96).eval()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.features(images), as_stored(images), rtol=1e-4, atol=1e-4)
    assert epsilon_of(network.backbone) == 1e-3
    assert all(value.min() >= 0 for key, value in network.state_dict().items() if key.endswith("running_var"))

    save_network(network, tmp_path)
    again = load_network(tmp_path)
    from_run = build_network("xception", classes=3, weights=tmp_path, image_size=96).eval()
    assert epsilon_of(again.backbone) == epsilon_of(from_run.backbone) == 1e-3
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
        assert torch.equal(from_run.features(images), network.features(images))


# ── ImageNet weights from a Hub on this machine that speaks as much of its protocol as downloading needs ────────────


REPOSITORY = "timm/test_resnet.r160_in1k"  # half a million parameters
SCRIPT = """
import sys, torch
from landmarks.models.network import build_network
from landmarks.support.errors import LandmarksError
for backbone in sys.argv[1:]:
    try:
        network = build_network(backbone, classes=2)
        print("sum", round(float(network.backbone.conv1[0].weight.sum()), 4))
    except LandmarksError as error:
        print("error:", error)
"""


class Hub:
    """Answers HEAD and GET for one file of one repository, and counts what it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content, self.requests = content, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                hub.requests.append(f"{self.command} {self.path}")
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
    assert hub.requests.count(f"GET /{REPOSITORY}/resolve/main/model.safetensors") == 1, hub.requests
    assert missing.startswith("error: the ImageNet weights of resnet10t could not be fetched (timm/resnet10t")
    hub.close()

    cached, unreachable = build(tmp_path, hub.address, "test_resnet", "resnet18")
    assert cached == expected
    assert unreachable.startswith("error: the ImageNet weights of resnet18 could not be fetched (")
    for choice in ("--weights FILE.safetensors", "the folder of another run", '"none"'):
        assert choice in missing and choice in unreachable
