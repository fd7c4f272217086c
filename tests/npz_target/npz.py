"""What makes, runs, proves and plans .npz files; nothing of smolite knows of it but by the row."""

import json

import numpy as np
import reference

from smolite.checkpoint import model_weights
from smolite.exporters.delivery.report import Row
from smolite.exporters.planning.sizes import Estimate
from smolite.generation import Engine, check_free_slot, check_one_prompt
from smolite.models import ModelConfig


def check_config(config, quantize):
    if not config.is_llama:
        raise ValueError("A .npz file holds Llamas only.")


def write(run, request):
    dtype = "float16" if request.quantize == "half" else "float32"
    weights = {name: weight.astype(dtype) for name, weight in model_weights(run.model).items()}
    np.savez(request.path, config=json.dumps(run.config.to_dict()), **weights)


class NpzEngine(Engine):
    """Reads its whole text anew at every step."""

    def __init__(self, path):
        with np.load(path) as file:
            self._weights = {name: file[name].astype("float32") for name in file if name != "config"}
            self._config = ModelConfig.from_dict(json.loads(str(file["config"])))
        self.context_length, self.vocab_size = self._config.context_length, self._config.vocab_size
        self._ids = []

    def start(self, prompts):
        check_one_prompt(prompts, self)
        self._ids = list(prompts[0])
        return self._logits()

    def step(self, ids):
        check_free_slot(len(self._ids), self)
        self._ids += ids
        return self._logits()

    def forward_logits(self, prompt, reply):
        return reference.forward(self._config, self._weights, [*prompt, *reply[:-1]])[len(prompt) - 1 :]

    def _logits(self):
        return reference.forward(self._config, self._weights, self._ids)[-1:].astype("float32")


def prove(file):
    with np.load(file.path) as content:
        shapes = sorted(content[name].shape for name in content if name != "config")
    expected = sorted(weight.shape for weight in model_weights(file.run.model).values())
    problems = [] if shapes == expected else ["it has other shapes"]
    return [Row(artifact=f"shapes in {file.path.name}", runtime="numpy", problems=problems)]


def estimate(config, request, tokenizer):
    num_bytes = config.num_parameters * (2 if request.quantize else 4)
    return Estimate(num_bytes=num_bytes, read_bytes=num_bytes)
