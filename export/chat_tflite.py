"""Chats with a .tflite file from smolite: python chat_tflite.py FOLDER/model.tflite
Beside it: chat.json and tokenizer.model or .json. Needs ai-edge-litert, numpy, and sentencepiece or (.json) tokenizers."""

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel


class Model:
    """The signatures of the file by tokens and slots that they see, over one set of key/value caches, updated in place."""

    def __init__(self, path):
        model = self.model = CompiledModel.from_file(path)
        inputs, self.signatures = model.get_input_tensor_details("decode"), {}
        self.length, self.slots = 0, inputs["mask"]["shape"][-1]
        caches = {name: model.create_input_buffer_by_name("decode", name) for name in inputs if "cache" in name}
        for name, buffer in caches.items():
            buffer.write(np.zeros(inputs[name]["shape"], "float32"))
        for key, names in model.get_signature_list().items():
            given = {n: caches.get(n) or model.create_input_buffer_by_name(key, n) for n in names["inputs"]}
            taken = {n: caches.get(n) or model.create_output_buffer_by_name(key, n) for n in names["outputs"]}
            sizes = {name: tensor["shape"][-1] for name, tensor in model.get_input_tensor_details(key).items()}
            self.signatures[sizes["tokens"], sizes["mask"]] = key, given, taken

    def read(self, ids):
        """Adds tokens to the caches and returns the logits after the last, which goes through `decode` alone."""
        while ids:
            rest, fitting = max(len(ids) - 1, 1), sorted(s for s in self.signatures if self.length + s[0] <= s[1])
            width, slots = next((s for s in fitting if s[0] >= rest), max(fitting, key=lambda s: (s[0], -s[1])))
            (key, given, taken), used = self.signatures[width, slots], min(width, rest)
            places = np.arange(self.length, self.length + width, dtype="int32")
            given["tokens"].write(np.array(ids[:used] + [0] * (width - used), "int32"))
            given["input_pos"].write(places)
            given["mask"].write(np.where(np.arange(slots) <= places[:, None], 0, -1e9).astype("float32"))
            self.model.run_by_name(key, given, taken)
            ids, self.length = ids[used:], self.length + used
        return taken["logits"].read(self.model.get_output_tensor_details("decode")["logits"]["shape"][-1], "float32")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("file", type=Path)
parser.add_argument("--prompt", nargs="+", help="say this, one text a turn, instead of asking")
for flag, kind, default in (("--temperature", float, 0.0), ("--top-k", int, 40), ("--max-new-tokens", int, 128)):
    parser.add_argument(flag, type=kind, default=default, help=f"default: {default}")
options = parser.parse_args()
sys.stderr = os.fdopen(os.dup(2), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where LiteRT writes its notes
chat = json.loads(options.file.with_name("chat.json").read_text("utf-8"))
if (file := options.file.with_name("tokenizer.model")).exists():
    encode = (tokenizer := import_module("sentencepiece").SentencePieceProcessor(model_file=str(file))).encode
else:
    tokenizer = import_module("tokenizers").Tokenizer.from_file(str(file.with_suffix(".json")))
    tokenizer.encode_special_tokens = True  # a marker that somebody types is text
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
model, ids, turns = Model(str(options.file)), chat["ids"], []
room = model.slots - (most := min(options.max_new_tokens, model.slots // 2)) - len(chat["opening"])
for said in options.prompt or iter(lambda: input("> "), ""):
    turns.append((ids["user_prefix"] + encode(said.strip()) + ids["user_suffix"] + ids["assistant_prefix"])[-room:])
    while sum(map(len, turns)) > room:  # forgets the oldest turn, so the others are read again
        turns, model.length = turns[1:], 0
    new, answer, shown = sum(turns, chat["opening"])[model.length :], [], ""
    while len(answer) < most:
        logits = model.read(new)
        if options.temperature:
            logits[logits < np.sort(logits)[-options.top_k]] = -np.inf
            logits = logits / options.temperature + np.random.gumbel(size=len(logits))
        if (best := int(logits.argmax())) in chat["stop_ids"]:
            break
        new, answer = [best], [*answer, best]
        if not (text := tokenizer.decode(answer)).endswith("\ufffd"):  # a character whose bytes are not all there yet
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.decode(answer)[len(shown) :])
    turns[-1] += answer + ids["assistant_suffix"]
