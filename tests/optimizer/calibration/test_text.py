"""Lines of text through a tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
from onnxpress.optimizer.calibration.data import open_data
from onnxpress.optimizer.calibration.inputs import Input
from onnxpress.optimizer.errors import OnnxpressError, UsageError
from tokenizers import Tokenizer, models, pre_tokenizers

I64 = np.dtype(np.int64)
BERT = [Input(name, I64, (None, None)) for name in ("input_ids", "attention_mask", "token_type_ids")]


@pytest.fixture
def tokenizer(tmp_path):
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3, "[PAD]": 7}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("a b c\n\n  \nc b a x c b a\nb")
    return path


def test_lines_are_padded_and_cut(tokenizer, lines):
    data = open_data(lines, BERT, tokenizer=tokenizer, length=5)
    for _ in range(2):
        found = list(data)
        assert [feeds["input_ids"].tolist() for feeds in found] == [
            [[1, 2, 3, 7, 7]], [[3, 2, 1, 0, 3]], [[2, 7, 7, 7, 7]],
        ]  # fmt: skip
        assert found[0]["attention_mask"].tolist() == [[1, 1, 1, 0, 0]]
        assert found[0]["token_type_ids"].tolist() == [[0] * 5]
        assert all(array.dtype == np.int64 for array in found[0].values())
    assert next(iter(open_data(lines, BERT, tokenizer=tokenizer, batch=3)))["input_ids"].shape == (3, 128)
    assert len(list(open_data(lines, BERT, tokenizer=tokenizer, samples=2))) == 2


def test_a_fixed_length_wins_and_positions_count(tokenizer, lines):
    inputs = [Input("input_ids", np.dtype(np.int32), (1, 4)), Input("position_ids", I64, (1, 4))]
    feeds = next(iter(open_data(lines, inputs, tokenizer=tokenizer)))
    assert feeds["input_ids"].tolist() == [[1, 2, 3, 7]]
    assert feeds["input_ids"].dtype == np.int32
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3]]


def test_what_is_no_text(tokenizer, lines, tmp_path):
    with pytest.raises(UsageError, match=r"text cannot fill input 'x' \(float32 \[2\]\)"):
        open_data(lines, [Input("x", np.dtype(np.float32), (2,))], tokenizer=tokenizer)
    with pytest.raises(OnnxpressError, match=r"no such file; give the model's tokenizer\.json"):
        open_data(lines, BERT, tokenizer=tmp_path / "gone.json")
    with pytest.raises(OnnxpressError, match=r"not a tokenizer\.json"):
        open_data(lines, BERT, tokenizer=lines)
    with pytest.raises(UsageError, match="is a folder"):
        open_data(tmp_path, BERT, tokenizer=tokenizer)
    lines.write_bytes(b"caf\xe9")
    with pytest.raises(OnnxpressError, match="is no text in UTF-8"):
        list(open_data(lines, BERT, tokenizer=tokenizer))
    lines.write_text("\n \n")
    with pytest.raises(UsageError, match="holds no samples"):
        list(open_data(lines, BERT, tokenizer=tokenizer))


def test_lines_without_a_tokenizer(lines):
    with pytest.raises(UsageError, match=r"lines\.txt: lines of text need the model's tokenizer\.json; .*tokenizer"):
        open_data(lines, BERT)
