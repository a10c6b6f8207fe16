from __future__ import annotations

import torch
from toy_ccts import toy_slim_cct
from toy_swins import toy_swin
from toy_vits import noise_images, toy_model

from edgevit.tune.drop_path import dropping_paths


def test_dropping_paths_in_training_leaves_branches_out_by_image() -> None:
    model = toy_model().train()
    images = noise_images(1).expand(600, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad(), dropping_paths(model, 0.5):
        answers = model(images)
    kinds = {tuple(row) for row in answers.round(decimals=3).tolist()}
    assert len(kinds) == 16  # blocks 1 and 2 have two branches each, there or not; block 0 drops none


def test_dropping_paths_keeps_the_mean_of_a_branch() -> None:
    model = toy_model().train()
    block, x = model.blocks[2], noise_images(1).new_ones(1, 17, 24).expand(4000, -1, -1)
    with torch.no_grad():
        whole = block.mlp(x)[0]
        torch.manual_seed(0)
        with dropping_paths(model, 0.4):
            mean = block.mlp(x).mean(dim=0)
    assert torch.allclose(mean, whole, rtol=0.1, atol=0.02)


def test_dropping_paths_changes_nothing_in_evaluation_nor_afterwards() -> None:
    for model in (toy_model(), toy_swin(), toy_slim_cct()):
        images = noise_images(4, model.arch)
        with torch.no_grad():
            expected = model.eval()(images)
            with dropping_paths(model, 0.9):
                assert torch.equal(model(images), expected)
                torch.manual_seed(0)
                assert not torch.allclose(model.train()(images), expected)
            assert torch.equal(model.train()(images), expected)
        assert not any(module._forward_hooks for module in model.modules())
