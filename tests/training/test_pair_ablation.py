"""Whether an encoder-decoder reads its source. Referee: a logarithm, which bounds the loss of one that does not."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from tiny import TINY

from smolite.data.dataset import ChatDataset
from smolite.data.packing import pack, row_lengths
from smolite.data.pairs import fit_pairs, read_pairs
from smolite.data.sources import resolve_dataset
from smolite.models.seq2seq_lm import Seq2SeqLM
from smolite.text.sentencepiece_model import train_model
from smolite.text.tokenizer import Tokenizer
from smolite.training.compilation import compile_for_training
from smolite.training.options import TrainingOptions


def final_loss(rows, vocab_size, *, epochs, cut):
    """The loss on its training rows of a model trained on them; with `cut`, nothing comes from the source."""
    keras.utils.set_random_seed(0)
    shape = {"num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 128, "intermediate_dim": 256, "dropout": 0.0}
    model = Seq2SeqLM(dataclasses.replace(TINY, **shape, head_dim=32, num_encoder_layers=1, vocab_size=vocab_size))
    for block in model.blocks if cut else []:
        block.cross_attention.output_projection.kernel.assign(np.zeros((128, 128)))
        block.cross_attention.trainable = False
    data = ChatDataset(rows, 4)
    compile_for_training(model, TrainingOptions(learning_rate=3e-3), total_steps=len(data) * epochs)
    model.fit(data, epochs=epochs, shuffle=False, verbose=0)
    return model.evaluate(data, verbose=0, return_dict=True)["loss"]


@pytest.mark.long
def test_a_model_that_reads_its_source_learns_what_one_without_cannot():
    """Without the source nobody can tell which of n targets is meant, so the loss can't fall below log(n) a target."""
    pairs = read_pairs(resolve_dataset("sample-pairs"))[:120]
    texts = [text for pair in pairs for text in (pair.source, pair.target)]
    pieces = Tokenizer(train_model(texts, vocab_size=1600, model_type="bpe", character_coverage=1.0))
    examples = fit_pairs(pairs, pieces, source_length=64, target_length=64).examples
    source_length, length = row_lengths(examples, 64)
    rows = pack(examples, length, source_length=source_length)
    losses = {cut: final_loss(rows, pieces.vocab_size, epochs=40, cut=cut) for cut in (False, True)}
    floor = math.log(len(pairs)) * len(pairs) / rows.num_trained
    print(f"{losses[False]:.3f} with the source, {losses[True]:.3f} without, {floor:.3f} is the least without")
    assert losses[True] > floor > 5 * losses[False]
