"""Settings of methods that train."""

from __future__ import annotations

import pytest
from onnxpress.optimizer import Recipe
from onnxpress.optimizer.errors import UsageError


@pytest.mark.parametrize(("settings", "told"), [
    ({"steps": 0}, "steps is 0, must be at least 1"),
    ({"steps": 1.5}, "steps is 1.5, must be a whole number"),
    ({"learning_rate": 0.0}, "learning_rate is 0.0, must be a number above 0"),
    ({"learning_rate": 2.0}, "learning_rate is 2.0, must be a number above 0 and up to 1"),
    ({"steps": 5, "method": "gptq"}, "steps: not read without a method that trains: signround-blocks, dwq"),
    ({"learning_rate": 0.1, "method": None}, "learning_rate: not read without a method that trains"),
    ({"learning_rate": 0.1, "method": "signround-blocks"}, "learning_rate: not read without method dwq"),
    ({"search_time": "1m", "method": "gptq"}, "search_time: not read without a bound"),
    ({"search_time": "soon"}, 'search_time is "soon"'),
    ({"scheme": "int8-static"}, "for weights alone; int8-static takes rtn or gptq"),
    ({"method": "dqw"}, "did you mean"),
])  # fmt: skip
def test_what_is_refused(settings, told):
    with pytest.raises(UsageError, match=told):
        Recipe(**{"method": "dwq", **settings})


def test_what_is_read():
    recipe = Recipe(method="dwq,rtn", steps=3, learning_rate=0.5, search_time="1m")
    assert recipe.trains
    assert Recipe.from_mapping(recipe.to_mapping()) == recipe
    assert not Recipe(method="gptq").trains
