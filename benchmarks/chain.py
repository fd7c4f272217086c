"""A SmolLM2-135M folder with random weights, made by transformers, through everything: in, chat, out, and back.

    python benchmarks/chain.py --backend jax

Makes the folder in bfloat16 in shards, loads it (peak memory over what was held before, as a multiple of its float32
weights), compares logits with transformers, chats, exports to TFLite int8, LiteRT-LM and GGUF with their checks, and saves
a folder that transformers reads. Slow: minutes. The tokenizer is byte-level, trained on the spot; ids above its own have no
text, so that LiteRT-LM, which gives texts, is compared on few tokens. `--tokenizer` takes the tokenizer.json of SmolLM2.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peers import BACKENDS
from table import conditions, gigabytes, markdown, number, publish

ROOT = Path(__file__).parents[1]
TEXTS = [
    "안녕하세요! 오늘 날씨가 정말 좋네요.",
    "What did you eat for lunch? 김치찌개 ㅋㅋㅋ",
    "def f(x):\n\treturn [1, 2]",
] * 3
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FILES = {"tflite": ["int8"], "litertlm": [None, "int8", "int4"], "gguf": [None, "q8_0"]}
LOAD = """
import json, sys
from pathlib import Path
import numpy as np
from smolite import CausalLM, ModelConfig
from smolite.checkpoint.run import load_model

def held(line):
    return next(int(text.split()[1]) * 1024 for text in open("/proc/self/status") if text.startswith(line))

CausalLM(ModelConfig.from_preset("smolite-small", vocab_size=64, num_layers=1))  # what every process pays once
Path("/proc/self/clear_refs").write_text("5")  # forgets the most that was held
before = held("VmRSS")
model = load_model(sys.argv[1])
print(json.dumps({"peak": held("VmHWM") - before, "weights": 4 * model.config.num_parameters}))
"""


def main() -> None:
    """Runs the chain and prints what came out of each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS, default="jax", help="of the Keras model")
    parser.add_argument("--layers", type=int, default=30, help="fewer for a quick look")
    parser.add_argument("--formats", nargs="*", choices=FILES, default=list(FILES), help="to export to")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json with the markers of ChatML")
    parser.add_argument("--out", type=Path, help="a file to write the table to as well")
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = options.backend
    heading = f"SmolLM2-135M with random weights, {options.layers} layers, Keras on {options.backend}. {conditions()}."
    with tempfile.TemporaryDirectory() as folder:
        rows = list(steps(Path(folder), options))
    publish("\n\n".join([heading, markdown(["step", "seconds", "figures"], rows, texts=3)]), options.out)


def steps(folder: Path, options: argparse.Namespace):
    """A row after each step: its name, how long it took, what came out."""
    import keras
    import torch
    from transformers import AutoModelForCausalLM

    import smolite
    from smolite.generation.keras_engine import KerasEngine
    from smolite.generation.replies import reply

    clock = Clock()
    source = folder / "SmolLM2-135M"
    llama = write_folder(source, options.layers, options.tokenizer)
    ids = np.random.default_rng(0).integers(0, 49_152, (1, 64))
    expected = llama(torch.tensor(ids)).logits.detach().numpy()
    yield clock.row("made by transformers", f"{gigabytes(size_of(source))} GB in bfloat16")

    command = [sys.executable, "-c", LOAD, str(source)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    memory = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    yield clock.row("loaded", f"peak {memory['peak'] / memory['weights']:.2f} × its float32 weights")

    run = smolite.load(source)
    logits = keras.ops.convert_to_numpy(run.model(ids))
    yield clock.row("logits beside transformers", f"largest difference {difference(logits, expected):.1e}")
    engine, said = KerasEngine(run.model, context_length=256), [smolite.Message("user", "안녕?")]
    answer = reply(engine, said, tokenizer=run.tokenizer, template=run.template, max_new_tokens=16)
    yield clock.row("chats", f"{len(answer)} characters")

    for format, quantize in [(kind, way) for kind in options.formats for way in FILES[kind]]:
        path = smolite.export(source, format=format, quantize=quantize, cache_length=None if format == "gguf" else 256)
        report = json.loads((path.parent / "verify.json").read_text("utf-8"))
        row = next(row for row in report["rows"] if row["artifact"] == path.name)
        figures = f"{gigabytes(path.stat().st_size)} GB, logits {row['logits']:.1e}, tokens {row['tokens']}/{row['num_tokens']}"
        yield clock.row(f"exported: {path.name}", figures)

    smolite.save(folder / "back", run.model, run.tokenizer, template=run.template)
    back = AutoModelForCausalLM.from_pretrained(folder / "back").eval()
    found = back(torch.tensor(ids)).logits.detach().numpy()
    yield clock.row("back in transformers", f"largest difference {difference(found, expected):.1e}")


class Clock:
    """Seconds between rows."""

    def __init__(self):
        self.last = time.perf_counter()

    def row(self, step: str, figures: str) -> list[str]:
        """The cells of a step that ends now."""
        seconds, self.last = time.perf_counter() - self.last, time.perf_counter()
        print(f"{step}: {figures} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        return [step, number(seconds), figures]


def write_folder(folder: Path, layers: int, tokenizer: Path | None):
    """Writes the folder; returns its model as transformers reads it in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import smolite

    config = smolite.ModelConfig.from_preset("smollm2-135m", num_layers=layers)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**config.to_hf(), "dtype": "bfloat16"})).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="100MB")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    if tokenizer:
        shutil.copy(tokenizer, folder / "tokenizer.json")
    else:
        train_tokenizer(folder / "tokenizer.json", special)
    settings = {"bos_token": special[1], "eos_token": special[2], "pad_token": special[0], "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def train_tokenizer(path: Path, special: list[str]) -> None:
    """A byte-level tokenizer of 600 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(path))


def difference(found, expected) -> float:
    """The largest difference of two arrays."""
    return float(np.abs(found - expected).max())


def size_of(folder: Path) -> int:
    """The bytes of the weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    main()
