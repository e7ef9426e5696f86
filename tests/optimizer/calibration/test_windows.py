"""Windows of a text for decoders: what every input holds, and what is refused."""

from __future__ import annotations

import decoders
import graphs
import numpy as np
import onnx_ir as ir
import pytest
from onnxpress.optimizer import Calibration, Recipe, optimize
from onnxpress.optimizer.calibration.data import open_data
from onnxpress.optimizer.calibration.inputs import Input, inputs_of
from onnxpress.optimizer.calibration.windows import is_past, predicts_tokens
from onnxpress.optimizer.conversion.calibrate import calibrate
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from onnxpress.optimizer.runtime.session import open_session, session_options

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
NAMES = ("past_key_values.0.key", "past_key_values.0.value")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(decoders.text(40))
    decoders.tokenizer(tmp_path / "tokenizer.json")
    return path


def windows(text, model, **settings):
    return list(Calibration(text, tokenizer=text.parent, **settings).open(model))


def run(tmp_path, model, feeds):
    ir.save(model, tmp_path / "m.onnx")
    return open_session(tmp_path / "m.onnx", session_options()).run(["logits"], feeds)[0]


def test_windows_of_the_whole_text_with_an_empty_past(text, tmp_path):
    model, ids = decoders.decoder(), decoders.ids_of(decoders.text(40))
    found = windows(text, model, length=12)
    np.testing.assert_array_equal(np.concatenate([feeds["input_ids"] for feeds in found]), ids[:36].reshape(3, 12))
    for feeds in found:
        assert feeds["attention_mask"].tolist() == [[1] * 12]
        assert feeds["position_ids"].tolist() == [[*range(12)]]
        assert [feeds[name].shape for name in NAMES] == [(1, decoders.HEADS, 0, decoders.WIDTH)] * 2
        assert {feeds[name].dtype for name in NAMES} == {F32}
    logits = run(tmp_path, model, found[1])
    np.testing.assert_allclose(logits[0], decoders.logits_of(ids[12:24]), rtol=1e-3, atol=1e-3)
    assert [feeds["input_ids"].shape for feeds in windows(text, model, length=12, batch=2)] == [(2, 12), (1, 12)]
    assert windows(text, model, length=12, batch=2)[0][NAMES[0]].shape == (2, decoders.HEADS, 0, decoders.WIDTH)


def test_fewer_windows_than_there_are_lie_evenly_over_the_text(text):
    ids = decoders.ids_of(decoders.text(40))
    for samples, starts in ((1, [0]), (2, [0, 20]), (3, [0, 10, 25]), (8, range(0, 40, 5)), (9, range(0, 40, 5))):
        found = windows(text, decoders.decoder(), length=5, samples=samples)
        wanted = [ids[start : start + 5] for start in starts]
        np.testing.assert_array_equal(np.concatenate([feeds["input_ids"] for feeds in found]), wanted)


@pytest.mark.parametrize("mask", [20, "past + sequence", "total"])
def test_a_past_of_fixed_size_is_zeros_that_the_mask_hides(text, tmp_path, mask):
    model = decoders.decoder(past=8, mask=mask)
    found = windows(text, model, length=None if mask == 20 else 12)
    assert len(found) == 3
    assert found[0]["attention_mask"].tolist() == [[0] * 8 + [1] * 12]
    assert found[0][NAMES[0]].shape == (1, decoders.HEADS, 8, decoders.WIDTH)
    ids = found[0]["input_ids"][0]
    np.testing.assert_allclose(run(tmp_path, model, found[0])[0], decoders.logits_of(ids), rtol=1e-3, atol=1e-3)


def test_sizes_that_the_model_fixes(text):
    found = windows(text, decoders.decoder(sequence=5, mask=5, batch=1), length=12)
    assert len(found) == 8
    assert found[0]["attention_mask"].shape == (1, 5)
    assert len(windows(text, decoders.decoder(sequence=5, mask=9))) == 8
    with pytest.raises(UsageError, match="'attention_mask' is of 3 tokens, fewer than the 5 of a window"):
        windows(text, decoders.decoder(sequence=5, mask=3))
    with pytest.raises(UsageError, match="leading size is fixed at 1; use a batch of 1"):
        windows(text, decoders.decoder(batch=1), length=12, batch=2)


def test_flags_are_off_also_in_batches(text):
    found = windows(text, decoders.decoder(flag=True), length=12, batch=3)
    assert [feeds["use_cache_branch"].tolist() for feeds in found] == [[False]]
    assert found[0]["input_ids"].shape == (3, 12)


def test_a_decoder_without_a_past_is_known_by_its_logits(text):
    model = decoders.decoder(past=None)
    assert predicts_tokens(model)
    assert [feeds["input_ids"].shape for feeds in windows(text, model, length=12)] == [(1, 12)] * 3
    assert windows(text, model, length=12)[0].keys() == {"input_ids", "attention_mask", "position_ids"}


def encoder(columns: int, name: str = "logits", segments: bool = False) -> ir.Model:
    b = graphs.Builder()
    x = b.op(
        "Gather",
        b.constant("E", graphs.weight(decoders.VOCABULARY, 8)),
        b.input("input_ids", ["b", "s"], ir.DataType.INT64),
    )
    if segments:
        kinds = b.input("token_type_ids", ["b", "s"], ir.DataType.INT64)
        x = b.op("Add", x, b.op("Gather", b.constant("T", graphs.weight(2, 8)), kinds))
    y = b.op("MatMul", x, b.constant("W", graphs.weight(8, columns)))
    b.output(y, ["b", "s", columns])
    y.name = name
    return b.model()


def test_encoders_keep_their_lines(text):
    rows = decoders.VOCABULARY
    assert [predicts_tokens(encoder(columns)) for columns in (8, rows, rows + 5)] == [False, True, True]
    assert not predicts_tokens(encoder(rows + 5, "hidden"))
    assert not predicts_tokens(encoder(rows, segments=True))
    found = windows(text, encoder(8))
    assert {feeds["input_ids"].shape for feeds in found} == {(1, 128)}
    assert len(found) == 6


@pytest.mark.parametrize(
    ("entry", "past"),
    [
        (Input("past_key_values.3.value", F32, ("b", 2, "past", 4)), True),
        (Input("past_0", F32, (2, "b", 2, "past", 4)), True),
        (Input("past_conv.0", F32, ("b", 8, 3)), True),
        (Input("layers.0.k", F32, ("b", 2, "p", 4)), True),
        (Input("layers.0.k", np.dtype(np.float16), (None, 2, None, 4)), True),
        (Input("encoder_hidden_states", F32, ("b", "e", 8)), False),
        (Input("pixel_values", F32, ("b", 3, "h", "w")), False),
        (Input("pixel_values", F32, ("b", 3, 8, 8)), False),
        (Input("attention_mask", F32, ("b", 1, 1, "s")), False),
        (Input("past_length", I64, (1,)), False),
        (Input("past", F32, None), False),
    ],
)
def test_what_is_a_past(entry, past):
    assert is_past(entry) == past


def test_states_and_pasts_of_other_forms(text):
    ids = Input("input_ids", np.dtype(np.int32), ("b", "s"))
    mask = Input("attention_mask", I64, ("b", "s"))
    others = [
        Input("past_0", np.dtype(np.float16), (2, "b", 3, "past", 4)),
        Input("past_conv", F32, ("b", 8, 3)),
        Input("past_state", F32, ("b", 2, 8, 16)),
    ]
    feeds = next(iter(open_data(text, [ids, mask, *others], tokenizer=text.parent, length=12)))
    assert feeds["input_ids"].dtype == np.int32
    assert [feeds[entry.name].shape for entry in others] == [(2, 1, 3, 0, 4), (1, 8, 3), (1, 2, 8, 16)]
    assert feeds["past_0"].dtype == np.float16
    assert feeds["attention_mask"].tolist() == [[1] * 12]
    states = [ids, mask, *others[1:]]  # the mask counts the tokens of the window alone, so no state holds some
    assert next(iter(open_data(text, states, tokenizer=text.parent, length=12)))["attention_mask"].shape == (1, 12)


def test_the_length_is_512_or_the_positions_of_the_model(text):
    model = decoders.decoder()
    with pytest.raises(UsageError, match=r"text\.txt: has 40 tokens, too few for a window of 64; .* smaller length"):
        windows(text, model)
    text.write_text(decoders.text(600))
    assert windows(text, model)[0]["input_ids"].shape == (1, decoders.POSITIONS)
    with pytest.raises(UsageError, match="windows of 65 tokens, and the model has 64 positions"):
        windows(text, model, length=65)
    free = [entry for entry in inputs_of(model) if entry.name != "position_ids"]
    assert next(iter(open_data(text, free, tokenizer=text.parent)))["input_ids"].shape == (1, 512)


def test_what_text_cannot_fill(text):
    inputs = inputs_of(decoders.decoder())
    with pytest.raises(UsageError, match=r"text cannot fill input 'scale' \(float32 \[\]\).*give an \.npz"):
        open_data(text, [*inputs, Input("scale", F32, ())], tokenizer=text.parent)
    with pytest.raises(UsageError, match="text cannot fill input 'num_logits_to_keep'"):
        open_data(text, [*inputs, Input("num_logits_to_keep", I64, ())], tokenizer=text.parent)
    with pytest.raises(UsageError, match="the model takes no 'input_ids'"):
        open_data(text, [entry for entry in inputs if entry.name != "input_ids"], tokenizer=text.parent)


def test_a_tokenizer_of_another_vocabulary(text):
    decoders.tokenizer(text.parent / "tokenizer.json", vocabulary=99)
    with pytest.raises(
        UsageError, match=r"makes token 98 of the text, and the model has a table of 11 .* another model"
    ):
        windows(text, decoders.decoder(), length=12)
    with pytest.raises(UsageError, match="makes token 98 of the text"):
        windows(text, encoder(8))


def test_files_that_are_no_text(text, tmp_path):
    model = decoders.decoder()
    with pytest.raises(OnnxpressError, match=r"no such file; give the model's tokenizer\.json"):
        Calibration(text, tokenizer=tmp_path / "other").open(model)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OnnxpressError, match=r"empty/tokenizer\.json: no such file"):
        Calibration(text, tokenizer=tmp_path / "empty").open(model)
    text.write_bytes(b"caf\xe9 " * 100)
    with pytest.raises(OnnxpressError, match="is no text in UTF-8"):
        windows(text, model)


def test_the_tokenizer_beside_the_model_is_for_any_text(text, tmp_path):
    code = tmp_path / "code.py"
    code.write_text(decoders.text(40))
    found = Calibration(code, length=12).open(decoders.decoder(), None, tmp_path / "model.onnx")
    assert len(list(found)) == 3


@pytest.mark.parametrize(
    ("recipe", "batch"),
    [
        (Recipe(scheme="int4"), 1),
        (Recipe(scheme="int8", method="gptq"), 4),
        (Recipe(scheme="int8-static"), 4),
        (Recipe(scheme="fp8-static"), 1),
        (Recipe(scheme="sparse", sparsity=0.5), 4),
    ],
)
def test_conversions_of_decoders(text, tmp_path, recipe, batch):
    text.write_text(decoders.text(200))
    report = optimize(
        decoders.decoder(),
        recipe,
        tmp_path / "o.onnx",
        calibration=Calibration(text, tokenizer=text.parent, length=16, batch=batch),
    )
    assert report.rewritten["MatMul"] >= 4
    assert report.details["check"]["run_on"] == "calibration data"
    assert dict(report.rows)["calibrated on"] == f"12 samples of {text}"


def test_statistics_of_decoders(text, tmp_path):
    ir.save(decoders.decoder(), tmp_path / "m.onnx")
    report = calibrate(tmp_path / "m.onnx", text, tmp_path / "s.npz", length=10, batch=2)
    assert report.batches == 2
    assert report.unusable == dict.fromkeys(NAMES, "no value of it was seen")
