"""Reads stories260K of llama2.c (Karpathy, MIT): a real, trained Llama-shaped model with its golden text.

llama2.c turns neighbouring features (2i, 2i + 1) for rotary embedding; `smolite` turns (i, i + H/2). Moving the
rows of the query and key projections in each head makes one the other, because a score sums over the pairs.
"""

import json
import struct
from pathlib import Path

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from smolite.models.config import ModelConfig

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "stories260K"
REASON = "the shared data set is beside the project only where it is developed"
_HEADER = struct.Struct("<7i")


def stories_config():
    """The shape of stories260K, from the header of its file."""
    header = _HEADER.unpack_from(_read("stories260K.bin"))
    dim, hidden, layers, heads, kv_heads, vocab, context = header
    return ModelConfig(
        vocab_size=vocab,
        num_layers=layers,
        num_query_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_dim=dim,
        intermediate_dim=hidden,
        context_length=context,
        rope_theta=10_000.0,
        norm_epsilon=1e-5,
    )


def stories_weights():
    """Its weights, under Hugging Face's names and in its layout, as float32 numpy arrays.

    After the header the file has each kind of tensor for all layers in turn; source: llama2.c, `export.py`.
    """
    c = stories_config()
    numbers = np.frombuffer(_read("stories260K.bin"), "<f4", offset=_HEADER.size)
    weights, start = {}, 0
    for name, shape in _file_order(c):
        count = int(np.prod(shape))
        weights[name] = numbers[start : start + count].reshape(shape)
        start += count
    for i in range(c.num_layers):
        for kind, heads in (("q_proj", c.num_query_heads), ("k_proj", c.num_key_value_heads)):
            name = f"model.layers.{i}.self_attn.{kind}.weight"
            weights[name] = half_split(weights[name], heads)
    return weights


def _file_order(c):
    query_dim, key_dim = c.num_query_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    yield "model.embed_tokens.weight", (c.vocab_size, c.hidden_dim)
    for name, shape in (
        ("input_layernorm", (c.hidden_dim,)),
        ("self_attn.q_proj", (query_dim, c.hidden_dim)),
        ("self_attn.k_proj", (key_dim, c.hidden_dim)),
        ("self_attn.v_proj", (key_dim, c.hidden_dim)),
        ("self_attn.o_proj", (c.hidden_dim, query_dim)),
        ("post_attention_layernorm", (c.hidden_dim,)),
        ("mlp.gate_proj", (c.intermediate_dim, c.hidden_dim)),
        ("mlp.down_proj", (c.hidden_dim, c.intermediate_dim)),
        ("mlp.up_proj", (c.intermediate_dim, c.hidden_dim)),
    ):
        for i in range(c.num_layers):
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (c.hidden_dim,)


def half_split(weight, num_heads):
    """Moves the even rows of each head before the odd ones: rows 0 1 2 3 of one head become 0 2 1 3."""
    heads = weight.reshape(num_heads, -1, 2, weight.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(weight.shape)


def stories_golden():
    """What llama2.c said: a list of {"prompt", "prompt_ids", "ids_200", …}, always the likeliest token."""
    return json.loads(_read("greedy_example.json"))


def stories_text():
    """The 200-step greedy text from an empty prompt, as llama2.c prints it."""
    return _read("expected_stdout_200.txt").decode()


def stories_pieces():
    """(piece, score) of each id of `tok512.bin`; bytes stand as `<0x0A>`, spaces as they are."""
    content, place, pieces = _read("tok512.bin"), 4, []
    while place < len(content):
        score, length = struct.unpack_from("<fi", content, place)
        pieces.append((content[place + 8 : place + 8 + length].decode(), score))
        place += 8 + length
    return pieces


def stories_decode(ids):
    """The text of ids as llama2.c prints it: after the start symbol 1, one leading space is dropped.

    Example: [1, 403, 407, 261] is "Once upon a".
    """
    pieces, text = stories_pieces(), b""
    for index in ids:
        piece = pieces[index][0]
        if index > 2:
            text += bytes([int(piece[3:5], 16)]) if 3 <= index < 259 else piece.encode()
    return text.decode("utf-8", "replace").removeprefix(" ")


def stories_tokenizer_proto():
    """`tok512.bin` as the bytes of a SentencePiece `.model` file: a BPE model with byte fallback."""
    model = sentencepiece_model_pb2.ModelProto()
    kinds = {0: model.SentencePiece.UNKNOWN, 1: model.SentencePiece.CONTROL, 2: model.SentencePiece.CONTROL}
    kinds |= dict.fromkeys(range(3, 259), model.SentencePiece.BYTE)
    for index, (piece, score) in enumerate(stories_pieces()):
        kind = kinds.get(index, model.SentencePiece.NORMAL)
        text = piece.strip("\n") if index < 3 else piece.replace(" ", "▁")
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type = model.trainer_spec.BPE
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.remove_extra_whitespaces = False
    return model.SerializeToString()


def _read(name):
    return (FOLDER / name).read_bytes()
