"""The files that edge.py measures, made once: a random Llama, our files, llama.cpp's and litert-torch's of the same weights.

As a worker of edge.py it makes all but litert-torch's, which its own Python makes with litert_torch_export.py.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from chain import CHATML, TEXTS
from peers import transformers_model
from turns import Link, Worker

from smolite.models.config import ModelConfig

# Way to quantize, in our words → in theirs.
LITERT_TORCH: Mapping[str, str] = MappingProxyType(
    {
        "float32": "none",
        "int8": "dynamic_wi8_afp32",
        "int4": "dynamic_wi4_afp32",
        "int4_block32": "dynamic_wi4b32_afp32",
    }
)
LLAMA_CPP: Mapping[str, str | None] = MappingProxyType({"float32": None, "f16": "f16", "int8": "q8_0", "int4_block32": "q4_0"})
TEXT_FILE = "texts.json"
GROWING = "smolite .litertlm, growing"
TARGET = "31415926"  # whose log probability after the prompt shows that all sides hold the same weights


def make_files(folder: Path, job: Mapping[str, Any], *, litert_torch: str | None) -> dict[tuple[str, str], Path]:
    """Makes the files that are not there yet; one that is interrupted leaves nothing behind.

    Args:
        folder: where they lie.
        job: `config`, `ways`, `cache`, `prefill` and `peers`.
        litert_torch: a Python that has litert-torch, or none to leave it out.

    Returns:
        (side, way) → file; the side is `smolite .tflite`, `smolite .litertlm`, `llama.cpp` or `litert-torch`, or `GROWING`.
    """
    files = places_of(folder, job["ways"], job["peers"])
    if not (folder / TEXT_FILE).exists() or not all(path.exists() for path in files.values()):
        with Worker("edge_files.py", {**job, "folder": str(folder)}, backend="tensorflow"):
            pass
    if litert_torch:
        for way in (way for way in job["ways"] if way in LITERT_TORCH):
            files["litert-torch", way] = path = folder / f"litert-torch_{way}.litertlm"
            if not path.exists():
                export_litert_torch(litert_torch, folder, path, way, job)
    return files


def places_of(folder: Path, ways: Sequence[str], peers: Sequence[str]) -> dict[tuple[str, str], Path]:
    """(side, way) → file, of all that need no other Python."""
    ours = {(f"smolite .{kind}", way): folder / f"smolite_{way}.{kind}" for kind in ("tflite", "litertlm") for way in ways}
    ours |= {(GROWING, way): folder / f"growing_{way}.litertlm" for way in ways}
    llama = [way for way in ways if way in LLAMA_CPP] if "llama.cpp" in peers else []
    return ours | {("llama.cpp", way): folder / f"llama.cpp_{LLAMA_CPP[way] or way}.gguf" for way in llama}


def export_litert_torch(python: str, folder: Path, path: Path, way: str, job: Mapping[str, Any]) -> None:
    """Has another Python make a file."""
    script = Path(__file__).with_name("litert_torch_export.py")
    lengths = [str(job["cache"]), *map(str, job["prefill"])]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"CUDA_VISIBLE_DEVICES": ""}

    def make(unfinished: Path) -> None:
        command = [python, str(script), str(folder / "source"), str(unfinished), LITERT_TORCH[way], *lengths]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise SystemExit(f"litert-torch made no file. It said:\n{(done.stdout + done.stderr)[-2000:]}")

    finish(path, make)


def finish(path: Path, make: Callable[[Path], Any]) -> None:
    """Has a file or folder made under its name in a folder of its own, and moves it to its place."""
    if path.exists():
        return
    print(f"making {path}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as steps:
        make(Path(steps, path.name))
        Path(steps, path.name).rename(path)


def main(job: dict[str, Any], link: Link) -> None:
    """Makes what is missing of all but litert-torch's files."""
    from smolite.checkpoint import run as checkpoint

    folder, config = Path(job["folder"]), ModelConfig.from_dict(job["config"])
    folder.mkdir(parents=True, exist_ok=True)
    finish(folder / "source", lambda path: write_llama(path, config))
    run = checkpoint.load(folder / "source", dtype="float32")
    texts = {"prompt": ("0123456789" * job["prompt"])[: job["prompt"]], "target": TARGET}
    ids = {f"{name}_ids": run.tokenizer.encode(text) for name, text in texts.items()}
    assert len(ids["prompt_ids"]) == job["prompt"], "a digit must be a token"
    make_ours(folder, run, job)
    make_gguf(folder, run, job)
    finish(folder / TEXT_FILE, lambda path: path.write_text(json.dumps(texts | ids)))
    link.send()


def make_ours(folder: Path, run: Any, job: dict[str, Any]) -> None:
    """The .tflite and .litertlm files: the float model converted once for each, the others quantized from it."""
    from smolite.exporters.edge.names import choose_windows
    from smolite.exporters.litert import build as tflite
    from smolite.exporters.litert.quantization import quantize_tflite
    from smolite.exporters.litertlm.build import bundle

    windows = choose_windows(run.model.config, cache_length=job["cache"])
    for kind, prefill, looks in (("smolite", job["prefill"], windows), ("bundled", job["prefill"], ()), ("growing", (), ())):
        whole, lengths = folder / f"{kind}_float32.tflite", {"prefill_lengths": prefill, "windows": looks}
        finish(
            whole,
            lambda path, lengths=lengths: tflite.build(run.model, path, quantize=None, cache_length=job["cache"], **lengths),
        )
        for way in job["ways"]:
            model = folder / f"{kind}_{way}.tflite"
            finish(model, lambda path, way=way, whole=whole: quantize_tflite(whole, path, way))
    for way in job["ways"]:
        for kind, name in (("bundled", "smolite"), ("growing", "growing")):
            model, bundled = folder / f"{kind}_{way}.tflite", folder / f"{name}_{way}.litertlm"
            finish(bundled, lambda path, model=model: bundle(run, model, path, cache_length=job["cache"]))


def make_gguf(folder: Path, run: Any, job: dict[str, Any]) -> None:
    """The .gguf files."""
    from smolite.exporters.gguf import build as gguf

    for (side, way), place in places_of(folder, job["ways"], job["peers"]).items():
        if side == "llama.cpp":
            finish(place, lambda path, way=way: gguf.build(run, path, quantize=LLAMA_CPP[way]))


def write_llama(folder: Path, config: ModelConfig) -> None:
    """A Hugging Face folder with random weights in float32, and a byte-level tokenizer in which a digit is a token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    torch.manual_seed(0)
    transformers_model(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    words = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],  # not what the template begins with: litert-torch would have it put before every prompt
        "eos_token": special[2],
        "pad_token": special[0],
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Link())
