"""A first look at the shapes' speed on a GPU without TensorRT: the same models through torch's CUDA graphs.

    python tools/bench/torch_gpu.py

These are no TensorRT times: torch fuses next to nothing. They say whether a cut shape is faster on the card
at all. Needs an NVIDIA GPU and a torch with CUDA. Random weights: times do not depend on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import record
import torch
from record import Bound, Figure, Notebook, Row
from subjects import TOLD, use_threads
from tensorrt_gpu import MODELS, Pair, make_pair
from torch import Tensor

from edgevit.measure.statistics import bootstrap_ratio
from edgevit.models.layers import SlimViT

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_BURSTS, _RUNS, _LEAD = 40, 25, 5


def capture(model: SlimViT, images: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """Record one run of a model as a CUDA graph; return it and where it leaves the logits."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up in the first runs, which no graph may hold
        for _ in range(3):
            model(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(images)
    return graph, logits


def time_runs(run: Callable[[], None], runs: int) -> list[float]:
    """Time runs by the device's own clock, in milliseconds."""
    times = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return times


def measure(pair: Pair, precision: str) -> Row:
    """Time both models in bursts side by side, and compare the slim one with itself in fp32 on the CPU."""
    images = torch.randn(1, *pair.dense.arch.image, generator=torch.Generator().manual_seed(0))
    dtype = _DTYPES[precision]
    with torch.inference_mode():
        expected = pair.slim(images)
        given = images.to("cuda", dtype)
        models = [model.to("cuda", dtype) for model in (pair.dense, pair.slim)]
        graphs = [capture(model, given) for model in models]
        bursts: list[list[list[float]]] = [[], []]
        for _ in range(_BURSTS):
            for times, (graph, _) in zip(bursts, graphs, strict=True):
                time_runs(graph.replay, _LEAD)
                times.append(time_runs(graph.replay, _RUNS))
        apart = float((graphs[1][1].float().cpu() - expected).abs().max())
    dense, slim = (np.array(times) for times in bursts)
    interval = bootstrap_ratio(dense, slim, 0)
    value = float(np.median(dense) / np.median(slim))
    return Row(
        f"{pair.name}, {precision}, torch CUDA graphs, {torch.cuda.get_device_name()}",
        {
            "torch": torch.__version__,
            "largest difference of a logit": f"{apart:.1e}",
            "dense, ms of the GPU": f"{np.median(dense):.3f}",
            "slim, ms of the GPU": f"{np.median(slim):.3f}",
            "speed-up": Figure(value, ".3f", (interval.low, interval.high), Bound(1.0)),
            "of the estimate": f"{value / pair.estimated:.3f}",
        },
    )


def main() -> None:
    """Measure every model, where torch has a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    record.add_options(parser)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device that torch sees, found none: nothing was measured")
    use_threads(arguments.threads)
    notebook = Notebook(quick=arguments.quick)
    for name in list(MODELS)[:1] if arguments.quick else MODELS:
        for precision in _DTYPES:
            TOLD.say(f"{name}, {precision}")
            notebook.write("torch-gpu", [measure(make_pair(name), precision)])


if __name__ == "__main__":
    main()
