"""A commented recipe to start from, with the dims of one model written into its comments."""

from __future__ import annotations

import json
from collections.abc import Mapping

from edgevit.models.arch import Arch
from edgevit.plan import Anatomy, Kind
from edgevit.schema import OptionValue
from edgevit.shipped import shipped_names
from edgevit.target import DEFAULT_TARGET

_SECTIONS = """\
# A recipe for {model}: {blocks} blocks of width {embed}, {tokens} tokens, image {image}, {classes} classes.
# Build it with `edgevit build THIS_FILE`. Paths are relative to this file; docs/recipes.md has every key.

[model]
name = {name}
# weights = "weights.safetensors"  # or a .pth that holds tensors only; without any, the weights are random
# pretrained = true                # instead of weights: timm fetches its own
{options}  # of timm.create_model, for weights of another size

# Unlabelled images like those the device will see. With them the remaining weights are refitted; without them
# rows are cut and nothing else, which costs most of the accuracy.
# [calibration]
# set = "calibration.toml"  # kind = "folder", path = "images": see "Image sets" in docs/recipes.md
# images = 256

# Other images, on which dense and slim are compared. With labels there is a top-1, else the agreement.
# [evaluation]
# set = "evaluation.toml"

# What remains in each block: one number for all, or a list with one for each.
[plan]
{plan}

# Or say what the model may cost, in place of [plan]; edgevit measures what cuts lose, and plans:
#   [budget]
#   macs = 0.6  # share of the dense model's; or speedup = 1.5, or latency_ms, on the target

# Or let methods decide ("[prune]" in docs/recipes.md). What they decide goes out of [plan]:
#   [[prune]]
#   method = "coupled-dims"    # QK and VO dims, by their weights
#   qk_drop = 0.25             # share that is removed: one for all blocks, or a list
#   vo_drop = 0.25
#   [[prune]]
#   method = "token-channels"  # hidden neurons, by what they do on the calibration images
#   hidden_drop = 0.25
#   [[prune]]
#   method = "patch-similarity"  # patches that resemble others; needs no images
#   tokens_drop = 0.25
#   strategy = "clusters"
# Or one that learns it, in place of the first two:
#   [[prune]]
#   method = "effiselect"  # heads and neurons, by gates that are learnt from the labels of [calibration]
#   heads_drop = 0.3
#   hidden_drop = 0.5
# Or:
#   [[prune]]
#   method = "intra-head"  # dims inside heads and neurons, by rows that training drives to zero
#   macs = 0.6

[slim]
dead_tokens = {dead_tokens}

# A few minutes of training on the calibration images: the slim model learns to give the dense one's answers.
# [tune]
# epochs = 6

[[target]]
name = {target}  # shipped: {targets}; or the path of your own, ending in .toml

# Limits that fail the build, each with its exit code.
# [gates]
# max_drop = 1.0       # points of top-1
# min_agreement = 0.9  # share of images with the dense model's answer
# min_speedup = 1.2
"""

_WHAT: dict[Kind, str] = {
    "heads": "heads",
    "qk_dim": "query/key dims of each head",
    "vo_dim": "value/output dims of each head",
    "hidden": "neurons of the MLP",
    "tokens": "tokens that leave a block; list one number a block to merge some",
}
_CUT: tuple[Kind, ...] = ("qk_dim", "vo_dim", "hidden")
"""What the recipe cuts to begin with: three quarters stay, the mildest cut that a device notices."""


def recipe_text(
    name: str, arch: Arch, anatomy: Anatomy, options: Mapping[str, OptionValue] | None = None
) -> str:
    """Write a recipe for the model `name` that loads as it is.

    Args:
        name: what `model.name` shall say.
        arch: dims of the dense model.
        anatomy: what can be cut in it.
        options: what `model.options` shall say, by which the dims are those of `arch`.
    """
    plan = [_plan_line(kind, anatomy) for kind in _WHAT]
    dead = "true  # leave out what nothing reads; the output stays the same"
    kept = "false  # this model's head reads every token"
    return _SECTIONS.format(
        model=name,
        name=json.dumps(name),
        blocks=len(arch.blocks),
        embed=arch.embed,
        tokens=arch.tokens,
        image=" x ".join(map(str, arch.image)),
        classes=arch.classes,
        options=_options_line(options) if options else f"# options = {{ num_classes = {arch.classes} }}  ",
        plan="\n".join(plan),
        dead_tokens=kept if anatomy.read_tokens is None else dead,
        target=json.dumps(DEFAULT_TARGET),
        targets=", ".join(shipped_names("targets")),
    )


def _options_line(options: Mapping[str, OptionValue]) -> str:
    return f"options = {{ {', '.join(f'{name} = {json.dumps(value)}' for name, value in options.items())} }}"


def _plan_line(kind: Kind, anatomy: Anatomy) -> str:
    if kind in anatomy.refused:
        return f"# {kind}: {anatomy.refused[kind]}"
    dense = [int(getattr(block, kind)) for block in anatomy.blocks]
    there = str(dense[0]) if len(set(dense)) == 1 else ", ".join(map(str, dense))
    cut = kind in _CUT
    together = anatomy.together.get(kind, 1)
    kept = [together * _three_quarters(count // together) if cut else count for count in dense]
    value = kept[0] if len(set(kept)) == 1 else kept
    return f"{'' if cut else '# '}{kind} = {value}  # of {there}: {_WHAT[kind]}"


def _three_quarters(count: int) -> int:
    """Return about 3/4 of `count`, a multiple of 8 where that leaves enough: devices like those."""
    kept = max(1, 3 * count // 4)
    return kept - kept % 8 if kept >= 32 else kept
