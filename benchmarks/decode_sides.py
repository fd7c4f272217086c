"""The worker of decode.py: one engine, which goes on from a prompt once a turn."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peers import keras_hub_model, transformers_model
from turns import Link

from smolite.models.config import ModelConfig

Decoder = Callable[[], int]  # goes on from the prompt, and returns how many tokens are new


def main(job: dict[str, Any], link: Link) -> None:
    """Decodes with the side that the job names, once to warm up and then once a turn."""
    config = ModelConfig.from_dict(job["config"])
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, job["prompt"])
    decode = SIDES[job["side"]](job, link, config, prompt)
    decode()
    link.send(tokens=decode())
    while True:
        link.wait()
        start = time.perf_counter()
        count = decode()
        link.send(seconds=time.perf_counter() - start, tokens=count)


def keras_engine(job: dict[str, Any], link: Link, config: ModelConfig, prompt: np.ndarray) -> Decoder:
    """`smolite.generate` on our Keras engine."""
    from smolite.generation.keras_engine import KerasEngine
    from smolite.generation.loop import generate
    from smolite.models.causal_lm import CausalLM

    link.mark_imported()
    engine = KerasEngine(CausalLM(config), context_length=job["cache"])
    return lambda: len(generate(engine, [prompt.tolist()], max_new_tokens=job["tokens"])[0])


def tflite_engine(job: dict[str, Any], link: Link, config: ModelConfig, prompt: np.ndarray) -> Decoder:
    """`smolite.generate` on a .tflite file."""
    from smolite.exporters.litert.engine import TFLiteEngine
    from smolite.generation.loop import generate

    link.mark_imported()
    engine = TFLiteEngine(job["path"], num_threads=job["threads"])
    return lambda: len(generate(engine, [prompt.tolist()], max_new_tokens=job["tokens"])[0])


def keras_hub(job: dict[str, Any], link: Link, config: ModelConfig, prompt: np.ndarray) -> Decoder:
    """keras-hub's `generate` without a preprocessor; its cache is as long as prompt and new tokens together."""
    import keras_hub  # noqa: F401 - its memory counts as imported

    link.mark_imported()
    model = keras_hub_model(config)
    model.compile(sampler="greedy")
    row = np.zeros((1, job["prompt"] + job["tokens"]), "int32")
    row[0, : job["prompt"]] = prompt
    mask = (np.arange(row.shape[1]) < job["prompt"])[None].astype("int32")

    def decode() -> int:
        answer = model.generate({"token_ids": row, "padding_mask": mask}, stop_token_ids=None)
        return answer["token_ids"].shape[1] - job["prompt"]

    return decode


def transformers(job: dict[str, Any], link: Link, config: ModelConfig, prompt: np.ndarray) -> Decoder:
    """transformers' `generate` on torch, not compiled, with its growing cache."""
    import torch
    import transformers  # noqa: F401 - its memory counts as imported

    link.mark_imported()
    model = transformers_model(config).eval()
    ids = torch.tensor(prompt)[None]
    lengths = {"max_new_tokens": job["tokens"], "min_new_tokens": job["tokens"]}

    def decode() -> int:
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, use_cache=True, **lengths)
        return answer.shape[1] - job["prompt"]

    return decode


def build_files(job: dict[str, Any], link: Link, config: ModelConfig, prompt: np.ndarray) -> Decoder:
    """Writes the .tflite files of `smolite export`, float32 and int8."""
    from smolite.exporters.edge.names import choose_lengths
    from smolite.exporters.litert import build as tflite
    from smolite.models.causal_lm import CausalLM

    model = CausalLM(config)
    lengths, slots = choose_lengths(config, cache_length=job["cache"])
    for quantize, path in ((None, job["float32"]), ("int8", job["int8"])):
        tflite.build(model, Path(path), quantize=quantize, prefill_lengths=lengths, cache_length=slots)
    return lambda: 0


SIDES = {
    "smolite": keras_engine,
    "tflite": tflite_engine,
    "keras-hub": keras_hub,
    "transformers": transformers,
    "build": build_files,
}

if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Link())
