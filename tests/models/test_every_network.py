"""Every network of timm trains, or is refused in one line."""

from __future__ import annotations

import warnings

import pytest
import timm
from every_network import try_network

from landmarks.support.errors import LandmarksError, UsageError

KINDS = {
    # name → whether it has maps: what distinguishes how timm's networks end
    "resnet18": True,  # maps, averaged
    "mobilenetv3_small_050": True,  # a layer after the pooling
    "swin_tiny_patch4_window7_224": True,  # maps whose channels come last
    "vit_tiny_patch16_224": True,  # tokens, one of them the class's
    "deit_tiny_distilled_patch16_224": True,  # two tokens beside the patches'
    "coat_lite_tiny": False,  # tokens of which nobody says how many are patches'
    "volo_d1_224": False,
    "crossvit_9_240": False,  # two branches
    "lambda_resnet26t": True,  # kernels of three dimensions, which know no channels last
    "efficientvim_m1": False,  # a parameter that no gradient reaches, frozen by timm
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_network_takes_a_step_of_training(name: str) -> None:
    outcome = try_network(name)
    assert not outcome.refused
    assert outcome.maps == KINDS[name]


def test_a_network_that_gives_no_features_is_refused() -> None:
    with pytest.raises(LandmarksError, match="deepseek_vit_412m_enc gives no features to recognise landmarks by") as no:
        raise LandmarksError(try_network("deepseek_vit_412m_enc").refused)
    assert not isinstance(no.value, UsageError)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_network_of_timm_takes_a_step_of_training_or_is_refused(module: str) -> None:
    refused = {}
    for name in timm.list_models(module=module):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # timm's own, about its own code
            outcome = try_network(name)
        if outcome.refused:
            refused[name] = outcome.refused
        assert len(outcome.idle) < 10, f"{name}: no gradient reaches {', '.join(outcome.idle[:3])}"
    assert all("gives no features to recognise landmarks by" in reason for reason in refused.values())
