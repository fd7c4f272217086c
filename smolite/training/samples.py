"""What a model writes while it is trained: how it goes on with texts, and what it answers."""

from collections.abc import Sequence
from typing import Any

from smolite.checkpoint import Run
from smolite.data import Message
from smolite.generation import Engine, KerasEngine, Sampling, generate, reply
from smolite.models import CausalLM

SAMPLES, SAMPLE_TOKENS = 3, 48


def sample_engine(model: CausalLM, *, sequence_length: int) -> KerasEngine:
    """An engine with room for a row and an answer to its end: a short cache is quick and small."""
    return KerasEngine(model, context_length=min(model.config.context_length, sequence_length + SAMPLE_TOKENS))


def sample_texts(engine: Engine, run: Run, texts: Sequence[str]) -> str:
    """How `engine` goes on, greedily, from the first tokens of each text, as lines of `beginning → what follows`."""
    prompts = [ids[:4] for text in texts if (ids := run.tokenizer.encode(text))]
    sampling = Sampling(temperature=0.0, repetition_penalty=1.2)
    stop = (run.tokenizer.end_id,)
    news = generate(engine, prompts, max_new_tokens=24, sampling=sampling, stop_ids=stop) if prompts else []
    decode = run.tokenizer.decode
    return "\n".join(f"  {decode(ids)} → {decode(new)}" for ids, new in zip(prompts, news, strict=True))


def sample_replies(engine: Engine, run: Run, dialogues: Sequence[Sequence[Message]]) -> str:
    """What `engine` answers, greedily, with the run's tokenizer and template, as lines of `user → answer`."""
    settings: dict[str, Any] = {"tokenizer": run.tokenizer, "template": run.template, "max_new_tokens": SAMPLE_TOKENS}
    return "\n".join(f"  {turns[-1].content} → {reply(engine, turns, **settings)}" for turns in dialogues)


def sample_targets(engine: Engine, run: Run, sources: Sequence[str]) -> str:
    """What `engine` writes, greedily, for each source, as lines of `source → target`."""
    prompts = [run.tokenizer.encode(source)[: engine.context_length] for source in sources]
    targets = generate(engine, prompts, max_new_tokens=SAMPLE_TOKENS, stop_ids=(run.tokenizer.end_id,))
    return "\n".join(f"  {source} → {run.tokenizer.decode(ids)}" for source, ids in zip(sources, targets, strict=True))
