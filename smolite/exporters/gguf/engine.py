"""An engine on llama.cpp: runs a .gguf file on the CPU, with float32 caches so that it can be compared.

It is made for exact logits, not for speed: what it takes in time and memory says little about llama.cpp.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smolite.generation import Engine, check_free_slot, check_one_prompt

_MOST_SLOTS = 1024
_FLOAT32 = 0  # of llama.cpp's `ggml_type`; its default for the cache is half precision
_NO_FLASH_ATTENTION = 0  # which rounds to half precision, too


class LlamaCppEngine(Engine):
    """Runs a .gguf file, one sequence at a time.

    Args:
        path: the file.
        num_threads: threads of the CPU to use.
        context_length: cache slots, at most the model's context length.

    Raises:
        ImportError: cyllama, which brings llama.cpp, is not installed.
        FileNotFoundError: there is no such file.
        ValueError: llama.cpp does not read the file.
    """

    def __init__(self, path: str | Path, *, num_threads: int = 1, context_length: int = _MOST_SLOTS):
        self._native = _library()
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"A .gguf file was expected. Received: {path}. Make one with `smolite export --format gguf`."
            )
        self._native.disable_logging()
        try:
            self._model = _model_class(self._native)(str(path))
        except ValueError as error:
            raise ValueError(f"A whole .gguf file was expected. Received: {path}, which llama.cpp does not read.") from error
        self.context_length = min(context_length, self._model.n_ctx_train)
        self._context = self._native.LlamaContext(self._model, self._settings(num_threads))
        self._vocab = self._model.get_vocab()
        self.vocab_size: int = self._vocab.n_vocab
        self.length = 0  # slots in use

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before and reads a prompt; returns the logits after it, (1, V) float32.

        Raises:
            ValueError: not exactly one prompt, one that is empty or longer than the cache, or an id outside the vocabulary.
        """
        check_one_prompt(prompts, self)
        self._context.kv_cache_clear()
        self.length = 0
        return self._read(prompts[0])

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Adds one token; returns the logits after it, (1, V) float32.

        Raises:
            ValueError: the cache is full.
        """
        check_free_slot(self.length, self)
        return self._read(ids)

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text by llama.cpp's own tokenizer, nothing added; a marker typed in it stays text."""
        return list(self._vocab.tokenize(text, False, False))

    def _settings(self, num_threads: int) -> Any:
        settings = self._native.LlamaContextParams()
        # One call reads a whole prompt, and llama.cpp refuses more tokens at once than `n_batch`.
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self.context_length
        settings.n_threads = settings.n_threads_batch = num_threads
        settings.type_k = settings.type_v = _FLOAT32
        settings.flash_attn_type = _NO_FLASH_ATTENTION
        return settings

    def _read(self, ids: Sequence[int]) -> np.ndarray:
        self._context.decode(self._native.llama_batch_get_one(list(ids), self.length))
        self.length += len(ids)
        # A copy, before the next call writes into the same memory.
        return np.array(self._context.get_logits(), "float32")[None]


def _model_class(native: Any) -> Any:
    """`LlamaModel` with the `n_vocab` that cyllama 0.2's `get_logits` asks it for."""
    # A class of ours and not a patch of theirs, which other users of the package would see.
    return type("Model", (native.LlamaModel,), {"n_vocab": property(lambda model: model.get_vocab().n_vocab)})


def _library() -> Any:
    try:
        from cyllama.llama import llama_cpp
    except ImportError as error:
        raise ImportError('A .gguf file runs on llama.cpp, which cyllama brings. Run: pip install "smolite[gguf]"') from error
    return llama_cpp
