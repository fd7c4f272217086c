"""What the Keras model says, worked out by its plain forward without a cache, and how far an engine is from it.

Keras writes greedy text after every prompt. The same text is fed to an engine, the prompt through prefill and the rest token by
token, and the logits at every place are compared. Where the likeliest token is the same at every place, the engine would have
written the same text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from smolite.exporters.edge.names import cache_name
from smolite.generation import Engine, prefill_length
from smolite.models import MASKED_SCORE, CausalLM, LanguageModel, Seq2SeqLM

_MOST_LOGITS = 1 << 24  # of one forward: 64 MB


@dataclass(frozen=True, kw_only=True)
class Case:
    """A prompt, the greedy text after it, and what Keras says.

    Args:
        prompt: token ids.
        reply: the greedy ids after it.
        logits: (len(reply), V), those that each id of the reply would be picked from.
        written: the same of the engine that wrote the text.
        caches: name → keys (K, T, H) or values (K, H, T) of prompt and reply without its last id.
    """

    prompt: list[int]
    reply: list[int]
    logits: np.ndarray
    written: np.ndarray
    caches: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far an engine is from the Keras model.

    Args:
        logits: largest absolute difference.
        caches: the same for the returned caches, as a share of the largest key or value of a layer where that is above 1;
            `None` for an engine that does not show them.
        tokens: greedy tokens that are the same.
        num_tokens: greedy tokens compared.
        scale: how many times as large the logits are, by least squares; those of each place less their mean.
    """

    logits: float
    caches: float | None
    tokens: int
    num_tokens: int
    scale: float


def work_out_cases(
    model: LanguageModel, engine: Engine, prompts: Sequence[Sequence[int]], *, max_new_tokens: int
) -> list[Case]:
    """Lets the model continue prompts, and keeps what its plain forward says of the text.

    Args:
        model: the reference.
        engine: an engine of the same model that writes the text.
        prompts: token ids.
        max_new_tokens: the most ids after each prompt; fewer where the cache of the engine ends.
    """
    texts = []
    for prompt in prompts:
        room = engine.target_length or engine.context_length - len(prompt) + 1
        texts.append(_write_greedily(engine, prompt, min(max_new_tokens, room)))
    if engine.target_length is not None:
        return [_work_out_pair(model, engine, text) for text in texts]
    # Texts padded to the same length are read together: a backend compiles a forward for each length.
    lengths = [prefill_length(len(text.prompt) + len(text.reply) - 1, engine.context_length) for text in texts]
    cases: dict[int, Case] = {}
    for length in set(lengths):
        places = [place for place, padded in enumerate(lengths) if padded == length]
        # As many rows as their logits leave memory for: 16 of 512 tokens over 49,152 ids would be 1.6 GB.
        rows = max(1, _MOST_LOGITS // (length * engine.vocab_size))
        for group in (places[first : first + rows] for first in range(0, len(places), rows)):
            cases |= zip(group, _work_out(model, [texts[place] for place in group], length), strict=True)
    return [cases[place] for place in range(len(texts))]


def compare(engine: Engine | None, cases: Sequence[Case], *, tie: float) -> Difference:
    """Feeds the text of every case to an engine.

    Args:
        engine: an engine of batch size 1; None for the one that wrote the text, which needs not read it again.
        cases: from `work_out_cases`.
        tie: a greedy token counts as the same where Keras rates both tokens within this difference of logits.
    """
    logits, caches, same, products = [0.0], [], [], np.zeros(2)
    for case in cases:
        if engine and (plain := engine.forward_logits(case.prompt, case.reply)) is not None:
            logits.append(_largest(plain - case.logits))
        # Less their mean, since a constant added to all logits of a place changes nothing.
        centred = case.logits - case.logits.mean(-1, keepdims=True)
        for answers in _answers(engine, case):
            # What Keras gives the token that the engine would pick: where it is Keras' highest, or within `tie` of it, the
            # engine is right.
            picked = np.take_along_axis(case.logits, answers.argmax(-1)[:, None], -1)[:, 0]
            same.append(case.logits.max(-1) - picked <= tie)
            logits.append(_largest(answers - case.logits))
            products += [np.sum(answers * centred), np.sum(centred**2)]
            if engine and (difference := _cache_difference(engine, case)) is not None:
                caches.append(difference)
    hits = np.concatenate(same)
    worst = max(caches) if caches else None
    scale = float(products[0] / products[1]) if products[1] else 1.0
    return Difference(logits=max(logits), caches=worst, tokens=int(hits.sum()), num_tokens=len(hits), scale=scale)


@dataclass(frozen=True)
class _Text:
    """What an engine wrote after a prompt, and its logits (len(reply), V) before each id."""

    prompt: list[int]
    reply: list[int]
    written: np.ndarray


def _write_greedily(engine: Engine, prompt: Sequence[int], count: int) -> _Text:
    written = [engine.start([prompt])]
    reply = [int(written[0].argmax())]
    while len(reply) < count:
        written.append(engine.step(reply[-1:]))
        reply.append(int(written[-1].argmax()))
    return _Text(list(prompt), reply, np.concatenate(written))


def _answers(engine: Engine | None, case: Case) -> Iterator[np.ndarray]:
    """Logits (len(reply), V), once for each way that the engine can read the text in."""
    if engine is None:
        yield case.written
    elif engine.drafts:
        yield np.concatenate(list(_feed_ahead(engine, case)))
        # Both ways, for a fault in one of them must not hide behind the other.
        drafts, engine.drafts = engine.drafts, 0
        yield np.concatenate(list(_feed(engine, case)))
        engine.drafts = drafts
    else:
        yield np.concatenate(list(_feed(engine, case)))


def _feed(engine: Engine, case: Case) -> Iterator[np.ndarray]:
    """Token by token."""
    yield engine.start([case.prompt])
    for index in case.reply[:-1]:
        yield engine.step([index])


def _feed_ahead(engine: Engine, case: Case) -> Iterator[np.ndarray]:
    """As many tokens at once as an engine checks."""
    yield engine.start([case.prompt])
    rest = case.reply[:-1]
    while rest:
        found = engine.read(rest)
        yield found
        rest = rest[len(found) :]


def _cache_difference(engine: Engine, case: Case) -> float | None:
    """Of the caches that an engine shows; None where it shows none.

    Keys grow large in training, and the angle of a late position is rounded, so a difference grows with them.
    """
    if not (returned := engine.read_caches()):
        return None
    length = len(case.prompt) + len(case.reply) - 1
    cut = {"k": np.s_[0, :, :length], "v": np.s_[0, :, :, :length]}
    found = ((returned[name][cut[name.split("_")[2]]], cache) for name, cache in case.caches.items())
    return max(_largest(ours - cache) / max(1.0, _largest(cache)) for ours, cache in found)


def _largest(difference: np.ndarray) -> float:
    """The largest absolute value; infinity when there is one that is not a number."""
    # max() would pass over a NaN or return it, and NaN is above no limit.
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max())


def _work_out_pair(model: Seq2SeqLM, engine: Engine, text: _Text) -> Case:
    """Source and target are padded on the right to the engine's lengths, so that backends compile once."""
    assert engine.target_length is not None
    source, tokens = np.zeros((1, engine.context_length), "int32"), np.zeros((1, engine.target_length), "int32")
    source[0, : len(text.prompt)] = text.prompt
    tokens[0, : len(text.reply)] = [engine.start_id, *text.reply[:-1]]
    segments = (np.arange(engine.context_length) < len(text.prompt))[None].astype("int32")
    logits = model({"source": source, "tokens": tokens, "source_segments": segments})
    return Case(**vars(text), logits=ops.convert_to_numpy(logits)[0, : len(text.reply)], caches={})


def _work_out(model: CausalLM, texts: Sequence[_Text], length: int) -> list[Case]:
    """Texts are padded on the right to one length, which changes nothing, and read together."""
    tokens = np.zeros((len(texts), length), "int32")
    for row, text in enumerate(texts):
        known = text.prompt + text.reply[:-1]
        tokens[row, : len(known)] = known
    logits = ops.convert_to_numpy(model({"tokens": tokens}))
    mask = np.where(np.tri(length, dtype=bool), 0.0, MASKED_SCORE).astype("float32")[None, None]
    hidden, empty = model.embed(ops.convert_to_tensor(tokens)), model.empty_cache(len(texts), length)
    _, cache = model.cached_body(hidden, empty, slot=0, mask=ops.convert_to_tensor(mask))
    layers = [tuple(map(ops.convert_to_numpy, pair)) for pair in cache]
    return [_cut(text, row, logits, layers) for row, text in enumerate(texts)]


def _cut(text: _Text, row: int, logits: np.ndarray, layers: Sequence[tuple[np.ndarray, ...]]) -> Case:
    """What counts of a row."""
    first, end = len(text.prompt) - 1, len(text.prompt) + len(text.reply) - 1
    caches = {}
    for layer, (keys, values) in enumerate(layers):
        caches[cache_name("k", layer)] = keys[row, :, :end]
        caches[cache_name("v", layer)] = values[row, :, :, :end]
    return Case(**vars(text), logits=logits[row, first:end], caches=caches)
