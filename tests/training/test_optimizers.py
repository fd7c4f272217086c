"""Referees: one large batch for accumulated ones, and for rates by layer the step of Keras' AdamW at one rate."""

import keras
import numpy as np
import pytest
from keras import ops
from tiny import TINY

from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.models.seq2seq_lm import Seq2SeqLM
from smolite.training.compilation import adamw, compile_for_training, learning_rate_schedule
from smolite.training.optimizers import FusedAdamW, LayerwiseAdamW, PerUpdate, rate_shares
from smolite.training.options import TrainingOptions

SMALL = ModelConfig.from_dict({**TINY.to_dict(), "vocab_size": 61, "dropout": 0.0})
DEEP = ModelConfig.from_dict({**SMALL.to_dict(), "num_layers": 3})
UPDATES, ROWS = 3, 6
IDS = np.random.default_rng(2).integers(0, 61, (UPDATES, ROWS, 12)).astype("int32")


def trained(accumulation, **changes):
    """A model after three updates, of six rows each, in as many batches an update as are asked for."""
    keras.utils.set_random_seed(1)
    model = CausalLM(SMALL)
    settings = {"learning_rate": 0.01, "weight_decay": 0.5, "warmup_ratio": 0.5, "global_clipnorm": 0.5, **changes}
    compile_for_training(model, TrainingOptions(gradient_accumulation_steps=accumulation, **settings), total_steps=2 * UPDATES)
    batches = IDS.reshape(UPDATES * accumulation, ROWS // accumulation, 12)
    model.fit(batches.reshape(-1, 12), batches.reshape(-1, 12), batch_size=len(batches[0]), shuffle=False, verbose=0)
    return model


def weights(model):
    return {variable.path: ops.convert_to_numpy(variable).copy() for variable in model.trainable_variables}


def test_accumulated_batches_are_one_large_batch():
    """Schedule, weight decay and clipping all count here.

    Three updates of at most 0.01 each: Adam divides by the root of the mean square, so where a gradient is near 0 its rounding
    (1e-7 of the largest) shows. 3e-5 is a thousandth of the way gone; the median is a hundred times closer.
    """
    model = trained(3)
    assert int(ops.convert_to_numpy(model.optimizer._iterations)) == UPDATES * 3
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == UPDATES
    expected, differences = weights(trained(1)), []
    for path, weight in weights(model).items():
        np.testing.assert_allclose(weight, expected[path], rtol=0, atol=3e-5, err_msg=path)
        differences.append(np.abs(weight - expected[path]).ravel())
    assert np.median(np.concatenate(differences)) < 3e-7


def test_weights_stay_until_a_step_is_whole():
    """Not even weight decay, and no number but the accumulated gradient, changes between two updates."""
    keras.utils.set_random_seed(1)
    model = CausalLM(SMALL)
    compile_for_training(
        model, TrainingOptions(gradient_accumulation_steps=3, weight_decay=0.5, warmup_ratio=0.0), total_steps=9
    )
    before = weights(model)
    for _ in range(2):
        model.train_on_batch(IDS[0], IDS[0])
    assert all((weight == before[path]).all() for path, weight in weights(model).items())
    assert not any(ops.convert_to_numpy(moment).any() for moment in model.optimizer._momentums)
    model.train_on_batch(IDS[0], IDS[0])
    assert not any((weight == before[path]).all() for path, weight in weights(model).items())


def test_each_batch_counts_the_same_in_a_step():
    """As `TrainingOptions.gradient_accumulation_steps` says: a batch of one trained token weighs as much as one of twelve.

    The rate is next to nothing, so the weights stay, and Adam's first moment tells the gradient of each step.
    """
    keras.utils.set_random_seed(1)
    model = CausalLM(SMALL)
    options = TrainingOptions(gradient_accumulation_steps=2, global_clipnorm=0.0, warmup_ratio=0.0, learning_rate=1e-20)
    compile_for_training(model, options, total_steps=9)
    gradients, moment = [], 0.0
    for batches in ([0, 1], [0, 0], [1, 1]):
        for batch in batches:
            weight = np.ones((1, 12), "float32") if batch else np.eye(1, 12, dtype="float32")
            model.train_on_batch(IDS[0, batch : batch + 1], IDS[0, batch : batch + 1], sample_weight=weight)
        before, moment = moment, ops.convert_to_numpy(model.optimizer._momentums[0]).astype("float64")
        gradients.append((moment - 0.9 * before) / 0.1)
    both, one_token, twelve = gradients
    np.testing.assert_allclose(both, (one_token + twelve) / 2, rtol=0, atol=1e-5 * np.abs(both).max())
    assert np.abs(one_token - twelve).max() > 0.1 * np.abs(both).max()


def test_the_schedule_counts_updates():
    schedule = learning_rate_schedule(TrainingOptions(), total_steps=10)
    slow = PerUpdate(schedule, 4)
    rates = [float(slow(ops.convert_to_tensor(step, "int32"))) for step in range(12)]
    assert rates == pytest.approx([float(schedule(step // 4)) for step in range(12)])
    copy = PerUpdate.from_config(slow.get_config())
    assert copy.gradient_accumulation_steps == 4 and float(copy(7)) == pytest.approx(float(schedule(1)))


def moved(optimizer, gradient_scale=1.0):
    """How far one step of an optimizer, with gradients of a known size, moves each weight of a model of three blocks."""
    keras.utils.set_random_seed(1)
    model = CausalLM(DEEP)
    before = weights(model)
    optimizer.apply(
        [gradient_scale * ops.ones(variable.shape) for variable in model.trainable_variables], model.trainable_variables
    )
    return {path: weight - before[path] for path, weight in weights(model).items()}


SHARES = {"block_2": 1.0, "block_1": 0.7, "block_0": 0.7**2, "token_embedding": 0.7**3, "final_norm": 1.0}


@pytest.mark.parametrize("gradient_scale", [1.0, 0.0])
def test_each_block_moves_less_than_the_one_after_it(gradient_scale):
    """With gradients of 0 only the weight decay moves anything, and it goes by the same share."""
    plain = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    plain.exclude_from_weight_decay(var_names=["scale"])
    whole = moved(plain, gradient_scale)
    ours = moved(LayerwiseAdamW(0.01, layer_decay=0.7, weight_decay=0.5), gradient_scale)
    for path, step in ours.items():
        share = SHARES[path.split("/")[0]]
        np.testing.assert_allclose(step, share * whole[path], rtol=0, atol=2e-7, err_msg=path)
        assert gradient_scale == 0 or np.abs(step).min() > 0.001 * share


def test_without_decay_by_layer_it_is_plain_adamw():
    plain = keras.optimizers.AdamW(0.01, weight_decay=0.5)
    plain.exclude_from_weight_decay(var_names=["scale"])
    ours, theirs = moved(LayerwiseAdamW(0.01, weight_decay=0.5)), moved(plain)
    for path, step in theirs.items():
        np.testing.assert_allclose(ours[path], step, rtol=0, atol=2e-7, err_msg=path)


on_torch = pytest.mark.skipif(keras.backend.backend() != "torch", reason="of the torch backend; `make test` runs it there")
FUSED = {"weight_decay": 0.5, "beta_2": 0.95, "global_clipnorm": 0.7}


def stepped(kind, **settings):
    """The weights after four steps of an optimizer with a schedule, with gradients of several sizes, some clipped."""
    keras.utils.set_random_seed(1)
    model, random = CausalLM(DEEP), np.random.default_rng(4)
    schedule = keras.optimizers.schedules.CosineDecay(0.0, 10, warmup_target=0.01, warmup_steps=2)
    optimizer = kind(schedule, **settings)
    optimizer.exclude_from_weight_decay(var_names=["scale"])
    variables = model.trainable_variables
    for size in (1e-4, 1.0, 1e-2, 1e-5):
        gradients = [size * random.standard_normal(variable.shape).astype("float32") for variable in variables]
        optimizer.apply([ops.convert_to_tensor(gradient) for gradient in gradients], variables)
    return weights(model)


@on_torch
@pytest.mark.parametrize("changes", [{}, {"global_clipnorm": None}, {"gradient_accumulation_steps": 2}, {"clipnorm": 0.1}])
def test_the_fused_step_is_that_of_keras(changes):
    settings = {**FUSED, **changes, **({"global_clipnorm": None} if "clipnorm" in changes else {})}
    expected, actual = stepped(keras.optimizers.AdamW, **settings), stepped(FusedAdamW, **settings)
    for path, weight in expected.items():
        np.testing.assert_allclose(actual[path], weight, rtol=0, atol=1e-6, err_msg=path)


class Slow(LayerwiseAdamW):
    """Variable by variable, as on the other backends."""

    _clip_gradients = keras.optimizers.Adam._clip_gradients
    _backend_update_step = keras.optimizers.Adam._backend_update_step


@on_torch
@pytest.mark.parametrize("changes", [{}, {"global_clipnorm": None}, {"amsgrad": True}])
def test_rates_by_layer_take_the_fused_step_too(changes):
    settings = {**FUSED, "layer_decay": 0.7, **changes}
    expected, actual = stepped(Slow, **settings), stepped(LayerwiseAdamW, **settings)
    for path, weight in expected.items():
        np.testing.assert_allclose(actual[path], weight, rtol=0, atol=1e-6, err_msg=path)


@on_torch
def test_gradients_that_are_not_numbers_stay_so():
    optimizer = FusedAdamW(0.01, global_clipnorm=1.0)
    variable = keras.Variable(np.ones(3, "float32"))
    optimizer.apply([ops.convert_to_tensor(np.array([1.0, np.nan, 2.0], "float32"))], [variable])
    assert np.isnan(ops.convert_to_numpy(variable)).all()


@on_torch
@pytest.mark.parametrize("wanted", [{"amsgrad": True}, {"use_ema": True}])
def test_what_the_fused_step_lacks_is_refused(wanted):
    with pytest.raises(ValueError, match="neither `amsgrad` nor `use_ema`. Received"):
        FusedAdamW(0.01, **wanted)


def test_the_fused_step_is_chosen_on_torch_only_and_its_settings_are_read_everywhere():
    chosen = adamw(TrainingOptions(), total_steps=5)
    kind = FusedAdamW if keras.backend.backend() == "torch" else keras.optimizers.AdamW
    assert isinstance(chosen, kind) and isinstance(FusedAdamW.from_config(chosen.get_config()), kind)
    assert not isinstance(chosen, FusedAdamW) or keras.backend.backend() == "torch"


def test_shares_by_path():
    paths = "token_embedding/embeddings block_0/mlp/up/kernel block_1/mlp/up/kernel final_norm/scale".split()
    assert rate_shares(paths, 0.5) == [0.25, 0.5, 1.0, 1.0]
    assert rate_shares([f"block_{i}/x" for i in (10, 2)], 0.5) == [1.0, 0.5**8]
    assert rate_shares(["kernel"], 0.5) == [1.0]
    paths = "token_embedding/embeddings encoder_0/mlp/up/kernel memory_0/key/kernel block_0/mlp/up/kernel".split()
    assert rate_shares(paths, 0.5) == [0.25, 0.5, 1.0, 1.0]


def test_rates_fall_along_the_encoder_and_the_decoder():
    """Adam's first step is as long as the rate, whatever the gradient: the weights themselves say at which rate they learn."""
    fields = {**DEEP.to_dict(), "num_layers": 2, "num_encoder_layers": 3, "positions": "learned", "embedding_norm": True}
    model = Seq2SeqLM(ModelConfig.from_dict(fields))
    before, optimizer = weights(model), LayerwiseAdamW(0.25, layer_decay=0.5, weight_decay=0.0)
    optimizer.apply([ops.ones(each.shape) for each in model.trainable_variables], model.trainable_variables)
    blocks_behind = {
        "token_embedding": 5,
        "position_embedding": 5,
        "embedding_norm": 5,
        "encoder_0": 4,
        "encoder_1": 3,
        "encoder_2": 2,
        "encoder_norm": 2,
        "memory_0": 1,
        "block_0": 1,
        "memory_1": 0,
        "block_1": 0,
        "final_norm": 0,
    }
    moved = weights(model)
    assert {path.split("/")[0] for path in moved} == set(blocks_behind)
    for path, weight in moved.items():
        expected = np.full(weight.shape, 0.25 * 0.5 ** blocks_behind[path.split("/")[0]])
        np.testing.assert_allclose(before[path] - weight, expected, rtol=1e-5, atol=1e-6, err_msg=path)


def test_the_optimizer_goes_on_after_it_was_saved(tmp_path):
    """Rates by layer, accumulation and a schedule: half a step is done, the file is read, and the step ends the same."""
    model = trained(2, layer_decay=0.7)
    model.train_on_batch(IDS[0], IDS[0])
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert type(copy.optimizer) is LayerwiseAdamW
    assert (copy.optimizer.layer_decay, copy.optimizer.matrix_decay) == (0.7, 0.5)
    for each in (model, copy):
        each.train_on_batch(IDS[1], IDS[1])
    for path, weight in weights(model).items():
        np.testing.assert_allclose(weights(copy)[path], weight, rtol=0, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("layer_decay", [1.0, 0.9])
def test_options_choose_the_optimizer(layer_decay):
    options = TrainingOptions(
        layer_decay=layer_decay, gradient_accumulation_steps=2, weight_decay=0.3, beta_2=0.95, global_clipnorm=0.0
    )
    optimizer = adamw(options, total_steps=5)
    assert isinstance(optimizer, LayerwiseAdamW) == (layer_decay < 1)
    settings = optimizer.get_config()
    assert (settings["weight_decay"], settings["beta_1"], settings["beta_2"]) == (0.3, 0.9, 0.95)
    assert settings["global_clipnorm"] is None and settings["gradient_accumulation_steps"] == 2
