"""Neurons that each image chooses for itself: what is chosen, and that nobody else has a say."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from toy_choosers import chooser, choosing_arch
from toy_swins import SWIN
from toy_vits import ARCH, TOKENS, noise_images, toy_arch, toy_model

from edgevit.cost import model_cost
from edgevit.export.graph_cost import check_macs
from edgevit.export.links import onnx_link, torch_link
from edgevit.export.onnx import ExportOptions, export_onnx
from edgevit.export.parity import check_parity, limits_for
from edgevit.export.verify import check_dims
from edgevit.models.arch import Arch
from edgevit.models.layers import SlimViT
from edgevit.models.neuron_choice import NeuronChoice, mean_magnitudes, read_chosen
from edgevit.plan import PerImage

FORMS: dict[str, Arch] = {
    "contribution": choosing_arch(),
    "magnitude": choosing_arch(how=PerImage(10, "magnitude")),
    "fewer inputs": choosing_arch(inputs=9),
    "gated": choosing_arch(dataclasses.replace(ARCH, gated=True, activation="silu"), inputs=9),
    "mean": choosing_arch(toy_arch("mean", prefix=0)),
    "Swin": choosing_arch(SWIN, PerImage(11)),
}


def masked_by_hand(model: SlimViT, images: torch.Tensor) -> torch.Tensor:
    """Return the logits of the model with dense MLPs whose unused neurons are set to 0, image by image."""
    logits = []
    for image in images.split(1):
        x, sizes = model.enter(image)
        for index, block in enumerate(model.blocks):
            x, sizes = block.attend(x, sizes)
            neurons = block.mlp.neurons(block.mlp_input(x))
            if block.mlp.choice is not None:
                last = index == len(model.blocks) - 1
                neurons = neurons * mask_by_hand(block.mlp.choice, neurons[0], model.arch, last=last)
            x = x + neurons @ block.mlp.fc2.weight.T + block.mlp.fc2.bias
        logits.append(model.classify(x, sizes))
    return torch.cat(logits)


def mask_by_hand(choice: NeuronChoice, neurons: torch.Tensor, arch: Arch, *, last: bool) -> torch.Tensor:
    tokens = neurons[: arch.read_tokens] if last else neurons
    if choice.how.class_weight is None or len(tokens) == 1:
        scores = tokens.abs().mean(dim=0)
    else:
        weight = choice.how.class_weight
        scores = (weight * tokens[0].abs() + tokens[1:].abs().mean(dim=0)) / (weight + 1)
    if choice.worth is not None:
        scores = scores * choice.worth
    return (scores >= scores.sort(descending=True).values[choice.how.used - 1]).float()


@pytest.mark.parametrize("form", FORMS)
def test_choosing_model_is_the_masked_model(form: str) -> None:
    model = chooser(FORMS[form])
    images = noise_images(5, model.arch)
    expected = masked_by_hand(model, images)
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(images[:1]), expected[:1], rtol=1e-4, atol=1e-4)


def test_images_choose_differently_and_unused_neurons_matter() -> None:
    model = chooser()
    neurons = model.blocks[1].mlp.neurons(
        model.blocks[1].norm2(model.blocks[0](model.embed(noise_images(8)), None)[0])
    )
    choice = model.blocks[1].mlp.choice
    assert choice is not None
    chosen = {tuple(row.sort().values.tolist()) for row in choice(neurons)}
    assert len(chosen) > 1
    assert all(len(set(row)) == 10 for row in chosen)
    whole = neurons @ model.blocks[1].mlp.fc2.weight.T + model.blocks[1].mlp.fc2.bias
    assert (whole - model.blocks[1].mlp.out(neurons)).abs().max() > 0.1


def test_masked_neurons_are_those_that_are_read() -> None:
    model = chooser()
    mlp = model.blocks[2].mlp
    assert mlp.choice is not None
    neurons = torch.randn(4, TOKENS, 40, generator=torch.Generator().manual_seed(3))
    masked = mlp.choice.masked(neurons)
    assert [int(row.any(dim=0).sum()) for row in masked] == [10] * 4
    torch.testing.assert_close(mlp.fc2(masked), read_chosen(neurons, mlp.choice(neurons), mlp.fc2))


def test_mean_magnitudes_weigh_the_class_token() -> None:
    neurons = torch.tensor([[[3.0, -1.0], [0.0, 4.0], [-6.0, 0.0]]])
    assert mean_magnitudes(neurons, None).tolist() == [[3.0, pytest.approx(5 / 3)]]
    assert mean_magnitudes(neurons, 2.0).tolist() == [[3.0, pytest.approx(4 / 3)]]
    assert mean_magnitudes(neurons[:, :1], 2.0).tolist() == [[3.0, 1.0]]


def test_last_block_chooses_by_the_tokens_that_the_head_reads() -> None:
    """So that the output is the same with and without dead tokens."""
    alive = chooser()
    last = dataclasses.replace(alive.arch.blocks[2], queries=1, tokens_out=1)
    dead = toy_model(dataclasses.replace(alive.arch, blocks=(*alive.arch.blocks[:2], last)))
    dead.load_state_dict(alive.state_dict())
    images = noise_images(6)
    torch.testing.assert_close(dead(images), alive(images), rtol=1e-5, atol=1e-5)


def test_output_in_torch_does_not_depend_on_batch_mates() -> None:
    model = chooser()
    images = noise_images(8)
    alone = torch.cat([model(image) for image in images.split(1)])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(model(images), alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(images[order]), alone[order], rtol=1e-5, atol=1e-5)
    others = noise_images(7, seed=9)
    torch.testing.assert_close(model(torch.cat([others, images[:1]]))[-1:], alone[:1], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export the chooser for one image, and for any number."""
    folder = tmp_path_factory.mktemp("chooser")
    batches: dict[str, int | None] = {"1": 1, "any": None}
    for name, batch in batches.items():
        export_onnx(chooser(), folder / f"{name}.onnx", ExportOptions(batch=batch))
    return {name: folder / f"{name}.onnx" for name in batches}


def run_onnxruntime(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": images})[0])


def run_openvino(path: Path, images: np.ndarray) -> np.ndarray:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return np.array(openvino.Core().compile_model(path, "CPU", settings)(images)[0])


RUNTIMES = {"onnxruntime": run_onnxruntime, "openvino": run_openvino}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_output_of_the_file_does_not_depend_on_batch_mates(exported: dict[str, Path], runtime: str) -> None:
    run = RUNTIMES[runtime]
    images = noise_images(8).numpy()
    expected = chooser()(torch.from_numpy(images)).numpy()
    alone = np.concatenate([run(exported["1"], image[None]) for image in images])
    np.testing.assert_allclose(alone, expected, rtol=1e-4, atol=1e-4)
    order = np.random.default_rng(4).permutation(8)
    np.testing.assert_allclose(run(exported["any"], images), alone, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(exported["any"], images[order]), alone[order], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(exported["any"], images[:1]), alone[:1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(exported["any"], images[2:5]), alone[2:5], rtol=1e-4, atol=1e-4)


def test_exported_files_have_the_promised_dims_and_macs(exported: dict[str, Path]) -> None:
    arch = chooser().arch
    for path in exported.values():
        check_dims(path, arch)
        check_macs(path, arch)
    dense = model_cost(ARCH)
    cut = model_cost(arch)
    assert dense.blocks[0] == cut.blocks[0]
    assert dense.blocks[1].macs - cut.blocks[1].macs == TOKENS * (40 * (24 - 9) + (40 - 10) * 24)
    assert dense.blocks[1].params - cut.blocks[1].params == 40 * (24 - 9)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opset", [17, 18])
def test_export_of_every_form_gives_the_outputs_of_torch(tmp_path: Path, form: str, opset: int) -> None:
    model, path = chooser(FORMS[form]), tmp_path / "model.onnx"
    export_onnx(model, path, ExportOptions(opset=opset))
    check_dims(path, model.arch)
    check_macs(path, model.arch)
    batches = [noise_images(1, model.arch, seed).numpy() for seed in range(4)]
    limits = limits_for(model.arch, 1e-4)
    check_parity(torch_link(model), onnx_link(path, 1), batches, limits, model.arch)
