"""Small .litertlm files for several tests, made once per test session."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from exported import SLOTS, exported_run, made_once, random_weights, run_apart, save_small_run

from smolite.checkpoint import run as checkpoint
from smolite.data.template import Message
from smolite.exporters.litertlm.build import bundle
from smolite.models.causal_lm import CausalLM

CONVERT = """
import json, sys
from pathlib import Path
from smolite.checkpoint import run as checkpoint
from smolite.exporters.litert import build as tflite
from smolite.exporters.litert.quantization import quantize_tflite

run, out = map(Path, sys.argv[1:3])
lengths = {"prefill_lengths": json.loads(sys.argv[3]), "cache_length": 160}
tflite.build(checkpoint.load_model(run), out / "model.tflite", quantize=None, **lengths)
quantize_tflite(out / "model.tflite", out / "model_int8.tflite")
"""


def user(text):
    """What a user says, as messages."""
    return [Message("user", text)]


def small_bundles(factory):
    """The run that other tests export, and the folder with the bundles of its .tflite files, `model` and `model_int8`.

    Args:
        factory: pytest's `tmp_path_factory`.
    """
    run = checkpoint.load(exported_run(factory))
    return run, made_once(factory, "bundles", lambda folder: bundle_files(run, run.path / "export", folder, cache_length=SLOTS))


def bundle_files(run: checkpoint.Run, source: Path, folder: Path, *, cache_length: int):
    """Bundles `model.tflite` and `model_int8.tflite` of a folder into another."""
    for name in ("model", "model_int8"):
        bundle(run, source / f"{name}.tflite", folder / f"{name}.litertlm", cache_length=cache_length)


def lively_bundles(factory):
    """As `small_bundles`, of a run with 160 slots that talks in whole pieces, with no bytes and no marker but `<end>`."""
    folder = made_once(factory, "lively", _make_lively)
    return checkpoint.load(folder / "run"), folder


def growing_bundles(factory):
    """As `lively_bundles`, with caches that grow; the .tflite files lie there, too."""
    run = lively_bundles(factory)[0]
    return run, made_once(factory, "growing", lambda folder: _make_bundles(run.path, folder, prefill_lengths=[]))


def _make_lively(folder: Path) -> None:
    run = checkpoint.load(save_small_run(folder))
    model = CausalLM(dataclasses.replace(run.model.config, context_length=160))
    random_weights(model, 0)
    random = np.random.default_rng(0)
    for weight in model.weights:
        if not weight.path.endswith(("scale", "gamma")):
            values = random.normal(0, 0.3, weight.shape)
            mute = np.isin(np.arange(len(values)), [0, 1, 2, 4, *range(6, 262)])[:, None]
            weight.assign(np.where(mute, 0.0, values) if weight is model.token_embedding.embeddings else values)
    shutil.rmtree(run.path)
    checkpoint.save(run.path, model, run.tokenizer)
    _make_bundles(run.path, folder, prefill_lengths=[16])


def _make_bundles(run: Path, folder: Path, *, prefill_lengths: list[int]) -> None:
    run_apart(CONVERT, run, folder, json.dumps(prefill_lengths), KERAS_BACKEND="tensorflow")
    bundle_files(checkpoint.load(run), folder, folder, cache_length=160)
