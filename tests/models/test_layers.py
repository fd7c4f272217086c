"""Referees: the numpy reference, and what the mathematics of a layer promises. 1e-5 in float32."""

import keras
import numpy as np
import pytest
import reference
from keras import ops
from reference import AWKWARD_CONFIGS, compiled, random_weights, run

from smolite.models.config import MASKED_SCORE
from smolite.models.layers import (
    CausalMask,
    DecoderBlock,
    LightweightAttn,
    RotaryEmbedding,
    SwiGLU,
    repeat_for_groups,
    rotate,
)

LENGTH = 7
LAYERS = {
    "rotary": lambda: RotaryEmbedding(6, 5e4, name="r"),
    "mask": lambda: CausalMask(3, name="m"),
    "attention": lambda: LightweightAttn(4, 2, 6, name="a", dtype="mixed_bfloat16"),
    "swiglu": lambda: SwiGLU(20, name="s", dtype="mixed_bfloat16"),
    "block": lambda: DecoderBlock(6, 2, 12, intermediate_dim=56, norm_epsilon=1e-3, dropout=0.25, name="b"),
}


def noise(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype("float32")


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def tables(config, positions):
    """The rotary tables of (B or 1, T) positions."""
    return run(RotaryEmbedding(config.head_dim, config.rope_theta), positions, positions)


def block_of(config, **settings):
    """A block with the weights of layer 0 of the reference, and those weights."""
    heads = config.num_query_heads, config.num_key_value_heads, config.head_dim
    shape = {"intermediate_dim": config.intermediate_dim, "norm_epsilon": config.norm_epsilon}
    layer = DecoderBlock(*heads, **shape, **settings)
    layer.build((None, None, config.hidden_dim))
    weights = {name: value for name, value in random_weights(config).items() if ".layers.0." in name}
    attn, mlp, start = layer.attention, layer.mlp, "model.layers.0."
    dense = {"self_attn.q_proj": attn.query, "self_attn.k_proj": attn.key, "self_attn.v_proj": attn.value}
    dense |= {"self_attn.o_proj": attn.output_projection, "mlp.gate_proj": mlp.gate, "mlp.up_proj": mlp.up}
    for name, projection in {**dense, "mlp.down_proj": mlp.down}.items():
        projection.kernel.assign(weights[f"{start}{name}.weight"].T)
    layer.attention_norm.scale.assign(weights[start + "input_layernorm.weight"])
    layer.mlp_norm.scale.assign(weights[start + "post_attention_layernorm.weight"])
    return layer, weights


@pytest.fixture(scope="module", params=["grouped", "multi-query"])
def setting(request):
    """A config, a block of it and the block's weights."""
    config = AWKWARD_CONFIGS[request.param]
    return config, *block_of(config)


def of_kind(weights, part, *kinds):
    return {kind: weights[f"model.layers.0.{part}.{kind}_proj.weight"] for kind in kinds}


def inputs_of(config, *, segments=None):
    """Two rows of hidden states, their rotary tables and their mask."""
    positions = np.arange(LENGTH)[None]
    mask = run(CausalMask(config.num_query_heads // config.num_key_value_heads), positions, segments)
    return noise(2, LENGTH, config.hidden_dim), tables(config, positions), mask


def test_rotary_turns_half_split_pairs_as_the_reference_does(setting):
    config = setting[0]
    heads = noise(2, LENGTH, 3, config.head_dim)
    positions = np.array([[0, 1, 2, 9, 10, 40, 41], [5, 5, 0, 1, 2, 3, 79]])
    turned = run(rotate, heads, *tables(config, positions))
    for row, head in np.ndindex(2, 3):
        close(turned[row, :, head], reference.rope(heads[row, :, head], positions[row], config.rope_theta))


def test_rotary_counts_from_zero_without_positions_and_reaches_far():
    layer = RotaryEmbedding(6, 5e4)
    tokens = np.zeros((2, 5), "int32")
    for given, counted in zip(run(layer, tokens, np.arange(5)[None]), run(layer, tokens), strict=True):
        np.testing.assert_array_equal(given, counted)
    angle = 8191 * 5e4 ** (-np.arange(3) / 3)
    cosines, sines = run(layer, tokens[:1, :1], np.array([[8191]]))
    # float32 holds an angle of 8191 to 5e-4, whoever computes it
    np.testing.assert_allclose(cosines.ravel(), np.cos(angle), atol=1e-3)
    np.testing.assert_allclose(sines.ravel(), np.sin(angle), atol=1e-3)


def test_rotary_tables_stay_float32_under_a_half_precision_policy():
    layer = RotaryEmbedding(6, dtype="mixed_bfloat16")
    assert layer.compute_dtype == "float32"
    assert {keras.backend.standardize_dtype(table.dtype) for table in layer(np.zeros((1, 3)))} == {"float32"}


def test_causal_mask_looks_back_and_stays_inside_a_segment():
    plain = run(CausalMask(), np.zeros((2, 4)))
    np.testing.assert_array_equal(plain[0, 0] == 0, np.tril(np.ones((4, 4), bool)))
    mask = run(CausalMask(2), np.zeros((1, 4)), np.array([[1, 1, 2, 0]]))
    visible = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] * 2)
    np.testing.assert_array_equal(mask[0, 0], np.where(visible, 0.0, MASKED_SCORE).astype("float32"))


def test_repeat_for_groups_stacks_the_mask_once_per_query_of_a_group():
    mask = noise(2, 1, 3, 5)
    assert repeat_for_groups(mask, 1) is mask
    repeated = run(lambda mask: repeat_for_groups(mask, 2), mask)
    np.testing.assert_array_equal(repeated, np.tile(mask, (1, 1, 2, 1)))


def test_attention_equals_the_reference(setting):
    config, layer, weights = setting
    segments = np.array([[1, 1, 1, 2, 2, 2, 0], [1] * LENGTH])
    hidden, rotary, mask = inputs_of(config, segments=segments)
    mixed, _ = run(layer.attention, hidden, rotary, mask)
    projections = of_kind(weights, "self_attn", *"qkvo")
    for x, row, parts in zip(hidden, mixed, segments, strict=True):
        close(row, reference.attention(x, projections, config, np.arange(LENGTH), reference.causal(parts)))


def test_attention_sees_only_how_far_apart_tokens_are(setting):
    """Rotary embedding before the projections, or of the values, would make it depend on where they stand."""
    config, layer, _ = setting
    hidden, rotary, mask = inputs_of(config)
    places = np.arange(LENGTH)[None]
    plain, moved, stretched = (
        run(layer.attention, hidden, turn, mask)[0]
        for turn in (rotary, tables(config, 23 + places), tables(config, 3 * places))
    )
    np.testing.assert_allclose(moved, plain, rtol=0, atol=2e-4)  # float32 holds an angle of 30 to 2e-6
    assert np.abs(stretched - plain).max() > 0.05


def test_the_cache_holds_rotated_keys_and_plain_values(setting):
    config, layer, weights = setting
    hidden, rotary, mask = inputs_of(config)
    _, (keys, values) = run(layer.attention, hidden, rotary, mask)
    size, projections = config.head_dim, of_kind(weights, "self_attn", *"kv")
    for head in range(config.num_key_value_heads):
        rows = slice(head * size, (head + 1) * size)
        key = hidden[1] @ projections["k"][rows].T
        close(keys[1, head], reference.rope(key, np.arange(LENGTH), config.rope_theta))
        close(values[1, head].T, hidden[1] @ projections["v"][rows].T)


def test_attention_is_across_positions(setting):
    """The first token sees itself alone; a change shows at its own position and at all later ones."""
    config, layer, weights = setting
    hidden, rotary, mask = inputs_of(config)
    mixed, _ = run(layer.attention, hidden, rotary, mask)
    value, output = of_kind(weights, "self_attn", *"vo").values()
    groups = config.num_query_heads // config.num_key_value_heads
    value = np.repeat(value.reshape(-1, config.head_dim, config.hidden_dim), groups, axis=0)
    close(mixed[:, 0], hidden[:, 0] @ value.reshape(-1, config.hidden_dim).T @ output.T)
    changed = hidden + (np.arange(LENGTH) == 3)[:, None].astype("float32")
    difference = np.abs(run(layer.attention, changed, rotary, mask)[0] - mixed).max(axis=(0, 2))
    assert difference[:3].max() < 1e-6 and difference[3:].min() > 1e-3


def test_attention_with_a_cache_equals_attention_without(setting):
    config, layer, _ = setting
    hidden, rotary, mask = inputs_of(config)
    shape, groups = (2, config.num_key_value_heads), config.num_query_heads // config.num_key_value_heads
    size = config.head_dim
    cache = np.zeros((*shape, 9, size), "float32"), np.zeros((*shape, size, 9), "float32")
    parts = []
    for first, last in ((0, 4), (4, LENGTH)):
        turn = tables(config, np.arange(first, last)[None])
        seen = np.tile(reference.causal_mask(first, last - first, 9), (1, 1, groups, 1))
        mixed, cache = run(layer.attention, hidden[:, first:last], turn, seen, cache=cache, slot=first)
        parts.append(mixed)
    close(np.concatenate(parts, 1), run(layer.attention, hidden, rotary, mask)[0])


def test_swiglu_and_the_block_equal_the_reference(setting):
    config, layer, weights = setting
    hidden, rotary, mask = inputs_of(config)
    close(run(layer.mlp, hidden), reference.swiglu(hidden, of_kind(weights, "mlp", "gate", "up", "down")))
    out, _ = run(layer, hidden, rotary, mask)
    for row in range(2):
        close(
            out[row],
            reference.block(hidden[row], weights, "model.layers.0", config, np.arange(LENGTH), np.tri(LENGTH, dtype=bool)),
        )


def test_dropout_drops_while_training_only():
    config = AWKWARD_CONFIGS["grouped"]
    layer, _ = block_of(config, dropout=0.5)
    variants = {"training": True}, {"training": False}, {}
    call = compiled(lambda *inputs: [layer(*inputs, **variant)[0] for variant in variants])
    dropped, silent, default = map(reference.to_numpy, call(*inputs_of(config)))
    np.testing.assert_array_equal(silent, default)
    assert np.abs(dropped - silent).max() > 0.1


@pytest.mark.parametrize("make", LAYERS.values(), ids=list(LAYERS))
def test_a_layer_survives_its_config_and_serialisation(make):
    layer = make()
    through_keras = keras.layers.deserialize(keras.layers.serialize(layer))
    for copy in (type(layer).from_config(layer.get_config()), through_keras):
        assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
        assert copy.dtype_policy.name == layer.dtype_policy.name


def test_a_block_forgets_the_axis_that_keras_changes_when_it_builds_a_norm():
    """`RMSNormalization` turns axis -1 into [-1] when it is built, so its config changes; ours must not."""
    norm = keras.layers.RMSNormalization()
    before = norm.get_config()["axis"]
    norm.build((None, 4))
    assert before == -1 and norm.get_config()["axis"] == [-1]
    layer = LAYERS["block"]()
    fresh = layer.get_config()
    layer.build((None, None, 42))
    assert layer.get_config() == fresh
    copy = DecoderBlock.from_config(layer.get_config())
    copy.build((None, None, 42))
    assert [weight.shape for weight in copy.weights] == [weight.shape for weight in layer.weights]


def test_every_part_of_a_block_computes_in_the_policy_of_the_block():
    config = AWKWARD_CONFIGS["grouped"]
    layer, _ = block_of(config, dtype="mixed_bfloat16")
    hidden, rotary, mask = inputs_of(config)
    hidden = ops.cast(hidden, "bfloat16")
    parts = layer.attention_norm, layer.attention.query, layer.mlp_norm, layer.mlp

    def every_output(hidden, rotary, mask):
        mixed, cache = layer.attention(hidden, rotary, mask)
        return [*(part(hidden) for part in parts), mixed, *cache, layer(hidden, rotary, mask)[0]]

    for tensor in compiled(every_output)(hidden, rotary, mask):
        assert keras.backend.standardize_dtype(tensor.dtype) == "bfloat16"
    assert {weight.dtype for weight in layer.weights} == {"float32"}
