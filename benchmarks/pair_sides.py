"""The worker of train.py for pairs: `fit` of one encoder-decoder on sources and targets of random ids."""

import json
import sys
from typing import Any

import numpy as np
from peers import bart_width
from train_sides import Turns, begin, compile_keras_hub, train_on_torch
from turns import Link

from smolite.data.dataset import ChatDataset
from smolite.data.packing import Example, pack
from smolite.models.config import ModelConfig
from smolite.models.seq2seq_lm import Seq2SeqLM
from smolite.training.compilation import compile_for_training
from smolite.training.options import TrainingOptions


def main(job: dict[str, Any], link: Link) -> None:
    """Trains the side that the job names."""
    config, options = ModelConfig.from_dict(job["config"]), begin(job)
    shape = job["total"] * job["batch_size"], job["sequence_length"]
    random = np.random.default_rng(0)
    sources, targets = (random.integers(4, config.vocab_size, (shape[0], shape[1] + more), "int32") for more in (0, 1))
    learnt = [options.batch_size * options.sequence_length] * job["total"]
    sides = {"smolite": fit_smolite, "keras-hub": fit_keras_hub, "transformers": fit_transformers}
    link.mark_imported()
    sides[job["side"]](job, config, options, (sources, targets), Turns(link, learnt, job=job, fill=1.0))
    link.wait()


def fit_smolite(job: dict[str, Any], config: ModelConfig, options: TrainingOptions, pairs: Any, turns: Turns) -> None:
    """Our encoder-decoder as `train_pairs` trains it."""
    examples = [Example(target, [0, *[1] * (len(target) - 1)], source) for source, target in zip(*pairs, strict=True)]
    rows = pack(examples, options.sequence_length, source_length=options.sequence_length)
    model = Seq2SeqLM(config)
    compile_for_training(model, options, total_steps=1_000)
    dataset = ChatDataset(rows, options.batch_size, steps_per_epoch=job["total"])
    model.fit(dataset, shuffle=False, verbose=0, callbacks=[turns])


def fit_keras_hub(job: dict[str, Any], config: ModelConfig, options: TrainingOptions, pairs: Any, turns: Turns) -> None:
    """keras-hub's BART, with its own loss and metric."""
    import keras_hub

    turns.link.mark_imported()
    backbone = keras_hub.models.BartBackbone(
        vocabulary_size=config.vocab_size,
        num_layers=config.num_layers,
        num_heads=config.num_query_heads,
        hidden_dim=config.hidden_dim,
        intermediate_dim=bart_width(config),
        dropout=0.0,
        max_sequence_length=options.sequence_length,
    )
    model = keras_hub.models.BartSeq2SeqLM(backbone, preprocessor=None)
    sources, targets = pairs
    x = {"encoder_token_ids": sources, "decoder_token_ids": targets[:, :-1]}
    x |= {name.replace("token_ids", "padding_mask"): np.ones_like(ids) for name, ids in x.items()}
    compile_keras_hub(model, options, job)
    model.fit(x, targets[:, 1:], batch_size=options.batch_size, verbose=0, shuffle=False, callbacks=[turns])


def fit_transformers(job: dict[str, Any], config: ModelConfig, options: TrainingOptions, pairs: Any, turns: Turns) -> None:
    """transformers' BART on torch."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    turns.link.mark_imported()
    fields: dict[str, Any] = {"vocab_size": config.vocab_size, "d_model": config.hidden_dim, "dropout": 0.0}
    for side in ("encoder", "decoder"):
        fields |= {f"{side}_layers": config.num_layers, f"{side}_attention_heads": config.num_query_heads}
        fields |= {f"{side}_ffn_dim": bart_width(config)}
    model = BartForConditionalGeneration(BartConfig(**fields, max_position_embeddings=options.sequence_length))
    sources, targets = (torch.tensor(ids, dtype=torch.int64).split(options.batch_size) for ids in pairs)
    batches = [
        {"input_ids": source, "decoder_input_ids": target[:, :-1], "labels": target[:, 1:].contiguous()}
        for source, target in zip(sources, targets, strict=True)
    ]
    train_on_torch(model, batches, options, turns)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Link())
