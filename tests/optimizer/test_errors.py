"""What errors say."""

from __future__ import annotations

import pytest
from onnxpress.optimizer.errors import suggestion, value_text


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("minilmm", 'did you mean "MiniLM"?'),
        ("RESNETT", 'did you mean "resnet"?'),
        ("minilm", 'did you mean "MiniLM"?'),
        ("qqq", "there are MiniLM, resnet"),
        ("", "there are MiniLM, resnet"),
    ],
)
def test_a_wrong_word_gets_the_nearest_name_or_all(word, hint):
    assert suggestion(word, ["MiniLM", "resnet"]) == hint


def test_the_list_of_names_says_what_they_are():
    assert suggestion("qqq", {"size": 1}, "known keys:") == "known keys: size"


@pytest.mark.parametrize(("value", "text"), [(True, "true"), ('a "b"', '"a \\"b\\""'), ("ü", '"ü"'), (1.5, "1.5")])
def test_values_as_toml_writes_them(value, text):
    assert value_text(value) == text
