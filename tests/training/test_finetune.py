"""A step's gradients: parts add up to the whole, and memory that runs out changes nothing but the splits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmarks.dataset.manifest import Dataset
from landmarks.models.network import Network, build_network
from landmarks.support.errors import LandmarksError
from landmarks.training import finetune
from landmarks.training.finetune import Training, accumulate_gradients, fraction_done, learning_rate_factor
from landmarks.training.loader import Batch, batches
from landmarks.training.machine import Machine
from landmarks.training.recipe import recipe_named


@pytest.fixture
def batch(stripes: Dataset) -> Batch:
    preprocessing = build_network("baseline", classes=3, weights="none", image_size=32).preprocessing
    return next(iter(batches(stripes, stripes.split("train"), preprocessing, batch_size=12)))


def training(machine: Machine, balance: bool = False) -> Training:
    network = build_network("test_resnet", classes=3, weights="none", image_size=32).eval()  # no batch statistics
    weights = torch.tensor([0.5, 1.0, 2.0]) if balance else torch.ones(3)
    return Training(network, recipe_named("default", label_smoothing=0.1), machine, weights, network.features)


def gradients(network: Network) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("micro_batch", [12, 5, 1])
@pytest.mark.parametrize("balance", [False, True])
def test_micro_batches_add_up_to_the_gradient_of_the_mean(
    micro_batch: int, balance: bool, batch: Batch, machine: Machine
) -> None:
    whole, splits = training(machine, balance), training(machine, balance)
    accumulate_gradients(whole, batch, 12, 12)
    loss, correct, _ = accumulate_gradients(splits, batch, 12, micro_batch)
    torch.testing.assert_close(gradients(splits.network), gradients(whole.network), rtol=1e-4, atol=1e-6)
    assert 0 <= correct <= 12
    assert loss > 0


def test_a_pass_that_leaves_batch_normalisation_one_value_is_told_with_the_ways_out(
    batch: Batch, machine: Machine
) -> None:
    single = training(machine)
    single.network.train()
    with pytest.raises(LandmarksError, match=r"nothing to average in .* passes of 1 image, whose"):
        accumulate_gradients(single, batch, 12, 1)
    finetune.set_training(single.network, freeze_bn=True)
    accumulate_gradients(single, batch, 12, 1)


def test_out_of_memory_halves_the_micro_batch_and_gives_the_same_gradient(
    batch: Batch, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, short = training(machine), training(machine)
    accumulate_gradients(whole, batch, 12, 12)
    short.network.train()
    statistics = [buffer.clone() for buffer in short.network.buffers()]
    short.network.eval()
    original = finetune.as_input

    def scarce(some: Batch, *rest: object) -> torch.Tensor:
        if len(some.ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(some, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(finetune, "as_input", scarce)
    _, _, micro_batch = accumulate_gradients(short, batch, 12, 100)
    assert micro_batch == 3
    torch.testing.assert_close(gradients(short.network), gradients(whole.network), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(statistics, short.network.buffers(), strict=True))
    assert "going on with 3 images at a time" in capsys.readouterr().err


def test_a_single_image_that_does_not_fit_ends_the_training(
    batch: Batch, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(*_: object) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(finetune, "as_input", scarce)
    with pytest.raises(LandmarksError, match="gradient_checkpointing=true"):
        accumulate_gradients(training(machine), batch, 12, 12)


def test_another_error_is_not_mistaken_for_memory(
    batch: Batch, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(finetune, "as_input", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        accumulate_gradients(training(machine), batch, 12, 12)


# ── Learning rates against PyTorch's own schedulers ─────────────────────────────────────────────────────────────────


def test_the_cosine_is_pytorch_s() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.1)
    for step in range(100):
        assert learning_rate_factor(step / 100, 0.0, 0.1) == pytest.approx(oracle.get_last_lr()[0])
        optimizer.step()
        oracle.step()


def test_it_climbs_in_a_straight_line() -> None:
    assert [learning_rate_factor(done, 0.2, 0.0) for done in (0.0, 0.05, 0.1, 0.2)] == [0.0, 0.25, 0.5, 1.0]


@given(st.floats(0, 1), st.floats(0, 0.9), st.floats(0, 1))
def test_it_never_leaves_its_limits(done: float, warmup: float, final: float) -> None:
    assert 0 <= learning_rate_factor(done, warmup, final) <= 1


def test_under_a_time_limit_the_further_of_steps_and_time_counts() -> None:
    assert fraction_done(49, 100, seconds=1.0, time_limit=None) == pytest.approx(0.495)
    assert fraction_done(49, 100, seconds=54.0, time_limit=1.0) == pytest.approx(0.9)
    assert fraction_done(49, 100, seconds=6.0, time_limit=1.0) == pytest.approx(0.495)
