"""What a user of Keras expects of a language model. Referees: keras-hub's Llama under the same call, and Keras' own losses."""

import gc
import math

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.models.layers import DecoderBlock
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
WITH_XLA = keras.backend.backend() == "jax"  # which takes long over a first step on TensorFlow


def little(**changes):
    keras.utils.set_random_seed(1)
    return CausalLM(ModelConfig.from_dict({**LITTLE.to_dict(), **changes}))


def little_pairs(**changes):
    keras.utils.set_random_seed(1)
    return Seq2SeqLM(ModelConfig.from_dict({**LITTLE.to_dict(), "num_encoder_layers": 1, **changes}))


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


MODEL = little()
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


def test_the_default_loss_comes_back_with_a_saved_model(tmp_path):
    model = little()
    model.compile("adam", jit_compile=WITH_XLA)
    model.fit(TOKENS, TARGETS, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(copy.loss, NextTokenLoss) and int(ops.convert_to_numpy(copy.optimizer.iterations)) == 2
    ours, theirs = (each.test_on_batch(TOKENS, TARGETS, return_dict=True) for each in (model, copy))
    assert ours == pytest.approx(theirs, abs=1e-5)


SCOPES = {
    "full": {},
    "larger_than": {"output_size_threshold": 8},
    "list_of_layers": {"layer_names": ["block_1", "mlp"]},
    "activations": {},
    None: {},
}


def losses_of_fit(model):
    model.compile(keras.optimizers.SGD(0.5), jit_compile=WITH_XLA)
    keras.utils.set_random_seed(2)
    return model.fit(fed(model), TARGETS, epochs=3, verbose=0).history["loss"]


@pytest.fixture(scope="module")
def losses():
    return {make: losses_of_fit(make(dropout=0.2)) for make in (little, little_pairs)}


@pytest.mark.parametrize("make, mode", [*((little, mode) for mode in SCOPES), (little_pairs, "full")])
def test_a_model_made_in_a_remat_scope_learns_the_same(losses, make, mode, monkeypatch):
    """Dropout included. In the backward pass a block of torch or TensorFlow is called again; JAX does so by itself."""
    calls, call = [], DecoderBlock.call
    with keras.RematScope(mode, **SCOPES[mode]):
        model = make(dropout=0.2)
    monkeypatch.setattr(DecoderBlock, "call", lambda self, *args, **kwargs: calls.append(1) or call(self, *args, **kwargs))
    assert losses_of_fit(model) == pytest.approx(losses[make], abs=1e-5)
    if keras.backend.backend() == "torch":
        kept = {"full": 0, "larger_than": 0, "list_of_layers": 1}.get(mode, 2)
        assert make is little_pairs or len(calls) - 2 == 3 * (2 + 2 - kept)  # two when Keras builds the model


def same_logits(first, second):
    """Largest difference of what two models say of the same tokens."""
    logits = [ops.convert_to_numpy(model(fed(model))) for model in (first, second)]
    return np.abs(logits[0] - logits[1]).max()


@pytest.mark.parametrize("make", [little, little_pairs])
def test_a_clone_has_the_shape_and_takes_the_weights(make):
    model = make()
    clone = keras.models.clone_model(model)
    assert not set(map(id, clone.variables)) & set(map(id, model.variables))
    clone.set_weights(model.get_weights())
    logits = [ops.convert_to_numpy(each(fed(model))) for each in (model, clone)]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)
    copy = type(model).from_config(model.get_config())
    assert type(copy) is type(model) and copy.config == model.config


def classifier(inputs, hidden):
    model = keras.Model(inputs, keras.layers.Dense(2, name="classes")(hidden[:, -1]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, jit_compile=WITH_XLA)
    return model


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_head_on_the_backbone_takes_tokens_alone(make, tmp_path):
    model = make()
    before = model.get_weights()[1].copy()
    head = classifier(model.backbone.input, model.backbone.output)
    classes = np.array([0, 1])
    head.fit(fed(model), classes, verbose=0, epochs=2)
    assert np.abs(model.get_weights()[1] - before).max() > 0, "the layers are shared"
    if make is little_llama:
        return  # whose blocks have no `get_config` that works
    head.save(tmp_path / "head.keras")
    again = keras.saving.load_model(tmp_path / "head.keras")
    np.testing.assert_allclose(again.predict(fed(model), verbose=0), head.predict(fed(model), verbose=0), rtol=0, atol=1e-5)


def test_the_backbone_ends_in_the_final_norm_and_input_and_output_are_of_tokens():
    model = little()
    logits = ops.convert_to_numpy(model(TOKENS))
    hidden = model.backbone(TOKENS)
    assert hidden.shape == (2, 11, 16)
    table = ops.convert_to_numpy(model.token_embedding.embeddings)
    np.testing.assert_allclose(ops.convert_to_numpy(hidden) @ table.T, logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(keras.Model(model.input, model.output).predict(TOKENS, verbose=0), logits, rtol=0, atol=1e-5)
    assert len(model.backbone.variables) == len(model.variables) and model.backbone is model.backbone


@pytest.mark.parametrize("make, mode", [(little, "int8"), (little, "int4"), (little_pairs, "int8")])
@pytest.mark.filterwarnings("ignore")
def test_a_quantized_model_is_saved_and_loaded(make, mode, tmp_path, monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # which Keras calls for each layer
    model = make(num_layers=1)
    model.quantize(mode)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    copy = keras.saving.load_model(tmp_path / "model.keras")
    assert same_logits(model, copy) < 1e-5
    other = type(model).from_config(model.get_config())
    other.load_weights(tmp_path / "model.weights.h5")
    assert same_logits(model, other) < 1e-5
    kinds = [[variable.dtype for variable in each.variables] for each in (model, copy)]
    assert kinds[0] == kinds[1] and "int8" in kinds[0]


def train_adapters(model):
    model.compile(keras.optimizers.SGD(1.0), jit_compile=WITH_XLA)
    model.fit(fed(model), TARGETS, epochs=2, verbose=0)


@pytest.mark.parametrize("make", [little, little_pairs])
def test_lora_trains_the_adapters_alone_and_is_saved_merged(make, tmp_path):
    model, frozen = make(), make()
    frozen.set_weights(model.get_weights())
    model.enable_lora(2)
    projections = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)]
    assert len(projections) >= 14 and all(layer.lora_enabled for layer in projections)
    assert {variable.path.split("/")[-1] for variable in model.trainable_variables} == {"lora_kernel_a", "lora_kernel_b"}
    assert same_logits(model, frozen) < 1e-5
    train_adapters(model)
    assert same_logits(model, frozen) > 1e-3
    model.save(tmp_path / "model.keras")
    assert same_logits(model, keras.saving.load_model(tmp_path / "model.keras", compile=False)) < 1e-5


def test_lora_on_named_layers_as_in_keras_hub():
    ours, theirs = little(), little_llama().backbone
    for model in (ours, theirs):
        model.enable_lora(rank=2, target_layer_names=["query", "value"])
    assert len(ours.trainable_variables) == len(theirs.trainable_variables) == 2 * 2 * 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0,), "`rank` must be 1 or more. Received: 0"),
        ((2, ["query", "q_proj"]), "must be names of projections: down, gate, key.*Received: q_proj. Leave it out"),
    ],
)
def test_lora_that_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MODEL.enable_lora(*arguments)
    assert len(MODEL.trainable_variables) == len(MODEL.variables)


def test_lora_twice_is_refused():
    model = little()
    model.enable_lora(2)
    with pytest.raises(ValueError, match="A model gets LoRA once. Received: one whose .*query.* have it."):
        model.enable_lora(2)


@pytest.mark.parametrize("make", [little, little_pairs])
def test_every_matrix_has_a_layout(make):
    """Each has both axes in its own, and a vector none: it is whole everywhere."""
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    model = make()
    layouts = model.get_layout_map(mesh)
    for variable in model.variables:
        layout = layouts[variable.path]
        if len(variable.shape) == 2:
            assert layout is not None and sorted(filter(None, layout.axes)) == ["batch", "model"], variable.path
        else:
            assert layout is None, variable.path


def test_a_mesh_without_the_axes_is_refused():
    mesh = keras.distribution.DeviceMesh((1,), ("data",), ["cpu:0"])
    with pytest.raises(ValueError, match="must have the axes 'batch' and 'model'|the axes 'model' and 'batch'"):
        CausalLM.get_layout_map(mesh)
    with pytest.raises(ValueError, match="must be a keras.distribution.DeviceMesh. Received: 8"):
        CausalLM.get_layout_map(8)
