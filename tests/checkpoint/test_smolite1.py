"""Referee: the first Smolite written once more with plain Keras layers, see `first_smolite`."""

import dataclasses

import keras
import numpy as np
import pytest
from first_smolite import first_smolite
from keras import ops
from reference import causal_mask, to_numpy
from tiny import TINY, conversations, tokenizer

import smolite
from smolite.checkpoint.first_smolite import half_split, read_smolite1
from smolite.data.template import fit_context
from smolite.generation.keras_engine import KerasEngine
from smolite.generation.loop import generate
from smolite.models.causal_lm import CausalLM
from smolite.models.config import PRESETS
from smolite.models.layers import LightweightAttn
from smolite.models.losses import NextTokenLoss

TOKENS = np.random.RandomState(3).randint(0, 61, (2, 11)).astype("int32")


@pytest.fixture(scope="module")
def referee():
    return first_smolite()


@pytest.fixture(scope="module")
def model(referee, tmp_path_factory):
    path = tmp_path_factory.mktemp("first") / "model1.weights.h5"
    referee.save_weights(path)
    return read_smolite1(path, num_heads=4, context_length=32)


def test_its_weights_give_its_logits(referee, model):
    expected = to_numpy(referee(TOKENS))
    assert np.abs(expected).max() > 3
    np.testing.assert_allclose(to_numpy(model(TOKENS)), expected, atol=1e-4)


def test_the_cache_changes_nothing(referee, model):
    """Prefill of 6, then token by token, equals the whole row, though each block ends in a norm and a residual around it."""
    expected = to_numpy(referee(TOKENS))
    cache, slots = model.empty_cache(2, 16), 16
    logits, cache = model.cached_forward(TOKENS[:, :6], cache, slot=0, mask=ops.convert_to_tensor(causal_mask(0, 6, slots)))
    np.testing.assert_allclose(to_numpy(logits), expected[:, :6], atol=1e-4)
    for slot in range(6, 11):
        mask = ops.convert_to_tensor(causal_mask(slot, 1, slots))
        logits, cache = model.cached_forward(TOKENS[:, slot : slot + 1], cache, slot=slot, mask=mask)
        np.testing.assert_allclose(to_numpy(logits)[:, 0], expected[:, slot], atol=1e-4)


@pytest.mark.slow
def test_it_goes_on_as_the_referee_does(referee, model):
    ids = TOKENS[0, :5].tolist()
    for _ in range(6):
        ids.append(int(np.argmax(to_numpy(referee(np.array([ids], "int32")))[0, -1])))
    assert generate(KerasEngine(model), [ids[:5]], max_new_tokens=6) == [ids[5:]]


@pytest.mark.slow
def test_the_preset_has_the_sizes_of_the_first_smolite():
    config = PRESETS["smolite-1"]
    referee = first_smolite(32_768, width=256, inside=1024, layers=12, heads=8)
    used = sum(np.prod(variable.shape) for variable in referee.weights if not variable.path.startswith("first_smolite/ln_f/"))
    assert config.num_parameters == used == CausalLM(config).count_params()
    assert (config.context_length, config.dropout, config.norm_epsilon, config.rope_theta) == (100, 0.1, 1e-5, 10_000.0)


def test_neighbours_become_halves():
    assert half_split(np.arange(8), 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_attention_weights_are_dropped_while_training_only():
    """With equal values of 1 in every position, the kept half of the weights counts double: sums stay near 1."""
    attention = LightweightAttn(1, 1, 2, use_bias=True, dropout=0.5)
    hidden, mask = ops.ones((1, 400, 2)), ops.convert_to_tensor(causal_mask(0, 400, 400))
    attention.build((1, 400, 2))
    attention.value.bias.assign([1.0, 1.0])
    attention.output_projection.kernel.assign(np.eye(2))
    attention.value.kernel.assign(np.zeros((2, 2)))
    calm = to_numpy(attention(hidden, None, mask)[0])
    np.testing.assert_allclose(calm, 1, atol=1e-5)
    dropped = to_numpy(attention(hidden, None, mask, training=True)[0])[0, 200:, 0]
    assert dropped.std() > 0.02 and abs(dropped.mean() - 1) < 0.02


def test_it_trains_saves_and_comes_back(tmp_path):
    config = dataclasses.replace(TINY, form="smolite-1", num_key_value_heads=2)
    model = CausalLM(config)
    rows = smolite.pack(fit_context(conversations()[:40], tokenizer(), context_length=64).examples, 64)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=NextTokenLoss(label_smoothing=0.1))
    before, *_, after = model.fit(smolite.ChatDataset(rows, batch_size=8), epochs=3, shuffle=False, verbose=0).history["loss"]
    assert after < before - 0.3
    smolite.save(tmp_path / "run", model, tokenizer())
    again = smolite.load(tmp_path / "run").model
    assert again.config == config
    np.testing.assert_allclose(to_numpy(again(TOKENS)), to_numpy(model(TOKENS)), atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(to_numpy(loaded(TOKENS)), to_numpy(model(TOKENS)), atol=1e-6)


def test_transformers_refuses_the_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    smolite.save(tmp_path / "run", CausalLM(dataclasses.replace(TINY, form="smolite-1")), tokenizer())
    with pytest.raises(ValueError, match="smolite"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run")


def test_another_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must be a file. Received: .*none.h5"):
        read_smolite1(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(ValueError, match="must be a whole HDF5 file"):
        read_smolite1(tmp_path / "text.h5")
    CausalLM(TINY).save_weights(tmp_path / "ours.weights.h5")
    with pytest.raises(ValueError, match="must hold the weights of a first Smolite.*missing: .*token_embedding|all blocks"):
        read_smolite1(tmp_path / "ours.weights.h5")
