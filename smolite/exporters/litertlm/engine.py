"""LiteRT-LM, the runtime of .litertlm files, through its Python API: texts in, texts and their log probabilities out."""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smolite.data import Message
from smolite.exporters.delivery.native_log import drop_native_log_at_exit, native_log_dropped


class LiteRTLMEngine:
    """Runs a .litertlm file on the CPU. It shows no logits, so it is no `Engine` for `generate`.

    Args:
        path: the file.
        num_threads: threads of the CPU to use.

    Attributes:
        context_length: cache slots.
        stop_ids: the ids that end an answer, as the file has them.

    Raises:
        ImportError: litert-lm is not installed.
        FileNotFoundError: there is no such file.
        ValueError: LiteRT-LM does not open the file.
    """

    def __init__(self, path: str | Path, *, num_threads: int = 1):
        self._library = _library()
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"A .litertlm file was expected. Received: {path}. Make one with `smolite export --format litertlm`."
            )
        drop_native_log_at_exit()
        backend = self._library.Backend.CPU(thread_count=num_threads)
        with native_log_dropped(), _refused_by_name(path):
            # Without a cache: it would leave a file as large as the weights beside the model.
            engine = self._library.Engine(str(path), backend=backend, cache_dir=":nocache")
        self._engine = engine
        self.context_length = count_slots(path)
        self.stop_ids = tuple(index for ids in engine.eos_token_ids for index in ids)
        self.close = weakref.finalize(self, _release, engine)

    def tokenize(self, text: str) -> list[int]:
        """The ids of a text by the tokenizer in the file; a private character is a marker, see `private_markers`."""
        ids: list[int] = self._engine.tokenize(text)
        return ids

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the template in the file makes of messages that end with the user's."""
        # The API renders one new message after those that a conversation began with.
        *past, last = [{"role": message.role, "content": message.content} for message in messages]
        with native_log_dropped(), self._engine.create_conversation(messages=past) as conversation:
            text: str = conversation.render_message_to_string(last)
        return text

    def reply(self, text: str, *, max_new_tokens: int) -> str:
        """The greedy answer to a rendered text, without the marker that ends it."""
        with native_log_dropped(), self._session(max_new_tokens) as session:
            session.run_prefill([text])
            answer: str = session.run_decode().texts[0]
        return answer

    def converse(self, texts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """The greedy answers to what a user says, turn by turn, in one conversation."""
        settings = {"sampler_config": self._greedy(), "max_output_tokens": max_new_tokens}
        with native_log_dropped(), self._engine.create_conversation(**settings) as conversation:
            return [str(conversation.send_message(text)) for text in texts]

    def score(self, text: str, target: str) -> np.ndarray:
        """The log probability of each token of a target after a rendered text, float64.

        Version 0.18 scores from a wrong place right after prefill, and from the right one once it has picked a token. So it
        picks one first, which takes a slot: the text must leave two.
        """
        with native_log_dropped(), self._session(1) as session:
            session.run_prefill([text])
            session.run_decode()
            scores = session.run_text_scoring([target]).token_scores[0]
        return np.array(scores, "float64")

    def _session(self, max_new_tokens: int) -> Any:
        settings = {"sampler_config": self._greedy(), "max_output_tokens": max_new_tokens}
        return self._engine.create_session(apply_prompt_template=False, **settings)

    def _greedy(self) -> Any:
        return self._library.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0)


def count_slots(path: str | Path) -> int:
    """The cache slots of a .litertlm file, which is not loaded for that.

    Raises:
        ImportError: litert-lm is not installed.
        ValueError: LiteRT-LM does not read the file.
    """
    library = _library()
    with native_log_dropped(), _refused_by_name(path), library.ModelInfo(str(path)) as info:
        slots: int = info.max_context_tokens
    return slots


def measure_speeds(path: str | Path, *, prompt_tokens: int, new_tokens: int, num_threads: int = 1) -> tuple[float, float]:
    """Tokens per second of prefill and of decode, as LiteRT-LM's own benchmark mode has them.

    It counts the last token of the prompt as prefill, and reads it with the first step; here it does not count.

    Args:
        path: a .litertlm file.
        prompt_tokens: tokens to read, which the runtime makes up.
        new_tokens: tokens to decode after them.
        num_threads: threads of the CPU to use.

    Raises:
        ImportError: litert-lm is not installed.
        ValueError: LiteRT-LM does not run the file.
        RuntimeError: it stopped early.
    """
    library = _library()
    settings = {"prefill_tokens": prompt_tokens, "decode_tokens": new_tokens, "cache_dir": ":nocache"}
    with native_log_dropped(), _refused_by_name(path):
        found = library.Benchmark(str(path), backend=library.Backend.CPU(thread_count=num_threads), **settings).run()
    counts = (found.last_prefill_token_count, found.last_decode_token_count)
    if counts != (prompt_tokens, new_tokens):
        raise RuntimeError(f"LiteRT-LM was to read {prompt_tokens} tokens and write {new_tokens}. It did {counts}: {path}.")
    return found.last_prefill_tokens_per_second * (prompt_tokens - 1) / prompt_tokens, found.last_decode_tokens_per_second


@contextlib.contextmanager
def _refused_by_name(path: str | Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ValueError(f"A whole .litertlm file was expected. Received: {path}; LiteRT-LM says: {error}.") from error


def _release(engine: Any) -> None:
    """Frees the runtime quietly."""
    with native_log_dropped():
        engine.close()


def _library() -> Any:
    try:
        import litert_lm
    except ImportError as error:
        raise ImportError('A .litertlm file runs on litert-lm. Run: pip install "smolite[litertlm]"') from error
    return litert_lm
