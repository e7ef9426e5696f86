"""What stands between a conversion and a wrong model."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import Builder, chain, matmul_model, weight
from onnxpress.optimizer import Calibration, OnnxpressError, Recipe, optimize
from onnxpress.optimizer.conversion import gate
from onnxpress.optimizer.conversion.checker import bare, new_complaint, standing
from onnxpress.optimizer.evaluation.outputs import beyond_rounding, output_errors
from onnxpress.optimizer.passes import clean_up
from onnxpress.optimizer.runtime.feeds import random_feeds
from onnxpress.optimizer.runtime.token_limits import token_limits
from rewrites import run

STEP = "merging of equal nodes"


def spoil(monkeypatch, change):
    """Let a step of the clean-up do something else to a graph."""
    original = clean_up.MergeEqual.rewrite

    def spoiled(self, model):
        change(model)
        return original(self, model) or True

    monkeypatch.setattr(clean_up.MergeEqual, "rewrite", spoiled)


def of_op(model, op_type):
    return next(node for node in model.graph if node.op_type == op_type)


def test_a_model_whose_small_constants_are_in_files_is_checked(tmp_path):
    """ONNX's checker looks for these in the current folder."""
    b = Builder()
    y = b.op("MatMul", b.input("x", ["batch", 64]), b.constant("W", weight(64, 48)))
    two = ir.node("Constant", [], attributes={"value": ir.tensor(np.full(48, 2, np.float32))}, name="two")
    two.outputs[0].name = "two_out"
    b.graph.append(two)
    y = b.op("Add", b.op("Mul", y, two.outputs[0]), b.constant("bias", np.ones(48, np.float32)))
    b.output(y, ["batch", 48])
    path = tmp_path / "model.onnx"
    proto = ir.to_proto(b.model())
    onnx.save(proto, path, save_as_external_data=True, location="data", size_threshold=0, convert_attribute=True)
    report = optimize(path, Recipe(), tmp_path / "out.onnx")
    assert report.warnings == ()
    assert ("checked", "names and nodes; by a run on random inputs") in report.rows


class TestCleanUp:
    def test_what_is_right_is_taken_without_a_word(self, tmp_path):
        report = optimize(chain(), Recipe(), tmp_path / "out.onnx")
        assert report.warnings == ()
        assert [node.op_type for node in onnx.load(report.output).graph.node] == ["MatMulNBits", "Relu"]
        assert ("checked", "names and nodes; by a run on random inputs") in report.rows
        assert report.details["check"]["run_on"] == "random inputs"

    @pytest.mark.parametrize(("scheme", "is_told"), [("int2", True), ("int8", False)])
    def test_what_random_inputs_tell_is_put_into_its_place(self, scheme, is_told, tmp_path):
        report = optimize(chain(), Recipe(scheme=scheme), tmp_path / "out.onnx")
        assert any("real inputs are often served better" in line for _, line in report.rows) == is_told

    def test_a_step_that_changes_numbers_is_left_out_and_the_rest_is_done(self, tmp_path, monkeypatch):
        def negate(model):
            of_op(model, "Relu").op_type = "Neg"

        spoil(monkeypatch, negate)
        report = optimize(chain(), Recipe(), tmp_path / "out.onnx")
        (warning,) = report.warnings
        assert warning.startswith(f"clean-up went without {STEP}: output positive_out differs by ")
        assert [node.op_type for node in onnx.load(report.output).graph.node] == ["MatMulNBits", "Relu"]

    def test_a_step_that_raises(self, tmp_path, monkeypatch):
        def fail(_model):
            raise IndexError("tuple index out of range")

        spoil(monkeypatch, fail)
        report = optimize(chain(), Recipe(check=False), tmp_path / "out.onnx")
        assert report.warnings == (f"clean-up went without {STEP}: IndexError: tuple index out of range",)
        assert [node.op_type for node in onnx.load(report.output).graph.node] == ["MatMulNBits", "Relu"]

    def test_a_step_that_makes_an_invalid_model(self, tmp_path, monkeypatch):
        spoil(monkeypatch, lambda model: of_op(model, "Relu").attributes.add(ir.AttrInt64("axis", 1)))
        report = optimize(chain(), Recipe(check=False), tmp_path / "out.onnx")
        assert f"went without {STEP}: the check refuses what it makes: " in report.warnings[0]

    def test_a_name_that_is_used_twice(self, tmp_path, monkeypatch):
        whole = clean_up.CleanUp.cleaned

        def spoiled(self, model):
            cleaned, changed = whole(self, model)
            of_op(cleaned, "Relu").name = of_op(cleaned, "MatMul").name
            return cleaned, changed

        monkeypatch.setattr(clean_up.CleanUp, "cleaned", spoiled)
        report = optimize(chain(), Recipe(check=False), tmp_path / "out.onnx")
        assert report.warnings[0].endswith("refuses what it makes: several values or nodes are named product")

    def test_it_is_put_aside_as_a_whole_where_no_step_is_to_blame(self, tmp_path, monkeypatch):
        whole = clean_up.CleanUp._clean_up

        def spoiled(self, model):
            of_op(model, "Relu").op_type = "Neg"
            return whole(self, model)

        monkeypatch.setattr(clean_up.CleanUp, "_clean_up", spoiled)
        report = optimize(chain(), Recipe(), tmp_path / "out.onnx")
        assert report.warnings[0].startswith("clean-up was put aside: output positive_out differs by ")
        kinds = [node.op_type for node in onnx.load(report.output).graph.node]
        assert kinds == ["MatMulNBits", "Dropout", "Relu"]

    def test_a_default_that_is_taken_for_a_constant_shows_when_it_is_overridden(self, tmp_path, monkeypatch):
        b = Builder()
        x, one = b.input("x", ["batch", 64]), b.constant("one", np.float32(1).reshape(()))
        b.graph.inputs.append(one)
        y = b.op("Mul", b.op("MatMul", x, b.constant("W", weight(64, 48)), name="product"), one, name="scaled")
        b.output(y, ["batch", 48])

        whole = clean_up.CleanUp._clean_up

        def spoiled(self, model):
            whole(self, model)
            of_op(model, "Mul").op_type = "Div"  # which is the same with the default

        monkeypatch.setattr(clean_up.CleanUp, "_clean_up", spoiled)
        report = optimize(b.model(), Recipe(), tmp_path / "out.onnx")
        assert report.warnings[0].startswith("clean-up was put aside: output scaled_out differs")


class TestWhatIsRun:
    def test_switched_off(self, tmp_path):
        report = optimize(matmul_model(), Recipe(check=False), tmp_path / "out.onnx")
        assert ("checked", "names and nodes; not by a run: switched off") in report.rows
        assert report.details["check"]["not_run"] == "not by a run: switched off"
        assert report.outputs == ()
        assert report.recipe["check"] is False

    def test_large_models_only_where_it_is_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.setattr(gate, "MOST_WEIGHTS", 64 * 48 * 4 - 1)
        report = optimize(matmul_model(), Recipe(), tmp_path / "out.onnx")
        assert ("checked", "names and nodes; not by a run, 12.3 KB of weights: check makes it") in report.rows
        report = optimize(matmul_model(), Recipe(check=True), tmp_path / "out.onnx")
        assert report.details["check"]["run_on"] == "random inputs"

    def test_an_original_that_does_not_run_is_told(self, tmp_path):
        b = Builder()
        y = b.op("MatMul", b.input("x", ["batch", 64]), b.constant("W", weight(64, 48)), name="product")
        b.graph.opset_imports["elsewhere"] = 1
        b.output(b.op("Unknown", y, domain="elsewhere"), ["batch", 48])
        report = optimize(b.model(), Recipe(), tmp_path / "out.onnx")
        row = dict(report.rows)["checked"]
        assert row.startswith("names and nodes; not by a run: the original: ONNX Runtime cannot load the model: ")

    def test_static_schemes_run_on_the_data_that_they_are_given(self, tmp_path):
        data = [{"x": np.random.default_rng(seed).standard_normal((4, 64)).astype(np.float32)} for seed in range(3)]
        recipe = Recipe(scheme="int8-static")
        report = optimize(matmul_model(), recipe, tmp_path / "out.onnx", calibration=Calibration(data))
        assert report.details["check"]["run_on"] == "calibration data"
        assert report.details["check"]["outputs"][0]["sqnr"] > 25

    def test_token_numbers_are_within_the_tables_that_they_index(self):
        b = Builder()
        ids = b.input("ids", ["batch", "sequence"], ir.DataType.INT64)
        flat = b.op("Reshape", ids, b.constant("flat", np.array([-1])))
        b.output(b.op("Gather", b.constant("table", weight(7, 16)), flat), [None, 16])
        model = b.model()
        assert token_limits(model) == {"ids": 7}
        report = optimize(_with_product(b), Recipe(embeddings=False), None)
        assert report.details["check"]["run_on"] == "random inputs"

    def test_tables_of_few_bits_have_a_limit_too(self, tmp_path):
        b = Builder()
        ids = b.input("ids", ["batch"], ir.DataType.INT64)
        b.output(b.op("Gather", b.constant("table", weight(1 << 12, 1 << 8)), ids), ["batch", 1 << 8])
        optimize(b.model(), Recipe(embeddings=True), tmp_path / "out.onnx")
        model = ir.load(tmp_path / "out.onnx")
        assert "GatherBlockQuantized" in [node.op_type for node in model.graph]
        assert token_limits(model) == {"ids": 1 << 12}
        (gather,) = (node for node in model.graph if node.op_type == "GatherBlockQuantized")
        gather.replace_input_with(1, model.graph.inputs[0])
        for node in list(model.graph)[-2::-1]:  # as other tools write it, without the guard before it
            model.graph.remove(node, safe=True)
        assert token_limits(model) == {"ids": 1 << 12}

    def test_numbers_stay_below_a_limit(self):
        class Input:
            name, type, shape = "ids", "tensor(int64)", [200]

        assert random_feeds([Input], {}, limits={"ids": 3})["ids"].max() == 2


def _with_product(b):
    y = b.op("MatMul", b.graph.outputs.pop(), b.constant("W", weight(16, 128)))
    b.output(y, [None, 128])
    return b.model()


class TestResult:
    def test_two_bits_of_a_small_net_leave_little(self, tmp_path):
        b = Builder()
        y = b.input("x", ["batch", 64])
        for layer in range(4):
            y = b.op("Tanh", b.op("MatMul", y, b.constant(f"W{layer}", weight(64, 64, layer) * 4)))
        b.output(y, ["batch", 64])
        model = b.model()
        assert optimize(model.clone(), Recipe(scheme="int8"), tmp_path / "good.onnx").warnings == ()
        report = optimize(model, Recipe(scheme="int2", form="onnxpress"), tmp_path / "out.onnx")
        (warning,) = report.warnings
        assert warning.startswith("little is left of output Tanh_7_out ")
        error = report.details["check"]["outputs"][0]
        assert error["sqnr"] < 3
        _, line = next(row for row in report.rows if row[0] == "outputs")
        assert line.startswith(f"Tanh_7_out {error['sqnr']:.1f} dB")
        assert [dataclasses.asdict(output) for output in report.outputs] == report.details["check"]["outputs"]
        assert report.outputs[0].is_ruined
        assert report.accuracy is None  # nothing was measured
        assert json.loads(report.to_json())["outputs"][0]["name"] == "Tanh_7_out"

    def test_a_weight_that_is_an_output_too(self, tmp_path):
        b = Builder()
        W, x = b.constant("W", weight(64, 48)), b.input("x", ["batch", 64])
        b.output(b.op("MatMul", x, W), ["batch", 48])
        b.output(W, [64, 48])
        K = b.op("Constant", value=ir.tensor(weight(64, 48, 1)))
        b.output(K, [64, 48])
        report = optimize(b.model(), Recipe(), tmp_path / "out.onnx")
        assert report.warnings == ("W also stays in float: it is an output",)
        assert [each["sqnr"] for each in report.details["check"]["outputs"][1:]] == [np.inf, np.inf]

    def test_nan_that_is_there_in_float_is_no_fault(self, tmp_path):
        b = Builder()
        y = b.op("MatMul", b.input("x", ["batch", 64]), b.constant("W", weight(64, 48)))
        b.output(b.op("Where", b.op("IsNaN", b.op("Log", y)), b.op("Log", b.op("Neg", b.op("Abs", y))), y), [None, 48])
        report = optimize(b.model(), Recipe(scheme="int8"), tmp_path / "out.onnx")
        assert report.warnings == ()
        (wanted,) = run(b.model(), {"x": np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)})
        assert 0 < np.isnan(wanted).mean() < 1

    def test_an_invalid_result_is_not_written(self, tmp_path, monkeypatch):
        from onnxpress.optimizer.families.weight_only import rewrite

        def twice(model):
            model.graph.node(0).attributes.add(ir.AttrInt64("no_such", 1))
            model.graph.node(0).domain, model.graph.node(0).op_type = "", "Relu"

        monkeypatch.setattr(rewrite, "declare_functions", twice)
        with pytest.raises(OnnxpressError, match=r"^test: the conversion made an invalid model, nothing written: "):
            optimize(matmul_model(), Recipe(), tmp_path / "out.onnx")
        assert list(tmp_path.iterdir()) == []

    def test_what_was_wrong_before_does_not_count(self, tmp_path):
        model = matmul_model()
        model.graph.node(0).attributes.add(ir.AttrInt64("unknown", 1))
        before = standing(bare(model))
        assert not before.plain
        assert new_complaint(before, bare(model)) is None


class TestChecker:
    def test_weights_are_neither_copied_nor_read(self):
        def read():
            raise AssertionError("read")

        b = Builder()
        lazy = ir.LazyTensor(read, ir.DataType.FLOAT, ir.Shape([1 << 15, 1 << 15]), name="W")
        W = ir.Value(name="W", const_value=lazy, type=ir.TensorType(ir.DataType.FLOAT), shape=lazy.shape)
        b.graph.register_initializer(W)
        b.output(b.op("MatMul", b.input("x", ["batch", 1 << 15]), W), ["batch", 1 << 15])
        found = bare(b.model())
        assert len(found.proto.SerializeToString()) < 1000
        assert list(found.weights.values()) == [lazy]
        assert standing(found).full

    def test_weights_of_branches_of_one_name_and_two_shapes(self):
        def branch(size):
            inner = ir.Graph([], [], nodes=[], name=f"branch{size}", opset_imports={"": 18})
            W = ir.Value(name="W", const_value=ir.tensor(weight(64, size)), type=ir.TensorType(ir.DataType.FLOAT),
                         shape=ir.Shape([64, size]))  # fmt: skip
            inner.register_initializer(W)
            node = ir.node("MatMul", [x, W], name=f"inner{size}")
            node.outputs[0].name = f"y{size}"
            inner.append(node)
            inner.outputs.append(node.outputs[0])
            return inner

        b = Builder()
        x, condition = b.input("x", [2, 64]), b.input("on", [], ir.DataType.BOOL)
        y = b.op("If", condition, then_branch=branch(64), else_branch=branch(32))
        b.output(y, [2, None])
        model = b.model()
        assert standing(bare(model)) == standing(bare(model.clone()))
        assert standing(bare(model)).full
        assert standing(bare(model)).clashes == frozenset()

    def test_a_name_within_sight_of_another_clashes(self):
        inner = ir.Graph([], [], nodes=[], name="branch", opset_imports={"": 18})
        node = ir.node("Constant", [], attributes={"value": ir.tensor(np.zeros(3, np.float32))}, name="c")
        node.outputs[0].name = "x"
        inner.append(node)
        inner.outputs.append(node.outputs[0])
        b = Builder()
        b.input("x", [3])
        b.output(b.op("If", b.input("on", [], ir.DataType.BOOL), then_branch=inner, else_branch=inner.clone()), [3])
        assert standing(bare(b.model())).clashes == {"x"}


class TestOutputs:
    def test_scores_beside_boxes_are_told_by_channel(self):
        rng = np.random.default_rng(0)
        wanted = np.concatenate([rng.uniform(0, 320, (1, 100, 4)), rng.uniform(0, 1, (1, 100, 2))], -1)
        found = wanted.copy()
        found[..., 5] = rng.uniform(0, 1, (1, 100))
        (error,) = output_errors(["y"], [wanted.astype(np.float32)], [found.astype(np.float32)])
        assert error.sqnr > 50
        assert error.channel == 5
        assert error.channel_sqnr < 6
        found[..., 5] = -wanted[..., 5]
        (error,) = output_errors(["y"], [wanted.astype(np.float32)], [found.astype(np.float32)])
        assert error.is_ruined

    def test_a_channel_that_holds_next_to_nothing_does_not_count(self):
        wanted = np.ones((50, 3), np.float32)
        wanted[:, 1] = 1e-8
        found = wanted.copy()
        found[:, 1] = 0
        (error,) = output_errors(["y"], [wanted], [found])
        assert not error.is_ruined

    def test_another_length_is_told_as_that(self):
        (error,) = output_errors(["wave"], [np.zeros((1, 1, 24000))], [np.zeros((1, 1, 25200))])
        assert str(error) == "wave is of another length, 1x1x25200, in the original 1x1x24000: it cannot be compared"
        assert not error.is_ruined
        assert error.sqnr is None

    def test_share_of_equal_elements(self):
        (error,) = output_errors(["ids"], [np.arange(10)], [np.arange(10) * (np.arange(10) % 5 > 0)])
        assert str(error) == "ids 90.0 % equal"
        (error,) = output_errors(["ids"], [np.arange(10)], [np.zeros(10, np.int64)])
        assert error.is_ruined

    def test_infinite_where_the_original_is_not(self):
        (error,) = output_errors(["y"], [np.ones(4, np.float32)], [np.full(4, np.nan, np.float32)])
        assert error.is_ruined

    @pytest.mark.parametrize(
        ("found", "problem"),
        [
            ([1.0, 2.0, 3.0], None),
            ([1.0, 2.0005, 3.0], None),
            ([1.0, 2.1, 3.0], "output y differs by 3.3 % of its largest number"),
            ([1.0, np.nan, 3.0], "output y differs by inf % of its largest number"),
            ([1.0, 2.0], "output y is float32 [2] instead of float32 [3]"),
        ],
    )
    def test_rounding(self, found, problem):
        wanted = np.array([1, 2, 3], np.float32)
        assert beyond_rounding(["y"], [wanted], [np.array(found, np.float32)]) == problem


def test_clean_up_without_all_of_its_steps_changes_nothing():
    model = chain()
    before = [node.op_type for node in model.graph]
    clean_up.CleanUp(clean_up.STEPS)(model)
    assert [node.op_type for node in model.graph] == before
    run(model, {"x": np.ones((2, 64), np.float32)})


class TestWhatIsNoFault:
    def test_a_model_that_draws_random_numbers_is_not_compared(self, tmp_path):
        b = Builder()
        x = b.input("x", [2, 64])
        y = b.op("MatMul", b.op("Add", x, b.op("RandomNormalLike", x)), b.constant("W", weight(64, 48)))
        b.output(y, [2, 48])
        report = optimize(b.model(), Recipe(), tmp_path / "out.onnx")
        assert report.warnings == ()
        assert dict(report.rows)["checked"].endswith("not by a run: the original draws random numbers")

    def test_nor_is_one_that_makes_much_of_rounding(self, tmp_path, monkeypatch):
        b = Builder()
        y = b.op("MatMul", b.input("x", [4, 64]), b.constant("W", weight(64, 48)), name="product")
        large = b.op("Mul", y, b.constant("large", np.float32(1e8).reshape(())))
        b.output(b.op("Sin", large, name="steep"), [4, 48])

        def nudge(model):
            factor = model.graph.initializers["large"]
            factor.const_value = ir.tensor(np.float32(1.000001e8).reshape(()), name="large")

        spoil(monkeypatch, nudge)
        report = optimize(b.model(), Recipe(scheme="int8"), tmp_path / "out.onnx")
        assert not any("clean-up" in warning for warning in report.warnings)
