"""The causal language model: a decoder that reads from the left and says what comes next."""

from typing import Any

import keras

from smolite.models.config import ModelConfig
from smolite.models.language_model import LanguageModel, Parts
from smolite.models.layers import CausalMask


@keras.saving.register_keras_serializable("smolite")
class CausalLM(LanguageModel):
    """A causal language model: a Llama, or of another form that its config chooses.

    The functional graph takes a dictionary; only `"tokens"` is required, and a bare array of token ids works too.

    * `tokens`: (B, T) int32.
    * `positions`: (B, T) int32, for rows that hold several texts; counts from 0 in every row otherwise.
    * `segments`: (B, T) int32; a token attends only to tokens of its own number, so texts packed in a row stay apart.
    * `loss_at`: (B, L) int32; the output then has logits of these positions only.

    Output: float32 logits of the next token, (B, T, V), or (B, L, V) with `loss_at`. Padding on the right never changes the
    logits of real tokens, because attention is causal.

    Args:
        config: a `ModelConfig` without encoder layers.
        dtype: a Keras dtype or policy, for example `"mixed_bfloat16"`.

    Example:

    >>> model = CausalLM(ModelConfig.from_preset("smolite-small"))
    >>> tuple(model(np.array([[5, 6, 7]])).shape)
    (1, 3, 8192)
    """

    input_names = ("loss_at", "positions", "segments", "tokens")
    needed_names = ("tokens",)

    @staticmethod
    def check_config(config: ModelConfig) -> None:
        """Refuses a config with encoder layers.

        Raises:
            ValueError: it has some.
        """
        if config.has_encoder:
            raise ValueError(
                f"A `CausalLM` has no encoder. Received: a config with {config.num_encoder_layers} encoder layers. Build a "
                "`Seq2SeqLM` of it, or set `num_encoder_layers` to 0."
            )

    @staticmethod
    def hidden_states(parts: Parts, inputs: dict[str, Any], num_groups: int) -> Any:
        """(B, T, D) of the last block, before the final norm."""
        tokens = inputs["tokens"]
        mask = CausalMask(num_groups, name="causal_mask")(tokens, inputs["segments"])
        hidden, tables = parts.begin(parts.token_embedding(tokens), inputs["positions"], tokens)
        return parts.decode(hidden, tables, mask)[0]
