"""What users of Hugging Face's Llama rely on. Referees: transformers' own loss, and the numpy reference of any length."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops
from reference import AWKWARD_CONFIGS, forward, random_model, random_weights, run

from smolite.checkpoint.weights import assign_weights
from smolite.data.dataset import shift_labels
from smolite.models.causal_lm import CausalLM
from smolite.models.losses import NextTokenLoss

CONFIG = AWKWARD_CONFIGS["grouped"]
IDS = np.random.RandomState(4).randint(0, CONFIG.vocab_size, (3, 13))
LABELS = IDS.copy()
LABELS[0, :5] = LABELS[1, 9:] = LABELS[2, ::2] = -100


def test_shifted_labels_give_the_loss_of_transformers():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG.to_hf()))
    theirs.load_state_dict({name: torch.tensor(w) for name, w in random_weights(CONFIG).items()}, strict=False)
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS), labels=torch.tensor(LABELS)).loss.item()
    model = random_model(CONFIG)
    x, y, weight = shift_labels(IDS, LABELS)
    assert float(NextTokenLoss()(y, run(model, x), sample_weight=weight)) == pytest.approx(expected, abs=1e-4)
    model.compile("sgd", loss=NextTokenLoss())
    assert float(model.evaluate(x, y, sample_weight=weight, verbose=0)) == pytest.approx(expected, abs=1e-4)


def test_labels_by_hand():
    x, y, weight = shift_labels([[5, 6, 7]], [[-100, -100, 7]])
    assert (x["tokens"].tolist(), y.tolist(), weight.tolist()) == ([[5, 6]], [[0, 7]], [[0.0, 1.0]])


@pytest.mark.parametrize(("ids", "labels"), [([[1, 2]], [[1, 2, 3]]), ([1, 2], [1, 2]), ([[1]], [[1]])])
def test_labels_of_another_shape(ids, labels):
    with pytest.raises(ValueError, match=r"must both be \(batch, length\), of at least 2 tokens. Received: .* and .*. Give"):
        shift_labels(ids, labels)


@pytest.mark.parametrize("positions", [None, 60])
def test_a_longer_row_than_any_before_finds_its_angles(positions):
    """Angles are computed from positions, so there is no table that could be too short: not even past the context length."""
    model = random_model(CONFIG)
    for length in (3, 17, CONFIG.context_length + 9):
        ids = np.random.RandomState(length).randint(0, CONFIG.vocab_size, length)
        places = None if positions is None else np.arange(length) + positions
        inputs = ids[None] if places is None else {"tokens": ids[None], "positions": places[None]}
        expected = forward(CONFIG, random_weights(CONFIG), ids, positions=places)
        np.testing.assert_allclose(run(model, inputs)[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


RATE, WIDTH = 0.3, 40
DROPPING = dataclasses.replace(CONFIG, num_layers=1, hidden_dim=WIDTH, vocab_size=WIDTH, dropout=RATE)
ROWS = np.random.RandomState(6).randint(0, WIDTH, (20, 60))


def dropping_model(*, silent):
    """A model in which the branches named write nothing, and the embedding table can be inverted."""
    model = CausalLM(DROPPING)
    weights = random_weights(DROPPING)
    weights["model.norm.weight"][:] = 1.0
    weights["model.embed_tokens.weight"] = np.eye(WIDTH, dtype="float32") + 1.0
    for branch in silent:
        weights[f"model.layers.0.{branch}.weight"][:] = 0.0
    assign_weights(model, weights)
    return model


ATTENTION, MLP = "self_attn.o_proj", "mlp.down_proj"


def test_dropout_of_the_embedding():
    """The blocks write nothing, so logits · table⁻¹ is the normalized embedding, in which each zero was dropped."""
    keras.utils.set_random_seed(2)
    model = dropping_model(silent=[ATTENTION, MLP])
    table = np.eye(WIDTH) + 1.0

    def last(training):
        return ops.convert_to_numpy(model(ROWS, training=training)) @ np.linalg.inv(table)

    assert np.abs(last(False)).min() > 0.1
    assert np.mean(np.abs(last(True)) < 1e-4) == pytest.approx(RATE, abs=0.01)


@pytest.mark.parametrize("silent", [ATTENTION, MLP])
def test_dropout_of_each_branch(silent):
    """The other branch alone changes the stream: its outputs are dropped whole, or kept and divided by what is left."""
    keras.utils.set_random_seed(2)
    model = dropping_model(silent=[silent])
    block, hidden = model.blocks[0], np.random.RandomState(7).normal(size=(20, 60, WIDTH)).astype("float32")
    tables, mask = model.rotary(ROWS), model.get_layer("causal_mask")(ROWS)
    calm, dropped = (
        ops.convert_to_numpy(block(ops.convert_to_tensor(hidden), tables, mask, training=training)[0]) - hidden
        for training in (False, True)
    )
    gone = dropped == 0
    assert gone.mean() == pytest.approx(RATE, abs=0.01)
    np.testing.assert_allclose(dropped[~gone], calm[~gone] / (1 - RATE), rtol=0, atol=1e-5 * np.abs(calm).max() + 1e-6)


def test_nothing_is_dropped_but_in_training():
    model = dropping_model(silent=[])
    first, second, training = (ops.convert_to_numpy(model(ROWS[:2], training=each)) for each in (False, None, True))
    np.testing.assert_array_equal(first, second)
    assert np.abs(training - first).max() > 0.01
    np.testing.assert_allclose(model.predict(ROWS[:2], verbose=0), first, rtol=0, atol=1e-4)


def test_the_table_learns_from_both_of_its_uses():
    """Its gradient is the slope of the numpy reference's loss when one row changes, of a token that is read and of one that
    never is. As if it were input alone or output alone, the slope of the first is another.
    """
    ids = IDS[0]
    table = random_weights(CONFIG)[EMBEDDING].astype("float64")
    gradient = table_gradient(ids)
    for row in (int(ids[3]), next(i for i in range(CONFIG.vocab_size) if i not in ids)):
        change = np.zeros_like(table)
        change[row] = 1e-5 * gradient[row] / np.linalg.norm(gradient[row])
        higher, lower = (reference_loss(ids, table + sign * change) for sign in (1, -1))
        assert (higher - lower) / 2e-5 == pytest.approx(np.linalg.norm(gradient[row]), rel=1e-3)
    read = int(ids[3])
    change[:] = 0.0
    change[read] = 1e-5 * gradient[read] / np.linalg.norm(gradient[read])
    as_output = (reference_loss(ids, table, output=table + change) - reference_loss(ids, table, output=table - change)) / 2e-5
    assert abs(as_output - np.linalg.norm(gradient[read])) > 0.01 * np.linalg.norm(gradient[read])


EMBEDDING = "model.embed_tokens.weight"


def reference_loss(ids, table, *, output=None):
    """The mean negative log-likelihood of each next token, by numpy, perhaps with another table as output."""
    logits = forward(CONFIG, {**random_weights(CONFIG), EMBEDDING: table}, ids[:-1])
    if output is not None:
        logits = logits @ np.linalg.pinv(table.T) @ output.T
    likely = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return -likely[np.arange(len(ids) - 1), ids[1:]].mean()


def table_gradient(ids):
    """How far one step of rate 1 moves the table back."""
    x, y, weight = shift_labels(ids[None], ids[None])
    model = random_model(CONFIG)
    model.compile(keras.optimizers.SGD(1.0), loss=NextTokenLoss())
    before = ops.convert_to_numpy(model.token_embedding.embeddings).copy()
    model.train_on_batch(x, y, sample_weight=weight)
    return before - ops.convert_to_numpy(model.token_embedding.embeddings)
