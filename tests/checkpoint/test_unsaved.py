"""Nothing is lost in silence: what a run directory cannot hold is refused by name, and the run that was there stays whole.

Referees: numpy, and Keras' own quantized layers.
"""

import dataclasses
import gc

import keras
import numpy as np
import pytest
import reference
from reference import AWKWARD_CONFIGS, LEARNED_POSITIONS, PAIR_CONFIGS
from reference import run as run_model
from safetensors.numpy import load_file
from tiny import TINY, tokenizer

from smolite.checkpoint import run as checkpoint
from smolite.checkpoint.places import places_of, weight_shapes
from smolite.checkpoint.weights import assign_weights, model_weights
from smolite.models.causal_lm import CausalLM
from smolite.models.config import PRESETS
from smolite.models.seq2seq_lm import new_language_model

# How torch and numpy speak to Keras' quantized layers.
pytestmark = pytest.mark.filterwarnings("ignore:The use of `x.T`", "ignore:__array__ implementation")

CONFIG = dataclasses.replace(TINY, num_layers=2, hidden_dim=48, head_dim=16, dropout=0.0)
IDS = np.random.RandomState(0).randint(5, 1024, (2, 11)).astype("int32")
QUERY = "model.layers.0.self_attn.q_proj.weight"
CONFIGS = {**AWKWARD_CONFIGS, "learned": LEARNED_POSITIONS, **{f"pairs-{k}": v for k, v in PAIR_CONFIGS.items()}}
CONFIGS["smolite-1"] = dataclasses.replace(
    PRESETS["smolite-1"], vocab_size=60, num_layers=2, hidden_dim=24, intermediate_dim=36, context_length=20
)


@pytest.fixture
def old(tmp_path):
    """A good run that a failed save must leave as it is."""
    return checkpoint.save(tmp_path / "run", CausalLM(CONFIG), tokenizer())


def quantized(mode, config=None):
    keras.utils.set_random_seed(2)
    model = CausalLM(CONFIG)
    gc.freeze()  # Keras collects garbage after each layer, through all that the libraries have made
    model.quantize(mode, config=config, filters=has_numbers_to_quantize)
    gc.unfreeze()
    return model


def has_numbers_to_quantize(layer):
    """Keras warns of each other layer."""
    return isinstance(layer, keras.layers.Dense | keras.layers.Embedding)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(old, model, message, **settings):
    before = contents(old)
    with pytest.raises(ValueError, match=message):
        checkpoint.save(old, model, tokenizer(), overwrite=True, **settings)
    assert contents(old) == before and [path.name for path in old.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_names_and_shapes_of_a_config_are_those_of_its_model(name):
    config, shapes = CONFIGS[name], weight_shapes(CONFIGS[name])
    model = new_language_model(config)
    assert {name: each.shape for name, each in model_weights(model).items()} == shapes
    assert sum(map(np.prod, shapes.values())) == config.num_parameters
    if config.form == "llama":
        assert shapes == reference.tensor_shapes(config)


@pytest.mark.parametrize("bits", [None, 8])
def test_weights_that_the_config_does_not_describe_are_refused(old, bits):
    model = CausalLM(CONFIG)
    model.config = dataclasses.replace(CONFIG, num_layers=3)
    refused(old, model, r"must be those that its config describes. Missing: model.layers.2.input_.* and 6 more.", bits=bits)
    model.config = dataclasses.replace(CONFIG, num_layers=1)
    refused(old, model, r"its config describes. Missing: none. Unexpected: model.layers.1.*Save the model with", bits=bits)
    model.config = dataclasses.replace(CONFIG, intermediate_dim=65)
    refused(old, model, r"Received: model.layers.0.mlp.gate_proj.weight of shape \(64, 48\) for \(65, 48\)", bits=bits)


class OwnProjection(keras.layers.Dense):
    """A projection with a weight that Keras' has not."""

    def build(self, shape):
        super().build(shape)
        self.gain = self.add_weight((self.units,), name="gain")


@pytest.mark.parametrize(("kind", "message"), [(OwnProjection, "query/gain"), (keras.layers.EinsumDense, "query/kernel")])
def test_a_layer_that_has_no_name_is_refused(old, kind, message):
    model = CausalLM(CONFIG)
    attention = model.blocks[0].attention
    settings = {"equation": "btd,dn->btn", "output_shape": (None, 32)} if kind is keras.layers.EinsumDense else {"units": 32}
    attention._tracker.unlock()
    attention.query = kind(**settings, name="query")
    attention.query.build((None, None, 48))
    attention._tracker.lock()
    refused(old, model, rf"must have a name in Hugging Face's layout. Received without one: .*{message}.* Save the model with")
    with pytest.raises(ValueError, match="must have a name in Hugging Face's layout"):
        assign_weights(model, {})


def int8_by_hand(layer, name):
    numbers, scales = (keras.ops.convert_to_numpy(each) for each in (getattr(layer, name), getattr(layer, f"{name}_scale")))
    assert numbers.dtype == np.int8 and np.abs(numbers).max() == 127
    return numbers.astype("float32"), scales


def test_int8_of_keras_is_written_as_the_floats_it_stands_for(old):
    model = quantized("int8")
    tensors = load_file(checkpoint.save(old, model, tokenizer(), overwrite=True) / "model.safetensors")
    numbers, scales = int8_by_hand(model.blocks[0].attention.query, "kernel")
    np.testing.assert_allclose(tensors[QUERY], (numbers / scales).T, rtol=1e-6)
    numbers, scales = int8_by_hand(model.token_embedding, "embeddings")
    np.testing.assert_allclose(tensors["model.embed_tokens.weight"], numbers / scales[:, None], rtol=1e-6)
    expected = run_model(model, IDS)
    # Keras rounds what goes into a layer to one of 255 steps of a row; a run computes in floats.
    assert np.abs(run_model(checkpoint.load(old).model, IDS) - expected).max() < 0.03 * np.abs(expected).max()


def test_int8_of_keras_in_8_bits_keeps_its_whole_numbers(old):
    model = quantized("int8")
    tensors = load_file(checkpoint.save(old, model, tokenizer(), bits=8, overwrite=True) / "model_int8.safetensors")
    numbers, scales = int8_by_hand(model.blocks[1].mlp.down, "kernel")
    np.testing.assert_array_equal(tensors["model.layers.1.mlp.down_proj.weight"], numbers.T)
    np.testing.assert_allclose(tensors["model.layers.1.mlp.down_proj.weight.scale"], 1 / scales, rtol=5e-4)


@pytest.mark.parametrize("block_size", [-1, 16, 128])
def test_int4_of_keras_says_the_same(old, block_size):
    """Keras keeps what goes into an int4 layer in floats, so nothing is rounded but weights."""
    config = keras.quantizers.Int4QuantizationConfig(block_size=block_size, activation_quantizer=None)
    model = quantized("int4", config)
    loaded = checkpoint.load(checkpoint.save(old, model, tokenizer(), overwrite=True)).model
    np.testing.assert_allclose(run_model(loaded, IDS), run_model(model, IDS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_lora_on_quantized_layers_is_merged(old, mode):
    model = quantized(mode)
    layer = model.blocks[0].attention.query
    before = model_weights(model)[QUERY]
    layer.enable_lora(2, lora_alpha=3)
    layer.lora_kernel_b.assign(np.full((2, 32), 0.1))
    change = 1.5 * keras.ops.convert_to_numpy(layer.lora_kernel_a) @ np.full((2, 32), 0.1)
    stored = load_file(checkpoint.save(old, model, tokenizer(), overwrite=True) / "model.safetensors")[QUERY]
    np.testing.assert_allclose(stored, before + change.T, rtol=0, atol=1e-6)
    x = np.random.RandomState(1).standard_normal((1, 3, 48)).astype("float32")
    expected = keras.ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(x @ stored.T, expected, rtol=0, atol=(0.02 if mode == "int8" else 1e-5) * np.abs(expected).max())


def test_what_has_no_floats_is_refused(old):
    projections = CausalLM(CONFIG)
    projections.blocks[0].attention.query.quantize("float8")
    refused(old, projections, r"must be int8 or int4 .* Received: float8 at model.layers.0.*Save the model before")
    model = quantized("int8")
    model.token_embedding.enable_lora(2)
    refused(old, model, r"another table for its output than for its input. Received: one at model.embed_tokens.weight")


def test_weights_are_given_to_plain_layers_alone():
    weights = model_weights(CausalLM(CONFIG))
    lora = CausalLM(CONFIG)
    lora.blocks[0].attention.query.enable_lora(2)
    for model, name in ((lora, QUERY), (quantized("int8"), "model.embed_tokens.weight")):
        with pytest.raises(ValueError, match=rf"model of floats without LoRA. Received: LoRA or a quantized layer at {name}"):
            assign_weights(model, weights)


def test_every_place_is_a_layer_of_the_model():
    model = CausalLM(CONFIG)
    assert {id(layer) for layer, _ in places_of(model).values()} <= {id(layer) for layer in model._flatten_layers()}
