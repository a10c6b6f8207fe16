"""Closed-form slimming of a whole model: no training, no labels, a few hundred images (docs/methods.md).

Block by block from the input: the QK basis, the VO basis, the neurons that stay; after each cut the
projection that follows is refitted so that the slim stream comes back to the dense one. Tokens that the slim
model drops as dead take part in the statistics: the few that are read would not fill a covariance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from edgevit.models.anatomy import slim_arch
from edgevit.models.layers import SlimViT
from edgevit.plan import Plan
from edgevit.progress import Progress
from edgevit.slim.fit_attention import fit_attention
from edgevit.slim.fit_mlp import fit_mlp
from edgevit.slim.site import ClosedForm, Site
from edgevit.slim.stream import open_streams
from edgevit.slim.write import copy_shared


def slim_closed_form(
    dense: SlimViT,
    plan: Plan,
    batches: Callable[[], Iterator[Tensor]],
    options: ClosedForm,
    progress: Progress,
) -> SlimViT:
    """Return the slim model that `plan` describes, with weights fitted to the images of `batches`.

    Args:
        dense: the model to slim; where it is, all is computed, and the slim model will be.
        plan: keep counts; indices in it are not used, the best basis is.
        batches: gives an iterator over images, float32 [b, C, H, W], where the model is; called
            anew for each pass.
        options: what the closed form uses.
        progress: called after each step.
    """
    slim = SlimViT(slim_arch(dense.arch, plan)).to(dense.device).eval()
    copy_shared(dense, slim)
    streams = open_streams(dense, batches, progress, weighted=options.weighted)
    with torch.no_grad():
        streams.enter(slim, batches())
        for index, (full, cut) in enumerate(zip(dense.blocks, slim.blocks, strict=True)):
            site = Site(index, full, cut, streams, streams.weights[index], options)
            reductions = fit_attention(site)
            if reductions:
                streams.reduce(reductions)
            fit_mlp(site)
            progress("slimming blocks", index + 1, len(dense.blocks))
    return slim
