"""Referees: fields gathered by hand from the rows, and `train_on_batch` on batches in the stated order."""

import keras
import numpy as np
import pytest

from smolite.data.dataset import ChatDataset, pack, unpacked_rows

VOCAB = 40


def examples(count, *, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        answer = rng.integers(5, VOCAB, rng.integers(1, 7)).tolist()
        question = rng.integers(5, VOCAB, rng.integers(1, 5)).tolist()
        made.append(([2, *question, 4, *answer, 3], [0] * (len(question) + 2) + [1] * (len(answer) + 1)))
    return made


ROWS = pack(examples(40), 19)


def assert_same(one, other):
    for left, right in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
        np.testing.assert_array_equal(left, right)


def trained_pairs(tokens, targets, weights, places):
    """Return sorted (token read, target) pairs of the trained places."""
    return sorted((int(tokens[p]), int(targets[p])) for p in places if weights[p])


def test_static_shapes_and_types():
    dataset = ChatDataset(ROWS, 4)
    most = max(np.count_nonzero(ROWS.weights[row]) for row in range(len(ROWS)))
    assert len(ROWS) % 4 and dataset.num_targets == min(-(-most // 8) * 8, 19)
    for x, y, sample_weight in dataset:
        assert {name: array.shape for name, array in x.items()} == {
            "tokens": (4, 19), "positions": (4, 19), "segments": (4, 19), "loss_at": (4, dataset.num_targets)
        }  # fmt: skip
        assert {array.dtype.name for array in x.values()} == {"int32"}
        assert (y.shape, y.dtype) == ((4, dataset.num_targets), "int32")
        assert (sample_weight.shape, sample_weight.dtype) == ((4, dataset.num_targets), "float32")


@pytest.mark.parametrize("rows", [ROWS, unpacked_rows(examples(40), 19)], ids=["packed", "unpacked"])
def test_each_item_gathers_its_rows(rows):
    dataset = ChatDataset(rows, 3, shuffle=False)
    x, y, sample_weight = dataset[1]
    for place, row in enumerate(range(3, 6)):
        np.testing.assert_array_equal(x["tokens"][place], rows.tokens[row])
        np.testing.assert_array_equal(x["positions"][place], rows.positions[row])
        np.testing.assert_array_equal(x["segments"][place], rows.segments[row])
        read = x["tokens"][place][x["loss_at"][place]]
        got = trained_pairs(read, y[place], sample_weight[place], range(dataset.num_targets))
        assert got == trained_pairs(rows.tokens[row], rows.targets[row], rows.weights[row], range(19))
        unused = sample_weight[place] == 0
        assert not x["loss_at"][place][unused].any() and not y[place][unused].any()


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_a_pass_conserves_the_trained_tokens(batch_size):
    dataset = ChatDataset(ROWS, batch_size)
    batches = list(dataset)
    assert len(batches) == len(dataset) == -(-len(ROWS) // batch_size)
    assert sum(sample_weight.sum() for _, _, sample_weight in batches) == ROWS.num_trained
    seen = np.concatenate([x["tokens"] for x, _, _ in batches])
    seen = seen[np.concatenate([x["segments"] for x, _, _ in batches]).any(axis=1)]
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, ROWS.tokens.tolist()))


def test_the_last_short_batch_is_filled_with_padding():
    dataset = ChatDataset(ROWS, len(ROWS) - 1, shuffle=False)
    x, y, sample_weight = dataset[1]
    np.testing.assert_array_equal(x["tokens"][0], ROWS.tokens[-1])
    for array in (*x.values(), y, sample_weight):
        assert not array[1:].any()


def test_a_step_is_a_function_of_the_seed_and_the_step_alone():
    walked, jumped = ChatDataset(ROWS, 4, seed=5), ChatDataset(ROWS, 4, seed=5)
    one_by_one = [walked.batch(step) for step in range(3 * walked.batches_per_pass)]
    for step in (7, 2, 5, 0):
        jumped.seek(step)
        assert_same(jumped[0], one_by_one[step])
        assert_same(jumped[2], one_by_one[step + 2])
    passes = [np.stack([one_by_one[step + part][0]["tokens"] for step in range(2)]) for part in (0, len(walked))]
    assert (passes[0] != passes[1]).any()
    assert (ChatDataset(ROWS, 4, seed=6)[0][0]["tokens"] != one_by_one[0][0]["tokens"]).any()


def test_epochs_go_on_where_the_last_one_ended():
    dataset, plain = ChatDataset(ROWS, 4, steps_per_epoch=5), ChatDataset(ROWS, 4)
    assert len(dataset) == 5
    dataset.on_epoch_end()
    for epoch in range(4):
        assert dataset.step == epoch * 5
        dataset.on_epoch_begin()
        for index in range(5):
            assert_same(dataset[index], plain.batch(epoch * 5 + index))
        dataset.on_epoch_end()


def test_an_epoch_that_was_only_begun_does_not_count():
    dataset = ChatDataset(ROWS, 4)
    dataset.on_epoch_begin()
    dataset[0]
    dataset.on_epoch_end()
    assert dataset.step == 0


@keras.saving.register_keras_serializable("smolite_tests")
class At(keras.layers.Layer):
    def call(self, values, places):
        return keras.ops.take_along_axis(values, places[..., None], axis=1)


def tiny_model(targets):
    shapes = {"tokens": 19, "positions": 19, "segments": 19, "loss_at": targets}
    x = {name: keras.Input((size,), dtype="int32", name=name) for name, size in shapes.items()}
    hidden = keras.layers.Embedding(VOCAB, 8)(x["tokens"]) + keras.layers.Embedding(19, 8)(x["positions"])
    hidden = hidden + keras.layers.Embedding(19, 8)(x["segments"])
    model = keras.Model(x, keras.layers.Dense(VOCAB)(At()(hidden, x["loss_at"])))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    model.compile(keras.optimizers.SGD(0.5), loss, weighted_metrics=["accuracy"])
    return model


def trained(run):
    keras.utils.set_random_seed(1)
    model = tiny_model(ChatDataset(ROWS, 4).num_targets)
    run(model)
    return [keras.ops.convert_to_numpy(weight.value) for weight in model.weights]


def step_by_step(steps):
    def run(model):
        for step in steps:
            model.train_on_batch(*ChatDataset(ROWS, 4, seed=9).batch(step))

    return trained(run)


def test_fit_takes_the_batches_in_order():
    weights = trained(lambda model: model.fit(ChatDataset(ROWS, 4, seed=9, steps_per_epoch=3), epochs=3, **QUIET))
    for left, right in zip(weights, step_by_step(range(9)), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)
    another_order = step_by_step([1, 0, *range(2, 9)])
    assert any(np.abs(left - right).max() > 1e-4 for left, right in zip(weights, another_order, strict=True))


QUIET = {"shuffle": False, "verbose": 0}


def test_a_resumed_fit_goes_on_as_the_unbroken_one():
    def broken(model):
        model.fit(ChatDataset(ROWS, 4, seed=9, steps_per_epoch=3), epochs=1, **QUIET)
        dataset = ChatDataset(ROWS, 4, seed=9, steps_per_epoch=3)
        dataset.seek(3)
        model.fit(dataset, epochs=3, initial_epoch=1, validation_data=ChatDataset(ROWS, 4, shuffle=False), **QUIET)
        assert dataset.step == 9

    for left, right in zip(trained(broken), step_by_step(range(9)), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_evaluate_weighs_each_trained_token_once():
    keras.utils.set_random_seed(1)
    dataset = ChatDataset(ROWS, 4)
    model = tiny_model(dataset.num_targets)
    x, y, sample_weight = ChatDataset(ROWS, len(ROWS)).batch(0)
    logits = keras.ops.convert_to_numpy(model.predict(x, verbose=0))
    right = (logits.argmax(-1) == y) * sample_weight
    accuracy = model.evaluate(dataset, verbose=0, return_dict=True)["accuracy"]
    np.testing.assert_allclose(accuracy, right.sum() / ROWS.num_trained, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1. Received: 0"),
        ({"batch_size": 2, "steps_per_epoch": 0}, "`steps_per_epoch` must be at least 1. Received: 0"),
        ({"batch_size": 2, "seed": -1}, "`seed` must be at least 0. Received: -1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChatDataset(ROWS, **arguments)


def test_bad_places():
    dataset = ChatDataset(ROWS, 4)
    with pytest.raises(ValueError, match="`step` must be at least 0. Received: -1"):
        dataset.seek(-1)
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError, match=f"`index` must be from 0 to .* Received: {index}. Use"):
            dataset[index]


def test_rows_in_which_nothing_is_trained():
    untrained = type(ROWS)(ROWS.tokens, ROWS.targets, ROWS.weights * 0, ROWS.positions, ROWS.segments)
    with pytest.raises(ValueError, match="`rows` must hold a trained token. Received: none"):
        ChatDataset(untrained, 4)


def test_noise_replaces_the_stated_share_of_what_is_read_and_nothing_else():
    spared = sorted(set(ROWS.tokens[ROWS.segments != 0].tolist()))[:2]
    clean = ChatDataset(ROWS, len(ROWS), shuffle=False)
    noisy = ChatDataset(ROWS, len(ROWS), shuffle=False, token_noise=0.25, spared_ids=spared)
    tokens, pool = ROWS.tokens, ROWS.tokens[(ROWS.segments != 0) & ~np.isin(ROWS.tokens, spared)]
    changed, drawn = [], []
    for step in range(200):
        x, y, weights = noisy.batch(step)
        read = x.pop("tokens")
        assert_same((x, y, weights), ({k: v for k, v in clean.batch(step)[0].items() if k != "tokens"}, *clean.batch(step)[1:]))
        open_to_noise = (ROWS.segments != 0) & ~np.isin(tokens, spared)
        np.testing.assert_array_equal(read[~open_to_noise], tokens[~open_to_noise])
        changed.append(np.mean(read[open_to_noise] != tokens[open_to_noise]))
        drawn.append(read[open_to_noise & (read != tokens)])
    repeated = sum(np.mean(pool == index) ** 2 for index in set(pool.tolist()))  # a draw may give the same token again
    assert np.mean(changed) == pytest.approx(0.25 * (1 - repeated), abs=0.01)
    assert set(np.concatenate(drawn).tolist()) == set(pool.tolist())


def test_noise_depends_on_seed_and_step_alone():
    def read(seed, step):
        return ChatDataset(ROWS, 4, seed=seed, token_noise=0.5).batch(step)[0]["tokens"]

    np.testing.assert_array_equal(read(0, 3), read(0, 3))
    same_rows = ChatDataset(ROWS, len(ROWS), shuffle=False, token_noise=0.5)
    assert (same_rows.batch(0)[0]["tokens"] != same_rows.batch(1)[0]["tokens"]).any()
    assert (read(0, 3) != read(1, 3)).any()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_noise_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=rf"`token_noise` must be a share from 0 to below 1. Received: {share}"):
        ChatDataset(ROWS, 4, token_noise=share)


def test_rows_in_which_every_place_is_learnt_need_no_gathering():
    rows = pack([(list(range(5, 22)), [1] * 17)] * 3, 16)
    x, y, weights = ChatDataset(rows, 2, shuffle=False)[0]
    assert "loss_at" not in x
    np.testing.assert_array_equal(y, np.where(rows.weights[:2] != 0, rows.targets[:2], 0))
    np.testing.assert_array_equal(weights, rows.weights[:2])
