"""What a user of Keras expects of a language model. Referees: keras-hub's Llama under the same call, and Keras' own losses."""

import math

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.models.losses import NextTokenLoss, Perplexity
from smolite.models.seq2seq_lm import Seq2SeqLM

LITTLE = ModelConfig(
    vocab_size=61,
    num_layers=2,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=16,
    intermediate_dim=32,
    context_length=32,
)
ROWS = np.random.RandomState(3).randint(0, 61, (2, 12)).astype("int32")
TOKENS, TARGETS = ROWS[:, :-1], ROWS[:, 1:]


def little(**changes):
    keras.utils.set_random_seed(1)
    return CausalLM(ModelConfig.from_dict({**LITTLE.to_dict(), **changes}))


def little_pairs():
    keras.utils.set_random_seed(1)
    return Seq2SeqLM(ModelConfig.from_dict({**LITTLE.to_dict(), "num_encoder_layers": 1}))


def little_llama():
    """keras-hub's Llama of the same sizes."""
    sizes = {name: getattr(LITTLE, name) for name in ("num_layers", "num_query_heads", "num_key_value_heads", "hidden_dim")}
    backbone = keras_hub.models.LlamaBackbone(61, intermediate_dim=32, tie_word_embeddings=True, **sizes)
    return keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)


def fed(model, tokens=TOKENS):
    """The tokens as the model, ours or theirs, takes them."""
    if isinstance(model, keras_hub.models.CausalLM):
        return {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    return {"source": tokens, "tokens": tokens} if isinstance(model, Seq2SeqLM) else tokens


MODELS = {"ours": little, "pairs": little_pairs, "keras-hub": little_llama}


@pytest.mark.parametrize("optimizer", [(), ("adam",)])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_model_compiles_without_a_loss(make, optimizer):
    """The loss is Keras' of logits, the metrics are named, and padding of weight 0 counts in neither."""
    model = make()
    model.compile(*optimizer)
    logits = ops.convert_to_numpy(model(fed(model)))
    weights = np.arange(11) < np.array([[11], [4]])
    reference = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    each = ops.convert_to_numpy(reference(TARGETS, logits))
    logs = model.test_on_batch(fed(model), TARGETS, sample_weight=weights.astype("float32"), return_dict=True)
    if make is little_llama:
        assert set(logs) == {"loss", "sparse_categorical_accuracy"}
        return
    assert set(logs) == {"loss", "perplexity", "accuracy"}
    assert logs["loss"] == pytest.approx(each[weights].mean(), abs=1e-4)
    assert logs["perplexity"] == pytest.approx(math.exp(each[weights].mean()), rel=1e-4)
    assert logs["accuracy"] == pytest.approx((logits.argmax(-1) == TARGETS)[weights].mean(), abs=1e-6)
    assert isinstance(model.optimizer, keras.optimizers.Adam)


def test_what_is_given_to_compile_is_kept():
    model = little()
    model.compile("sgd", weighted_metrics=["accuracy"])
    assert isinstance(model.loss, NextTokenLoss) and isinstance(model.optimizer, keras.optimizers.SGD)
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert set(model.test_on_batch(TOKENS, TARGETS, return_dict=True)) == {"loss"}


def test_keras_own_loss_of_logits_is_ours_where_nothing_is_masked():
    model = little()
    model.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    theirs = float(model.test_on_batch(TOKENS, TARGETS))
    model.compile("sgd", loss=NextTokenLoss())
    assert theirs == pytest.approx(float(model.test_on_batch(TOKENS, TARGETS)), abs=1e-5)


LOSSES = keras.losses.SparseCategoricalCrossentropy
OF_PROBABILITIES = {
    "name": {"loss": "sparse_categorical_crossentropy"},
    "name of class": {"loss": "SparseCategoricalCrossentropy"},
    "object": {"loss": LOSSES()},
    "function": {"loss": keras.losses.sparse_categorical_crossentropy},
    "list": {"loss": [LOSSES()]},
    "dictionary": {"loss": {"logits": "sparse_categorical_crossentropy"}},
    "metric": {"metrics": ["accuracy", "sparse_categorical_crossentropy"]},
    "short name": {"weighted_metrics": ["ce"]},
    "metric object": {"weighted_metrics": [keras.metrics.SparseCategoricalCrossentropy()]},
    "divergence": {"loss": "KLDivergence"},
    "divergence object": {"metrics": [keras.metrics.KLDivergence()]},
    "focal": {"loss": keras.losses.CategoricalFocalCrossentropy()},
}


@pytest.mark.parametrize("case", OF_PROBABILITIES)
def test_what_takes_logits_for_probabilities_is_refused(case):
    (argument,) = OF_PROBABILITIES[case]
    kind = "loss" if argument == "loss" else "metric"
    with pytest.raises(ValueError, match=rf"A {kind} must read logits.*Received: `{argument}` with .*from_logits=True"):
        MODEL.compile("adam", **OF_PROBABILITIES[case])


def test_what_reads_logits_passes():
    own = lambda y_true, y_pred: ops.mean(y_pred, axis=-1)  # noqa: E731
    metrics = [keras.metrics.SparseCategoricalCrossentropy(from_logits=True), "accuracy", Perplexity(), own]
    MODEL.compile("adam", loss=own, metrics=metrics)
    assert MODEL.loss is own


MODEL = little()


def test_the_default_loss_comes_back_with_a_saved_model(tmp_path):
    model = little()
    model.compile("adam", jit_compile=False)  # XLA takes long over a first step
    model.fit(TOKENS, TARGETS, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(copy.loss, NextTokenLoss) and int(ops.convert_to_numpy(copy.optimizer.iterations)) == 2
    ours, theirs = (each.test_on_batch(TOKENS, TARGETS, return_dict=True) for each in (model, copy))
    assert ours == pytest.approx(theirs, abs=1e-5)
