"""Referees: the numpy forward pass of `reference.py`, dialogue by dialogue, and sums written out by hand."""

import math
import unicodedata

import keras
import numpy as np
import pytest
from reference import forward, random_model, random_weights
from tiny import TINY, conversations, tokenizer

from smolite.data.dataset import ChatDataset
from smolite.data.packing import pack, unpacked_rows
from smolite.data.template import ChatTemplate, Conversation, Message, fit_context
from smolite.evaluation.likelihood import (
    TokenScore,
    count_text_characters,
    evaluate,
    evaluate_examples,
    trace_at_once,
)
from smolite.evaluation.traces import Evaluation, trace
from smolite.generation.keras_engine import KerasEngine
from smolite.models.config import ModelConfig
from smolite.training.compilation import compile_for_training
from smolite.training.options import TrainingOptions

CONFIG = ModelConfig.from_dict({**TINY.to_dict(), "num_query_heads": 6, "num_key_value_heads": 2, "head_dim": 10})
DIALOGUES = conversations()[:12]


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def by_numpy():
    """Nats, hits and targets of all trained tokens, in order, each dialogue alone in a row; and characters by hand."""
    nats, predicted, targets, characters = [], [], [], 0
    fitted = fit_context(DIALOGUES, tokenizer(), context_length=CONFIG.context_length)
    for ids, mask, _ in fitted.examples:
        logits = forward(CONFIG, random_weights(CONFIG), ids[:-1])
        for place in range(1, len(ids)):
            if mask[place]:
                row = logits[place - 1]
                nats.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[place]])
                predicted.append(int(row.argmax()))
                targets.append(ids[place])
    for dialogue in fitted.kept:
        characters += sum(len(m.content) + 1 for m in dialogue.messages if m.role == "assistant")
    return np.array(nats), np.array(predicted), np.array(targets), characters


def test_the_figures_by_hand():
    """6 nats on 3 tokens for "네" and "밥": 2 + 2 characters, 6 / ln 2 / 4 bits each."""
    result = Evaluation(nll=6.0, num_correct=1, num_tokens=3, num_characters=4)
    assert result.bits_per_character == pytest.approx(2.16404, abs=1e-5)
    assert result.perplexity == pytest.approx(7.38906, abs=1e-5)
    assert result.accuracy == pytest.approx(1 / 3)
    line = "2.1640 bits per character, perplexity 7.39, accuracy 33.3% (3 tokens, 4 characters)"
    assert result.summary() == line


def test_characters_are_those_of_answers_and_one_for_each_end():
    turns = [("system", "길게 말해요"), ("user", "안녕?"), ("assistant", "네"), ("user", "뭐 해요"), ("assistant", "밥 먹어")]
    dialogue = Conversation(tuple(Message(role, text) for role, text in turns))
    assert fit_context([dialogue], tokenizer(), context_length=64).num_characters == (1 + 1) + (4 + 1)


def test_characters_are_composed_however_a_file_spells_them():
    turns = [Message("user", "안녕?"), Message("assistant", unicodedata.normalize("NFD", "밥 먹어"))]
    assert len(turns[1].content) == 9
    assert fit_context([Conversation(tuple(turns))], tokenizer(), context_length=64).num_characters == 4 + 1


def test_characters_of_text_leave_out_the_first_token_which_nothing_predicts():
    texts = ["점심은 먹었어?", "", "밥"]
    ids = [tokenizer().encode(text) for text in texts]
    learnt = [tokenizer().decode(each)[len(tokenizer().decode(each[:1])) :] for each in ids if each]
    assert count_text_characters(texts, tokenizer()) == sum(len(text) + 1 for text in learnt)


def test_evaluate_is_what_numpy_computes(model, by_numpy):
    nats, predicted, targets, characters = by_numpy
    result = evaluate(model, DIALOGUES, tokenizer=tokenizer(), batch_size=5)
    assert (result.num_tokens, result.num_characters) == (len(nats), characters)
    assert result.num_correct == (predicted == targets).sum()
    assert result.nll == pytest.approx(nats.sum(), rel=1e-5)
    assert result.bits_per_character == pytest.approx(nats.sum() / math.log(2) / characters, rel=1e-5)


@pytest.mark.parametrize("way", ["token by token", "at once"])
def test_an_engine_and_the_plain_forward_say_the_same(model, by_numpy, way):
    nats, predicted, targets, characters = by_numpy
    if way == "at once":
        result = trace_at_once(model, DIALOGUES[:4], tokenizer=tokenizer(), context_length=model.config.context_length)
    else:
        result = trace(KerasEngine(model), DIALOGUES[:4], tokenizer=tokenizer())
    count = len(result.nll)
    np.testing.assert_allclose(result.nll, nats[:count], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(result.predicted, predicted[:count])
    np.testing.assert_array_equal(result.targets, targets[:count])
    assert result.evaluation.num_correct == (predicted == targets)[:count].sum()
    few = evaluate(model, DIALOGUES[:4], tokenizer=tokenizer())
    assert result.evaluation.bits_per_character == pytest.approx(few.bits_per_character, rel=1e-5)


def test_a_dialogue_may_have_one_token_more_than_there_are_places(model):
    """Nothing follows the last one, so it is not read."""
    (example,) = fit_context(DIALOGUES[:1], tokenizer(), context_length=CONFIG.context_length).examples
    places = len(example[0]) - 1
    expected = trace(KerasEngine(model, context_length=places), DIALOGUES[:1], tokenizer=tokenizer())
    found = trace_at_once(model, DIALOGUES[:1], tokenizer=tokenizer(), context_length=places)
    np.testing.assert_allclose(found.nll, expected.nll, rtol=0, atol=1e-4)


def test_scores_are_float32_whatever_the_global_policy():
    logits = np.array([[[9.0, 9.01, 3.0]]], "float32")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        nll, hit = keras.ops.convert_to_numpy(TokenScore()(logits, np.array([[1]])))[0, 0]
    finally:
        keras.config.set_dtype_policy(before)
    assert hit == 1 and nll == pytest.approx(np.log(np.exp(logits[0, 0]).sum()) - 9.01, abs=1e-5)


def test_evaluation_does_not_change_the_model(model):
    before = [weight.copy() for weight in model.get_weights()]
    evaluate(model, DIALOGUES[:2], tokenizer=tokenizer())
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_packing_changes_no_loss(model, by_numpy):
    """The same total in packed rows, in rows of one dialogue each, and in numpy; through the compiled training metrics."""
    examples = fit_context(DIALOGUES, tokenizer(), context_length=CONFIG.context_length).examples
    compile_for_training(model, TrainingOptions(label_smoothing=0.2), total_steps=1)
    totals = []
    for rows in (pack(examples, 64), unpacked_rows(examples, 64)):
        logs = model.evaluate(ChatDataset(rows, 4), verbose=0, return_dict=True)
        totals.append(math.log(logs["perplexity"]) * rows.num_trained)
        assert logs["accuracy"] == pytest.approx((by_numpy[1] == by_numpy[2]).mean(), abs=1e-6)
    assert len(pack(examples, 64)) < len(examples)
    assert totals == pytest.approx([by_numpy[0].sum()] * 2, rel=1e-5)
    exact = [evaluate_examples(model, examples[:place] or examples, 1).nll for place in (0, 6)]
    assert exact[0] == pytest.approx(totals[0], rel=1e-5) and exact[1] < exact[0]


def test_another_template_is_heeded(model):
    """What a suffix adds to the answers is trained, so it is scored too."""
    template = ChatTemplate(assistant_suffix="<end><end>")
    longer = evaluate(model, DIALOGUES[:3], tokenizer=tokenizer(), template=template)
    plain = evaluate(model, DIALOGUES[:3], tokenizer=tokenizer())
    assert longer.num_tokens > plain.num_tokens and longer.num_characters == plain.num_characters


def test_dialogues_that_do_not_fit_at_all(model):
    long = Conversation((Message("user", "점심 " * 100), Message("assistant", "네")))
    with pytest.raises(ValueError, match="At least one conversation must fit into `context_length`. Received: 1 conversations"):
        evaluate(model, [long], tokenizer=tokenizer())
