"""Text in, text out: an engine, a tokenizer and a template made into someone to talk to."""

from collections.abc import Iterator, Sequence
from typing import Any

from smolite.data import ChatTemplate, Message
from smolite.generation.engine import Engine
from smolite.generation.loop import stream
from smolite.generation.sampling import GREEDY, Sampling
from smolite.text import Tokenizer


def stream_reply(
    engine: Engine,
    messages: Sequence[Message],
    *,
    tokenizer: Tokenizer,
    template: ChatTemplate | None = None,
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 128,
) -> Iterator[str]:
    """Yields the assistant's answer to `messages` in pieces of text, as soon as each is complete.

    Args:
        engine: an engine of batch size 1.
        messages: the dialogue so far; the last message is the user's. When it leaves no room for an answer of
            `max_new_tokens` (at most half the context), its oldest exchanges are forgotten first.
        tokenizer: the model's.
        template: the chat template of the run; an encoder-decoder needs none, and reads the turns a line each.
        sampling: how tokens are picked; greedily by default.
        max_new_tokens: the most tokens of an answer.

    Raises:
        ValueError: the last message is not the user's, or alone exceeds the context.
    """
    template = template or ChatTemplate()
    if engine.target_length is not None:
        prompt, stop = fit_source(messages, tokenizer, room=engine.context_length), tokenizer.end_id
    else:
        # Half at most is kept free: a long answer may go on after its beginning is forgotten, a prompt may not.
        room = engine.context_length - min(max_new_tokens, engine.context_length // 2)
        prompt, stop = fit_messages(messages, tokenizer, template=template, room=room), tokenizer.markers[template.stop]
    decoder = tokenizer.stream()
    ids = stream(engine, prompt, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=(stop,))
    for index in ids:
        if text := decoder.push(index):
            yield text
    if text := decoder.finish():
        yield text


def reply(engine: Engine, messages: Sequence[Message], *, tokenizer: Tokenizer, **settings: Any) -> str:
    """The whole answer at once; arguments as in `stream_reply`."""
    return "".join(stream_reply(engine, messages, tokenizer=tokenizer, **settings))


def fit_messages(messages: Sequence[Message], tokenizer: Tokenizer, *, template: ChatTemplate, room: int) -> list[int]:
    """The prompt for `messages`, without the oldest exchanges that do not fit into `room` tokens; the system turn stays.

    The last user turn is always kept, whatever its length.
    """
    system = [message for message in messages[:1] if message.role == "system"]
    turns = list(messages[len(system) :])
    prompt = template.prompt([*system, *turns], tokenizer)
    while len(prompt) > room and len(turns) > 1:
        # A question goes together with its answer: the template asks for turns in their order.
        turns = turns[2:]
        prompt = template.prompt([*system, *turns], tokenizer)
    return prompt


def fit_source(messages: Sequence[Message], tokenizer: Tokenizer, *, room: int) -> list[int]:
    """The source of an encoder-decoder that answers `messages`: a line a turn as in `dialogue_pairs`, the oldest left out.

    The last turn is always kept, whatever its length.
    """
    turns = [message.content for message in messages]
    source = tokenizer.encode("\n".join(turns))
    while len(source) > room and len(turns) > 1:
        turns = turns[1:]
        source = tokenizer.encode("\n".join(turns))
    return source
