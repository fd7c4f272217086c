"""What every runtime of the edge signatures does alike: prefill in chunks, decode, and the mask over the cache."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np

from smolite.exporters.edge.lookup import Lookup
from smolite.exporters.edge.names import DECODE, prefill_name, verify_name, windowed_name
from smolite.generation import Engine, check_free_slot, check_one_prompt
from smolite.models import MASKED_SCORE

# What a call costs beyond its tokens, counted in tokens: reading the weights once (measured at 5 and 20 M parameters).
_CALL_COST = 16


def plan_prefill(count: int, lengths: Sequence[int], slots: int) -> list[tuple[int, int]]:
    """The cheapest calls that put `count` tokens into an empty cache: pairs (length of the signature, tokens used of it).

    A chunk may end in padding, but never passes the last slot; length 1 stands for `decode`. A call costs its length and 16.
    With lengths 16 and 128 and 512 slots: 20 tokens → `[(16, 16), (16, 4)]`, 130 → `[(128, 128), (16, 2)]`, and with
    20 slots, 18 tokens → `[(16, 16), (1, 1), (1, 1)]`.
    """
    # plans[n] is the cheapest way to n tokens, built on that to fewer: a greedy choice of the longest would pay for 128
    # columns with 20 tokens in them, or step 15 times where one padded call is cheaper.
    plans: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for done in range(1, count + 1):
        options = []
        for length in (1, *lengths):
            # Padding is for the last call alone: an earlier one has tokens enough to be full.
            for used in range(1, length + 1) if done == count else [length]:
                start = done - used
                if start >= 0 and start + length <= slots:
                    options.append((plans[start][0] + length + _CALL_COST, [*plans[start][1], (length, used)]))
        plans.append(min(options, key=lambda option: option[0]))
    return plans[count][1]


class CachedEngine(Engine):
    """One sequence over the signatures `prefill_<T>` and `decode`. Runtimes derive from it.

    Where there is a signature `verify_<T>`, a step that knows the last tokens from before reads what followed them then, too,
    as drafts. Each next step whose token is the next draft is answered at once; any other forgets them. The logits are those
    of reading token by token, whatever picks from them.

    Args:
        prefill_lengths: lengths that have a prefill signature.
        context_length: slots of the cache.
        vocab_size: width of the logits.
        windows: slots that further signatures look at, ascending; the least that holds all tokens is used.
        drafts: the most that a signature can check besides the token that they follow.
    """

    def __init__(
        self,
        *,
        prefill_lengths: Sequence[int],
        context_length: int,
        vocab_size: int,
        windows: Sequence[int] = (),
        drafts: int = 0,
    ):
        self.prefill_lengths = tuple(prefill_lengths)
        self.windows = tuple(windows)
        self.read_lengths = (*self.prefill_lengths, *self.windows)
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.drafts = drafts
        self.length = 0  # slots in use
        self._verified = drafts + 1  # tokens that the signature takes
        self._text = Lookup()
        self._ahead: list[tuple[int, np.ndarray]] = []  # drafts that were read, and the logits after each

    def start(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Forgets what came before and reads a prompt.

        Args:
            prompts: one list of token ids.

        Returns:
            Logits after the prompt, (1, V) float32.

        Raises:
            ValueError: not exactly one prompt, one that is empty or longer than the cache, or an id outside the vocabulary.
        """
        check_one_prompt(prompts, self)
        *first, last = prompts[0]
        self.length, self._text, self._ahead = 0, Lookup(first if self.drafts else ()), []
        for length, used in plan_prefill(len(first), self.prefill_lengths, self.context_length):
            self._read(first[self.length : self.length + used], DECODE if length == 1 else prefill_name(length), length)
        return self.step([last])

    def step(self, ids: Sequence[int]) -> np.ndarray:
        """Adds one token.

        Args:
            ids: the token, as a list of one id.

        Returns:
            Logits after it, (1, V) float32.

        Raises:
            ValueError: the cache is full.
        """
        check_free_slot(self.length, self)
        if self.drafts:
            self._text.add(ids[0])
        if self._ahead and self._ahead[0][0] == ids[0]:
            self.length += 1
            return self._ahead.pop(0)[1]
        drafts = self._text.drafts(self.drafts)
        logits = self.read([*ids, *drafts])
        self._ahead = list(zip(drafts, logits[1:, None], strict=False))
        # A draft counts only when it is picked. Until then its slot is free, and will be written over.
        self.length -= len(self._ahead)
        return logits[:1]

    def read(self, ids: Sequence[int]) -> np.ndarray:
        self._ahead, length = [], self._verified
        if length > 1 < len(ids) and self.length + length <= self.context_length:
            return self._read(ids[:length], verify_name(length), length)
        return self._read(ids[:1], DECODE, 1)

    def _read(self, tokens: Sequence[int], name: str, length: int) -> np.ndarray:
        """Runs a signature of some length; what it writes for padding is overwritten before any token sees it."""
        padded = np.zeros((1, length), "int32")
        padded[0, : len(tokens)] = tokens
        positions = np.arange(self.length, self.length + length, dtype="int32")
        window = next((window for window in self.windows if window > positions[-1]), None)
        # Slots behind a token's own position hold older text, or drafts that were refused: they are masked, never cleared.
        visible = np.arange(window or self.context_length) <= positions[:, None]
        mask = np.where(visible, 0.0, MASKED_SCORE).astype("float32")[None, None]
        self.length += len(tokens)
        return self._run(windowed_name(name, window) if window else name, padded, positions, mask)[: len(tokens)]

    @abstractmethod
    def _run(self, name: str, tokens: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Runs a signature on the caches, which it replaces. Returns logits (T, V); (0, V) of those that prefill."""
