from __future__ import annotations

from pathlib import Path

import pytest
from toy_build import build_patiently, write_images, write_toy
from toy_training import stop_at

from edgevit.disk import sha256_file
from edgevit.errors import ImagesError, TrainingError
from edgevit.models.anatomy import read_anatomy
from edgevit.models.load import load_saved
from edgevit.pipeline.inputs import read_inputs
from edgevit.pipeline.models import load_dense, slim_dense
from edgevit.pipeline.sets import open_sets
from edgevit.pipeline.stages import Stages
from edgevit.pipeline.tune import Tuned, distil_options, tune_slim
from edgevit.plan import Counts, plan_from_counts
from edgevit.progress import Progress, silent
from edgevit.recipe import load_recipe
from edgevit.report.model import Report
from edgevit.slim import SlimOptions
from edgevit.store import Store

TUNE = '[tune]\nepochs = 2\nimages = 24\nbatch = 8\ncheckpoint_steps = 2\nprecision = "fp32"\n'


def tune(recipe: Path, out: Path, progress: Progress = silent) -> tuple[Tuned, Stages]:
    """Run the line as far as the tune stage."""
    inputs = read_inputs(load_recipe(str(recipe)), ())
    section = inputs.recipe.recipe.tune
    assert section is not None
    with Store.open(out, "toy") as store:
        stages = Stages(store, progress)
        dense = load_dense(stages, inputs)
        sets = open_sets(stages, inputs, dense)
        assert sets.tuning is not None
        options = SlimOptions(recover=inputs.recipe.recipe.recover)
        counts = Counts(qk_dim=12, hidden=96)  # those of the toy recipe
        plan = plan_from_counts(read_anatomy(dense.loaded.model.arch), counts, dead_tokens=True)
        slim = slim_dense(stages, dense, plan, options, sets.calibration)
        return tune_slim(stages, dense, slim, distil_options(section, plan), sets.tuning), stages


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"), more=TUNE)


@pytest.fixture(scope="module")
def built(toy: Path) -> tuple[Report, Path]:
    """Return a finished build; tests do not change it."""
    out = toy.parent / "build" / "toy"
    return build_patiently(toy, out), out


def test_build_with_tune_reports_the_training(built: tuple[Report, Path]) -> None:
    report, _ = built
    assert report.tune is not None
    assert (report.tune.epochs, report.tune.images, report.tune.precision) == (2, 24, "fp32")
    assert report.tune.loss_last < report.tune.loss_first
    assert report.tune.seconds > 0
    assert [stage.name for stage in report.stages if "tun" in stage.name][:2] == ["decode tuning", "tune"]


def test_build_with_tune_evaluates_the_untrained_model_as_a_build_without_tune_does(tmp_path: Path) -> None:
    """The learning rate is far too high, so that what the model answers does change."""
    trained = build_patiently(write_toy(tmp_path, more=TUNE + "lr = 0.05\n"), tmp_path / "out")
    plain = build_patiently(write_toy(tmp_path), tmp_path / "out").results[0]
    assert trained.tune is not None
    assert trained.tune.measured_on == f"{plain.target} {plain.precision}"
    assert trained.tune.top1_before == plain.slim.top1
    assert trained.tune.agreement_before == plain.slim.agreement
    assert trained.results[0].slim.agreement != plain.slim.agreement


def test_build_with_tune_publishes_the_trained_weights(built: tuple[Report, Path]) -> None:
    _, out = built
    (slim,), (tuned,) = (list((out / ".edgevit" / "stages").glob(f"{name}-*")) for name in ("slim", "tune"))
    assert sha256_file(out / "model.safetensors") == sha256_file(tuned / "model.safetensors")
    assert sha256_file(out / "model.safetensors") != sha256_file(slim / "model.safetensors")
    assert load_saved(slim).model.arch == load_saved(tuned).model.arch
    assert not (out / ".edgevit" / "work").exists()


def test_tune_slim_again_trains_nothing(toy: Path, built: tuple[Report, Path], tmp_path: Path) -> None:
    first, _ = tune(toy, tmp_path)
    assert built[0].tune is not None
    assert first.facts.loss_last == built[0].tune.loss_last
    again, stages = tune(toy, tmp_path, stop_at(1, "training"))
    assert [stage.reused for stage in stages.facts if stage.name == "tune"] == [True]
    assert again.facts == first.facts


def test_tune_slim_interrupted_goes_on_to_the_same_weights(
    toy: Path, built: tuple[Report, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(toy, tmp_path, stop_at(5, "training"))
    (kept,) = (tmp_path / ".edgevit" / "work").glob("tune-*/*.safetensors")
    steps: list[int] = []
    found, _ = tune(toy, tmp_path, lambda task, done, _: steps.append(done) if task == "training" else None)
    assert steps == [5, 6]
    assert not kept.exists()
    own = found.model.folder / "model.safetensors"
    assert sha256_file(own) == sha256_file(built[1] / "model.safetensors")


def test_tune_slim_changed_option_trains_anew(toy: Path, tmp_path: Path) -> None:
    first, _ = tune(toy, tmp_path)
    changed = toy.with_name("changed.toml")
    changed.write_text(toy.read_text().replace("[tune]", "[tune]\nhidden_states = 20.0"))
    second, stages = tune(changed, tmp_path)
    assert [stage.name for stage in stages.facts if not stage.reused] == ["tune"]
    assert second.facts.loss_first > first.facts.loss_first


LABELS = (
    'labels = 1.0\nsmoothing = 0.0\ndrop_path = 0.1\naugment = "standard"\nvalidation = 0.25\nema = 0.9\n'
)


def test_tune_slim_with_labels_chooses_an_epoch_on_images_held_out(tmp_path: Path) -> None:
    found, _ = tune(write_toy(tmp_path, more=TUNE + LABELS), tmp_path / "out")
    assert found.facts.labelled
    assert len(found.facts.validation) == 2
    assert found.facts.best_epoch == found.facts.validation.index(max(found.facts.validation)) + 1
    assert all((6 * score).is_integer() for score in found.facts.validation)  # 6 of 24 were held out


def test_tune_slim_with_evaluation_images_among_those_learnt_from_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "evaluation", 24)  # the calibration's images under other names
    recipe = write_toy(tmp_path, more=TUNE + "validation = 0.25\n")
    with pytest.raises(
        ImagesError,
        match=r"evaluation\.toml: \d+ of the 24 \[evaluation\] images are among those that \[tune\]",
    ):
        tune(recipe, tmp_path / "out")


def test_tune_slim_with_labels_that_are_missing_is_refused_before_any_training(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, more=TUNE + "labels = 1.0\n")
    (tmp_path / "calibration.toml").write_text('kind = "folder"\npath = "calibration"\nlabel = ""\n')
    with pytest.raises(
        ImagesError, match=r"calibration\.toml: tune\.labels: this learns from labels, and the set has none"
    ):
        tune(recipe, tmp_path / "out")


def test_tune_slim_with_too_few_images_to_hold_any_out_is_refused(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, more=TUNE + "validation = 0.01\n")
    with pytest.raises(ImagesError, match=r"tune\.validation: 0\.01 of 24 images is 0; expected 1\.\.23"):
        tune(recipe, tmp_path / "out")


def test_tune_slim_without_recovery_trains_on_the_calibration_images(tmp_path: Path) -> None:
    more = '[slim]\nrecover = "none"\n[tune]\nepochs = 1\nbatch = 32\nprecision = "fp32"\n'
    found, stages = tune(write_toy(tmp_path, more=more), tmp_path / "out")
    assert found.facts.images == 64
    assert found.facts.loss_first == found.facts.loss_last
    assert next(stage.name for stage in stages.facts if "decode" in stage.name) == "decode tuning"


def test_tune_slim_learning_rate_beyond_reason_says_where_it_broke(tmp_path: Path) -> None:
    recipe = write_toy(tmp_path, more=TUNE.replace("epochs = 2", "epochs = 40\nlr = 1e30"))
    with pytest.raises(TrainingError, match=r"is (nan|inf) in step \d+ of 120 .*learning rate below 1e\+30"):
        tune(recipe, tmp_path / "out")
    assert not list((tmp_path / "out" / ".edgevit" / "stages").glob("tune-*"))
