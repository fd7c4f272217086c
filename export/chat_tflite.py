"""Chats with a .tflite file from smolite: python chat_tflite.py FOLDER/model.tflite

Beside the file it needs tokenizer.model and chat.json, and: pip install ai-edge-litert numpy sentencepiece
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from sentencepiece import SentencePieceProcessor


class Model:
    """The signatures of the file by their length, over one set of key/value caches that they update in place."""

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
            self.signatures[model.get_input_tensor_details(key)["tokens"]["shape"][-1]] = key, given, taken

    def read(self, ids):
        """Adds tokens to the caches and returns the logits after the last, which goes through `decode` alone."""
        while ids:
            rest = max(len(ids) - 1, 1)
            fitting = [width for width in sorted(self.signatures) if width <= self.slots - self.length]
            width = next((width for width in fitting if width >= rest), fitting[-1])
            (key, given, taken), used = self.signatures[width], min(width, rest)
            places = np.arange(self.length, self.length + width, dtype="int32")
            given["tokens"].write(np.array(ids[:used] + [0] * (width - used), "int32"))
            given["input_pos"].write(places)
            given["mask"].write(np.where(np.arange(self.slots) <= places[:, None], 0, -1e9).astype("float32"))
            self.model.run_by_name(key, given, taken)
            ids, self.length = ids[used:], self.length + used
        return taken["logits"].read(self.model.get_output_tensor_details("decode")["logits"]["shape"][-1], "float32")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("file", type=Path)
parser.add_argument("--prompt", nargs="+", help="say this, one text a turn, instead of asking")
parser.add_argument("--temperature", type=float, default=0, help="0 takes the likeliest token")
parser.add_argument("--top-k", type=int, default=40)
parser.add_argument("--max-new-tokens", type=int, default=128)
options = parser.parse_args()
sys.stderr = os.fdopen(os.dup(2), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where LiteRT writes its notes
chat = json.loads(options.file.with_name("chat.json").read_text("utf-8"))
tokenizer = SentencePieceProcessor(model_file=str(options.file.with_name("tokenizer.model")))
model, ids, turns = Model(str(options.file)), chat["ids"], []
room = model.slots - min(options.max_new_tokens, model.slots // 2)
for said in options.prompt or iter(lambda: input("> "), ""):
    turn = ids["user_prefix"] + tokenizer.encode(said.strip()) + ids["user_suffix"] + ids["assistant_prefix"]
    turns.append(turn[-room:])
    while sum(map(len, turns)) > room:  # forgets the oldest turn, so the others are read again
        turns, model.length = turns[1:], 0
    new, answer, shown = sum(turns, [])[model.length :], [], ""
    while len(answer) < model.slots - room:
        logits = model.read(new)
        if options.temperature:
            logits[logits < np.sort(logits)[-options.top_k]] = -np.inf
            logits = logits / options.temperature + np.random.gumbel(size=len(logits))
        new = [int(logits.argmax())]
        if new[0] in chat["stop_ids"]:
            break
        answer, text = answer + new, tokenizer.decode(answer + new)
        if not text.endswith("\ufffd"):  # which stands for a character whose bytes are not all there yet
            print(text[len(shown) :], end="", flush=True)
            shown = text
    print(tokenizer.decode(answer)[len(shown) :])
    turns[-1] += answer + ids["assistant_suffix"]
