from __future__ import annotations

import subprocess
import sys

import pytest
from onnxpress import models
from onnxpress.models import catalogue
from onnxpress.models.tasks import TASKS
from onnxpress.optimizer.errors import UsageError


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match=r'no model "minilmm".*did you mean "minilm"'):
        models.path("minilmm")


def test_name_like_no_other_lists_all():
    with pytest.raises(UsageError, match=r"there are minilm, .*silero-vad"):
        models.path("../../etc/passwd")


DATA = (catalogue.SIMILARITY_DATA, catalogue.PHOTOGRAPHS, catalogue.MORE_PHOTOGRAPHS, catalogue.MOVIE_REVIEWS)


@pytest.mark.parametrize("entry", [*map(catalogue.entry, models.names()), *DATA], ids=lambda entry: entry.name)
def test_entries_are_complete(entry):
    if entry.members:
        assert len(bytes.fromhex(entry.package.sha256)) == 32
    else:
        assert entry.package.version
    assert entry.build is not None or entry.main in entry.members.values()
    assert all("/" not in name for name in entry.members.values())
    assert entry.task is None or entry.task in TASKS


def test_importing_the_catalogue_is_light():
    code = "import sys; from onnxpress import models; models.names(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"onnx", "onnxruntime", "onnxscript", "tokenizers", "PIL", "matplotlib", "numpy"} & set(loaded)
