"""The referee of the `smolite-1` form: the first Smolite as its authors' program described it, written with plain Keras layers.

It shares nothing with `smolite`: interleaved rotary positions by complex numbers, gate and value in one projection, the
residual inside the attention layer. Its attributes have the names under which `save_weights` stored the first Smolite.
"""

import keras
import numpy as np
from keras import ops


class Attention(keras.layers.Layer):
    """norm → projections → rotation of neighbours → causal softmax → projection, plus what came in."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.ln = keras.layers.LayerNormalization(epsilon=1e-5)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (keras.layers.Dense(width) for _ in range(4))

    def build(self, shape):
        for layer in (self.ln, self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            layer.build(shape)

    def turned(self, x):
        """Features 2i and 2i + 1 are the parts of a number that is multiplied by e^(i · position · 10000^(-2i/size))."""
        length = x.shape[1]
        angle = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, self.size, 2) / self.size)
        turn = np.exp(1j * angle)[None, :, None]
        x = ops.reshape(x, (-1, length, self.heads, self.size // 2, 2))
        real, imaginary = x[..., 0], x[..., 1]
        cos, sin = (ops.convert_to_tensor(part.astype("float32")) for part in (turn.real, turn.imag))
        parts = [real * cos - imaginary * sin, imaginary * cos + real * sin]
        return ops.reshape(ops.stack(parts, axis=-1), (-1, length, self.heads, self.size))

    def call(self, x):
        length, normed = x.shape[1], self.ln(x)
        q, k, v = (
            ops.reshape(dense(normed), (-1, length, self.heads, self.size)) for dense in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = ops.einsum("bihd,bjhd->bhij", self.turned(q), self.turned(k)) / np.sqrt(self.size)
        scores = ops.where(ops.convert_to_tensor(np.tril(np.ones((length, length), bool))), scores, -1e9)
        mixed = ops.einsum("bhij,bjhd->bihd", ops.softmax(scores), v)
        return x + self.o_proj(ops.reshape(mixed, (-1, length, self.heads * self.size)))


class FeedForward(keras.layers.Layer):
    """GELU adapter of half the width, one projection whose second half is the gate of the first, and back."""

    def __init__(self, width, inside):
        super().__init__()
        self.adapter = keras.layers.Dense(width // 2, activation="gelu")
        self.proj = keras.layers.Dense(inside)
        self.out = keras.layers.Dense(width)

    def build(self, shape):
        self.adapter.build(shape)
        self.proj.build((*shape[:-1], self.adapter.units))
        self.out.build((*shape[:-1], self.proj.units // 2))

    def call(self, x):
        value, gate = ops.split(self.proj(self.adapter(x)), 2, axis=-1)
        return self.out(value * gate * ops.sigmoid(gate))


class Block(keras.layers.Layer):
    """norm → attention → norm → feed-forward → norm, plus what came in."""

    def __init__(self, width, inside, heads):
        super().__init__()
        self.attn1 = Attention(width, heads)
        self.ffn = FeedForward(width, inside)
        self.ln_f1, self.ln_f2, self.ln_f3 = (keras.layers.LayerNormalization(epsilon=1e-5) for _ in range(3))

    def build(self, shape):
        for layer in (self.attn1, self.ffn, self.ln_f1, self.ln_f2, self.ln_f3):
            layer.build(shape)

    def call(self, x):
        return x + self.ln_f3(self.ffn(self.ln_f2(self.attn1(self.ln_f1(x)))))


class FirstSmolite(keras.Model):
    """Embedding, blocks, and the embedding table again; the norm `ln_f` is there but nothing goes through it."""

    def __init__(self, vocab_size, *, width, inside, layers, heads=8):
        super().__init__()
        self.token_embedding = keras.layers.Embedding(vocab_size, width)
        self.blocks = [Block(width, inside, heads) for _ in range(layers)]
        self.ln_f = keras.layers.LayerNormalization(epsilon=1e-5)

    def build(self, shape):
        for layer in (self.token_embedding, *self.blocks):
            layer.build((*shape, self.token_embedding.output_dim))

    def call(self, x):
        x = self.token_embedding(x)
        for block in self.blocks:
            x = block(x)
        return ops.matmul(x, ops.transpose(self.token_embedding.embeddings))


def first_smolite(vocab_size=61, *, width=48, inside=40, layers=3, heads=4):
    """One with weights large enough to tell things apart, biases and norms included."""
    model = FirstSmolite(vocab_size, width=width, inside=inside, layers=layers, heads=heads)
    model(np.zeros((1, 4), "int32"))  # makes the variables
    rng = np.random.default_rng(7)
    for variable in model.weights:
        scale = 0.3 if len(variable.shape) == 1 else 2.0 / np.sqrt(variable.shape[0])
        start = 1.0 if "gamma" in variable.path else 0.0
        variable.assign(start + scale * rng.standard_normal(variable.shape))
    return model
