"""The worker of train.py: `fit` of one side, which stops between two steps until it is its turn again."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from peers import keras_hub_model, transformers_model
from turns import Link

from smolite.backends import backend
from smolite.data.dataset import ChatDataset
from smolite.data.packing import Fitted, pack
from smolite.data.template import fit_context, read_conversations
from smolite.exporters.neighbours.keras_hub import preprocessor_of
from smolite.models.causal_lm import CausalLM
from smolite.models.config import ModelConfig
from smolite.text.tokenizer import Tokenizer
from smolite.training.compilation import compile_for_training
from smolite.training.options import TrainingOptions

WARM_UP = 2  # steps before the first turn: the first one compiles


class Turns(keras.callbacks.Callback):
    """Counts the batches of `fit` into turns. A turn ends when its last loss is known, so nothing is left to be computed.

    Args:
        link: to train.py.
        learnt: for every batch of `fit`, how many tokens count as learnt.
        job: how many steps a turn has, and batches a step.
        fill: the share of places filled, which is sent when the warm-up is over.
    """

    def __init__(self, link: Link, learnt: Sequence[int], *, job: dict[str, Any], fill: float):
        super().__init__()
        self.link, self.learnt, self.facts = link, learnt, {"fill": fill}
        batches_per_step = job["gradient_accumulation_steps"]
        self.batches, self.warm_up = job["steps"] * batches_per_step, WARM_UP * batches_per_step
        self.started = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        done = batch + 1 - self.warm_up
        if done < 0 or done % self.batches:
            return
        loss = float(logs["loss"])
        if done == 0:
            self.link.send(**self.facts)
        else:
            seconds = time.perf_counter() - self.started
            self.link.send(seconds=seconds, learnt=sum(self.learnt[batch + 1 - self.batches : batch + 1]), loss=loss)
        self.link.wait()
        self.started = time.perf_counter()


def main(job: dict[str, Any], link: Link) -> None:
    """Trains the side that the job names, on plain text or on dialogues."""
    config = ModelConfig.from_dict(job["config"])
    options = begin(job)
    sides = {"smolite": fit_smolite, "keras-hub": fit_keras_hub, "transformers": fit_transformers}
    sides[job["side"]](job, link, config, options)
    link.wait()


def begin(job: dict[str, Any]) -> TrainingOptions:
    """Counts the batches of a job, sets dtype and seed, and returns the settings of both sides."""
    job["total"] = (WARM_UP + job["steps"] * job["turns"]) * job["gradient_accumulation_steps"]
    settings = {name: job[name] for name in ("batch_size", "sequence_length", "gradient_accumulation_steps", "dtype")}
    keras.config.set_dtype_policy(job["dtype"])
    keras.utils.set_random_seed(0)
    return TrainingOptions(**settings, dropout=0.0)


def fit_smolite(job: dict[str, Any], link: Link, config: ModelConfig, options: TrainingOptions) -> None:
    """Our model as `pretrain` and `finetune` train it: packed rows, logits only where something is learnt."""
    link.mark_imported()
    examples = fitted_dialogues(job).examples if job["case"] == "dialogues" else random_examples(job, config)
    rows = pack(examples, options.sequence_length)
    dataset = ChatDataset(rows, options.batch_size, steps_per_epoch=job["total"])
    learnt = [int(np.count_nonzero(dataset.batch(step)[2])) for step in range(job["total"])]
    model = CausalLM(config)
    compile_for_training(model, options, total_steps=1_000)
    turns = Turns(link, learnt, job=job, fill=rows.fill)
    model.fit(dataset, shuffle=False, verbose=0, callbacks=[turns])


def fit_keras_hub(job: dict[str, Any], link: Link, config: ModelConfig, options: TrainingOptions) -> None:
    """keras-hub's Llama: its own loss, metric and preprocessor, our optimizer."""
    import keras_hub  # noqa: F401 - its memory counts as imported

    link.mark_imported()
    if job["case"] == "dialogues":
        texts, learnt, fill = dialogue_texts(job, options)
        model = keras_hub_model(
            config, preprocessor=preprocessor_of(Tokenizer(job["tokenizer"]), length=options.sequence_length)
        )
        data = {"x": texts}
    else:
        ids = np.array([ids for ids, _ in random_examples(job, config)], "int32")
        model, fill = keras_hub_model(config), 1.0
        tokens = ids[:, :-1]
        data = {"x": {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}, "y": ids[:, 1:]}
        learnt = [options.batch_size * options.sequence_length] * job["total"]
    compile_keras_hub(model, options, job)
    turns = Turns(link, learnt, job=job, fill=fill)
    model.fit(**data, batch_size=options.batch_size, verbose=0, shuffle=False, callbacks=[turns])


def fit_transformers(job: dict[str, Any], link: Link, config: ModelConfig, options: TrainingOptions) -> None:
    """transformers' Llama in a plain loop on torch, with torch's fused AdamW."""
    import torch
    import transformers  # noqa: F401 - its memory counts as imported

    link.mark_imported()
    rows = torch.tensor([ids[:-1] for ids, _ in random_examples(job, config)])
    batches = [{"input_ids": rows, "labels": rows} for rows in rows.split(options.batch_size)]
    learnt = [options.batch_size * options.sequence_length] * job["total"]
    train_on_torch(transformers_model(config), batches, options, Turns(link, learnt, job=job, fill=1.0))


def compile_keras_hub(model: keras.Model, options: TrainingOptions, job: dict[str, Any]) -> None:
    """Compiles a model of keras-hub with its own loss and metric, and our optimizer."""
    optimizer = keras.optimizers.AdamW(
        options.learning_rate,
        weight_decay=options.weight_decay,
        beta_2=options.beta_2,
        global_clipnorm=options.global_clipnorm,
        gradient_accumulation_steps=options.gradient_accumulation_steps if options.gradient_accumulation_steps > 1 else None,
    )
    model.compile(optimizer, jit_compile=backend().jit_compile() if job["peer_jit"] == "same" else "auto")


def train_on_torch(model: Any, batches: Sequence[dict[str, Any]], options: TrainingOptions, turns: Turns) -> None:
    """A plain loop over batches of a model of transformers, not compiled; bfloat16 by autocast."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.train().to(device)
    # The fused update, as its users take it: torch's default walks over the weights one by one on a CPU.
    optimizer = torch.optim.AdamW(
        model.parameters(), options.learning_rate, betas=(0.9, options.beta_2), weight_decay=options.weight_decay, fused=True
    )
    for number, batch in enumerate(batches):
        with torch.autocast(device, torch.bfloat16, enabled=options.dtype != "float32"):
            loss = model(**{name: ids.to(device) for name, ids in batch.items()}, use_cache=False).loss
        (loss / options.gradient_accumulation_steps).backward()
        if (number + 1) % options.gradient_accumulation_steps == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.global_clipnorm)
            optimizer.step()
            optimizer.zero_grad()
        turns.on_train_batch_end(number, {"loss": loss.detach()})


def random_examples(job: dict[str, Any], config: ModelConfig) -> list[tuple[list[int], list[int]]]:
    """Full rows of random ids: what a step costs does not depend on what the text says."""
    shape = job["total"] * job["batch_size"], job["sequence_length"] + 1
    ids = np.random.default_rng(0).integers(0, config.vocab_size, shape)
    return [(row, [1] * len(row)) for row in ids.tolist()]


def fitted_dialogues(job: dict[str, Any]) -> Fitted:
    """The dialogues of both sides: those of the file, cut to a row where they are longer."""
    conversations = read_conversations(job["dialogues"]).conversations
    return fit_context(conversations, Tokenizer(job["tokenizer"]), context_length=job["sequence_length"])


def dialogue_texts(job: dict[str, Any], options: TrainingOptions) -> tuple[list[str], list[int], float]:
    """One text per dialogue, its turns on lines of their own; response tokens per step; the share of places filled.

    keras-hub trains on all of the text. What counts as learnt is what counts on our side: the answers and their ends.
    """
    fitted = fitted_dialogues(job)
    order = np.random.default_rng(0).permutation(len(fitted.examples))
    chosen = np.resize(order, (job["total"], options.batch_size))
    texts = ["\n".join(message.content for message in fitted.kept[i].messages) for i in chosen.flat]
    learnt = [sum(sum(fitted.examples[i][1]) for i in step) for step in chosen]
    fill = np.mean([len(fitted.examples[i][0]) - 1 for i in chosen.flat]) / options.sequence_length
    return texts, learnt, float(fill)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Link())
