"""The local model: embeddings without a server, a key or a network.

The weights are those of the package `wordllama`: a table with a vector for each of 32,000 pieces
of words, of which a text's are averaged. Its files are read directly: the package itself would load
an HTTP client and a good deal more, and set up the process's logging.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pgcontext import limits
from pgcontext.errors import ConfigError, EmbeddingError
from pgcontext.settings import LOCAL_MODEL_PACKAGE

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

NEEDED: Final = (LOCAL_MODEL_PACKAGE, "safetensors", "tokenizers")
WEIGHTS: Final = Path("weights", "l2_supercat_256.safetensors")
PIECES: Final = Path("tokenizers", "l2_supercat_tokenizer_config.json")
MODEL: Final = "wordllama-l2-supercat-256"

_loading: Final = threading.Lock()


class LocalEmbedder:
    """Embeds with a small model in this process: `float32[256]` of length 1, 10,000 texts a second.

    It knows which words are alike, not what a sentence says; a server's model finds more. The
    model is loaded at the first use, once per process: 0.5 s and 65 MB. All work is in a thread,
    so that the loop goes on.

    Raises:
        ConfigError: the package with the model is not installed.
    """

    def __init__(self) -> None:
        if any(find_spec(package) is None for package in NEEDED):
            msg = "The local model is not installed: pip install 'pgcontext[local]'"
            raise ConfigError(msg)

    def __repr__(self) -> str:
        return "LocalEmbedder()"

    @property
    def model(self) -> str:
        """The model's name."""
        return MODEL

    async def embed(self, texts: list[str]) -> list[NDArray[np.float32]]:
        """Return one `float32[256]` for each text, in order.

        Raises:
            EmbeddingError: the model's files are missing or damaged.
        """
        return await asyncio.to_thread(_embed, texts)


def _embed(texts: list[str]) -> list[NDArray[np.float32]]:
    with _loading:  # the cache alone would let two threads load at once
        embed_one = _model()
    # One by one: in a batch all would be filled up to the longest, for which a few long texts among
    # many short ones take gigabytes, and it is hardly faster.
    return [embed_one(text[: limits.EMBEDDING_TEXT_CHARS_DEFAULT]) for text in texts]


@functools.cache
def _model() -> Callable[[str], NDArray[np.float32]]:
    """Load the model; return the function that embeds a text."""
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import load_file  # pyright: ignore[reportUnknownVariableType]
    from tokenizers import Tokenizer

    found = find_spec(LOCAL_MODEL_PACKAGE)
    folders = [] if found is None else list(found.submodule_search_locations or [])
    try:
        loaded: dict[str, Any] = load_file(Path(*folders) / WEIGHTS)
        [weights] = loaded.values()
        tokenizer = Tokenizer.from_str((Path(*folders) / PIECES).read_text("utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        msg = f"The local model cannot be read ({type(error).__name__}); install it again."
        raise EmbeddingError(msg) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def embed_one(text: str) -> NDArray[np.float32]:
        pieces = tokenizer.encode(text, add_special_tokens=False).ids
        mean: NDArray[np.float32] = weights[pieces].mean(axis=0, dtype=np.float32)
        return np.divide(mean, np.linalg.norm(mean), dtype=np.float32)

    return embed_one
