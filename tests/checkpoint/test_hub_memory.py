"""The referee is the kernel: the most memory that a process ever held while it loaded a folder."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16
from reference import AWKWARD_CONFIGS, tensor_shapes
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
CONFIG = dataclasses.replace(
    AWKWARD_CONFIGS["grouped"], vocab_size=8192, num_layers=12, hidden_dim=512, intermediate_dim=1376, context_length=64
)
MOST = 1.5  # times the float32 weights

LOAD = """
import sys
from pathlib import Path
from smolite import CausalLM, ModelConfig
from smolite.checkpoint.run import load_model

def held(line):
    return next(int(text.split()[1]) * 1024 for text in open("/proc/self/status") if text.startswith(line))

CausalLM(ModelConfig.from_preset("smolite-small", vocab_size=64, num_layers=1))  # what every process pays once
Path("/proc/self/clear_refs").write_text("5")  # forgets the most that was held
before = held("VmRSS")
model = load_model(sys.argv[1])
print((held("VmHWM") - before) / (4 * model.config.num_parameters))
"""


def write_folder(folder, dtype, *, num_files, head):
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(CONFIG).items()
    tensors = {name: (rng.standard_normal(shape, "float32") / 50).astype(dtype) for name, shape in shapes}
    if head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    (folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    files = {f"model-{number}.safetensors": sorted(tensors)[number::num_files] for number in range(num_files)}
    if num_files == 1:
        files = {"model.safetensors": sorted(tensors)}
    for file, names in files.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget the most memory held")
@pytest.mark.parametrize(("dtype", "num_files", "head"), [("float32", 1, False), (bfloat16, 3, True)])
def test_loading_needs_little_more_memory_than_the_weights(tmp_path, dtype, num_files, head):
    write_folder(tmp_path, dtype, num_files=num_files, head=head)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < MOST, f"{float(done.stdout):.2f} times the weights"
