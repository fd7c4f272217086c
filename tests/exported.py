"""A small run and its exported files, converted once per test session in a process of their own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from filelock import FileLock

from smolite.checkpoint import run as checkpoint
from smolite.exporters.delivery.client_files import write_client_files
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.text.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
LAYERS, SLOTS, PREFILL = 3, 48, (4, 16)
WINDOWS, DRAFTS = (8, 20), 3
TEXTS = ["안녕하세요 반가워요", "오늘 점심 뭐 먹을까?", "나는 학생이에요", "abc xyz 0123456789 .,?!"]

CONVERT = """
import sys
from pathlib import Path
from ai_edge_quantizer import quantizer, recipe
from smolite.checkpoint import run as checkpoint
from smolite.exporters.litert.quantization import quantize_tflite
from smolite.exporters.saved_model.build import build_saved_model
from smolite.exporters.litert.build import build_tflite

run, out = map(Path, sys.argv[1:])
model = checkpoint.load_model(run)
names = build_saved_model(model, out / "saved_model", prefill_lengths=(4, 16), cache_length=48)
build_tflite(out / "saved_model", out / "model.tflite", names)
quantize_tflite(out / "model.tflite", out / "model_int8.tflite")
plain = quantizer.Quantizer(str(out / "model.tflite"), recipe.dynamic_wi8_afp32()).quantize()
(out / "plain_int8.bin").write_bytes(plain.quantized_model)
"""


CONVERT_WINDOWED = f"""
import sys
from pathlib import Path
from smolite.checkpoint import run as checkpoint
from smolite.exporters.litert import build as tflite

run, path = map(Path, sys.argv[1:])
lengths = dict(prefill_lengths={PREFILL}, cache_length={SLOTS}, windows={WINDOWS}, drafts={DRAFTS})
tflite.build(checkpoint.load_model(run), path, quantize=None, **lengths)
"""


def small_config(vocab_size: int) -> ModelConfig:
    """Awkward on purpose: heads of 12 are not hidden / heads, a third as many for keys, theta is not 10,000."""
    return ModelConfig(
        vocab_size=vocab_size,
        num_layers=LAYERS,
        num_query_heads=6,
        num_key_value_heads=2,
        hidden_dim=40,
        intermediate_dim=56,
        head_dim=12,
        context_length=64,
        rope_theta=5e4,
    )


def random_weights(model: CausalLM, seed: int) -> None:
    """Gives every weight, norm scales too, random values that make a lively model."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        is_scale = weight.path.endswith(("scale", "gamma"))
        weight.assign(random.uniform(0.5, 1.5, weight.shape) if is_scale else random.normal(0, 0.08, weight.shape))


def save_small_run(folder: Path, *, seed: int = 0, vocab_size: int = 330) -> Path:
    """A run directory of a small model with random weights."""
    tokenizer = train_tokenizer(TEXTS, folder / "tokenizer.model", vocab_size=vocab_size)
    model = CausalLM(small_config(tokenizer.vocab_size))
    random_weights(model, seed)
    return checkpoint.save(folder / "run", model, tokenizer)


def made_once(factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` has filled: for the first process that runs tests and asks for it; others get a copy.

    Args:
        factory: pytest's `tmp_path_factory`.
        name: of the folder.
        make: takes the empty folder.
    """
    own = factory.getbasetemp() / name
    if own.exists():
        return own
    shared = own.parents[1] / name if "PYTEST_XDIST_WORKER" in os.environ else own
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            shared.mkdir()
            try:
                make(shared)
            except BaseException:
                shutil.rmtree(shared)
                raise
    return own if own == shared else Path(shutil.copytree(shared, own))


def exported_run(factory) -> Path:
    """The run directory; its `export` folder holds a SavedModel and both .tflite files, with prefill 4 and 16 and 48 slots.

    Args:
        factory: pytest's `tmp_path_factory`.
    """
    return made_once(factory, "exported", _export) / "run"


def _export(folder: Path) -> None:
    run = save_small_run(folder)
    (run / "export").mkdir()
    run_apart(CONVERT, run, run / "export", KERAS_BACKEND="tensorflow")
    loaded = checkpoint.load(run)
    write_client_files(run / "export", tokenizer=loaded.tokenizer, template=loaded.template)


def windowed_file(factory) -> Path:
    """The .tflite file of the same run that also looks at 8 or 20 slots and checks 3 drafts, with what a client needs."""

    def convert(folder):
        run = checkpoint.load(exported_run(factory))
        run_apart(CONVERT_WINDOWED, run.path, folder / "model.tflite", KERAS_BACKEND="tensorflow")
        write_client_files(folder, tokenizer=run.tokenizer, template=run.template)

    return made_once(factory, "windowed", convert) / "model.tflite"


def run_apart(code: str, *arguments, **environment) -> str:
    """What a fresh interpreter prints that runs `code`; its errors fail the test."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": path} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def keras_logits(model: CausalLM, ids: list[int]) -> np.ndarray:
    """(T, V) logits of the plain forward without a cache."""
    return keras.ops.convert_to_numpy(model({"tokens": np.array([ids])}))[0]


def follow(engine, ids, split):
    """Logits after every id from `split` on, the first `split` ids read as a prompt."""
    return np.concatenate([engine.start([ids[:split]]), *(engine.step([index]) for index in ids[split:])])
