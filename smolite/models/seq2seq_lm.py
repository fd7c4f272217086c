"""The encoder-decoder language model: a bidirectional encoder of a source, and a decoder that writes a target.

Shapes use the legend at the top of `layers.py`; N stands for the tokens of the source.
"""

from typing import Any

import keras
from keras import ops

from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.models.cross_attention import SourceMask
from smolite.models.language_model import LanguageModel, Parts
from smolite.models.layers import CausalMask


@keras.saving.register_keras_serializable("smolite")
class Seq2SeqLM(LanguageModel):
    """An encoder-decoder language model, made of the same layers as `CausalLM`.

    Source and target share the embedding, which is the output projection too, and what their positions add to it. The encoder's
    blocks are `DecoderBlock`s that look both ways; the decoder's look back at the target and everywhere at the source.

    The functional graph takes a dictionary; `"source"` and `"tokens"` are required.

    * `source`: (B, N) int32.
    * `tokens`: (B, T) int32, the target so far.
    * `source_positions`, `positions`: (B, N) and (B, T) int32, for rows that hold several texts; they count from 0 otherwise.
    * `source_segments`, `segments`: (B, N) and (B, T) int32, 1 everywhere if not given. A token sees only tokens of its own
      number, in source and target, so pairs packed in a row stay apart, and padding has the number 0.
    * `loss_at`: (B, L) int32; the output then has logits of these places of the target only.

    Output: float32 logits of the target's next token, (B, T, V), or (B, L, V) with `loss_at`.

    Args:
        config: a `ModelConfig` with encoder layers.
        dtype: a Keras dtype or policy, for example `"mixed_bfloat16"`.

    Raises:
        ValueError: the config has no encoder layers.

    Example:

    >>> pairs = Seq2SeqLM(ModelConfig.from_preset("smolite-small", num_layers=1, num_encoder_layers=1))
    >>> tuple(pairs({"source": np.array([[5, 6, 7]]), "tokens": np.array([[2, 8]])}).shape)
    (1, 2, 8192)
    """

    input_names = ("loss_at", "positions", "segments", "source", "source_positions", "source_segments", "tokens")
    needed_names = ("source", "tokens")

    @staticmethod
    def check_config(config: ModelConfig) -> None:
        """Refuses a config without encoder layers.

        Raises:
            ValueError: it has none.
        """
        if not config.has_encoder:
            raise ValueError(
                "A `Seq2SeqLM` needs an encoder. Received: a config with `num_encoder_layers` 0. Set it to 1 or more, or build "
                "a `CausalLM`."
            )

    @staticmethod
    def hidden_states(parts: Parts, inputs: dict[str, Any], num_groups: int) -> Any:
        """(B, T, D) of the decoder's last block, before the final norm."""
        source, tokens, segments = inputs["source"], inputs["tokens"], inputs["source_segments"]
        look = SourceMask(num_groups, name="source_mask")
        mask = look(source, source, segments, segments)
        memory = parts.encode(parts.token_embedding(source), mask, inputs["source_positions"], source)
        mask = CausalMask(num_groups, name="causal_mask")(tokens, inputs["segments"])
        source_mask = look(tokens, source, inputs["segments"], segments)
        hidden, tables = parts.begin(parts.token_embedding(tokens), inputs["positions"], tokens)
        return parts.decode(hidden, tables, mask, memory, source_mask)[0]

    def encode(self, hidden, *, mask):
        """Reads a source, once for all tokens of its target.

        Args:
            hidden: (B, N, D), from `embed`. Padding stands on the right.
            mask: additive float32, (B or 1, 1, 1, N): 0 for tokens, about -3e4 for padding.

        Returns:
            For each decoder block keys (B, K, N, H) and values (B, K, H, N), for `cached_body`.
        """
        positions = ops.arange(hidden.shape[1], dtype="int32")[None]
        return self._parts.encode(hidden, mask, positions, positions)


def new_language_model(config: ModelConfig, *, dtype: Any = None) -> LanguageModel:
    """A model with random weights: a `Seq2SeqLM` where the config has encoder layers, else a `CausalLM`."""
    return (Seq2SeqLM if config.has_encoder else CausalLM)(config, dtype=dtype)
