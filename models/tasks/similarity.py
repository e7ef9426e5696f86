"""Similarity of sentence embeddings against human judgements.

An embedding is the mean of the last hidden states of a text's tokens (Reimers and Gurevych, 2019), of length one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from onnxpress.optimizer.errors import OnnxpressError

from ..catalogue import SIMILARITY_DATA, entry, folder_of

_MOST_TOKENS = 256
_BATCH = 16


def lee(session: Any) -> float:
    """Pearson correlation of cosine similarities with the mean human ones over all pairs of the 50 Lee documents.

    Lee, Pincombe and Welsh, "An empirical evaluation of models of text document similarity", 2005.
    """
    folder = folder_of(SIMILARITY_DATA)
    texts = (folder / "lee.cor").read_text(encoding="latin-1").splitlines()
    human = np.loadtxt(folder / "similarities0-1.txt")
    pairs = np.triu_indices(len(texts), 1)
    vectors = embed(session, texts)
    return float(np.corrcoef((vectors @ vectors.T)[pairs], human[pairs])[0, 1])


def wordsim353(session: Any) -> float:
    """Spearman correlation on WordSim-353 (Finkelstein et al., 2002)."""
    return _words(session, "wordsim353.tsv")


def simlex999(session: Any) -> float:
    """Spearman correlation on SimLex-999 (Hill, Reichart and Korhonen, 2015)."""
    return _words(session, "simlex999.txt")


def _words(session: Any, name: str) -> float:
    lines = (folder_of(SIMILARITY_DATA) / name).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    left, right = (embed(session, [row[i] for row in rows]) for i in (0, 1))
    human = np.array([float(row[2]) for row in rows])
    return float(np.corrcoef(ranks((left * right).sum(axis=1)), ranks(human))[0, 1])


def ranks(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Rank of each value, equal ones sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return means


def embed(session: Any, texts: list[str]) -> npt.NDArray[np.float32]:
    """Embeddings of length one, float32 [texts, hidden].

    Args:
        session: Of an encoder with input_ids, attention_mask and perhaps token_type_ids; the first output is
            [batch, sequence, hidden].
        texts: What to embed.

    Raises:
        OnnxpressError: The extra "models" is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise OnnxpressError('this task needs tokenizers: pip install "onnxpress[models]"') from error
    tokenizer = Tokenizer.from_file(str(folder_of(entry("minilm")) / "tokenizer.json"))
    tokenizer.enable_truncation(_MOST_TOKENS)
    tokenizer.enable_padding()
    names = {node.name for node in session.get_inputs()}
    # Texts of similar length together: padding is work for nothing.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors: dict[int, npt.NDArray[np.float32]] = {}
    for begin in range(0, len(order), _BATCH):
        chosen = order[begin : begin + _BATCH]
        encoded = tokenizer.encode_batch([texts[i] for i in chosen])
        mask = np.array([e.attention_mask for e in encoded], np.int64)
        feeds = {"input_ids": np.array([e.ids for e in encoded], np.int64), "attention_mask": mask}
        feeds["token_type_ids"] = np.zeros_like(mask)
        hidden = session.run(None, {name: value for name, value in feeds.items() if name in names})[0]
        mean = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        vectors.update(zip(chosen, mean / np.linalg.norm(mean, axis=1, keepdims=True), strict=True))
    return np.stack([vectors[i] for i in range(len(texts))])
