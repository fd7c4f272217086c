"""Answers for many people from one run: its engines are opened at first use, and one answer at a time has them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from smolite.checkpoint import Run
from smolite.data import Message
from smolite.generation import Engine, Sampling, stream, stream_reply
from smolite.serving.open import KERAS, open_engine
from smolite.text import Tokenizer

PAUSE = 0.03  # seconds between two states of a growing text: faster than people read, slow enough not to delay the engine


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A growing text, and how quickly it has come so far.

    Args:
        text: all of it.
        tokens: tokens picked, the one that ends an answer among them.
        first: seconds until the first token, reading the prompt included.
        seconds: seconds until the last token.
    """

    text: str
    tokens: int
    first: float
    seconds: float

    @property
    def figures(self) -> str:
        """One line. 3 tokens, the first after 0.5 s, the last after 1.5 s → `3 tokens · first after 500 ms · 2 tokens/s`."""
        count = f"{self.tokens} token{'s' * (self.tokens != 1)} · first after {1000 * self.first:,.0f} ms"
        later = self.seconds - self.first
        return f"{count} · {(self.tokens - 1) / later:,.0f} tokens/s" if self.tokens > 1 and later > 0 else count


class Talker:
    """Chats and continues texts with the engines of a run; safe to use from several threads.

    An engine remembers what it has read, so one lock stands before them all, held from the first token of an answer to the
    last. Who doesn't want the rest of an answer must `close` its iterator, or drop it.

    Args:
        run: the run.
    """

    def __init__(self, run: Run):
        self.run = run
        self._has_encoder = run.config.has_encoder
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def chat(
        self, messages: Sequence[Message], *, engine: str = KERAS, sampling: Sampling, max_new_tokens: int
    ) -> Iterator[Answer]:
        """Yields the growing answer to `messages`, at most every 30 ms and at its end.

        Args:
            messages: the dialogue; the last message is the user's.
            engine: one of `engine_names(run)`.
            sampling: how tokens are picked.
            max_new_tokens: the most tokens.

        Raises:
            ValueError: the last message is empty or too long, the run has no chat template, or it has no such engine.
            FileNotFoundError: the exported file is gone.
            ImportError: the package that runs it is missing.
        """
        _check_text(messages[-1].content if messages else "")
        if self.run.template is None and not self._has_encoder:
            raise ValueError(f"Chatting needs a chat template. Received: {self.run.path} without one. Let it continue a text.")
        chunks_of = partial(stream_reply, messages=messages, tokenizer=self.run.tokenizer, template=self.run.template)
        return self._grow(engine, partial(chunks_of, sampling=sampling, max_new_tokens=max_new_tokens))

    def continue_text(self, prompt: str, *, engine: str = KERAS, sampling: Sampling, max_new_tokens: int) -> Iterator[Answer]:
        """Yields `prompt` with what the model writes after it, as `chat` does; arguments and errors as there.

        Of an encoder-decoder only what it writes for `prompt`.
        """
        _check_text(prompt)
        return self._grow(engine, partial(self._continued, prompt=prompt, sampling=sampling, max_new_tokens=max_new_tokens))

    def _continued(self, engine: Engine, prompt: str, *, sampling: Sampling, max_new_tokens: int) -> Iterator[str]:
        tokenizer = self.run.tokenizer
        ids, decoder = tokenizer.encode(prompt), tokenizer.stream()
        stop = end_ids(tokenizer)
        read = "" if self._has_encoder else "".join(decoder.push(index) for index in ids)
        for index in stream(engine, ids, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop):
            if text := read + decoder.push(index):
                yield text
            read = ""
        yield read + decoder.finish()

    def _grow(self, name: str, chunks_of: Callable[[Engine], Iterator[str]]) -> Iterator[Answer]:
        # Held while the text is read out, too: another answer would write into the cache that this one goes on from.
        with self._lock:
            meter = _Meter(self._engine(name))
            text, shown = "", meter.begun
            for chunk in chunks_of(meter):
                text += chunk
                # Each state is sent whole, so that a long answer token by token would grow with its square.
                if time.perf_counter() - shown >= PAUSE:
                    yield meter.answer(text)
                    shown = time.perf_counter()
            yield meter.answer(text)

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            engine = open_engine(self.run, name)
            engine.start([[0]])
            # What is compiled at the first step should not count as an answer's.
            engine.step([0])
            self._engines[name] = engine
        return self._engines[name]


class _Meter(Engine):
    """An engine that counts the tokens picked: each call gives the logits for one."""

    def __init__(self, engine: Engine):
        self.batch_size, self.context_length, self.vocab_size = engine.batch_size, engine.context_length, engine.vocab_size
        self.target_length = engine.target_length
        self._engine = engine
        self.begun = time.perf_counter()
        self._tokens, self._first, self._last = 0, self.begun, self.begun

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        return self._counted(self._engine.start(prompts))

    def step(self, ids: Sequence[int]) -> np.ndarray:
        return self._counted(self._engine.step(ids))

    def _counted(self, logits: np.ndarray) -> np.ndarray:
        self._tokens += 1
        self._last = time.perf_counter()
        self._first = self._last if self._tokens == 1 else self._first
        return logits

    def answer(self, text: str) -> Answer:
        return Answer(text=text, tokens=self._tokens, first=self._first - self.begun, seconds=self._last - self.begun)


def end_ids(tokenizer: Tokenizer) -> list[int]:
    """The id that ends a text; none where the tokenizer has no such marker."""
    try:
        return [tokenizer.end_id]
    except ValueError:
        return []


def _check_text(text: str) -> None:
    if not text.strip():
        raise ValueError("The prompt must have text. Received: nothing. Write something.")
