"""The names that the source of a library has are those that it has once it is imported."""

from __future__ import annotations

import timm
import torchvision

from vidcls.models.network_names import check_network


def test_all_networks_of_both_libraries_are_known() -> None:
    tagged = timm.list_models(pretrained=True)[::100]  # of all it takes minutes
    plain = [*timm.list_models()[::50], "test_resnet", "tf_efficientnet_lite0"]
    for name in (*(f"timm/{name}" for name in (*plain, *tagged)), "torchvision/vit_b_16"):
        check_network(name)
    for name in torchvision.models.list_models(module=torchvision.models):
        check_network(f"torchvision/{name}")
