"""Referees: numpy, `keras.ops`, and Keras' own answers to which backend and which devices there are."""

import importlib
import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from smolite.backends import Backend, backend, what_to_install
from smolite.backends.seams import NAMES, ROW_PARTS

IN_USE = keras.backend.backend()
RNG = np.random.default_rng(2)


def noise(*shape):
    return RNG.standard_normal(shape).astype("float32")


def test_the_backend_in_use_answers_and_is_chosen_once():
    assert backend().name == IN_USE and backend() is backend()


@pytest.mark.parametrize("name", NAMES)
def test_every_backend_answers_with_the_arguments_that_are_asked(name):
    answers = importlib.import_module(f"smolite.backends.{name}").BACKEND
    assert isinstance(answers, Backend) and answers.name == name
    for seam, asked in inspect.getmembers(Backend, inspect.isfunction):
        assert inspect.signature(getattr(type(answers), seam)) == inspect.signature(asked), seam


def test_a_backend_of_keras_that_smolite_does_not_know(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "numpy")
    with pytest.raises(ValueError, match="must run on one of tensorflow, jax, torch. Received: numpy. Set .* KERAS_BACKEND"):
        backend()


def test_the_room_is_light_until_it_is_asked():
    code = "import sys, smolite.backends as b; b.what_to_install; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"keras", "numpy", *NAMES} & set(loaded)


def test_what_is_said_of_a_missing_backend_and_of_another_missing_module():
    missing = ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow.python")
    assert "smolite.load` needs the Keras backend tensorflow" in what_to_install(missing, wanted_by="smolite.load")
    assert what_to_install(ModuleNotFoundError(name="scipy"), wanted_by="smolite.load") == ""


def test_what_a_compiled_function_is_made_of():
    on_gpu = IN_USE != "torch" and any("gpu" in device for device in keras.distribution.list_devices())
    xla = IN_USE in ("tensorflow", "jax") and not on_gpu
    assert backend().row_parts() == (ROW_PARTS if xla else 1)
    assert backend().jit_compile() == (False if IN_USE == "tensorflow" and not on_gpu else "auto")
    assert (backend().has_loops, backend().is_one_program) == (IN_USE != "torch", IN_USE == "jax")


@pytest.mark.parametrize("is_step", [False, True])
def test_a_compiled_function_sees_later_weights(is_step):
    layer = keras.layers.Dense(2, use_bias=False)
    layer.build((None, 3))
    model = keras.Sequential([layer])
    model.build((1, 3))
    inputs, added = noise(1, 3), noise(1, 2)
    run = backend().compiled(model, lambda model, tokens, cache: (model(tokens) + cache, cache), is_step=is_step)
    for _ in range(2):
        layer.kernel.assign(noise(3, 2))
        outputs, cache = run(ops.convert_to_tensor(inputs), ops.convert_to_tensor(added))
        expected = inputs @ ops.convert_to_numpy(layer.kernel) + added
        np.testing.assert_allclose(ops.convert_to_numpy(outputs), expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(ops.convert_to_numpy(cache), added)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_slice_is_written_where_it_belongs(axis):
    part, new = noise(2, 4, 4), noise(*(1 if i == axis else n for i, n in enumerate((2, 4, 4))))
    starts = [0, 0, 0]
    starts[axis] = ops.convert_to_tensor(np.array(3, "int32"))
    actual = backend().write_slice(ops.convert_to_tensor(np.copy(part)), tuple(starts), ops.convert_to_tensor(new))
    np.testing.assert_array_equal(np.take(ops.convert_to_numpy(actual), [3], axis), new)
    np.testing.assert_array_equal(np.delete(ops.convert_to_numpy(actual), 3, axis), np.delete(part, 3, axis))


@pytest.mark.skipif(IN_USE != "torch", reason="the others fuse Keras' own operations")
def test_updates_in_one_pass():
    one_pass, shapes = backend().one_pass, [(3, 2), (5,)]
    gradients, sums = [noise(*shape) for shape in shapes], [noise(*shape) for shape in shapes]
    norm = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients))
    tensors = [ops.convert_to_tensor(gradient.copy()) for gradient in gradients]
    totals = [ops.convert_to_tensor(each.copy()) for each in sums]
    one_pass.clip_by_global_norm(tensors, 0.5)
    one_pass.add(totals, tensors)
    for total, each, gradient in zip(totals, sums, gradients, strict=True):
        np.testing.assert_allclose(total.numpy(), each + gradient * 0.5 / norm, rtol=0, atol=1e-6)
    one_pass.clear(totals)
    assert all(not total.numpy().any() for total in totals)


def adamw_by_numpy(weight, gradient, first, second, *, count, learning_rate, weight_decay, beta_1, beta_2, epsilon):
    """Loshchilov and Hutter 2019 with Keras' place of `epsilon`: added before the second moment is corrected."""
    first = beta_1 * first + (1 - beta_1) * gradient
    second = beta_2 * second + (1 - beta_2) * gradient**2
    rate = learning_rate * np.sqrt(1 - beta_2 ** (count + 1)) / (1 - beta_1 ** (count + 1))
    return weight * (1 - learning_rate * weight_decay) - rate * first / (np.sqrt(second) + epsilon), first, second


@pytest.mark.skipif(IN_USE != "torch", reason="the others fuse Keras' own operations")
@pytest.mark.parametrize("count", [0, 7])
def test_adamw_in_one_pass(count):
    settings = {"count": count, "learning_rate": 0.1, "weight_decay": 0.2, "beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01}
    given = noise(3, 2), noise(3, 2), noise(3, 2), np.abs(noise(3, 2))
    weight, gradient, first, second = (ops.convert_to_tensor(each.copy()) for each in given)
    backend().one_pass.adamw([weight], [gradient], ([first], [second]), **settings)
    for actual, expected in zip((weight, first, second), adamw_by_numpy(*given, **settings), strict=True):
        np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-6)
