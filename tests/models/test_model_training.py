"""What Keras asks of a model: `fit`, gradients, serialisation. Referee of the gradients: transformers."""

import keras
import numpy as np
import pytest
import torch
from keras import ops
from reference import AWKWARD_CONFIGS, random_model, random_weights, run
from transformers import LlamaConfig, LlamaForCausalLM

from smolite.checkpoint.weights import assign_weights, model_weights
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig

CONFIG = AWKWARD_CONFIGS["grouped"]
LITTLE = ModelConfig(
    vocab_size=61,
    num_layers=1,
    num_query_heads=2,
    num_key_value_heads=1,
    hidden_dim=16,
    intermediate_dim=32,
    dropout=0.05,
)
ROWS = np.random.RandomState(3).randint(0, 61, (2, 12)).astype("int32")
TOKENS, TARGETS = ROWS[:, :-1], ROWS[:, 1:]


def crossentropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")


def step_down(inputs, targets, sample_weight=None):
    """The loss, and how far one SGD step of rate 1 moves each weight: its gradient."""
    model = random_model(CONFIG)
    model.compile(keras.optimizers.SGD(1.0), loss=crossentropy())
    loss = model.train_on_batch(inputs, targets, sample_weight=sample_weight)
    before, after = random_weights(CONFIG), model_weights(model)
    return float(loss), {name: before[name] - after[name] for name in before}


@pytest.fixture(scope="module")
def theirs():
    """Loss and gradients of the same weights and the same batch in transformers."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG.to_hf()))
    model.load_state_dict({name: torch.tensor(w) for name, w in random_weights(CONFIG).items()}, strict=False)
    logits = model(torch.tensor(TOKENS, dtype=torch.long)).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(TARGETS.ravel(), dtype=torch.long))
    loss.backward()
    return loss.item(), {name: weight.grad.numpy() for name, weight in model.named_parameters()}


def assert_same_step(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], abs=1e-4)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        atol = 1e-4 * max(1e-2, np.abs(gradient).max())
        np.testing.assert_allclose(ours[1][name], gradient, rtol=0, atol=atol, err_msg=name)


def test_the_gradient_is_that_of_transformers(theirs):
    assert_same_step(step_down(TOKENS, TARGETS), theirs)


def test_the_gradient_through_loss_at_is_the_same(theirs):
    """Every position is asked for, in another order, with two unused entries of weight 0."""
    order = np.random.RandomState(5).permutation(11)
    places = np.repeat([[*order, 0, 0]], 2, axis=0).astype("int32")
    weight = np.repeat([[1.0] * 11 + [0.0] * 2], 2, axis=0).astype("float32")
    targets = np.take_along_axis(TARGETS, places, axis=1)
    assert_same_step(step_down({"tokens": TOKENS, "loss_at": places}, targets, weight), theirs)


def test_the_gradient_of_a_packed_row_is_that_of_its_texts():
    tokens = np.concatenate([TOKENS[:1, :6], TOKENS[1:, :4], np.zeros((1, 1), "int32")], axis=1)
    targets = np.concatenate([TARGETS[:1, :6], TARGETS[1:, :4], np.zeros((1, 1), "int32")], axis=1)
    places = np.array([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 0]], "int32")
    segments = np.array([[1] * 6 + [2] * 4 + [0]], "int32")
    weight = (segments > 0).astype("float32")
    packed = step_down({"tokens": tokens, "positions": places, "segments": segments}, targets, weight)
    unpacked_weight = (np.arange(11) < [[6], [4]]).astype("float32")
    assert_same_step(packed, step_down(TOKENS, TARGETS, unpacked_weight))


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_fit_learns_a_batch_by_heart(dtype):
    keras.utils.set_random_seed(1)
    model = CausalLM(LITTLE, dtype=dtype)
    model.compile(keras.optimizers.Adam(0.02), loss=crossentropy())
    losses = model.fit({"tokens": TOKENS}, TARGETS, epochs=20, batch_size=2, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(np.log(61) + 0.5, abs=0.4) and losses[-1] < 1.5  # half the variance of logits, 1 at first


def test_the_loss_of_float16_is_scaled():
    """Gradients of a mean over thousands of tokens are below the smallest numbers of float16."""
    exact, half = CausalLM(CONFIG), CausalLM(CONFIG, dtype="mixed_float16")
    moved = []
    for model in (exact, half):
        assign_weights(model, random_weights(CONFIG))
        model.compile(
            keras.optimizers.SGD(1e6), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
        )
        model.fit(TOKENS, TARGETS, sample_weight=np.full(TARGETS.shape, 1e-6), verbose=0)
        before, after = random_weights(CONFIG), model_weights(model)
        moved.append({name: before[name] - after[name] for name in before})
    assert isinstance(half.optimizer, keras.optimizers.LossScaleOptimizer)
    for name, gradient in moved[0].items():
        assert np.abs(moved[1][name] - gradient).max() < 0.06 * np.abs(gradient).max(), name


def test_config_round_trip_through_keras():
    model = CausalLM(CONFIG, dtype="mixed_bfloat16", name="little")
    copy = CausalLM.from_config(model.get_config())
    assert copy.config == CONFIG and copy.name == "little" and copy.get_config() == model.get_config()
    assert copy.blocks[1].attention.query.dtype_policy.name == "mixed_bfloat16"
    assert [w.shape for w in copy.weights] == [w.shape for w in model.weights]


def test_a_keras_file_holds_the_whole_model(tmp_path):
    model = random_model(CONFIG)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert type(copy) is CausalLM and copy.config == CONFIG
    for name, weight in model_weights(copy).items():
        np.testing.assert_array_equal(weight, random_weights(CONFIG)[name])
    np.testing.assert_allclose(run(copy, TOKENS), run(model, TOKENS), rtol=0, atol=1e-5)


def test_a_compiled_model_goes_on_learning_after_it_was_loaded(tmp_path):
    model = CausalLM(ModelConfig.from_dict({**LITTLE.to_dict(), "dropout": 0.0}))
    model.compile(keras.optimizers.Adam(1e-3), loss=crossentropy())
    model.train_on_batch(TOKENS, TARGETS)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert int(ops.convert_to_numpy(copy.optimizer.iterations)) == 1
    first, second = (each.train_on_batch(TOKENS, TARGETS) for each in (model, copy))
    assert float(first) == pytest.approx(float(second), abs=1e-5)
    for name, weight in model_weights(model).items():
        np.testing.assert_allclose(model_weights(copy)[name], weight, rtol=0, atol=1e-5, err_msg=name)


def test_a_weights_file_fills_another_model(tmp_path):
    random_model(CONFIG).save_weights(tmp_path / "model.weights.h5")
    other = CausalLM(CONFIG)
    other.load_weights(tmp_path / "model.weights.h5")
    for name, weight in model_weights(other).items():
        np.testing.assert_array_equal(weight, random_weights(CONFIG)[name])
