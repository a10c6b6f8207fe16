"""Options of the methods, as recipes give them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevit.errors import RecipeError
from edgevit.methods import (
    METHODS,
    CoupledDims,
    EffiSelect,
    PatchSimilarity,
    TokenChannels,
    learning_methods,
    need_images,
)
from edgevit.recipe import Recipe, load_recipe

LEAST = '[model]\nname = "deit_tiny_patch16_224"\n'
IMAGES = '[calibration]\nset = "s.toml"\n'
COUPLED = '[prune]\nmethod = "coupled-dims"\n'
CHANNELS = '[prune]\nmethod = "token-channels"\n'
PATCHES = '[prune]\nmethod = "patch-similarity"\n'


def load(folder: Path, text: str) -> Recipe:
    (folder / "r.toml").write_text(LEAST + text)
    return load_recipe(str(folder / "r.toml")).recipe


def test_recipe_with_one_table_has_one_method(tmp_path: Path) -> None:
    (options,) = load(tmp_path, COUPLED + "qk_drop = 0.9\nvo_dim = [64, 8]").methods
    assert options == CoupledDims(method="coupled-dims", qk_drop=0.9, vo_dim=(64, 8))


def test_recipe_with_several_tables_keeps_their_order(tmp_path: Path) -> None:
    text = IMAGES + CHANNELS + "hidden = 300\n" + COUPLED + 'qk_dim = 8\nscore = "l1"'
    methods = load(tmp_path, text.replace("[prune]", "[[prune]]")).methods
    assert [options.method for options in methods] == ["token-channels", "coupled-dims"]


def test_recipe_folds_means_only_for_token_channels(tmp_path: Path) -> None:
    assert not load(tmp_path, COUPLED + "qk_dim = 8").fold_means
    assert load(tmp_path, IMAGES + CHANNELS + "hidden = 300").fold_means
    per_image = CHANNELS + 'hidden = 300\nselection = "per-image"'
    assert load(tmp_path, IMAGES + per_image).fold_means
    assert not load(tmp_path, per_image).fold_means


def test_methods_that_measure_need_images() -> None:
    coupled = CoupledDims(method="coupled-dims", qk_dim=8)
    assert not need_images([coupled])
    assert need_images([coupled, TokenChannels(method="token-channels", hidden=9)])
    per_image = TokenChannels(method="token-channels", hidden=9, selection="per-image")
    assert not need_images([per_image])
    assert need_images([per_image.model_copy(update={"inputs_drop": 0.5})])
    assert not need_images([PatchSimilarity(method="patch-similarity", tokens_drop=0.1)])
    assert need_images([PatchSimilarity(method="patch-similarity", threshold=0.1)])


def test_methods_are_known_by_the_name_that_a_recipe_says() -> None:
    assert list(METHODS) == ["coupled-dims", "token-channels", "patch-similarity", "effiselect", "intra-head"]


@pytest.mark.parametrize("name", METHODS)
def test_method_decides_by_options_that_it_has(name: str) -> None:
    assert METHODS[name].decides
    assert METHODS[name].decides.keys() <= METHODS[name].model_fields.keys()
    assert METHODS[name].budgets <= METHODS[name].model_fields.keys()


def test_budget_decides_every_kind_of_its_method() -> None:
    assert EffiSelect.decided_by("macs") == ["heads", "hidden"]
    assert EffiSelect.decided_by("heads_drop") == ["heads"]
    assert EffiSelect.decided_by("align") == []


def test_learning_methods_are_told_with_their_places() -> None:
    select = EffiSelect(method="effiselect", macs=0.6)
    assert learning_methods([CoupledDims(method="coupled-dims", qk_dim=8), select]) == [(1, select)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r'prune\.method: "effiselect" is not told how much to cut \(heads_drop, hidden_drop\)'),
        ("macs = 0.6\nheads_drop = 0.3", r"prune\.heads_drop: given beside macs"),
        ("macs = 1.2", r"prune\.macs: expected .*1.*got 1\.2"),
        ("heads_drop = 1.0", r"prune\.heads_drop: expected .*1.*got 1\.0"),
        ("heads_drop = -0.1", r"prune\.heads_drop: "),
        ("heads_drop = 0.3\nsearch = { epoch = 1 }", r'prune\.search\.epoch: .*Did you mean "epochs"'),
        ("heads_drop = 0.3\n[plan]\nheads = 2", r"prune\.heads_drop: plan\.heads decides this"),
        ("macs = 0.6\n[plan]\nhidden = 64", r"prune\.macs: plan\.hidden decides this"),
    ],
)
def test_effiselect_impossible_options_are_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load(tmp_path, IMAGES + '[prune]\nmethod = "effiselect"\n' + text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r'prune\.method: "intra-head" is not told how much to cut .* Give macs = 0\.6'),
        ("embed_drop = 0.2", r'prune\.method: "intra-head" is not told how much to cut'),
        ("macs = 0.6\nqk_drop = 0.5", r"prune\.qk_drop: given beside macs"),
        ("macs = 0.6\nzeros = true", r"prune\.zeros: given beside macs"),
        ("zeros = true\nvo_drop = 0.5", r"prune\.vo_drop: given beside zeros"),
        ("zeros = false", r"prune\.zeros: expected True"),
        ('zeros = true\nweights = "pretrained"', r"prune\.weights: only the searched weights have zeros"),
        ("macs = 1.2", r"prune\.macs: expected .*1.*got 1\.2"),
        ("qk_drop = [0.5, 1.0]", r"prune\.qk_drop\[1\]: expected .*1.*got 1\.0"),
        ("macs = 0.6\n[plan]\nqk_dim = 32", r"prune\.macs: plan\.qk_dim decides this"),
        ("hidden_drop = 0.6\n[plan]\nhidden = 64", r"prune\.hidden_drop: plan\.hidden decides this"),
    ],
)
def test_intra_head_impossible_options_are_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load(tmp_path, IMAGES + '[prune]\nmethod = "intra-head"\n' + text)


def test_effiselect_without_calibration_asks_for_labelled_images(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r'calibration: missing; prune\.method = "effiselect" learns from labelled'
    ):
        load(tmp_path, '[prune]\nmethod = "effiselect"\nheads_drop = 0.3')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[prune]",
            "prune.method: missing; this key is required. Known here: coupled-dims, token-channels, "
            "patch-similarity, effiselect, intra-head.",
        ),
        (
            '[prune]\nmethod = "coupled-dim"',
            'prune.method: unknown name "coupled-dim". Did you mean "coupled-dims"? '
            "Known here: coupled-dims, token-channels, patch-similarity, effiselect, intra-head.",
        ),
        ('prune = "coupled-dims"', "model.prune: unknown key."),
        (
            COUPLED,
            'prune.method: "coupled-dims" is not told how much to cut (qk_dim, qk_drop, vo_dim, vo_drop)',
        ),
        (
            IMAGES + CHANNELS,
            'prune.method: "token-channels" is not told how much to cut (hidden, hidden_drop, inputs_drop)',
        ),
        (COUPLED + "qk_drop = 1.0", "prune.qk_drop: expected a number < 1.0 or a list, got 1.0"),
        (COUPLED + "qk_drop = -0.1", "prune.qk_drop: expected a number >= 0.0 or a list, got -0.1"),
        (COUPLED + "qk_drop = [0.5, 1.5]", "prune.qk_drop[1]: expected a number < 1.0, got 1.5"),
        (COUPLED + "qk_dim = 8\nqk_drop = 0.5", "prune.qk_drop: given beside qk_dim. Keep one of the two."),
        (COUPLED + 'qk_dim = 8\nsets = "one"', 'prune.sets: "one" chooses the same dims for QK and VO'),
        (COUPLED + 'qk_dim = 8\nscore = "l3"', 'prune.score: expected "median", "l1" or "l2", got "l3"'),
        (
            COUPLED + "qk_dims = 8",
            'prune.qk_dims: unknown key. Did you mean "qk_dim" or "vo_dim"? Known here: method, qk_dim',
        ),
        (
            IMAGES + CHANNELS + "hidden = 8\nkeep_frist = true",
            'prune.keep_frist: unknown key. Did you mean "keep_first"? Known here: method, hidden, ',
        ),
        (
            CHANNELS + "hidden = 8",
            'calibration: missing; prune.method = "token-channels" looks at unlabelled images',
        ),
        (
            IMAGES + CHANNELS + 'inputs_drop = 0.3\nselection = "per-image"',
            'prune.selection: "per-image" is of hidden neurons, and all remain.',
        ),
        (
            CHANNELS + 'hidden = 8\ninputs_drop = 0.3\nselection = "per-image"',
            'calibration: missing; prune.method = "token-channels" looks at unlabelled images',
        ),
        (
            IMAGES + (2 * (CHANNELS + "inputs_drop = 0.3\n")).replace("[prune]", "[[prune]]"),
            "prune[1].inputs_drop: prune[0].inputs_drop decides this. Keep one of the two.",
        ),
        (
            PATCHES,
            'prune.method: "patch-similarity" is not told how much to cut (tokens, tokens_drop, threshold)',
        ),
        (
            PATCHES + "threshold = 0.5",
            'calibration: missing; prune.method = "patch-similarity" looks at unlabelled images',
        ),
        (
            PATCHES + "tokens = 9\ntokens_drop = 0.5",
            "prune.tokens_drop: given beside tokens. Keep one of the two.",
        ),
        (
            PATCHES + 'tokens = 9\nstrategy = "merge"\nscore = "avg"',
            'prune.score: "merge" takes the most similar pairs and scores nothing. Take this key out.',
        ),
        (PATCHES + "tokens = 9\nsimilar = 0.5", 'prune.similar: only score = "count" reads this.'),
        (PATCHES + "tokens = 9\ncell = 3", 'prune.cell: only strategy = "cells" reads this.'),
        (
            PATCHES + "tokens_drop = 0.1\nblocks = [3, 1]",
            "prune.blocks: expected block numbers that rise, got [3, 1]. Sort them.",
        ),
        (
            PATCHES + "tokens = 9\n[plan]\ntokens = 9",
            "prune.tokens: plan.tokens decides this. Keep one of the two.",
        ),
        (
            COUPLED + "qk_dim = 8\n[plan]\nqk_dim = 9",
            "prune.qk_dim: plan.qk_dim decides this. Keep one of the two.",
        ),
        (
            (COUPLED + "qk_dim = 8\n" + COUPLED + "qk_drop = 0.5").replace("[prune]", "[[prune]]"),
            "prune[1].qk_drop: prune[0].qk_dim decides this. Keep one of the two.",
        ),
    ],
)
def test_recipe_with_bad_methods_names_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"r\.toml: ") as caught:
        load(tmp_path, text)
    assert str(caught.value).removeprefix(f"{tmp_path}/r.toml: ").startswith(message)


def test_recipe_schema_takes_one_table_or_a_list() -> None:
    one, several = Recipe.model_json_schema()["properties"]["prune"]["oneOf"]
    assert one["discriminator"]["propertyName"] == "method"
    assert several["type"] == "array"
