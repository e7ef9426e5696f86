"""A folder for onnxruntime-genai: what it says of a model, and that it generates what the model does."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from command_line import runner
from decoder_layers import VOCABULARY, Decoder
from onnxpress import custom_ops, ep
from onnxpress.optimizer.conversion.genai_folder import genai_config
from onnxpress.optimizer.errors import OnnxpressError

FACTS = {
    "bos_token_id": 1, "eos_token_id": [VOCABULARY - 1, 2], "pad_token_id": None, "hidden_size": 32,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
PROMPT = [3, 14, 15, 9, 26]


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    ir.save(Decoder(layers=2).made, folder / "model.onnx")
    (folder / "config.json").write_text(json.dumps(FACTS))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "top_k": None}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    return runner(monkeypatch, capsys)


def test_folder(source, run, tmp_path):
    code, out, _ = run("optimize", "source", "--scheme", "float", "--genai", "made")
    assert (code, "made/model.onnx" in out) == (0, True)
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "model.onnx", "genai_config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    told = json.loads((tmp_path / "made" / "genai_config.json").read_text())
    assert told["model"]["decoder"] == {
        "filename": "model.onnx", "session_options": {"provider_options": []}, "head_size": 16, "hidden_size": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
        "inputs": {
            "input_ids": "input_ids", "attention_mask": "attention_mask", "position_ids": "position_ids",
            "past_key_names": "past.%d.key", "past_value_names": "past.%d.value",
        },
        "outputs": {
            "logits": "lm_head/MatMul_out",
            "present_key_names": "present.%d.key", "present_value_names": "present.%d.value",
        },
    }  # fmt: skip
    assert {key: told["model"][key] for key in ("vocab_size", "context_length", "pad_token_id")} == {
        "vocab_size": VOCABULARY, "context_length": 64, "pad_token_id": VOCABULARY - 1
    }  # fmt: skip
    assert (told["search"]["temperature"], told["search"]["top_k"], told["search"]["max_length"]) == (0.5, 50, 64)
    assert told["search"]["past_present_share_buffer"]


def test_attentions_that_are_not_fused_share_no_buffer(source, run, tmp_path):
    code, _, _ = run("optimize", "source", "--scheme", "int8", "--no-fuse", "--genai", "made")
    told = json.loads((tmp_path / "made" / "genai_config.json").read_text())
    assert (code, told["search"]["past_present_share_buffer"]) == (0, False)


def greedy(path, count, prompt=PROMPT):
    """What the model says next, token by token."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens, past = list(prompt), {
        value.name: np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        for value in session.get_inputs() if len(value.shape) == 4
    }  # fmt: skip
    new = tokens
    for _ in range(count):
        at = np.arange(len(tokens) - len(new), len(tokens))[None]
        fed = {"input_ids": np.int64([new]), "attention_mask": np.ones((1, len(tokens)), np.int64), "position_ids": at}
        logits, *present = session.run(None, {**fed, **past})
        past = dict(zip(past, present, strict=True))
        new = [int(logits[0, -1].argmax())]
        tokens += new
    return tokens


@functools.cache
def registered():
    """Once in a process."""
    import onnxruntime_genai

    onnxruntime_genai.register_execution_provider_library(ep.NAME, str(custom_ops.library_path()))


def convert(run, last):
    last_logits = ["--last-logits"] if last else []
    code, _, _ = run("optimize", "source", "--scheme", "int8", "--accuracy-level", "0", "--genai", "made", *last_logits)
    assert code == 0


@pytest.mark.parametrize("with_ep", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_it_generates_what_the_model_says(source, run, with_ep, last):
    genai = pytest.importorskip("onnxruntime_genai")
    convert(run, last)
    config = genai.Config("made")
    if with_ep:
        registered()
        config.append_provider(ep.NAME)
    model = genai.Model(config)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=32)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.int32(PROMPT))
    while not generator.is_done() and len(generator.get_sequence(0)) < len(PROMPT) + 12:
        generator.generate_next_token()
    made = [int(token) for token in generator.get_sequence(0)]
    assert made == greedy("made/model.onnx", len(made) - len(PROMPT))
    assert len(made) > len(PROMPT)


@pytest.mark.parametrize("last", [False, True])
def test_texts_of_two_lengths_at_once(source, run, last):
    """Of which it pads the shorter one on the right."""
    genai = pytest.importorskip("onnxruntime_genai")
    convert(run, last)
    model = genai.Model(genai.Config("made"))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=32, batch_size=2)
    generator = genai.Generator(model, parameters)
    short = PROMPT[:2]
    generator.append_tokens(np.int32([PROMPT, [*short, *[VOCABULARY - 1] * (len(PROMPT) - len(short))]]))
    generator.generate_next_token()
    assert generator.get_sequence(0)[-1] == greedy("made/model.onnx", 1, PROMPT)[-1]
    assert generator.get_sequence(1)[-1] == greedy("made/model.onnx", 1, short)[-1]


def without(name):
    return lambda folder: (folder / name).unlink()


def said(**facts):
    def change(folder):
        kept = {key: value for key, value in {**FACTS, **facts}.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("tokenizer.json"), "source holds no tokenizer.json; onnxruntime-genai needs"),
        (without("config.json"), "source holds no config.json"),
        (said(eos_token_id=...), "config.json: has no eos_token_id"),
        (said(max_position_embeddings="many"), "config.json: has none of max_position_embeddings"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: is no JSON"),
        (lambda folder: (folder / "generation_config.json").write_text("[]"), "generation_config.json: is no JSON obj"),
        (lambda folder: (folder.parent / "made").write_text(""), "made: is no folder"),
    ],
)  # fmt: skip
def test_refused_before_anything_is_converted(source, run, change, message, tmp_path):
    change(source)
    code, _, err = run("optimize", "source", "--scheme", "float", "--genai", "made")
    assert (code, message in " ".join(err.split())) == (2, True), err
    assert not (tmp_path / "made" / "model.onnx").exists()


def test_a_model_that_it_does_not_run_is_refused_before_it_is_converted(source, run, tmp_path):
    model = Decoder(layers=2).made
    model.graph.inputs[0].name = "tokens"
    ir.save(model, source / "model.onnx")
    code, _, err = run("optimize", "source", "--scheme", "float", "--genai", "made")
    assert (code, "source/model.onnx: onnxruntime-genai gives input_ids" in " ".join(err.split())) == (1, True)
    (source / "model.onnx").write_bytes(b"no model")
    code, _, err = run("optimize", "source", "--scheme", "float", "--genai", "made")
    assert (code, "source/model.onnx: is no ONNX model" in " ".join(err.split())) == (1, True)
    assert not (tmp_path / "made").exists()


def test_a_model_without_a_past_is_refused_first(source, run, tmp_path):
    ir.save(Decoder(cached=False).made, source / "model.onnx")
    (source / "config.json").unlink()
    code, _, err = run("optimize", "source", "--scheme", "float", "--genai", "made")
    assert (code, "source/model.onnx: has no past of keys and values" in " ".join(err.split())) == (1, True)


def test_no_empty_folder_is_left(source, run, tmp_path):
    code, _, _ = run("optimize", "source", "--scheme", "int4", "--exclude", "*", "--genai", "made")
    assert code == 1
    assert not (tmp_path / "made").exists()


def test_other_options_are_refused(source, run):
    code, _, err = run("optimize", "source", "--genai", "made", "-o", "x.onnx")
    assert (code, "leave one out" in err) == (2, True)
    code, _, err = run("optimize", "source", "--genai", "source")
    assert (code, "is read itself" in err) == (2, True)
    code, _, err = run("optimize", "source", "--genai", "no/such")
    assert (code, "does not exist" in err) == (2, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda graph: graph.input[0].__setattr__("name", "ids"), "onnxruntime-genai gives input_ids"),
        (lambda graph: graph.input[-1].__setattr__("name", "past"), "no inputs and outputs numbered by layer"),
        (lambda graph: graph.output[-1].__setattr__("name", "present.7.value"), "no inputs and outputs numbered"),
        (lambda graph: graph.output.append(graph.output[0]), "2 outputs .batch, sequence, vocabulary"),
        (lambda graph: [each.type.tensor_type.shape.dim[3].__setattr__("dim_param", "w") for each in graph.input
                        if len(each.type.tensor_type.shape.dim) == 4], "sizes of its past or of its logits"),
    ],
)  # fmt: skip
def test_models_that_it_does_not_run(change, message):
    graph = onnx.ModelProto.FromString(ir.to_proto(Decoder(layers=2).made).SerializeToString()).graph
    change(graph)
    with pytest.raises(OnnxpressError, match=f"m.onnx: .*{message}"):
        genai_config(graph, FACTS, "m.onnx")


ASKED = "Reverse a string in Python."


@pytest.fixture
def with_tokenizer(source):
    """Of bytes, those of the question and some more; the template is what was said."""
    letters = sorted({*ASKED.replace(" ", "Ġ"), *"bcdfjklmquwxz"})
    end, others = VOCABULARY - 1, range(len(letters), VOCABULARY - 1)
    vocabulary = {text: number for number, text in enumerate([*letters, *(f"<{other}>" for other in others)])}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    ended = {"id": end, "content": "<end>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer = {
        "version": "1.0", "added_tokens": [{**ended, "normalized": False}], "pre_tokenizer": level, "decoder": level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }  # fmt: skip
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    told = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<end>", "chat_template": template}
    (source / "tokenizer_config.json").write_text(json.dumps(told))
    return source


def test_the_chat_of_the_documents(with_tokenizer, run, tmp_path):
    """As it is printed: it tells each token as soon as it is there."""
    pytest.importorskip("onnxruntime_genai")
    code, _, _ = run("optimize", "source", "--scheme", "int4", "--last-logits", "--genai", "chat")
    assert code == 0
    document = Path(__file__).parents[3] / "optimizer" / "README.md"
    blocks = re.findall(r"(?:^ {4}.*\n(?:\n(?= {4}))?)+", document.read_text(encoding="utf-8"), re.MULTILINE)
    (example,) = (textwrap.dedent(block) for block in blocks if "create_stream" in block)
    example = example.replace("max_length=500", "max_length=60")
    assert ASKED in example
    before = "told = []\ndef print(*text, **how): told.append([text, how])\n"
    after = "\nimport sys\ndone = list(map(int, generator.get_sequence(0)))\n"
    after += "json.dump([told, tokenizer.decode(done), len(done)], sys.stdout)"
    call = [sys.executable, "-c", before + example + after]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told, text, count = json.loads(done.stdout)
    assert ASKED + "".join(piece for (piece,), _ in told) == text
    assert len(told) == count - len(ASKED) > 5
    assert all(how == {"end": "", "flush": True} for _, how in told)
