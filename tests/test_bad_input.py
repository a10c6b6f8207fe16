"""What a user can get wrong, through the real command line: the exit code, and what the message must say."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result as ClickResult
from toy_build import write_toy
from typer.testing import CliRunner

from edgevit.cli import app


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_toy(tmp_path)


def build(recipe: Path, *args: str | Path) -> ClickResult:
    out = ["--out", str(recipe.parent / "out")] if "--out" not in args else []
    return CliRunner().invoke(app, ["build", str(recipe), *map(str, args), *out])


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def check(result: ClickResult, code: int, *parts: str) -> None:
    """Compare the exit code and the parts of the message; no traceback, nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("edgevit: ")
    assert [part for part in parts if part not in result.stderr] == [], result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_unknown_recipe_key_names_the_nearest(recipe: Path) -> None:
    change(recipe, "qk_dim", "qk_dims")
    check(build(recipe), 2, "toy.toml: plan.qk_dims: unknown key", 'Did you mean "qk_dim"')


def test_every_problem_of_the_recipe_is_in_one_message(recipe: Path) -> None:
    change(recipe, "qk_dim = 12", 'qk_dim = "many"')
    change(recipe, "images = 64", "images = 0")
    change(recipe, "[evaluation]", "[evalution]")
    check(
        build(recipe),
        2,
        "toy.toml: 3 problems",
        "plan.qk_dim",
        "calibration.images",
        'Did you mean "evaluation"',
    )


def test_recipe_that_is_not_there_names_the_nearest(recipe: Path) -> None:
    check(build(recipe.with_name("toys.toml")), 2, "toys.toml: no such file", 'Did you mean "toy.toml"')


def test_unknown_model_names_the_nearest(recipe: Path) -> None:
    change(recipe, "vit_tiny_patch16_224", "vit_tyni_patch16_224")
    check(build(recipe), 2, "vit_tyni_patch16_224", "vit_tiny_patch16_224")


def test_unknown_target_names_the_nearest(recipe: Path) -> None:
    result = build(recipe, "--target", "openvino-cpus")
    check(result, 2, 'no target is named "openvino-cpus"', 'Did you mean "openvino-cpu"')


def test_model_that_is_no_vit_is_refused(recipe: Path) -> None:
    recipe.write_text('[model]\nname = "resnet18"\n[[target]]\nname = "short.toml"\n')
    check(build(recipe), 2, "model resnet18: expected a Vision Transformer", "got ResNet")


def test_options_that_timm_refuses_are_named(recipe: Path) -> None:
    change(recipe, "img_size = 32", "img_sise = 32")
    check(build(recipe), 2, "model.options", "img_sise")


def test_weights_of_another_model_say_which_tensors_and_shapes(recipe: Path) -> None:
    change(recipe, "embed_dim = 48", "embed_dim = 96")
    shapes = "blocks.0.attn.proj.bias: vit_tiny_patch16_224 wants [96], the file has [48]"
    check(build(recipe), 2, "model.weights", "toy.safetensors", "other shape", shapes)


def test_weights_that_are_missing_are_named(recipe: Path) -> None:
    (recipe.parent / "toy.safetensors").unlink()
    check(build(recipe), 2, f"{recipe.parent / 'toy.safetensors'}: no such file")


def test_weights_that_are_truncated_say_so(recipe: Path) -> None:
    weights = recipe.parent / "toy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    check(build(recipe), 2, f"{recipe}", "model.weights", f"{weights}", "not a whole safetensors file")


class _Runs:
    """What a pickle can do when it is loaded: here, write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.path),))


def test_pickle_with_code_is_refused_and_not_run(recipe: Path) -> None:
    trap = recipe.parent / "trap"
    (recipe.parent / "toy.pth").write_bytes(pickle.dumps({"cls_token": _Runs(trap)}))
    change(recipe, "toy.safetensors", "toy.pth")
    check(build(recipe), 2, "toy.pth: the pickle holds more than tensors", "safetensors")
    assert not trap.exists()


def test_image_set_that_is_missing_is_named(recipe: Path) -> None:
    change(recipe, "evaluation.toml", "evaluations.toml")
    check(build(recipe), 2, "evaluations.toml: no such file", 'Did you mean "evaluation.toml"')


def test_image_folder_that_is_missing_is_named(recipe: Path) -> None:
    change(recipe.parent / "evaluation.toml", 'path = "evaluation"', 'path = "nowhere"')
    check(build(recipe), 2, f"{recipe.parent / 'nowhere'}: no such folder")


def test_image_folder_that_is_empty_says_what_it_expected(recipe: Path) -> None:
    (recipe.parent / "empty").mkdir()
    change(recipe.parent / "calibration.toml", 'path = "calibration"', 'path = "empty"')
    check(build(recipe), 2, f"{recipe.parent / 'empty'}: the folder holds no images", "png")


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_corrupt_image_is_named(recipe: Path, name: str) -> None:
    image = recipe.parent / name / "0" / "000.png"
    image.write_bytes(image.read_bytes()[:40])
    check(build(recipe), 2, str(image), "cannot be read as an image", 'on_corrupt = "skip"')


def test_fewer_images_than_asked_for_are_counted(recipe: Path) -> None:
    change(recipe, "images = 64", "images = 65")
    check(build(recipe), 2, "calibration.toml: 65 images are asked for, but the set has 64")


def test_fewer_images_than_the_rank_needs_are_refused(recipe: Path) -> None:
    change(recipe, "images = 64", "images = 8")
    check(build(recipe), 2, "calibration.images: the closed form needs at least 23 images", "got 8")


def test_labels_that_do_not_fit_the_head_are_refused_before_the_long_work(recipe: Path) -> None:
    (recipe.parent / "evaluation" / "1").rename(recipe.parent / "evaluation" / "10")
    result = build(recipe)
    check(result, 2, "evaluation.toml", "expected 0..9 for its 10 classes", "got 10")
    assert not list((recipe.parent / "out" / ".edgevit" / "stages").glob("slim-*"))


def test_drop_gate_without_labels_is_refused_before_the_long_work(recipe: Path) -> None:
    write_toy(recipe.parent, more="[gates]\nmax_drop = 1.0\n")
    with (recipe.parent / "evaluation.toml").open("a") as file:
        file.write('label = ""\n')
    check(build(recipe), 2, "gates.max_drop needs labels", "min_agreement")


@pytest.mark.parametrize("name", ["calibration", "evaluation"])
def test_preprocessing_that_does_not_fit_the_model_names_its_set(recipe: Path, name: str) -> None:
    with recipe.with_name(f"{name}.toml").open("a") as file:
        file.write("[preprocess]\ncrop = 9\n")
    check(build(recipe), 2, f"{name}.toml: preprocess.crop: expected the model's input 32 x 32, got 9 x 9")


@pytest.mark.parametrize(
    ("plan", "parts"),
    [
        ("qk_dim = 0", ["plan.qk_dim: expected"]),
        ("qk_dim = 17", ["plan.qk_dim: every block has 16", "got 17"]),
        ("hidden = [96, 193]", ["plan.hidden: blocks.1 has 192", "got 193"]),
        ("hidden = [96, 96, 96]", ["plan.hidden: expected one number or 2", "got 3"]),
        ("heads = 4", ["plan.heads: every block has 3"]),
    ],
)
def test_keep_counts_that_the_model_cannot_take_are_refused(
    tmp_path: Path, plan: str, parts: list[str]
) -> None:
    check(build(write_toy(tmp_path, plan=f"[plan]\n{plan}\n")), 2, "toy.toml", *parts)


def test_keep_count_that_is_no_multiple_gives_the_nearest(recipe: Path) -> None:
    with (recipe.parent / "short.toml").open("a") as file:
        file.write("[rules]\nqk_dim = 8\n")
    check(
        build(recipe),
        2,
        "plan.qk_dim: every block keeps 12 of 16, not a multiple of 8 (target short)",
        "8 or 16",
    )


def test_precision_that_the_runtime_lacks_is_refused(recipe: Path) -> None:
    write_toy(recipe.parent, more='precisions = ["bf16"]\n')
    check(build(recipe), 2, "target short", "onnxruntime computes in fp32, fp16, int8", "got bf16")


def test_output_directory_below_a_file_is_refused(recipe: Path) -> None:
    check(build(recipe, "--out", recipe / "out"), 2, str(recipe), "--out DIR")


def test_output_directory_with_something_else_is_left_alone(recipe: Path) -> None:
    (recipe.parent / "out").mkdir()
    (recipe.parent / "out" / "thesis.tex").write_text("years of work")
    check(build(recipe), 2, "expected an empty directory or an edgevit build", "thesis.tex", "--out DIR")
    assert (recipe.parent / "out" / "thesis.tex").read_text() == "years of work"


def test_build_that_fails_at_once_leaves_no_folder(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("vit_tiny_patch16_224", "vit_tyni_patch16_224"))
    check(build(recipe), 2, "vit_tyni_patch16_224")
    assert not (recipe.parent / "out").exists()


def test_output_directory_of_another_build_is_left_alone(recipe: Path) -> None:
    bare = recipe.with_name("bare.toml")
    bare.write_text(recipe.read_text().replace("qk_dim = 12", "qk_dim = 17"))
    check(build(bare), 2, "plan.qk_dim")  # the dense model was loaded by then, and is kept
    check(build(recipe), 2, "expected the build of 'toy', found that of 'bare'", "--out DIR")


def test_file_size_limit_is_reported_as_a_full_disk(recipe: Path) -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from edgevit.cli import main; main()"
    )
    done = _python(code, "build", str(recipe), "--out", str(recipe.parent / "out"))
    assert done.returncode == 1
    assert "the file size limit was reached" in done.stderr
    assert "stages that were finished are kept" in done.stderr
    assert "Traceback" not in done.stderr


def test_full_disk_names_the_file_and_keeps_what_was_finished(recipe: Path) -> None:
    disk = recipe.parent / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        result = build(recipe, "--out", disk / "out")
        check(result, 1, str(disk), "no space left on the disk", "bytes free")
        assert list((disk / "out" / ".edgevit" / "stages").glob("load-*"))
        assert not (disk / "out" / "manifest.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_runtime_that_is_not_installed_says_how_to_get_it(tmp_path: Path) -> None:
    # None in sys.modules makes `import openvino` fail as on a machine without it: a stand-in that shows the
    # control flow, not a machine without OpenVINO.
    code = "import sys; sys.modules['openvino'] = None\nfrom edgevit.cli import main; main()"
    recipe = write_toy(tmp_path, runtime="openvino")
    done = _python(code, "build", str(recipe), "--out", str(tmp_path / "out"))
    assert done.returncode == 6
    assert "openvino: not installed here" in done.stderr
    assert "pip install openvino" in done.stderr
    assert not (tmp_path / "out").exists()
    timed = write_toy(tmp_path, plan="[budget]\nspeedup = 1.2\n", runtime="openvino")
    done = _python(code, "build", str(timed), "--out", str(tmp_path / "out"))
    assert done.returncode == 6
    assert "budget.speedup needs it to time blocks; a budget of macs is planned without" in _in_a_line(done)
    listed = _python(code, "targets")
    assert (listed.returncode, "openvino missing" in listed.stdout) == (0, True)
    assert "pip install openvino" in listed.stdout


def _in_a_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return what was said of an error, which terminals fold."""
    return " ".join(done.stderr.split())


def _python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=120)
