"""A converted decoder in optimum, with and without the execution provider."""

from __future__ import annotations

import shutil

import pytest
from onnxpress import ep
from onnxpress.optimizer import Recipe, optimize

pytest.importorskip("optimum.onnxruntime")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = [[5, 9, 3, 77], [0, 0, 31, 8]]
SEEN = [[1, 1, 1, 1], [0, 0, 1, 1]]
FILES = ("config.json", "generation_config.json")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder of optimum's; each weight of a product is +c or -c, which int8 holds as it is."""
    from optimum.exporters.onnx import onnx_export_from_model

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=128, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=64, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.sign() * 1.5 * module.in_features**-0.5
        elif isinstance(module, torch.nn.Embedding):
            module.weight.data = torch.randn_like(module.weight)
    folder = tmp_path_factory.mktemp("exported")
    onnx_export_from_model(model, folder, task="text-generation-with-past", do_validation=False)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["all logits", "last logits"])
def converted(request, exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    recipe = Recipe(scheme="int8", accuracy_level=0, last_logits=request.param)
    optimize(exported / "model.onnx", recipe, folder / "model.onnx")
    for name in FILES:
        shutil.copy(exported / name, folder)
    return folder


def generated(folder, **options):
    """The model in optimum, and what it makes of the prompts, word by word the likeliest."""
    from optimum.onnxruntime import ORTModelForCausalLM

    model = ORTModelForCausalLM.from_pretrained(folder, **options)
    ids, seen = torch.tensor(PROMPTS), torch.tensor(SEEN)
    texts = model.generate(ids, attention_mask=seen, max_new_tokens=24, do_sample=False)
    return model, texts.tolist()


def test_stock(exported, converted):
    _, expected = generated(exported)
    assert generated(converted)[1] == expected
    assert len({token for text in expected for token in text[4:]}) > 10


def test_with_our_provider(exported, converted):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.add_session_config_entry(ep.RECORD_ASSIGNMENT, "1")
    ep.append(options)
    model, texts = generated(converted, session_options=options, providers=[])
    assert texts == generated(exported)[1]
    # Of each layer four products and the attention, and the logits.
    assert len(ep.assigned_nodes(model.session)[ep.NAME]) >= 2 * 5 + 1
