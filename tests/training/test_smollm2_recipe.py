"""The recipe `smollm2` at toy size, as the command line runs it. Referees: the files it leaves, and a float32 training."""

import dataclasses
import json

import numpy as np
import pytest
from keras import ops
from safetensors.numpy import load_file
from tiny import TINY, conversations, tokenizer

from smolite import training
from smolite.checkpoint import run as checkpoint
from smolite.checkpoint.weights import model_weights
from smolite.cli import parser as cli
from smolite.models.config import PRESETS
from smolite.training.options import TrainingOptions

CHANGES = {"epochs": 2, "steps_per_epoch": 4, "sample_steps": 3, "batch_size": 2, "sequence_length": 64}
OPENINGS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run that `pretrain` returns, what was printed, and the folder."""
    folder, printed, runs = tmp_path_factory.mktemp("recipe"), [], []
    lines = [message.content for dialogue in conversations()[:80] for message in dialogue.messages]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer_file = folder / "tokenizer.model"
    tokenizer_file.write_bytes(tokenizer().model_proto)
    words = ["pretrain", "--dataset", folder / "text.txt", "--tokenizer", tokenizer_file, "--out", folder / "run"]
    words += ["--preset", "tiny", "--recipe", "smollm2"]
    words += [word for name, value in CHANGES.items() for word in (f"--{name.replace('_', '-')}", value)]
    with pytest.MonkeyPatch.context() as patch:
        pretrain = training.pretrain
        patch.setattr(training, "pretrain", lambda *data, **given: runs.append(pretrain(*data, **given)) or runs[0])
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(map(str, text))))
        patch.setitem(PRESETS, "tiny", dataclasses.replace(TINY, dropout=0.0))
        assert cli.main(list(map(str, words))) == 0, printed
    return runs[0], "\n".join(printed), folder


def test_flags_beside_the_recipe_win_and_the_rest_is_the_recipe(trained):
    options = TrainingOptions.from_recipe("smollm2", **CHANGES).to_dict()
    recipe = json.loads((trained[2] / "run/recipe.json").read_text("utf-8"))
    assert recipe["options"] == options
    assert (options["gradient_accumulation_steps"], options["learning_rate"], options["dtype"]) == (4, 3e-3, "mixed_bfloat16")


def test_steps_are_updates(trained):
    """Four steps in an epoch, four batches in a step; a twentieth of eight steps rounds to no warm-up."""
    run, _, _ = trained
    assert int(ops.convert_to_numpy(run.model.optimizer.iterations)) == 8
    assert int(ops.convert_to_numpy(run.model.optimizer._iterations)) == 32
    rates = [row["learning_rate"] for row in run.recipe["log"]]
    falling = [0.05 + 0.95 * (1 + np.cos(np.pi * share)) / 2 for share in (0.5, 1.0)]
    assert rates == pytest.approx([3e-3 * share for share in falling], rel=1e-3)


def test_samples_come_every_few_steps_whatever_an_epoch_is(trained):
    """After steps 3 and 6 of 8, each with three lines."""
    assert trained[1].count(" → ") == 2 * OPENINGS


def test_the_arithmetic_is_bfloat16_and_the_variables_are_float32(trained):
    model = trained[0].model
    assert {variable.dtype for variable in model.variables if "seed" not in variable.path} == {"float32"}
    assert {moment.dtype for moment in model.optimizer._momentums} == {"float32"}
    layers = [layer for block in model.blocks for layer in (block.attention.query, block.mlp.down, block.mlp_norm)]
    assert {layer.compute_dtype for layer in [*layers, model.token_embedding, model.final_norm]} == {"bfloat16"}
    hidden = ops.convert_to_tensor(np.ones((1, 2, TINY.hidden_dim), "float32"))
    assert str(model.blocks[0].mlp(hidden).dtype).removeprefix("torch.").strip("<>' ").endswith("bfloat16")


def test_it_learns_in_bfloat16_and_saves_float32(trained):
    run, _, folder = trained
    losses = [row["loss"] for row in run.recipe["log"]]
    assert losses[1] < losses[0] < np.log(run.model.config.vocab_size) + 0.6  # logits vary by 1 at first
    stored = load_file(folder / "run/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype("float32")}
    for name, weight in model_weights(run.model).items():
        np.testing.assert_array_equal(stored[name], weight)
    assert checkpoint.load(folder / "run").model.compute_dtype == "float32"
