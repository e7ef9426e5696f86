"""Recipes: read, checked, written back."""

from __future__ import annotations

import pytest
from onnxpress.optimizer import Recipe, UsageError
from onnxpress.optimizer.errors import FormerNameWarning, OnnxpressError
from onnxpress.optimizer.settings.recipe import Override

TEXT = """
scheme = "int8"
block_size = 64
exclude = ["*/head"]

[[overrides]]
match = "*/layer.0/*"
scheme = "int4"

[[overrides]]
op_type = "Gemm"
keep_float = true
"""


def test_toml_round_trip(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(TEXT)
    recipe = Recipe.from_toml(path)
    assert recipe.overrides == (Override(match="*/layer.0/*", scheme="int4"), Override(op_type="Gemm", keep_float=True))
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blocksize = 32", 'unknown key "blocksize"; did you mean "block_size"'),
        ("qqq = 1", 'unknown key "qqq"; known keys'),
        ('scheme = "int44"', 'scheme is "int44"; did you mean "int4"'),
        ("block_size = 48", "block_size is 48; must be one of 0, 16, 32, 64, 128, 256"),
        ("block_size = true", "block_size is true"),
        ("search = 1", "search is 1, must be true or false"),
        ('include = "a"', 'include is "a", must be a list of strings'),
        ("include = [1]", "must be a list of strings"),
        ("overrides = 3", "overrides must be a list of tables"),
        ("[[overrides]]\nkeep_float = true", "give match"),
        ('[[overrides]]\nmatch = "a"\nkeepfloat = true', 'overrides[0]: unknown key "keepfloat"; did you mean'),
        ('[[overrides]]\nmatch = "a"\nmatch = "b"', "not valid TOML"),
        ("= 3", "not valid TOML"),
    ],
)
def test_wrong_recipes(tmp_path, text, message):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        Recipe.from_toml(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert error.value.exit_code == 2


@pytest.mark.parametrize(("kept", "says"), [({"prune": False}, "zeros that are there"), ({"mask": "m.npz"}, "mask")])
@pytest.mark.parametrize("key", ["sparsity", "criterion", "allocation", "sequential", "overrides"])
def test_what_chooses_blocks_is_refused_where_something_else_does(kept, says, key):
    values = {"sparsity": 0.5, "criterion": "wanda", "allocation": "uniform", "sequential": True,
              "overrides": [{"match": "*", "sparsity": 0.5}]}  # fmt: skip
    with pytest.raises(UsageError, match=rf"{key}.*: not read: .*{says}.*leave out the one or the other"):
        Recipe.from_mapping({"scheme": "sparse", key: values[key], **kept})


def test_a_mask_beside_the_zeros_that_are_there_is_refused():
    with pytest.raises(UsageError, match=r"recipe: mask, prune: the masks say .* leave one out"):
        Recipe.from_mapping({"scheme": "sparse", "mask": "m.npz", "prune": False})
    assert Recipe.from_mapping({"scheme": "sparse", "mask": "m.npz", "prune": True}).mask == "m.npz"


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("", {"block_size": 512}, "--block-size is 512; must be one of 0, 16, 32, 64, 128, 256"),
        ("", {"scheme": "INT4"}, '--scheme is "INT4"; did you mean "int4"?'),
        ('scheme = "mxfp4"', {"block_size": 64}, "--block-size is 64, but mxfp4 has blocks of 32"),
        ("block_size = 64", {"scheme": "mxfp4"}, "FILE: block_size is 64, but mxfp4 has blocks of 32"),
        ('scheme = "fp8"', {"symmetric": False}, "--asymmetric, but fp8 has no zero points"),
        ('scheme = "fp8-dynamic"\nmetric = "lee"', {"max_drop": 0.1}, "--max-drop, FILE: metric: not read by scheme"),
        ('scheme = "fp4"', {"per_channel": False}, "--per-tensor, but fp4 has blocks of 32; give --block-size 0, too"),
        (
            'scheme = "fp4"\nper_channel = false', {},
            "FILE: per_channel is false, but fp4 has blocks of 32; set block_size = 0, too",
        ),
        ('scheme = "sparse"\nmask = "m.npz"', {"prune": False}, "--no-prune, FILE: mask: the masks say"),
        (
            '[[overrides]]\nmatch = "a"\nscheme = "mxfp8"', {"block_size": 64},
            "--block-size is 64, but mxfp8 has blocks of 32",
        ),
        (
            '[[overrides]]\nmatch = "a"\nblock_size = 64', {"scheme": "mxfp8"},
            "FILE: overrides[0]: block_size is 64, but mxfp8 has blocks of 32",
        ),
    ],
)  # fmt: skip
def test_errors_call_settings_what_the_user_wrote(tmp_path, text, given, message):
    options = {"block_size": "--block-size", "scheme": "--scheme", "symmetric": "--asymmetric",
               "max_drop": "--max-drop", "prune": "--no-prune", "per_channel": "--per-tensor"}  # fmt: skip
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        Recipe.from_toml(path, given, {key: options[key] for key in given})
    assert str(error.value).startswith(message.replace("FILE", str(path)))


@pytest.mark.parametrize("kept", [{"prune": False}, {"mask": "masks.npz"}])
def test_a_recipe_that_chooses_no_blocks_is_stored_without_what_chooses(kept):
    recipe = Recipe(scheme="sparse", **kept)
    stored = recipe.to_mapping()
    assert not {"sparsity", "criterion", "allocation", "sequential"} & stored.keys()
    assert Recipe.from_mapping(stored) == recipe


@pytest.mark.parametrize(
    ("values", "key", "reason"),
    [
        ({"dtype": "float32", "activations": "static"}, "activations", "with dtype float32"),
        ({"dtype": "float32", "activations": "dynamic"}, "activations", "with dtype float32"),
        ({"criterion": "magnitude", "sequential": False}, "sequential", "with criterion magnitude"),
        ({"criterion": "wanda", "sequential": True}, "sequential", "with criterion wanda"),
    ],
)
def test_what_another_setting_leaves_without_effect_is_refused_and_not_stored(values, key, reason):
    values = {"scheme": "sparse", **values}
    with pytest.raises(UsageError, match=f"{key}: not read {reason}"):
        Recipe.from_mapping(values)
    del values[key]
    recipe = Recipe.from_mapping(values)
    assert key not in recipe.to_mapping()
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe


def test_missing_recipe(tmp_path):
    with pytest.raises(OnnxpressError, match="cannot read the recipe"):
        Recipe.from_toml(tmp_path / "gone.toml")


def test_settings_of_a_node():
    recipe = Recipe(
        block_size=64,
        overrides=(
            Override(match="a*", scheme="int8"),
            Override(match="ab", symmetric=False, keep_float=True),
            Override(match="ab", op_type="Gemm", keep_float=False),
        ),
    )
    assert recipe.settings("x", "MatMul").weight.bits == 4
    assert not recipe.settings("x", "MatMul").weight.symmetric
    assert recipe.settings("a", "MatMul").weight.bits == 8
    assert recipe.settings("a", "MatMul").weight.symmetric
    assert recipe.settings("ab", "MatMul") == "kept in float by an override of the recipe"
    assert recipe.settings("ab", "Gemm").weight.bits == 8
    assert not recipe.settings("ab", "Gemm").weight.symmetric


def test_unused_patterns():
    recipe = Recipe(include=("a*", "z"), exclude=("q",), overrides=(Override(op_type="Gemm"),))
    assert recipe.unused_patterns([("abc", "MatMul")]) == [
        'include pattern "z"',
        'exclude pattern "q"',
        'override (op_type = "Gemm")',
    ]


def test_keys_of_old_work_with_a_warning(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('scheme = "sparse"\nexpect_m = 8\n')
    for build in (
        lambda: Recipe(scheme="sparse", expect_m=8),
        lambda: Recipe.from_mapping({"scheme": "sparse", "expect_m": 8}),
        lambda: Recipe.from_toml(file),
    ):
        with pytest.warns(FormerNameWarning, match="expect_m is deprecated, .* write expected_rows = 8"):
            assert build() == Recipe(scheme="sparse", expected_rows=8)
    with pytest.raises(UsageError, match="expect_m and expected_rows are the same"):
        Recipe(scheme="sparse", expect_m=8, expected_rows=8)
