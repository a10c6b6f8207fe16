from __future__ import annotations

import dataclasses
import json
import re

import pytest
from toy_choosers import choosing_arch
from toy_vits import ARCH, toy_arch

from edgevit.errors import PlanError
from edgevit.models.anatomy import read_anatomy, slim_arch
from edgevit.plan import (
    Anatomy,
    BlockAnatomy,
    BlockPlan,
    Counts,
    Kept,
    Kind,
    PerImage,
    Plan,
    check_multiples,
    keep_all,
    plan_from_counts,
    plan_from_json,
    plan_text,
    plan_to_json,
)

ANATOMY = read_anatomy(ARCH)  # three blocks of 3 heads, K = V = 8, 40 neurons, 17 tokens


def _column(plan: Plan, kind: Kind) -> list[int]:
    return [getattr(block, kind) for block in plan.blocks]


def test_plan_of_no_counts_keeps_all() -> None:
    assert plan_from_counts(ANATOMY, Counts()) == keep_all(ANATOMY)


def test_plan_of_one_number_applies_to_every_block() -> None:
    plan = plan_from_counts(ANATOMY, Counts(heads=2, hidden=32))
    assert _column(plan, "heads") == [2, 2, 2]
    assert _column(plan, "hidden") == [32, 32, 32]
    assert _column(plan, "qk_dim") == [8, 8, 8]


def test_plan_of_a_list_applies_block_by_block() -> None:
    plan = plan_from_counts(ANATOMY, Counts(qk_dim=[8, 4, 2], tokens=[17, 12, 8]))
    assert _column(plan, "qk_dim") == [8, 4, 2]
    assert _column(plan, "tokens") == [17, 12, 8]


def test_plan_of_one_token_count_asks_no_block_for_more_than_it_has() -> None:
    blocks = tuple(dataclasses.replace(ANATOMY.blocks[0], tokens=tokens) for tokens in (17, 14, 10))
    anatomy = dataclasses.replace(ANATOMY, blocks=blocks)
    assert _column(plan_from_counts(anatomy, Counts(tokens=12)), "tokens") == [12, 12, 10]


BAD_COUNTS: dict[str, tuple[Counts, str]] = {
    "zero everywhere": (
        Counts(heads=0),
        "plan.heads: every block has 3; expected 1..3, got 0. Give 3 to keep all.",
    ),
    "too many everywhere": (
        Counts(qk_dim=9),
        "plan.qk_dim: every block has 8; expected 1..8, got 9. Give 8 to keep all.",
    ),
    "one of a list": (
        Counts(vo_dim=[8, -1, 8]),
        "plan.vo_dim: blocks.1 has 8; expected 1..8, got -1. Give 8 to keep all.",
    ),
    "different ones of a list": (
        Counts(hidden=[41, 0, 40]),
        "plan.hidden: blocks.0 has 40; expected 1..40, got 41. Give 40 to keep all.\n"
        "plan.hidden: blocks.1 has 40; expected 1..40, got 0. Give 40 to keep all.",
    ),
    "wrong length": (
        Counts(heads=[2, 2]),
        "plan.heads: expected one number or 3 (one per block), got 2 numbers.",
    ),
    "more tokens than there are": (
        Counts(tokens=18),
        "plan.tokens: expected 1..17, got 18. Give 17 to keep all.",
    ),
    "too few tokens at once": (
        Counts(tokens=8),
        "plan.tokens: blocks.0 gets 17 tokens; one block merges at most half of its patch tokens, so 9..17 "
        "can leave, got 8. Merge the rest in another block.",
    ),
    "tokens that come back": (
        Counts(tokens=[10, 12, 12]),
        "plan.tokens: blocks.1 gets 10 tokens and cannot let 12 leave. Give at most 10.",
    ),
}


@pytest.mark.parametrize("case", BAD_COUNTS)
def test_counts_that_the_model_cannot_take_are_refused(case: str) -> None:
    counts, message = BAD_COUNTS[case]
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        plan_from_counts(ANATOMY, counts)


def test_merging_half_of_an_odd_number_of_patches_rounds_up() -> None:
    assert _column(plan_from_counts(ANATOMY, Counts(tokens=[12, 6, 6])), "tokens") == [12, 6, 6]
    with pytest.raises(PlanError, match=r"blocks.1 gets 12 tokens; .* so 6\.\.12 can leave, got 5\."):
        plan_from_counts(ANATOMY, Counts(tokens=[12, 5, 5]))


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(
        PlanError, match=r"(?s)heads.*got 4\..*qk_dim.*got 0\..*hidden.*got 99\..*dead_tokens"
    ):
        plan_from_counts(
            read_anatomy(toy_arch("mean")), Counts(heads=4, qk_dim=0, hidden=99), dead_tokens=True
        )


def test_dead_tokens_with_a_head_that_reads_all_are_refused() -> None:
    with pytest.raises(PlanError, match=r"slim.dead_tokens: this model's head reads every token"):
        plan_from_counts(read_anatomy(toy_arch("mean")), Counts(), dead_tokens=True)


def test_dead_tokens_with_a_merge_in_the_last_block_are_refused() -> None:
    with pytest.raises(PlanError, match=r"blocks.2 is the last; .* Give it 14, as many as enter\."):
        plan_from_counts(ANATOMY, Counts(tokens=[17, 14, 10]), dead_tokens=True)


def test_dead_tokens_are_kept_in_the_plan() -> None:
    assert plan_from_counts(ANATOMY, Counts(tokens=[17, 14, 14]), dead_tokens=True).dead_tokens


def test_refused_kind_gives_its_reason_once() -> None:
    anatomy = dataclasses.replace(ANATOMY, refused={"qk_dim": "qk-norm is in the way."})
    with pytest.raises(PlanError, match=r"^plan.qk_dim: qk-norm is in the way\.$"):
        plan_from_counts(anatomy, Counts(qk_dim=4))
    assert plan_from_counts(anatomy, Counts(qk_dim=8)) == keep_all(ANATOMY)


def test_multiples_that_fit_pass() -> None:
    plan = plan_from_counts(ANATOMY, Counts(hidden=32, qk_dim=4))
    check_multiples(plan, keep_all(ANATOMY), {"hidden": 16, "qk_dim": 4}, "toy")


def test_multiples_never_refuse_what_was_not_cut() -> None:
    check_multiples(keep_all(ANATOMY), keep_all(ANATOMY), {"hidden": 32, "heads": 2}, "toy")


def test_count_that_is_no_multiple_names_the_nearest_ones() -> None:
    plan = plan_from_counts(ANATOMY, Counts(hidden=[40, 20, 16]))
    message = (
        "plan.hidden: blocks.1 keeps 20 of 40, not a multiple of 16 (target toy). "
        "Use 16 or 32, or lower the multiple in a target file of your own and lose speed."
    )
    with pytest.raises(PlanError, match=f"^{re.escape(message)}$"):
        check_multiples(plan, keep_all(ANATOMY), {"hidden": 16}, "toy")


@pytest.mark.parametrize(("count", "nearest"), [(3, "Use 8,"), (39, "Use 32 or 40,"), (33, "Use 32 or 40,")])
def test_nearest_multiples_are_counts_that_the_model_has(count: int, nearest: str) -> None:
    plan = plan_from_counts(ANATOMY, Counts(hidden=count))
    with pytest.raises(PlanError, match=f"every block keeps {count} of 40, not .* {nearest}"):
        check_multiples(plan, keep_all(ANATOMY), {"hidden": 8}, "toy")


def test_nearest_multiple_above_all_that_there_is_is_all_of_it() -> None:
    plan = plan_from_counts(ANATOMY, Counts(hidden=39))
    with pytest.raises(PlanError, match="Use 32 or 40,"):
        check_multiples(plan, keep_all(ANATOMY), {"hidden": 16}, "toy")


def test_count_that_a_method_decided_is_to_be_aligned_by_it() -> None:
    plan = plan_from_counts(ANATOMY, Counts(hidden=20, qk_dim=3))
    message = r"^plan\.qk_dim: every block keeps 3 .*\nprune: hidden: every block keeps 20 .* align = 16"
    with pytest.raises(PlanError, match=message):
        check_multiples(plan, keep_all(ANATOMY), {"qk_dim": 4, "hidden": 16}, "toy", ["hidden"])


def test_plan_with_kept_indices_survives_json() -> None:
    kept = Kept(heads=(0, 2), qk=((0, 1), (3, 7)), vo=((1,), (2,)), hidden=(0, 5, 39))
    plan = Plan((BlockPlan(2, 2, 1, 3, 17, kept), BlockPlan(3, 8, 8, 40, 12)), dead_tokens=True)
    data = json.loads(plan_text(plan))
    assert plan_from_json(data) == plan
    assert data["blocks"][0]["kept"]["qk"] == [[0, 1], [3, 7]]
    assert "kept" not in data["blocks"][1]


def test_plan_with_some_kept_indices_survives_json() -> None:
    plan = Plan((BlockPlan(2, 8, 8, 3, 17, Kept(hidden=(1, 2, 3))),))
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan


def test_plan_text_is_the_same_for_equal_plans() -> None:
    assert plan_text(keep_all(ANATOMY)) == plan_text(plan_from_counts(ANATOMY, Counts(heads=3)))


def test_one_block_is_named_by_its_number() -> None:
    block = BlockAnatomy(heads=3, qk_dim=8, vo_dim=8, hidden=40, tokens=17)
    anatomy = Anatomy((block,), 24, 1, 1, {})
    with pytest.raises(PlanError, match=r"plan.heads: blocks.0 has 3"):
        plan_from_counts(anatomy, Counts(heads=4))


def test_plan_whose_images_choose_survives_json() -> None:
    plan = keep_all(ANATOMY)
    chosen = dataclasses.replace(
        plan.blocks[1], per_image=PerImage(8, class_weight=2.0), mlp_inputs=3, kept=Kept(inputs=(0, 4, 9))
    )
    plan = dataclasses.replace(plan, blocks=(plan.blocks[0], chosen, plan.blocks[2]))
    assert plan_from_json(json.loads(plan_text(plan))) == plan
    whole, own, _ = plan_to_json(plan)["blocks"]
    assert own["per_image"] == {"used": 8, "score": "contribution", "class_weight": 2.0}
    assert own["mlp_inputs"] == 3
    assert not {"per_image", "mlp_inputs"} & whole.keys()


def test_plan_of_a_model_whose_images_choose_keeps_that() -> None:
    arch = choosing_arch(inputs=9)
    plan = plan_from_counts(read_anatomy(arch), Counts(qk_dim=4))
    assert [(block.per_image, block.mlp_inputs) for block in plan.blocks] == [
        (block.per_image, block.mlp_inputs) for block in arch.blocks
    ]
    assert slim_arch(arch, keep_all(read_anatomy(arch))) == arch


def test_neurons_that_images_use_are_to_be_multiples_too() -> None:
    dense = keep_all(ANATOMY)
    first, *others = dense.blocks
    plan = dataclasses.replace(dense, blocks=(dataclasses.replace(first, per_image=PerImage(12)), *others))
    check_multiples(plan, dense, {"hidden": 4}, "t", ["hidden"])
    with pytest.raises(PlanError, match=r"^prune: hidden: blocks\.0 keeps 12 of 40, not a multiple of 8"):
        check_multiples(plan, dense, {"hidden": 8}, "t", ["hidden"])
