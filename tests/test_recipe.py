"""Recipe files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgevit.errors import BackendError, PlanError, RecipeError
from edgevit.plan import KINDS
from edgevit.recipe import LoadedRecipe, PlanSection, Recipe, load_recipe, naming_recipe, with_recipe
from edgevit.shipped import shipped_dir

WHOLE = """\
name = "deit-tiny-line"
[model]
name = "deit_tiny_patch16_224"
weights = "deit_tiny.safetensors"
options = { img_size = 96, num_classes = 10, qkv_bias = false, act_layer = "gelu", depths = [1, 2] }
[calibration]
set = "calibration/my-line.toml"
images = 64
[evaluation]
set = "calibration/my-val.toml"
[plan]
qk_dim = 48
hidden = [576, 512]
[slim]
recover = "none"
dead_tokens = false
[export]
opset = 17
batch = "dynamic"
[[target]]
name = "openvino-cpu"
precisions = ["fp32", "bf16"]
prefer = "all"
[[target]]
name = "onnxruntime-cpu"
[gates]
max_drop = 1
"""
LEAST = '[model]\nname = "deit_tiny_patch16_224"\n'


def load(folder: Path, text: str) -> LoadedRecipe:
    path = folder / "line.toml"
    path.write_text(text)
    return load_recipe(str(path))


def test_load_recipe_whole_file_arrives_as_written(tmp_path: Path) -> None:
    loaded = load(tmp_path, WHOLE)
    recipe = loaded.recipe
    assert recipe.name == "deit-tiny-line"
    assert recipe.model.options == {
        "img_size": 96, "num_classes": 10, "qkv_bias": False, "act_layer": "gelu", "depths": (1, 2),
    }  # fmt: skip
    assert recipe.model.options["qkv_bias"] is False
    assert (recipe.plan.qk_dim, recipe.plan.hidden, recipe.plan.tokens) == (48, (576, 512), None)
    assert [target.name for target in recipe.target] == ["openvino-cpu", "onnxruntime-cpu"]
    assert (recipe.target[0].precisions, recipe.target[1].precisions) == (("fp32", "bf16"), None)
    assert (recipe.export.opset, recipe.export.batch, recipe.recover) == (17, "dynamic", "none")
    assert loaded.weights == tmp_path / "deit_tiny.safetensors"
    assert loaded.folder == tmp_path
    assert loaded.sha256 == hashlib.sha256(WHOLE.encode()).hexdigest()


def test_load_recipe_least_file_has_the_documented_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path, LEAST).recipe
    assert (recipe.name, recipe.recover) == ("line", "none")
    assert (recipe.calibration, recipe.evaluation) == (None, None)
    assert [(target.name, target.precisions, target.prefer) for target in recipe.target] == [
        ("openvino-cpu", None, "fastest")
    ]


def test_load_recipe_with_calibration_recovers_by_closed_form(tmp_path: Path) -> None:
    recipe = load(tmp_path, LEAST + '[calibration]\nset = "x.toml"').recipe
    assert recipe.recover == "closed-form"
    assert recipe.calibration is not None
    assert (recipe.calibration.images, recipe.calibration.seed) == (256, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "[prune]", "prune.method: missing; this key is required."),
        (LEAST + "[[prune]]", "prune[0].method: missing; this key is required."),
        (LEAST + "[tune]", "calibration: missing; [tune] needs images to train on"),
        (LEAST + "[tune]\nepochs = 0", "2 problems\n  tune.epochs: expected a number >= 1, got 0"),
        (LEAST + '[tune]\nprecision = "fp16"\n[calibration]\nset = "a"', "tune.precision: expected"),
        (LEAST + '[tune]\nlr = nan\n[calibration]\nset = "a"', "tune.lr: expected a finite number, got nan"),
        (
            LEAST + '[tune]\nepoch = 1\n[calibration]\nset = "a"',
            'tune.epoch: unknown key. Did you mean "epochs"',
        ),
        (LEAST + "[exprot]", 'exprot: unknown key. Did you mean "export"?'),
        (LEAST + "[[targets]]", 'targets: unknown key. Did you mean "target"?'),
        (LEAST + 'wieghts = "a"', 'model.wieghts: unknown key. Did you mean "weights"?'),
        (LEAST + 'weights = "a"\npretrained = true', "model.weights: given beside pretrained = true"),
        (
            LEAST + "options = { pretrained = true }",
            "model.options.pretrained: not an option; use model.pretrained",
        ),
        (
            LEAST + "options = { a = { b = 1 } }",
            "model.options.a: expected text, an integer, a number, true or",
        ),
        (LEAST + "[plan]\nheads = 0", "plan.heads: expected a number >= 1 or a list, got 0"),
        (LEAST + "[plan]\nheads = [2, 0]", "plan.heads[1]: expected a number >= 1, got 0"),
        (LEAST + "[plan]\nheads = []", "plan.heads: expected an integer or a list of at least 1, got []"),
        (
            LEAST + "[plan]\nheads = [1]\nhidden = [1, 2]",
            "plan: expected lists of one length, an entry per block",
        ),
        (LEAST + '[slim]\nrecover = "closed-form"', "calibration: missing; slim.recover"),
        (LEAST + "[gates]\nmax_drop = 1", "evaluation: missing; gates.max_drop cannot be checked"),
        (
            LEAST + '[export]\nbatch = "dynamc"',
            'export.batch: expected an integer or "dynamic", got "dynamc"',
        ),
        (LEAST + "target = []", "model.target: unknown key."),
        ("target = []\n" + LEAST, "target: expected a list of at least 1, got []"),
        (LEAST + '[[target]]\nname = "a"\n[[target]]\nname = "a"', 'target[1].name: "a" is there twice'),
        (
            LEAST + '[[target]]\nname = "a"\nprecisions = ["fp32", "fp32"]',
            "target[0].precisions: expected each",
        ),
        ('name = "a/b"\n' + LEAST, "name: expected a folder's name"),
        ('name = "a"', "model: missing; this key is required"),
    ],
)
def test_load_recipe_bad_file_names_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"line\.toml: ") as caught:
        load(tmp_path, text)
    assert str(caught.value).removeprefix(f"{tmp_path}/line.toml: ").startswith(message)


def test_load_recipe_conflicts_stand_beside_field_problems(tmp_path: Path) -> None:
    text = LEAST + 'weights = "a"\npretrained = true\n[gates]\nmax_drop = -1\n[plan]\nheads = "all"'
    with pytest.raises(RecipeError, match="4 problems") as caught:
        load(tmp_path, text)
    keys = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert keys == ["plan.heads", "gates.max_drop", "model.weights", "evaluation"]


def test_load_recipe_local_file_wins_over_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart").path == shipped_dir("recipes") / "quickstart.toml"
    (tmp_path / "quickstart").write_text('name = "mine"\n' + LEAST)
    assert load_recipe("quickstart").recipe.name == "mine"


def test_load_recipe_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r'no recipe is named "quikstart"\. Did you mean "quickstart"\?'):
        load_recipe("quikstart")


def test_load_recipe_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"mine\.toml: no such file\. Make one with `edgevit init MODEL > "):
        load_recipe(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("plan.qk_dim: every block has 64", "a/b.toml: plan.qk_dim: every block has 64"),
        (
            "plan.qk_dim: has 64\nslim.dead_tokens: none\nand more",
            "a/b.toml: 2 problems\n  plan.qk_dim: has 64\n  slim.dead_tokens: none\nand more",
        ),
        ("prune[1].qk_drop: expected 12", "a/b.toml: prune[1].qk_drop: expected 12"),
        ("model resnet18: expected a Vision Transformer", None),
        ("plan: no key of it", None),
        ("/data/plan.qk_dim: no such file", None),
        ("a/b.toml: plan.qk_dim: said already", None),
        ("", None),
    ],
)
def test_with_recipe_names_the_file_where_only_keys_are_named(message: str, expected: str | None) -> None:
    assert with_recipe(Path("a/b.toml"), message) == (message if expected is None else expected)


def test_naming_recipe_keeps_the_class_of_an_error() -> None:
    with (
        pytest.raises(PlanError, match=r"^mine\.toml: plan\.heads: too many$"),
        naming_recipe(Path("mine.toml")),
    ):
        raise PlanError("plan.heads: too many")
    with pytest.raises(BackendError, match=r"^no such device$"), naming_recipe(Path("mine.toml")):
        raise BackendError("no such device")


def test_plan_section_has_the_counts_of_a_plan() -> None:
    assert tuple(PlanSection.model_fields) == KINDS


def test_recipe_schema_describes_every_field() -> None:
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    assert isinstance(definitions, dict)
    tables = {"Recipe": schema, **definitions}
    undescribed = [
        f"{name}.{key}"
        for name, table in tables.items()
        for key, field in table.get("properties", {}).items()
        if not field.get("description")
    ]
    assert undescribed == []
