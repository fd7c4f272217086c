"""Referees: transformers' logits processors, counting by hand, and loops over the numpy reference, which has no cache."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
import reference
from reference import AWKWARD_CONFIGS, random_weights

from smolite.checkpoint.weights import assign_weights
from smolite.generation import sampling as samplers
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate, slide, stream
from smolite.generation.sampling import Sampling
from smolite.models.causal_lm import CausalLM

CONFIG = dataclasses.replace(AWKWARD_CONFIGS["grouped"], num_layers=1)
WEIGHTS = random_weights(CONFIG)
SLOTS = 16
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18, 19]]
LOGITS = np.random.RandomState(0).normal(0, 3, (4, 50)).astype("float32")


@pytest.fixture(scope="module")
def model():
    model = CausalLM(CONFIG)
    assign_weights(model, WEIGHTS)
    return model


@pytest.fixture(scope="module")
def engine(model):
    return KerasEngine(model, context_length=SLOTS)


@pytest.fixture(scope="module")
def batch(model):
    return KerasEngine(model, batch_size=3, context_length=SLOTS)


def naive(prompt, count, *, slots=SLOTS):
    """Greedy ids by the rule of the full context, one whole forward pass of the reference per id."""
    kept, new = list(prompt), []
    for _ in range(count):
        if len(kept) > slots:
            kept = kept[-(slots // 2) :]
        new.append(int(np.argmax(reference.forward(CONFIG, WEIGHTS, kept)[-1])))
        kept.append(new[-1])
    return new


def processed(name, *settings, logits=LOGITS, ids=((0,),) * 4):
    torch, processors = pytest.importorskip("torch"), pytest.importorskip("transformers.generation.logits_process")
    processor = getattr(processors, name)(*settings)
    return processor(torch.tensor(ids), torch.tensor(logits)).numpy()


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def test_the_examples_of_the_docstrings():
    inf = np.inf
    assert samplers.greedy(np.array([[0.1, 2.0, 0.3]])).tolist() == [1]
    assert samplers.temperature(np.array([[2.0, 1.0]]), 0.5).tolist() == [[4, 2]]
    assert samplers.top_k(np.array([[1.0, 4.0, 3.0, 2.0]]), 2).tolist() == [[-inf, 4, 3, -inf]]
    top_p = samplers.top_p(np.log([[0.5, 0.3, 0.2]]), 0.6)
    assert np.isfinite(top_p).tolist() == [[True, True, False]]
    min_p = samplers.min_p(np.log([[0.6, 0.3, 0.1]]), 0.4)
    assert np.isfinite(min_p).tolist() == [[True, True, False]]
    penalised = samplers.repetition_penalty(np.array([[2.0, -2.0, 1.0]]), [[0, 1, 1]], penalty=2)
    assert penalised.tolist() == [[1, -4, 1]]
    assert samplers.draw(np.log([[0.25, 0.5, 0.25]]), [0.7]).tolist() == [1]
    assert samplers.rule_out(np.array([[1.0, 2.0]]), [1]).tolist() == [[1, -inf]]
    assert slide([1, 2, 3, 4, 5], 4) == [4, 5] and slide([1, 2, 3, 4], 4) == [1, 2, 3, 4]


@pytest.mark.parametrize("k", [1, 2, 49, 50, 99])
def test_top_k_is_that_of_transformers(k):
    np.testing.assert_array_equal(samplers.top_k(LOGITS, k), processed("TopKLogitsWarper", k))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
def test_top_p_and_min_p_are_those_of_transformers(p):
    np.testing.assert_array_equal(samplers.top_p(LOGITS, p), processed("TopPLogitsWarper", p))
    np.testing.assert_array_equal(samplers.min_p(LOGITS, p), processed("MinPLogitsWarper", p))


def test_filters_that_are_off_change_nothing():
    off = Sampling(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    np.testing.assert_array_equal(samplers.next_logits(LOGITS, [[1]] * 4, sampling=off), LOGITS)


@pytest.mark.parametrize("penalty", [0.7, 1.3, 2.0])
def test_repetition_penalty_is_that_of_transformers(penalty):
    ids = np.array([[0, 1, 1], [3, 4, 5], [49, 0, 49], [7, 8, 9]])
    expected = processed("RepetitionPenaltyLogitsProcessor", penalty, ids=ids)
    actual = samplers.repetition_penalty(LOGITS, ids.tolist(), penalty=penalty)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert ((actual <= LOGITS) | (penalty < 1)).all()


def test_filters_act_in_the_order_of_transformers():
    ids = np.array([[0, 1, 2]] * 4)
    expected = processed("RepetitionPenaltyLogitsProcessor", 1.5, ids=ids)
    for name, value in (("Temperature", 0.7), ("TopK", 20), ("TopP", 0.9), ("MinP", 0.05)):
        expected = processed(f"{name}LogitsWarper", value, logits=expected)
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.5)
    np.testing.assert_allclose(samplers.next_logits(LOGITS, ids.tolist(), sampling=sampling), expected, rtol=1e-6)


def test_equal_logits_at_the_border_all_stay():
    logits = np.log([[0.4, 0.2, 0.2, 0.2]])
    for kept in (samplers.top_k(logits, 2), samplers.top_p(logits, 0.5)):
        assert np.isfinite(kept).all()


def test_drawn_ids_are_as_likely_as_the_logits_say():
    logits = samplers.top_k(LOGITS[:1], 5)
    uniforms = (np.arange(20_000) + 0.5) / 20_000
    drawn = samplers.draw(np.repeat(logits, len(uniforms), axis=0), uniforms)
    shares = np.bincount(drawn, minlength=50) / len(uniforms)
    np.testing.assert_allclose(shares, softmax(logits)[0], atol=1e-4)
    assert set(drawn) == set(np.flatnonzero(np.isfinite(logits[0])))


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_range_draw_no_id_that_is_ruled_out(uniform):
    logits = np.array([[-np.inf, 1.0, -np.inf, 2.0, -np.inf]])
    assert samplers.draw(logits, [uniform])[0] in (1, 3)


def test_greedy_ids_are_those_of_the_reference(engine):
    for prompt in PROMPTS:
        assert generate(engine, [prompt], max_new_tokens=7) == [reference.greedy(CONFIG, WEIGHTS, prompt, steps=7)]


def test_a_full_context_slides_and_goes_on(engine, batch):
    expected = [naive(prompt, 26) for prompt in PROMPTS]
    assert [generate(engine, [prompt], max_new_tokens=26)[0] for prompt in PROMPTS] == expected
    assert generate(batch, PROMPTS, max_new_tokens=26) == expected


def test_the_smallest_context_slides_too(model):
    tiny = KerasEngine(model, context_length=2)
    assert generate(tiny, [[5]], max_new_tokens=5) == [naive([5], 5, slots=2)]


def test_any_number_of_prompts_in_any_batch_gives_the_same(engine, batch):
    prompts = [*PROMPTS, [21, 22], PROMPTS[0]]
    for sampling in (samplers.GREEDY, Sampling(top_k=30, repetition_penalty=1.2, seed=3)):
        settings = {"max_new_tokens": 9, "sampling": sampling}
        assert generate(batch, prompts, **settings) == generate(engine, prompts, **settings)


def test_a_row_is_the_single_run_with_its_own_seed(engine, batch):
    replies = generate(batch, [PROMPTS[0]] * 3, sampling=Sampling(seed=5), max_new_tokens=12)
    singles = [generate(engine, [PROMPTS[0]], sampling=Sampling(seed=5 + row), max_new_tokens=12) for row in range(3)]
    assert replies == [single[0] for single in singles]
    assert len({tuple(reply) for reply in replies}) == 3


def test_a_seed_reproduces_and_another_differs(engine):
    first, again, other = (
        generate(engine, [[5]], sampling=Sampling(temperature=1.5, seed=seed), max_new_tokens=12) for seed in (7, 7, 8)
    )
    assert first == again != other


def test_a_banned_id_is_never_picked_and_the_next_likeliest_is(engine, batch):
    free = [naive(prompt, 12) for prompt in PROMPTS]
    banned = free[0][0], free[1][2]
    replies = generate(batch, PROMPTS, max_new_tokens=12, sampling=Sampling(temperature=0, banned_ids=banned))
    assert not {*banned} & {index for reply in replies for index in reply}
    logits = reference.forward(CONFIG, WEIGHTS, PROMPTS[0])[-1]
    assert replies[0][0] == next(index for index in np.argsort(-logits) if index not in banned)
    sampled = generate(engine, [PROMPTS[0]], max_new_tokens=30, sampling=Sampling(temperature=3.0, banned_ids=banned))
    assert not {*banned} & {*sampled[0]}


def test_an_answer_has_at_least_so_many_tokens(engine, batch):
    free = [naive(prompt, 12) for prompt in PROMPTS]
    stop, shortest = free[0][1], 5
    assert generate(engine, [PROMPTS[0]], max_new_tokens=12, stop_ids=[stop]) == [free[0][: free[0].index(stop)]]
    longer = Sampling(temperature=0, min_new_tokens=shortest)
    replies = generate(batch, PROMPTS, max_new_tokens=12, sampling=longer, stop_ids=[stop])
    assert all(len(reply) >= shortest and stop not in reply for reply in replies)
    assert list(stream(engine, PROMPTS[0], max_new_tokens=12, sampling=longer, stop_ids=[stop])) == replies[0]


def test_a_reply_ends_before_the_stop_id(engine, batch):
    free = [naive(prompt, 12) for prompt in PROMPTS]
    stop = free[0][4]
    expected = [ids[: ids.index(stop)] if stop in ids else ids for ids in free]
    assert generate(batch, PROMPTS, max_new_tokens=12, stop_ids=[stop]) == expected
    assert list(stream(engine, PROMPTS[0], max_new_tokens=12, stop_ids={stop})) == expected[0]
    assert generate(engine, [PROMPTS[0]], max_new_tokens=12, stop_ids=(free[0][0],)) == [[]]


def test_the_stream_is_what_generate_gives_id_by_id(engine, batch):
    sampling = Sampling(temperature=0.8, top_p=0.9, seed=2)
    whole = generate(engine, [[5, 6]], sampling=sampling, max_new_tokens=25)[0]
    for each in (engine, batch):
        assert list(stream(each, [5, 6], sampling=sampling, max_new_tokens=25)) == whole
    assert list(islice(stream(engine, [5, 6], sampling=sampling, max_new_tokens=25), 3)) == whole[:3]


def test_the_prompt_is_not_punished(engine):
    """With a huge penalty no id comes twice, yet the first id may be one of the prompt's."""
    first = reference.greedy(CONFIG, WEIGHTS, [5, 6], steps=1)
    harsh = Sampling(temperature=0, repetition_penalty=1e6)
    reply = generate(engine, [[5, 6]], sampling=harsh, max_new_tokens=10)[0]
    assert len(set(reply)) == 10 and reply[:1] == first
    prompt = [*first, 5, 6]
    expected = reference.greedy(CONFIG, WEIGHTS, prompt, steps=1)
    assert generate(engine, [prompt], sampling=harsh, max_new_tokens=1)[0] == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "`temperature` must be 0 or above. Received: -0.1"),
        ({"temperature": float("nan")}, "`temperature` must be 0 or above. Received: nan"),
        ({"top_k": -1}, "`top_k` must be a whole number, 0 or above. Received: -1"),
        ({"top_k": 1.5}, "`top_k` must be a whole number, 0 or above. Received: 1.5"),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1. Received: 0.0"),
        ({"top_p": 1.1}, "`top_p` must be above 0 and at most 1. Received: 1.1"),
        ({"min_p": 1.2}, "`min_p` must be from 0 to 1. Received: 1.2"),
        ({"repetition_penalty": 0}, "`repetition_penalty` must be above 0. Received: 0"),
        ({"min_new_tokens": -1}, "`min_new_tokens` must be a whole number, 0 or above. Received: -1"),
        ({"banned_ids": (3, -1)}, r"`banned_ids` must be token ids, 0 or above. Received: \(3, -1\)"),
        ({"seed": -1}, "`seed` must be a whole number, 0 or above. Received: -1"),
    ],
)
def test_sampling_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([], {}, "`prompts` must be at least one list of token ids. Received: none"),
        ([[5], list(range(17))], {}, "1 to 16 tokens, the engine's `context_length`. Received: 17 in prompt 1. Shorten"),
        ([[97]], {}, "Token ids must be from 0 to 96. Received: 97"),
        ([[5]], {"max_new_tokens": 0}, "`max_new_tokens` must be a positive whole number. Received: 0"),
    ],
)
def test_bad_requests_are_refused_before_any_work(engine, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(engine, prompts, **settings)
    if len(prompts) == 1:
        with pytest.raises(ValueError, match=message):
            stream(engine, prompts[0], **settings)


@pytest.mark.parametrize("count", [1, 9])
def test_broken_weights_are_named(model, engine, count):
    assign_weights(model, {name: value * np.nan for name, value in WEIGHTS.items()})
    try:
        with pytest.raises(FloatingPointError, match="Logits must be numbers. Received: NaN, so the weights are broken"):
            generate(engine, [[5]], max_new_tokens=count)
    finally:
        assign_weights(model, WEIGHTS)
