"""A small decoder with a past, as exporters write one, and the same in NumPy."""

from __future__ import annotations

import graphs
import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran")
VOCABULARY, HEADS, WIDTH = len(WORDS) + 2, 2, 16
HIDDEN = HEADS * WIDTH
POSITIONS = 64
I64 = ir.DataType.INT64
FAR = -1e9
TABLES = ("tokens", "positions")


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Of all products and tables."""
    rng = np.random.default_rng(seed)
    sizes = {
        "tokens": (VOCABULARY, HIDDEN), "positions": (POSITIONS, HIDDEN), "lm_head": (HIDDEN, VOCABULARY),
        **dict.fromkeys(("query", "key", "value", "out"), (HIDDEN, HIDDEN)),
    }  # fmt: skip
    made = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    return {name: w if name in TABLES else w * np.float32(1.5 * HIDDEN**-0.5) for name, w in made.items()}


def noisy(noise: float) -> dict[str, np.ndarray]:
    """The weights with this part of each, by a sign of chance, added to those of products."""
    rng = np.random.default_rng(1)
    return {
        name: w if name in TABLES else w * (1 + noise * rng.choice([-1, 1], w.shape)).astype(np.float32)
        for name, w in weights().items()
    }


def decoder(noise: float = 0.0, past: object = "past", mask: object = "past + sequence", sequence: object = "sequence",
            batch: object = "batch", flag: bool = False) -> ir.Model:  # fmt: skip
    """Logits of the next token at each position.

    Args:
        noise: Part of each weight of a product that is added to it, with a sign of chance.
        past: Size of the past; None leaves it out.
        mask: Size of attention_mask.
        sequence: Tokens.
        batch: Windows.
        flag: Whether there is an input `use_cache_branch`, which nothing reads.
    """
    b = graphs.Builder()
    constants = {name: b.constant(name, w) for name, w in noisy(noise).items()}

    def whole(*values: int) -> ir.Value:
        return b.constant(f"whole_{len(b.graph.initializers)}", np.array(values, np.int64))

    def number(value: float) -> ir.Value:
        return b.constant(f"number_{len(b.graph.initializers)}", np.array(value, np.float32))

    ids = b.input("input_ids", [batch, sequence], I64)
    seen = b.input("attention_mask", [batch, mask if past is not None else sequence], I64)
    places = b.input("position_ids", [batch, sequence], I64)
    if flag:
        b.input("use_cache_branch", [1], ir.DataType.BOOL)
    x = b.op("Add", b.op("Gather", constants["tokens"], ids), b.op("Gather", constants["positions"], places))
    parts = {}
    for name in ("query", "key", "value"):
        y = b.op("MatMul", x, constants[name], name=f"{name}/MatMul")
        y = b.op("Transpose", b.op("Reshape", y, whole(0, 0, HEADS, WIDTH)), perm=[0, 2, 1, 3])
        if name != "query" and past is not None:
            before = b.input(f"past_key_values.0.{name}", [batch, HEADS, past, WIDTH])
            y = b.op("Concat", before, y, axis=2)
            b.output(y, [batch, HEADS, "total" if isinstance(past, str) else None, WIDTH])
            y.name = f"present.0.{name}"
        parts[name] = y
    scores = b.op("MatMul", parts["query"], b.op("Transpose", parts["key"], perm=[0, 1, 3, 2]))
    scores = b.op("Mul", scores, number(WIDTH**-0.5))
    total = b.op("Squeeze", b.op("Slice", b.op("Shape", seen), whole(1), whole(2)), whole(0))
    count = b.op("Squeeze", b.op("Slice", b.op("Shape", ids), whole(1), whole(2)), whole(0))
    zero, one = (b.constant(f"scalar_{v}", np.array(v, np.int64)) for v in (0, 1))
    columns = b.op("Range", zero, total, one)
    rows = b.op("Unsqueeze", b.op("Range", b.op("Sub", total, count), total, one), whole(1))
    later = b.op("Cast", b.op("Greater", columns, rows), to=int(ir.DataType.FLOAT))
    hidden = b.op("Cast", b.op("Unsqueeze", b.op("Sub", one, seen), whole(1, 2)), to=int(ir.DataType.FLOAT))
    scores = b.op("Add", scores, b.op("Mul", b.op("Add", later, hidden), number(FAR)))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), parts["value"])
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), whole(0, 0, HIDDEN))
    y = b.op("Add", b.op("MatMul", y, constants["out"], name="out/MatMul"), x)
    logits = b.op("MatMul", y, constants["lm_head"], name="lm_head/MatMul")
    b.output(logits, [batch, sequence, VOCABULARY])
    logits.name = "logits"
    b.graph.outputs.insert(0, b.graph.outputs.pop())
    return b.model()


def logits_of(ids: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """The logits for tokens [n] with nothing before them, [n, vocabulary], in float64."""
    W = {name: w.astype(np.float64) for name, w in noisy(noise).items()}
    x = W["tokens"][ids] + W["positions"][np.arange(len(ids))]
    q, k, v = ((x @ W[name]).reshape(len(ids), HEADS, WIDTH).transpose(1, 0, 2) for name in ("query", "key", "value"))
    scores = q @ k.transpose(0, 2, 1) * WIDTH**-0.5 + np.triu(np.full((len(ids), len(ids)), FAR), 1)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    y = (weight / weight.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
    return (y @ W["out"] + x) @ W["lm_head"]


def tokenizer(path, vocabulary: int = VOCABULARY) -> None:
    """A tokenizer.json whose tokens are words; the last number is that of "dog"."""
    known = {"[UNK]": 0, **{word: index + 1 for index, word in enumerate(WORDS)}}
    known["dog"] = vocabulary - 1
    made = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(5)  # which text as a whole must not heed
    made.save(str(path))


def text(count: int, seed: int = 0) -> str:
    """So many words, on lines of seven."""
    words = np.random.default_rng(seed).choice(WORDS, count)
    return "\n".join(" ".join(words[begin : begin + 7]) for begin in range(0, count, 7)) + "\n"


def ids_of(words: str, vocabulary: int = VOCABULARY) -> np.ndarray:
    """The numbers of those words."""
    numbers = {word: index + 1 for index, word in enumerate(WORDS)} | {"dog": vocabulary - 1}
    return np.array([numbers[word] for word in words.split()])


def own_text(count: int, window: int) -> str:
    """What the decoder itself says in windows of this length, each begun by another word: it foretells that well."""
    word = {int(ids_of(each)[0]): each for each in WORDS}
    said: list[int] = []
    for begin in range(0, count, window):
        tokens = [sorted(word)[begin // window % len(word)]]
        while len(tokens) < window:
            last = logits_of(np.array(tokens))[-1]
            tokens.append(max(word, key=lambda token: last[token]))
        said += tokens
    return " ".join(word[token] for token in said[:count])
