"""What both kinds of model share. Referee: the model itself, made anew from what it says of itself."""

import keras
import numpy as np
import pytest
from reference import AWKWARD_CONFIGS, PAIR_CONFIGS, random_model

ROWS = np.random.RandomState(3).randint(0, 61, (2, 7)).astype("int32")


@pytest.fixture(scope="module", params=[AWKWARD_CONFIGS["grouped"], PAIR_CONFIGS["learned"]], ids=["decoder", "pairs"])
def model(request):
    return random_model(request.param, dtype="mixed_bfloat16")


def test_every_layer_is_made_anew_from_its_config(model):
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    for layer in layers:
        again = type(layer).from_config(layer.get_config())
        assert (again.name, again.dtype_policy.name) == (layer.name, layer.dtype_policy.name)
    assert "take_positions" in [layer.name for layer in layers]


def test_the_model_made_anew_says_the_same(model):
    again = type(model).from_config(model.get_config())
    assert [weight.path for weight in again.weights] == [weight.path for weight in model.weights]
    again.set_weights(model.get_weights())
    inputs = dict.fromkeys(model.needed_names, ROWS)
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(each(inputs)) for each in (model, again)))
