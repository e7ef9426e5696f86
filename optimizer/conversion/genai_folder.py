"""The folder that onnxruntime-genai runs a language model from: the model, its tokenizer, and genai_config.json.

What inputs and outputs are called and how large keys and values are is read off the model; what no graph says, such as
the token that ends a text, off the files that exporters put beside it. The keys of genai_config.json are those of its
reference (https://onnxruntime.ai/docs/genai/reference/config.html).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from ..errors import OnnxpressError, UsageError, option
from ..model_io.storage import write_whole
from ..model_io.target import check_target
from .shared_buffers import share_buffers

MODEL = "model.onnx"
_CONFIG = "config.json"
_GENERATION = "generation_config.json"
_NEEDED = (_CONFIG, "tokenizer.json", "tokenizer_config.json")
_COPIED = (
    *_NEEDED[1:], "added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json",
    "tokenizer.model", "vocab.json",
)  # fmt: skip
_TOKENS = ("input_ids", "attention_mask", "position_ids")
_TYPE = "decoder"
"""Any model of one graph that takes tokens and a past."""
_LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_SEARCH = {
    "do_sample": False, "min_length": 0, "num_beams": 1, "repetition_penalty": 1.0, "temperature": 1.0, "top_k": 50,
    "top_p": 1.0,
}  # fmt: skip
"""How the next token is chosen where generation_config.json says nothing: the likeliest."""
_SHARED_LENGTH = 4096
"""Tokens of a buffer that is made for all of a text at once, where the client asks for no other number."""


@dataclasses.dataclass(frozen=True)
class GenaiFolder:
    """A folder to be written.

    Attributes:
        folder: Where.
        source: The folder of the model that is converted, with its tokenizer.
        config: What genai_config.json is to say.
    """

    folder: Path
    source: Path
    config: dict[str, Any]

    @property
    def model(self) -> Path:
        """The model in it."""
        return self.folder / MODEL

    def write(self) -> None:
        """Write what belongs beside the model, which is there already, and let past and present be one buffer.

        Raises:
            OnnxpressError: A file cannot be written.
        """
        config = self.config
        model = _read_model(self.model)
        opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
        if share_buffers(model.graph, opset):
            write_whole(self.model, model.SerializeToString())
            length = min(config["search"]["max_length"], _SHARED_LENGTH)
            search = {**config["search"], "max_length": length, "past_present_share_buffer": True}
            config = {**config, "search": search}
        for name in _COPIED:
            if (self.source / name).is_file():
                try:
                    shutil.copyfile(self.source / name, self.folder / name)
                except OSError as error:
                    raise OnnxpressError(f"{self.folder / name}: cannot write: {error.strerror}") from error
        write_whole(self.folder / "genai_config.json", (json.dumps(config, indent=2) + "\n").encode())

    def discard(self) -> None:
        """Leave no empty folder behind."""
        with suppress(OSError):
            self.folder.rmdir()


def genai_folder(folder: str | Path, model: Path) -> GenaiFolder:
    """The folder to write for a model, made where it is missing.

    Args:
        folder: Where to write.
        model: The model that is converted.

    Raises:
        UsageError: Something is missing beside the model, says too little, or the folder cannot be written to.
        OnnxpressError: The model is none that onnxruntime-genai runs.
    """
    folder, source = Path(folder), model.parent
    graph = _read_model(model).graph  # which a conversion changes nothing of, apart from its nodes
    if not _of_layers(graph.input):
        raise OnnxpressError(
            f"{model}: has no past of keys and values, by layer, among its inputs; {option('genai')} is for language "
            "models that were exported with one"
        )
    missing = [name for name in _NEEDED if not (source / name).is_file()]
    if missing:
        raise UsageError(
            f"{option('genai')}: {source} holds no {', '.join(missing)}; onnxruntime-genai needs what exporters put "
            f"beside a model: {', '.join(_NEEDED)}"
        )
    facts = _read(source / _CONFIG)
    facts = {**facts, **facts.get("text_config", {})}
    if (source / _GENERATION).is_file():
        facts |= {key: value for key, value in _read(source / _GENERATION).items() if value is not None}
    if facts.get("eos_token_id") is None:
        raise UsageError(f"{source / _CONFIG}: has no eos_token_id, the token that ends a text; add it")
    if not any(isinstance(facts.get(key), int) for key in _LENGTHS):
        raise UsageError(f"{source / _CONFIG}: has none of {', '.join(_LENGTHS)}; add how many tokens there may be")
    config = genai_config(graph, facts, str(model))
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is no folder; {option('genai')} writes one")
    if not folder.exists():
        check_target(folder)
        folder.mkdir()
    check_target(folder / MODEL, [model])
    return GenaiFolder(folder, source, config)


def genai_config(graph: onnx.GraphProto, facts: dict[str, Any], name: str) -> dict[str, Any]:
    """What genai_config.json says of a model.

    Args:
        graph: Of the model, without weights.
        facts: As config.json and generation_config.json have them.
        name: The model's, for messages.

    Raises:
        OnnxpressError: It has other inputs than tokens and a past of numbered layers, or sizes are not known.
    """
    inputs, outputs = list(graph.input), list(graph.output)
    past, present = _of_layers(inputs), _of_layers(outputs)
    tokens = [value.name for value in inputs if len(_sizes(value)) != 4]
    others = [each for each in tokens if each not in _TOKENS]
    if "input_ids" not in tokens or others:
        raise OnnxpressError(f"{name}: onnxruntime-genai gives {', '.join(_TOKENS)} and a past; inputs are {tokens}")
    if len(past) != 2 or len(present) != 2 or any(layers != past[0][1] for _, layers in (*past, *present)):
        raise OnnxpressError(f"{name}: keys and values of the past are no inputs and outputs numbered by layer")
    logits = [value for value in outputs if len(_sizes(value)) == 3]
    if len(logits) != 1:
        raise OnnxpressError(f"{name}: has {len(logits)} outputs [batch, sequence, vocabulary] instead of one")
    heads, _, width = _sizes(next(value for value in inputs if len(_sizes(value)) == 4))[1:]
    words = _sizes(logits[0])[-1] or facts.get("vocab_size")
    if not (heads and width and words):
        raise OnnxpressError(f"{name}: the sizes of its past or of its logits are not known")
    query_heads = next((facts[key] for key in ("num_attention_heads", "n_head") if key in facts), heads)
    length = next(facts[key] for key in _LENGTHS if isinstance(facts.get(key), int))
    end = facts["eos_token_id"]
    padding = facts.get("pad_token_id")
    first_end = end[0] if isinstance(end, list) and end else end
    decoder: dict[str, Any] = {
        "filename": MODEL,
        "session_options": {"provider_options": []},
        "head_size": width,
        "hidden_size": facts.get("hidden_size") or facts.get("n_embd") or query_heads * width,
        "num_attention_heads": query_heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": past[0][1],
        "inputs": {each: each for each in tokens} | _named("past", past),
        "outputs": {"logits": logits[0].name} | _named("present", present),
    }
    model = {
        "type": _TYPE,
        "vocab_size": words,
        "context_length": length,
        "bos_token_id": facts.get("bos_token_id") or 0,
        "eos_token_id": end,
        "pad_token_id": first_end if padding is None else padding,
        "decoder": decoder,
    }
    search = {key: facts.get(key, value) for key, value in _SEARCH.items()}
    return {"model": model, "search": {**search, "max_length": length, "past_present_share_buffer": False}}


def _read_model(path: Path) -> onnx.ModelProto:
    """Without its weights, where they lie in other files."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise OnnxpressError(f"{path}: is no ONNX model: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise UsageError(f"{path}: is no JSON object")
    return facts


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """0 where a dimension is open."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _of_layers(values: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, int]]:
    """What keys and values are called, as in "present.%d.key", keys first, and how many layers there are of each."""
    numbers: dict[str, list[int]] = {}
    for value in values:
        found = re.fullmatch(r"(\D*)(\d+)(\D*)", value.name) if len(_sizes(value)) == 4 else None
        if found is not None and "%" not in value.name:
            numbers.setdefault(f"{found[1]}%d{found[3]}", []).append(int(found[2]))
    whole = [(form, len(each)) for form, each in numbers.items() if sorted(each) == list(range(len(each)))]
    return sorted(whole, key=lambda each: "value" in each[0])


def _named(what: str, forms: Sequence[tuple[str, int]]) -> dict[str, str]:
    return {f"{what}_{part}_names": form for part, (form, _) in zip(("key", "value"), forms, strict=True)}
