"""Fewer tokens: merged pairs, and patches that are chosen to stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from toy_vits import TOKENS

from edgevit.models.reduction import (
    Step,
    TokenMatch,
    choose_tokens,
    keep_tokens,
    match_tokens,
    pool_tokens,
    redundancy,
    unit_features,
)
from edgevit.plan import Choice, Redundancy, Strategy

PATCHES = TOKENS - 1


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sorted(rows: Tensor) -> Tensor:
    return rows[rows[:, 0].argsort()]


@pytest.mark.parametrize("patches", [16, 15])
@pytest.mark.parametrize("merged", [1, 5, 8])
def test_merging_gives_static_shapes_and_keeps_sums(patches: int, merged: int) -> None:
    prefix, n = 2, 2 + patches
    x, sizes = _random(3, n, 6), _random(3, n, 1, seed=1).abs() + 1
    match = match_tokens(_random(3, patches, 4, seed=2), prefix, merged)
    tokens, new_sizes = pool_tokens(x, sizes, match)
    assert tokens.shape == (3, n - merged, 6)
    assert new_sizes.shape == (3, n - merged, 1)
    torch.testing.assert_close(new_sizes.sum(dim=1), sizes.sum(dim=1))
    torch.testing.assert_close((new_sizes * tokens).sum(dim=1), (sizes * x).sum(dim=1), rtol=1e-5, atol=1e-5)
    assert torch.equal(tokens[:, :prefix], x[:, :prefix])
    assert torch.equal(new_sizes[:, :prefix], sizes[:, :prefix])


def test_merging_without_sizes_counts_tokens() -> None:
    match = match_tokens(_random(3, PATCHES, 4), 1, 6)
    _, sizes = pool_tokens(_random(3, TOKENS, 6), None, match)
    assert torch.equal(sizes.sum(dim=1), torch.full((3, 1), float(TOKENS)))
    assert torch.equal(sizes, sizes.round())


def test_merging_agrees_with_a_loop_over_tokens() -> None:
    keys, x = _random(1, TOKENS, 4), _random(1, TOKENS, 6, seed=1)
    tokens, _ = pool_tokens(x, None, match_tokens(keys[:, 1:], 1, 3))
    unit = functional.normalize(keys[0], dim=-1)
    even, odd = list(range(1, TOKENS, 2)), list(range(2, TOKENS, 2))
    best = {i: max(odd, key=lambda j: float(unit[i] @ unit[j])) for i in even}
    gone = sorted(even, key=lambda i: -float(unit[i] @ unit[best[i]]))[:3]
    groups = [[0]] + [[i] for i in even if i not in gone]
    groups += [[j, *(i for i in gone if best[i] == j)] for j in odd]
    expected = torch.stack([x[0, group].mean(dim=0) for group in groups])
    torch.testing.assert_close(_sorted(tokens[0]), _sorted(expected))


def test_identical_tokens_are_merged_first() -> None:
    keys = _random(1, TOKENS, 8)
    keys[:, 7] = keys[:, 12]  # patch 6 of the even set, patch 11 of the odd one
    match = match_tokens(keys[:, 1:], 1, 1)
    assert match.order[0, 0] == 3
    assert match.onehot[0, :, 0].argmax() == 5
    x = keys.clone()
    tokens, sizes = pool_tokens(x, None, match)
    place = sizes[0, :, 0].argmax()
    torch.testing.assert_close(tokens[0, place], x[0, 12])


def test_one_image_is_merged_as_in_a_batch() -> None:
    keys, x, sizes = (
        _random(3, PATCHES, 4),
        _random(3, TOKENS, 6, seed=1),
        _random(3, TOKENS, 1, seed=2).abs(),
    )
    batch = pool_tokens(x, sizes, match_tokens(keys, 1, 5))
    for index in range(3):
        one = slice(index, index + 1)
        alone = pool_tokens(x[one], sizes[one], match_tokens(keys[one], 1, 5))
        torch.testing.assert_close(alone[0], batch[0][one])
        torch.testing.assert_close(alone[1], batch[1][one])


def test_prefix_is_never_merged_even_where_it_equals_a_patch() -> None:
    keys = _random(1, TOKENS, 8)
    keys[:, 0] = keys[:, 1]
    tokens, sizes = pool_tokens(keys, None, match_tokens(keys[:, 1:], 1, 8))
    assert torch.equal(tokens[:, 0], keys[:, 0])
    assert sizes[0, 0, 0] == 1


def test_match_holds_its_counts() -> None:
    match = match_tokens(_random(2, PATCHES, 4), 1, 5)
    assert isinstance(match, TokenMatch)
    assert match.onehot.shape == (2, 8, 5)
    assert torch.equal(match.onehot.sum(dim=1), torch.ones(2, 5))


DROP = Choice("drop")


def _step(removed: int, choice: Choice = DROP, prefix: int = 1) -> Step:
    return Step(prefix, removed, choice, (4, 4), positioned=True)


def _cosines(features: Tensor) -> Tensor:
    unit = functional.normalize(features - features.mean(dim=1, keepdim=True), dim=-1).double()
    return unit @ unit.transpose(1, 2)


def _scores(features: Tensor, choice: Choice) -> Tensor:
    return redundancy(unit_features(features), choice, (4, 4))


def test_redundancy_by_all_others_is_the_mean_cosine() -> None:
    features = _random(3, PATCHES, 8) + 5
    expected = (_cosines(features).sum(dim=2) - 1) / (PATCHES - 1)
    torch.testing.assert_close(_scores(features, DROP).double(), expected, rtol=0, atol=1.1e-3)


def test_redundancy_by_the_nearest_is_the_mean_of_five() -> None:
    features = _random(3, PATCHES, 8)
    others = _cosines(features) - 9 * torch.eye(PATCHES)
    expected = others.sort(dim=2, descending=True).values[..., :5].mean(dim=2)
    found = _scores(features, Choice("drop", "knn")).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1.1e-3)


def test_redundancy_by_count_orders_by_the_number_of_similar_patches() -> None:
    features = _random(3, PATCHES, 3)
    counts = (_cosines(features) >= 0.6).sum(dim=2) - 1
    found = _scores(features, Choice("drop", "count", similar=0.6)) * (PATCHES - 1)
    assert torch.equal(found.floor().long(), counts)


def test_chosen_patches_are_the_least_redundant_and_stand_in_order() -> None:
    features = _random(3, PATCHES, 8)
    choice = choose_tokens(features, _step(6), DROP)
    assert choice.onehot is None
    assert torch.equal(choice.kept, choice.kept.sort(dim=1).values)
    for row, scores in zip(choice.kept, _scores(features, DROP), strict=True):
        assert set(row.tolist()) == set(scores.argsort()[:10].tolist())


def test_dropping_leaves_prefix_and_kept_tokens_as_they_are() -> None:
    x = _random(3, TOKENS + 1, 6)
    choice = choose_tokens(_random(3, PATCHES, 8, seed=1), _step(6, prefix=2), DROP)
    tokens, sizes = keep_tokens(x, None, choice)
    assert sizes is None
    assert torch.equal(tokens[:, :2], x[:, :2])
    for row, kept, full in zip(tokens, choice.kept, x, strict=True):
        assert torch.equal(row[2:], full[2 + kept])


def test_dropping_of_merged_tokens_keeps_the_sizes_of_those_that_stay() -> None:
    sizes = _random(3, TOKENS, 1).abs() + 1
    choice = choose_tokens(_random(3, PATCHES, 8, seed=1), _step(6), DROP)
    _, left = keep_tokens(_random(3, TOKENS, 6), sizes, choice)
    assert left is not None
    assert torch.equal(left[0, 1:], sizes[0, 1 + choice.kept[0]])


@pytest.mark.parametrize("score", ["avg", "count", "knn"])
def test_each_cell_keeps_its_least_redundant_patch(score: Redundancy) -> None:
    """A corner of equal patches would go altogether."""
    features = _random(2, PATCHES, 8)
    features[:, [0, 1, 4, 5]] = features[:, :1]
    plain = choose_tokens(features, _step(10, Choice("drop", score)), Choice("drop", score))
    choice = Choice("cells", score)
    kept = choose_tokens(features, _step(10, choice), choice).kept
    corner = torch.tensor([0, 1, 4, 5])
    assert score == "avg" or not torch.isin(plain.kept, corner).any()
    scores = _scores(features, Choice("drop", score))
    for row, of_image in zip(kept, scores, strict=True):
        for first in (0, 2, 8, 10):
            cell = torch.tensor([first, first + 1, first + 4, first + 5])
            assert int(cell[of_image[cell].argmin()]) in row.tolist()


def test_as_many_patches_as_cells_are_one_of_each() -> None:
    choice = Choice("cells")
    kept = choose_tokens(_random(5, PATCHES, 8), _step(12, choice), choice).kept
    cells = kept // 8 * 2 + kept % 4 // 2
    assert torch.equal(cells.sort(dim=1).values, torch.arange(4).expand(5, -1))


def test_clusters_keep_sums_and_count_tokens() -> None:
    x, sizes = _random(3, TOKENS, 6), _random(3, TOKENS, 1, seed=1).abs() + 1
    clusters = Choice("clusters")
    choice = choose_tokens(_random(3, PATCHES, 8, seed=2), _step(9, clusters), clusters)
    tokens, left = keep_tokens(x, sizes, choice)
    assert left is not None
    assert tokens.shape == (3, 8, 6)
    torch.testing.assert_close(left.sum(dim=1), sizes.sum(dim=1))
    torch.testing.assert_close((left * tokens).sum(dim=1), (sizes * x).sum(dim=1), rtol=1e-4, atol=1e-5)
    assert torch.equal(tokens[:, :1], x[:, :1])


def test_clusters_agree_with_a_loop_over_patches() -> None:
    features, x = _random(1, PATCHES, 8), _random(1, TOKENS, 6, seed=1)
    clusters = Choice("clusters")
    choice = choose_tokens(features, _step(9, clusters), clusters)
    tokens, _ = keep_tokens(x, None, choice)
    cosines, kept = _cosines(features)[0], choice.kept[0].tolist()
    groups = {patch: [patch] for patch in kept}
    for patch in set(range(PATCHES)) - set(kept):
        groups[max(kept, key=lambda other: float(cosines[patch, other]))].append(patch)
    expected = torch.stack([x[0, [1 + patch for patch in groups[patch_]]].mean(dim=0) for patch_ in kept])
    torch.testing.assert_close(tokens[0, 1:], expected)


def test_clusters_of_equal_patches_leave_none_without_itself() -> None:
    clusters = Choice("clusters")
    choice = choose_tokens(torch.ones(1, PATCHES, 8), _step(6, clusters), clusters)
    assert choice.onehot is not None
    own = choice.onehot[0].gather(1, choice.kept[0].unsqueeze(1))
    assert torch.equal(own, torch.ones(10, 1))


def test_equal_patches_that_stay_are_spread() -> None:
    """A plain background: rounding must not choose, and not one end of the picture alone stay."""
    features = torch.ones(1, 196, 8)
    kept = choose_tokens(features, Step(1, 147, DROP, (14, 14), positioned=False), DROP).kept[0]
    assert int(kept.diff().max()) <= 7


@pytest.mark.parametrize("strategy", ["drop", "cells", "clusters"])
@pytest.mark.parametrize("score", ["avg", "count", "knn"])
def test_choice_of_an_image_ignores_its_batch(strategy: Strategy, score: Redundancy) -> None:
    choice = Choice(strategy, score, similar=0.3)
    features = _random(6, PATCHES, 8)
    together = choose_tokens(features, _step(7, choice), choice).kept
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(choose_tokens(features[order], _step(7, choice), choice).kept, together[order])
    for row in range(6):
        alone = choose_tokens(features[row : row + 1], _step(7, choice), choice).kept
        assert torch.equal(alone[0], together[row])
