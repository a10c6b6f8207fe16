"""The stage in which methods learn, within the line from a recipe to a plan and a slim model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from toy_build import build_patiently, write_images, write_toy
from toy_training import stop_at

from edgevit.errors import ImagesError, PlanError, TrainingError
from edgevit.models.anatomy import slim_arch
from edgevit.models.load import load_saved
from edgevit.pipeline.decide import make_plan
from edgevit.pipeline.inputs import read_inputs
from edgevit.pipeline.models import Saved, load_dense, slim_dense
from edgevit.pipeline.search import Searched, run_searches
from edgevit.pipeline.sets import open_sets
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.tune import distil_options
from edgevit.plan import Plan
from edgevit.progress import Progress, silent
from edgevit.recipe import TuneSection, load_recipe
from edgevit.slim import SlimOptions
from edgevit.store import Store
from edgevit.tune.distil import Distillation
from edgevit.tune.gates import fold_gates

SEARCH = 'search = { images = 24, batch = 8, epochs = 2, checkpoint_steps = 2, precision = "fp32" }\n'
SELECT = f'[prune]\nmethod = "effiselect"\nheads_drop = 0.34\nhidden_drop = 0.5\n{SEARCH}'


class Line(NamedTuple):
    """What the line has made."""

    dense: Saved
    searched: Searched
    plan: Plan
    slim: Saved
    reused: Mapping[str, bool]


def write(folder: Path, prune: str = SELECT, more: str = "") -> Path:
    """Write a recipe with a method that learns."""
    return write_toy(folder, plan=prune, more=more)


def run(recipe: Path, out: Path, progress: Progress = silent) -> Line:
    """Run the line as far as the slim model."""
    inputs = read_inputs(load_recipe(str(recipe)), ())
    with Store.open(out, "toy") as store:
        stages = Stages(store, progress)
        dense = load_dense(stages, inputs)
        sets = open_sets(stages, inputs, dense)
        searched = run_searches(stages, inputs, dense, sets.searching)
        plan = make_plan(stages, inputs, searched, sets.calibration)
        options = SlimOptions(inputs.recipe.recipe.recover)
        slim = slim_dense(stages, searched.start, plan, options, sets.calibration)
    return Line(dense, searched, plan, slim, {stage.name: stage.reused for stage in stages.facts})


def same_scores(one: Searched, other: Searched) -> bool:
    return all(
        one.scores[0][name].equal(other.scores[0][name]) for name in one.scores[0].keys() | other.scores[0]
    )


def test_line_with_effiselect_cuts_what_its_gates_say(tmp_path: Path) -> None:
    found = run(write(tmp_path), tmp_path / "out")
    assert sum(block.heads for block in found.plan.blocks) == 4  # of 6, less floor(0.34 * 6)
    assert sum(block.hidden for block in found.plan.blocks) == 192
    assert found.slim.loaded.model.arch == slim_arch(found.dense.loaded.model.arch, found.plan)
    assert found.searched.start is found.dense
    for index, block in enumerate(found.plan.blocks):
        gates = found.searched.scores[0][f"blocks.{index}.hidden"].abs()
        kept = list(block.kept.hidden or ())
        lost = [j for j in range(len(gates)) if j not in kept]
        assert gates[kept].min() >= gates[lost].max()


def test_line_with_another_share_searches_no_more(tmp_path: Path) -> None:
    first = run(write(tmp_path), tmp_path / "out")
    changed = write(tmp_path, SELECT.replace("hidden_drop = 0.5", "hidden_drop = 0.25\nalign = 8"))
    second = run(changed, tmp_path / "out")
    assert (second.reused["search effiselect"], second.reused["prune"]) == (True, False)
    assert same_scores(first.searched, second.searched)
    other = run(write(tmp_path, SELECT.replace("epochs = 2", "epochs = 2, lr = 1e-3")), tmp_path / "out")
    assert not other.reused["search effiselect"]
    assert not same_scores(first.searched, other.searched)


def test_line_with_searched_weights_slims_the_searched_model(tmp_path: Path) -> None:
    prune = SELECT.replace("heads_drop", 'weights = "searched"\ntrain = "gates"\nheads_drop')
    found = run(write(tmp_path, prune), tmp_path / "out")
    expected = fold_gates(found.dense.loaded.model, found.searched.scores[0]).state_dict()
    start = found.searched.start.loaded.model.state_dict()
    assert all(value.equal(expected[name]) for name, value in start.items())
    heads = found.plan.blocks[0].kept.heads or (0, 1, 2)
    kept = start["blocks.0.attn.v.weight"].unflatten(0, (3, 16))[list(heads)].flatten(0, 1)
    assert not found.slim.loaded.model.blocks[0].attn.v.weight.equal(
        found.dense.loaded.model.blocks[0].attn.v.weight
    )
    plain = run(write(tmp_path, prune, '[slim]\nrecover = "none"\n'), tmp_path / "out")
    assert plain.slim.loaded.model.blocks[0].attn.v.weight.equal(kept)


def test_line_with_a_budget_meets_it(tmp_path: Path) -> None:
    prune = SELECT.replace("heads_drop = 0.34\nhidden_drop = 0.5", "macs = 0.6\nalign = 4")
    found = run(write(tmp_path, prune), tmp_path / "out")
    from edgevit.cost import model_cost

    macs = [model_cost(model.loaded.model.arch).total.macs for model in (found.slim, found.dense)]
    assert 0.5 < macs[0] / macs[1] <= 0.6
    with pytest.raises(PlanError, match=r"prune\.macs: expected 0\.\d+ or more, the smallest share"):
        run(write(tmp_path, prune.replace("0.6", "0.001")), tmp_path / "out")


def test_search_interrupted_goes_on_to_the_same_scores(tmp_path: Path) -> None:
    whole = run(write(tmp_path), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(write(tmp_path), tmp_path / "out", stop_at(5, "searching"))
    (kept,) = (tmp_path / "out" / ".edgevit" / "work").glob("search-*/*.safetensors")
    steps: list[int] = []
    found = run(
        write(tmp_path),
        tmp_path / "out",
        lambda task, done, _: steps.append(done) if task == "searching" else None,
    )
    assert steps == [5, 6]
    assert not kept.exists()
    assert same_scores(whole.searched, found.searched)


def test_search_without_labels_is_refused_before_it_begins(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    (tmp_path / "calibration.toml").write_text('kind = "folder"\npath = "calibration"\nlabel = ""\n')
    with pytest.raises(
        ImagesError,
        match=r'calibration\.toml: prune\.method = "effiselect": this learns from labels, and the',
    ):
        run(recipe, tmp_path / "out")


def test_search_on_labels_beyond_the_head_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "calibration", 66, classes=11)
    with pytest.raises(
        ImagesError, match=r"calibration\.toml: .*: labels do not fit the head: expected 0\.\."
    ):
        run(write(tmp_path, SELECT.replace("images = 24", "images = 64")), tmp_path / "out")


def test_search_on_evaluation_images_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "evaluation", 24)  # the first of those that are calibrated on
    with pytest.raises(
        ImagesError, match=r"24 of the 24 \[evaluation\] images.*a method's search learns from"
    ):
        run(write_toy(tmp_path, plan=SELECT.replace("images = 24", "images = 64")), tmp_path / "out")


def test_search_rate_beyond_reason_names_the_checkpoint(tmp_path: Path) -> None:
    recipe = write(tmp_path, SELECT.replace("heads_drop", "gate_lr = 1e38\nheads_drop"))
    with pytest.raises(TrainingError, match=r"is (nan|inf) in step \d of 6.*checkpoint"):
        run(recipe, tmp_path / "out")
    assert not list((tmp_path / "out" / ".edgevit" / "stages").glob("search-*"))


@pytest.mark.slow
def test_build_with_searched_weights_reports_against_the_dense_model(tmp_path: Path) -> None:
    prune = SELECT.replace("heads_drop", 'weights = "searched"\nheads_drop')
    recipe = write(tmp_path, prune, '[tune]\nepochs = 1\nlabels = 1.0\nprecision = "fp32"\n')
    report = build_patiently(recipe, tmp_path / "out")
    assert report.plan.methods == ("effiselect",)
    assert [(search.method, search.epochs, search.images) for search in report.searches] == [
        ("effiselect", 2, 24)
    ]
    assert report.models.slim.macs < report.models.dense.macs
    assert load_saved(tmp_path / "out").model.arch.blocks[0].hidden == report.plan.blocks[0].hidden


ROWS = f'[prune]\nmethod = "intra-head"\nmacs = 0.7\nalign = 4\n{SEARCH}'


def test_line_with_intra_head_meets_its_budget_from_the_searched_weights(tmp_path: Path) -> None:
    from edgevit.cost import model_cost

    found = run(write(tmp_path, ROWS), tmp_path / "out")
    macs = [model_cost(model.loaded.model.arch).total.macs for model in (found.slim, found.dense)]
    assert 0.6 < macs[0] / macs[1] <= 0.7
    assert found.searched.start is not found.dense
    second = run(write(tmp_path, ROWS.replace("0.7", "0.8")), tmp_path / "out")
    assert (second.reused["search intra-head"], second.reused["prune"]) == (True, False)


def test_line_with_intra_head_cuts_channels_too(tmp_path: Path) -> None:
    prune = ROWS.replace("macs = 0.7", "embed_drop = 0.25\nhidden_drop = 0.25")
    found = run(write(tmp_path, prune), tmp_path / "out")
    assert found.slim.loaded.model.arch.embed == 36
    assert found.slim.loaded.model.arch == slim_arch(found.dense.loaded.model.arch, found.plan)
    options = distil_options(TuneSection(precision="fp32"), found.plan)
    compared = Distillation(found.slim.loaded.model, found.dense.loaded.model, options)
    assert [len(kept) for kept in compared.kept if kept is not None] == [36] * len(found.plan.blocks)
