"""The first Smolite: reads the `.weights.h5` that its training program saved."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smolite.checkpoint.weights import assign_weights
from smolite.models import PRESETS, CausalLM, ModelConfig

_PRESET = PRESETS["smolite-1"]
# Keras 3 goes through a model's layers by attribute or by its list of layers, whichever comes first.
_EMBEDDING = "token_embedding/vars/0"
_EMBEDDINGS = {_EMBEDDING, "layers/embedding/vars/0", "layers/token_embedding/vars/0"}
# Where Keras stored the layers of a block, and Hugging Face's names for them.
_LAYERS = {
    "ln_f1": "input_norm",
    "attn1/ln": "input_layernorm",
    "attn1/q_proj": "self_attn.q_proj",
    "attn1/k_proj": "self_attn.k_proj",
    "attn1/v_proj": "self_attn.v_proj",
    "attn1/o_proj": "self_attn.o_proj",
    "ln_f2": "post_attention_layernorm",
    "ffn/adapter": "adapter",
    "ffn/out": "mlp.down_proj",
    "ln_f3": "output_norm",
}
_GATED = "ffn/proj"  # value and gate side by side


def read_smolite1(
    path: str | Path, *, num_heads: int = _PRESET.num_query_heads, context_length: int = _PRESET.context_length
) -> CausalLM:
    """Reads the weights of a first Smolite as a model of the form `"smolite-1"` with the same logits.

    It turned neighbouring features of a head (2i, 2i + 1), where we turn (i, i + head_dim / 2): its queries and keys get their
    features in that order, which no product of the two notices. Other sizes than those of the preset are read from the file.

    Args:
        path: the `.weights.h5` file, as Keras 3 wrote it.
        num_heads: attention heads; the file doesn't tell.
        context_length: the most tokens it was trained with; the file doesn't tell.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this form; what is missing is named.
    """
    stored = _read_variables(Path(path))
    count = sum(name.startswith("blocks/") and name.endswith("/ln_f1/vars/0") for name in stored)
    layers = [f"{_block(number)}/{layer}" for number in range(count) for layer in (*_LAYERS, _GATED)]
    missing = sorted({_EMBEDDING, *(f"{layer}/vars/{i}" for layer in layers for i in (0, 1))} - set(stored))
    if missing or not count:
        raise ValueError(
            f"{path} must hold the weights of a first Smolite, with variables such as {_block(0)}/attn1/q_proj/vars/0. "
            f"Received: {', '.join(list(stored)[:3]) or 'nothing'}; missing: {', '.join(missing[:3]) or 'all blocks'}. Save "
            "the model again with Keras 3."
        )
    vocab_size, width = stored[_EMBEDDING].shape
    config = ModelConfig.from_preset(
        "smolite-1",
        vocab_size=vocab_size,
        hidden_dim=width,
        num_layers=count,
        num_query_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=width // num_heads,
        intermediate_dim=stored[f"{_block(0)}/{_GATED}/vars/1"].shape[0] // 2,
        context_length=context_length,
    )
    model = CausalLM(config)
    tensors = {"model.embed_tokens.weight": stored[_EMBEDDING]}
    for number in range(count):
        tensors |= _block_tensors(stored, number, head_dim=config.head_dim)
    assign_weights(model, tensors)
    return model


def half_split(features: np.ndarray, head_dim: int) -> np.ndarray:
    """Brings the features of interleaved heads, along the first axis, into the half-split order.

    Example: one head of 4, `[0, 1, 2, 3]` → `[0, 2, 1, 3]`.
    """
    heads = features.reshape(-1, head_dim // 2, 2, *features.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(features.shape)


def _block_tensors(stored: Mapping[str, np.ndarray], number: int, *, head_dim: int) -> dict[str, np.ndarray]:
    """The tensors of a block under Hugging Face's names and layout."""
    tensors: dict[str, np.ndarray] = {}
    for place, name in _LAYERS.items():
        weight, bias = _pair(stored, number, place)
        if name in ("self_attn.q_proj", "self_attn.k_proj"):
            # Its rotary embedding turned neighbours. Queries and keys reordered alike have the same products.
            weight, bias = half_split(weight, head_dim), half_split(bias, head_dim)
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    for kind, tensor in zip(("weight", "bias"), _pair(stored, number, _GATED), strict=True):
        value, gate = np.split(tensor, 2)
        tensors |= {f"mlp.up_proj.{kind}": value, f"mlp.gate_proj.{kind}": gate}
    return {f"model.layers.{number}.{name}": tensor for name, tensor in tensors.items()}


def _pair(stored: Mapping[str, np.ndarray], number: int, place: str) -> tuple[np.ndarray, np.ndarray]:
    """The weight, (outputs, inputs) if it is a matrix, and the bias of a layer."""
    return stored[f"{_block(number)}/{place}/vars/0"].T, stored[f"{_block(number)}/{place}/vars/1"]


def _block(number: int) -> str:
    return f"blocks/block_{number}" if number else "blocks/block"


def _read_variables(path: Path) -> dict[str, np.ndarray]:
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"The weights must be a file. Received: {path}. Check the path.")
    stored: dict[str, np.ndarray] = {}

    def keep(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            stored[_EMBEDDING if name in _EMBEDDINGS else name] = item[()]

    try:
        with h5py.File(path) as file:
            file.visititems(keep)
    except OSError as error:
        raise ValueError(f"{path} must be a whole HDF5 file. Received: {error}. Copy it again.") from error
    return stored
