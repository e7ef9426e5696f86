from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxpress.models.tasks import choose, similarity
from onnxpress.optimizer.analysis.evaluate import evaluate
from onnxpress.optimizer.errors import OnnxpressError, UsageError

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "cat", "dog", "car", "bus"]
TABLE = np.array([[9, 9], [8, 8], [1, 0], [1, 1], [0, 1], [-1, 1]], np.float32)


def save_encoder(folder, *, dtype=np.float32, inputs=("input_ids", "attention_mask"), rank=3) -> None:
    """A model whose hidden states are the rows of TABLE, and its tokenizer."""
    values = {name: ir.val(name, ir.DataType.INT64, ["batch", "sequence"]) for name in inputs}
    table = ir.val("table", const_value=ir.tensor(TABLE.astype(dtype), name="table"))
    gather = ir.node("Gather", [table, values["input_ids"]], name="gather")
    nodes, out = [gather], gather.outputs[0]
    out.dtype = ir.DataType.from_numpy(np.dtype(dtype))
    out.shape = ir.Shape(["batch", "sequence", 2][:rank])
    out.name = "hidden"
    graph = ir.Graph(values.values(), [out], nodes=nodes, initializers=[table], opset_imports={"": 18}, name="g")
    ir.save(ir.Model(graph, ir_version=8), folder / "model.onnx")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def labels(tmp_path, monkeypatch):
    folder = tmp_path / "labels"
    folder.mkdir()
    monkeypatch.setattr(similarity, "provide", lambda _entry: folder)
    return folder


def embed(folder, texts):
    session = ort.InferenceSession(str(folder / "model.onnx"))
    return similarity.Embedder(session, folder / "model.onnx")(texts)


def test_embedding_is_the_mean_over_the_real_tokens(tmp_path):
    save_encoder(tmp_path)
    found = embed(tmp_path, ["cat", "cat car dog dog", "dog"])
    np.testing.assert_allclose(found, [[1, 0], [3 / 18**0.5, 3 / 18**0.5], [0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_texts_keep_their_order_over_batches(tmp_path):
    save_encoder(tmp_path)
    texts = [" ".join(["cat"] * (i % 7 + 1) + ["car"] * (i % 5 + 1)) for i in range(50)]
    expected = np.array([[i % 7 + 1, i % 5 + 1] for i in range(50)], np.float32)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(tmp_path, texts), expected, rtol=1e-6)


def test_float16_hidden_states_are_summed_in_float32(tmp_path):
    save_encoder(tmp_path, dtype=np.float16)
    found = embed(tmp_path, ["cat dog"])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[2 / 5**0.5, 1 / 5**0.5]], rtol=1e-6)


def test_lee_correlates_the_upper_triangle(tmp_path, labels):
    save_encoder(tmp_path)
    (labels / "lee.cor").write_text("cat\ndog\ncar", encoding="latin-1")
    # What is below the diagonal and on it must not count.
    human = np.array([[1, 0.9, 0.2], [7, 1, 0.3], [7, 7, 1]])
    np.savetxt(labels / "similarities0-1.txt", human)
    result = evaluate(tmp_path / "model.onnx", "lee")
    cosines = [0.5**0.5, 0, 0.5**0.5]  # cat-dog, cat-car, dog-car
    assert result.value == pytest.approx(np.corrcoef(cosines, [0.9, 0.2, 0.3])[0, 1])
    assert (result.task, result.metric, result.details["pairs"]) == ("lee", "Pearson", 3)
    assert result.details["tokenizer"] == "beside the model"


def test_word_pairs_are_ranked(tmp_path, labels):
    save_encoder(tmp_path)
    (labels / "simlex999.txt").write_text("# a comment\ncat\tdog\t9\ncat\tcar\t5\ncat\tbus\t1\ndog\tcar\t2\n")
    result = evaluate(tmp_path / "model.onnx", "simlex999")
    # Ranks of the cosines 0.71, 0, -0.71, 0.71 against those of 9, 5, 1, 2.
    assert result.value == pytest.approx(np.corrcoef([3.5, 2, 1, 3.5], [4, 3, 1, 2])[0, 1])
    assert result.metric == "Spearman"


def test_first_task_that_fits_is_the_default(tmp_path):
    save_encoder(tmp_path)
    assert choose(ort.InferenceSession(str(tmp_path / "model.onnx")), None, "m").name == "lee"


@pytest.mark.parametrize("change", [{"inputs": ("input_ids", "attention_mask", "past")}, {"rank": 2}])
def test_other_models_do_not_fit(tmp_path, change):
    save_encoder(tmp_path, **change)
    with pytest.raises(UsageError, match="no task fits this model; there are lee"):
        evaluate(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="the task 'lee' does not fit this model; it needs the inputs input_ids"):
        evaluate(tmp_path / "model.onnx", "lee")


def test_unknown_task_suggests_the_nearest(tmp_path):
    save_encoder(tmp_path)
    with pytest.raises(UsageError, match='no task "simlex"; did you mean "simlex999"'):
        evaluate(tmp_path / "model.onnx", "simlex")


def test_tokenizer_that_is_none(tmp_path):
    save_encoder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(OnnxpressError, match=r"tokenizer.json: not a tokenizer"):
        embed(tmp_path, ["cat"])


def test_model_that_fails_at_run_time(tmp_path, labels):
    save_encoder(tmp_path)
    (labels / "lee.cor").write_text("cat elephant", encoding="latin-1")
    np.savetxt(labels / "similarities0-1.txt", np.eye(1))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 77, "[UNK]": 78}, "[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(OnnxpressError, match="fails in the task 'lee'") as caught:
        evaluate(tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    save_encoder(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(OnnxpressError, match=r'pip install "onnxpress\[models\]"'):
        embed(tmp_path, ["cat"])


def test_ranks_share_the_mean_of_ties():
    assert similarity.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
