"""The chat template: conversations to token ids and the mask of trained tokens, made together."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from smolite.data.dialogues import ROLES, Conversation, Message, ReadResult, read_conversations
from smolite.data.packing import Example, Fitted
from smolite.data.sources import read_texts, resolve_dataset
from smolite.text import Tokenizer

__all__ = [
    "ChatTemplate",
    "Conversation",
    "Message",
    "ReadResult",
    "fit_context",
    "read_conversations",
    "read_texts",
    "resolve_dataset",
    "show",
]

_MARKER = re.compile(r"(<[^<>\s]+>)")


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """What stands before and after each turn: plain text and markers, no logic.

    `<…>` in a prefix or suffix is a marker and becomes one id; the rest, and everything that a person or the
    model says, is encoded as text, so a marker typed by a user stays text. By default a conversation reads
    `<start> user <sep> answer <end>`, repeated, with `<start> system <end>` before it when there is a system
    turn. The assistant's text is trained, and its suffix up to its last marker; nothing else is.
    A dialogue without a system turn begins with `default_system` as if it had one, unless that is `""`.

    Raises:
        ValueError: a field that is no string, or an `assistant_suffix` without a marker to stop at.
    """

    system_prefix: str = "<start>"
    system_suffix: str = "<end>"
    user_prefix: str = "<start>"
    user_suffix: str = "<sep>"
    assistant_prefix: str = ""
    assistant_suffix: str = "<end>"
    default_system: str = ""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, str):
                raise ValueError(f"`{name}` must be a string. Received: {value!r}. Write text and markers.")
        if not _MARKER.search(self.assistant_suffix):
            raise ValueError(
                f"`assistant_suffix` must hold a marker such as `<end>`, at which answers stop. Received: "
                f"{self.assistant_suffix!r}. Add the marker."
            )

    @property
    def markers(self) -> tuple[str, ...]:
        """The markers that the template uses, sorted."""
        affixes = (affix for role in ROLES for affix in self._around(role))
        return tuple(sorted(set(_MARKER.findall(" ".join(affixes)))))

    @property
    def stop(self) -> str:
        """The marker at which answers stop."""
        return _MARKER.findall(self.assistant_suffix)[0]

    def render(self, conversation: Conversation, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Turn a conversation into ids and the mask of trained tokens.

        With `<start>` = 2, `<end>` = 3, `<sep>` = 4 and a tokenizer that gives "hi" the ids 7, 8 and "yo" 9:
        user "hi", assistant "yo" → `([2, 7, 8, 4, 9, 3], [0, 0, 0, 0, 1, 1])`.

        Args:
            conversation: the turns; outer whitespace of a turn is stripped.
            tokenizer: encodes each turn by itself and names the markers.

        Returns:
            `(ids, mask)`, two lists of one length; `mask[i]` is 1 where token i is trained: answers and
            their end.

        Raises:
            ValueError: the tokenizer lacks a marker of the template.
        """
        self._check_markers(tokenizer)
        # What stands behind the marker that ends an answer is read, and never learnt: the model stops before it.
        ids, mask, after_end = [], [], tokenizer.encode(_MARKER.split(self.assistant_suffix)[-1])
        for message in self._with_system(conversation.messages):
            # Each turn is encoded by itself: its ids are the same in training, in a chat and on a device, whatever stands
            # before.
            prefix, suffix = (self.affix_ids(affix, tokenizer) for affix in self._around(message.role))
            answer = tokenizer.encode(message.content.strip())
            trained = len(answer + suffix) - len(after_end) if message.role == "assistant" else 0
            ids += prefix + answer + suffix
            mask += [0] * len(prefix) + [1] * trained + [0] * (len(answer + suffix) - trained)
        return ids, mask

    def _with_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        own = not self.default_system or messages[0].role == "system"
        return messages if own else (Message("system", self.default_system), *messages)

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Turn messages that end with the user's into ids that the model is to go on from.

        With the ids of `render`'s example: user "hi" → `[2, 7, 8, 4]`, the beginning of what `render` gives.

        Raises:
            ValueError: the last message isn't the user's, roles out of order, or a marker is missing.
        """
        if not messages or messages[-1].role != "user":
            received = f"{messages[-1].role}" if messages else "no message"
            raise ValueError(
                f"The last message of a prompt must be the user's. Received: {received}. Add the user's "
                f"turn, or leave out what follows it."
            )
        ids, _ = self.render(Conversation(tuple(messages)), tokenizer)
        return ids + self.affix_ids(self.assistant_prefix, tokenizer)

    def jinja(self) -> str:
        """Return the template as the Jinja text of `tokenizer_config.json`, which renders the same string."""
        turns = "".join(map(self._turn_rule, ROLES))
        opening = f"{{{{ {_quoted(self.assistant_prefix)} }}}}"
        generation = f"{{% if add_generation_prompt %}}{opening}{{% endif %}}" if self.assistant_prefix else ""
        return self._default_rule() + "{% for message in messages %}" + turns + "{% endif %}{% endfor %}" + generation

    def _default_rule(self) -> str:
        prefix, suffix = self._around("system")
        default = _quoted(f"{prefix}{self.default_system.strip()}{suffix}")
        return f"{{% if messages[0]['role'] != 'system' %}}{{{{ {default} }}}}{{% endif %}}" if self.default_system else ""

    def to_dict(self) -> dict[str, str]:
        """Return the fields as a dict for JSON, without a `default_system` that is not there."""
        return {name: text for name, text in asdict(self).items() if text or name != "default_system"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ChatTemplate":
        """Make a template of a dict.

        Raises:
            ValueError: an unknown key, or a value that isn't allowed.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise ValueError(
                f"A chat template must have only the keys {', '.join(known)}. Received: "
                f"{', '.join(unknown)}. Rename or remove them."
            )
        return cls(**values)

    def _turn_rule(self, role: str) -> str:
        branch = "if" if role == "system" else "elif"
        prefix, suffix = map(_quoted, self._around(role))
        text = f"{{{{ {prefix} + (message['content'] | trim) + {suffix} }}}}"
        return f"{{% {branch} message['role'] == '{role}' %}}{text}"

    def _around(self, role: str) -> tuple[str, str]:
        return getattr(self, f"{role}_prefix"), getattr(self, f"{role}_suffix")

    def affix_ids(self, affix: str, tokenizer: Tokenizer) -> list[int]:
        """Token ids of a prefix or suffix: markers as their ids, the rest as text."""
        ids = []
        for part in filter(None, _MARKER.split(affix)):
            # By id and not through `encode`, which never gives a marker: so a marker that a user types stays text.
            ids += [tokenizer.markers[part]] if _MARKER.fullmatch(part) else tokenizer.encode(part)
        return ids

    def _check_markers(self, tokenizer: Tokenizer) -> None:
        missing = [marker for marker in self.markers if marker not in tokenizer.markers]
        if missing:
            raise ValueError(
                f"The tokenizer must have the chat template's markers {', '.join(self.markers)}. Missing: "
                f"{', '.join(missing)}. Train a tokenizer with `train_tokenizer`, or give a `ChatTemplate` "
                f"made of the tokenizer's own markers: {', '.join(tokenizer.markers) or 'none'}."
            )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def fit_context(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    template: ChatTemplate | None = None,
) -> Fitted:
    """Render conversations and shorten those that exceed the context.

    n ids take n - 1 columns, because the last is only ever predicted. Of a longer conversation the whole
    leading exchanges that fit are kept; when not even the first fits, it is dropped. Every case is counted,
    a question without an answer at the end as shortened.

    With `<start> hi <sep> yo <end>` twice, `[2, 7, 8, 4, 9, 3, 2, 7, 8, 4, 9, 3]`, and `context_length` 8 the
    first 6 ids are kept.

    Args:
        conversations: as `read_conversations` gives them.
        tokenizer: encodes the turns.
        context_length: number of tokens that the model sees at once.
        template: the chat template, by default `ChatTemplate()`.

    Returns:
        `Fitted`, in the given order.

    Raises:
        ValueError: no conversation fits.
    """
    template, counts = template or ChatTemplate(), {"whole": 0, "shortened": 0, "dropped": 0}
    kept, examples = [], []
    for conversation in conversations:
        ids, mask = template.render(conversation, tokenizer)
        exchanges, end = _fitting(mask, context_length)
        whole = exchanges * 2 == len([message for message in conversation.messages if message.role != "system"])
        case = "whole" if whole else "shortened" if exchanges else "dropped"
        counts[case] += 1
        if exchanges:
            kept.append(_leading_exchanges(conversation, exchanges) if case == "shortened" else conversation)
            examples.append(Example(ids[:end], mask[:end]))
    if not kept:
        raise ValueError(
            f"At least one conversation must fit into `context_length`. Received: {counts['dropped']:,} "
            f"conversations and {context_length}; not one first exchange fits. Raise `context_length`."
        )
    return Fitted(kept, examples, counts)


def _fitting(mask: list[int], context_length: int) -> tuple[int, int]:
    after = [*mask[1:], 0]
    # An answer ends where the mask falls from 1 to 0, whatever the template puts between turns.
    ends = [end for end, (now, then) in enumerate(zip(mask, after, strict=True), 1) if now > then]
    fitting = [end for end in ends if end - 1 <= context_length]
    return len(fitting), fitting[-1] if fitting else 0


def _leading_exchanges(conversation: Conversation, count: int) -> Conversation:
    ends = [end for end, message in enumerate(conversation.messages, 1) if message.role == "assistant"]
    return Conversation(conversation.messages[: ends[count - 1]], conversation.source)


def show(
    dialogues: str | Path | Sequence[Conversation],
    tokenizer: Tokenizer,
    *,
    template: ChatTemplate | None = None,
    count: int = 3,
    colour: bool = False,
) -> str:
    """Return printable examples with trained tokens marked, and the share of trained tokens in all dialogues.

    Args:
        dialogues: a file for `read_conversations`, or conversations.
        tokenizer: encodes the turns.
        template: the chat template, by default `ChatTemplate()`.
        count: number of examples, from the first on.
        colour: mark trained tokens with green in a terminal instead of `[ ]`.

    Raises:
        ValueError: as `read_conversations`; no conversation; the tokenizer lacks a marker.
    """
    template, heading = template or ChatTemplate(), []
    if isinstance(dialogues, str | Path):
        result = read_conversations(resolve_dataset(dialogues))
        dialogues, heading = result.conversations, [result.summary()]
    if not dialogues:
        raise ValueError("`dialogues` must hold at least one conversation. Received: none. Give some.")
    examples: list[str] = []
    trained, total = 0, 0
    for conversation in dialogues:
        ids, mask = template.render(conversation, tokenizer)
        trained, total = trained + sum(mask), total + len(ids)
        if len(examples) < count:
            tally = f"{conversation.source or 'example'}: {len(ids)} tokens, {sum(mask)} trained"
            examples.append(f"{tally}\n{_marked(ids, mask, tokenizer, colour=colour)}")
    share = f"{trained:,} of {total:,} tokens are trained ({trained / total:.1%})"
    return "\n\n".join([*heading, *examples, f"{share}, in {len(dialogues):,} dialogues"])


def _marked(ids: list[int], mask: list[int], tokenizer: Tokenizer, *, colour: bool) -> str:
    opening, closing = ("\033[32m", "\033[0m") if colour else ("[", "]")
    pieces = [piece.replace("\n", "⏎") for piece in tokenizer.pieces(ids)]
    runs = []
    for trained, run in groupby(zip(mask, pieces, strict=True), key=lambda pair: pair[0]):
        text = " ".join(piece for _, piece in run)
        runs.append(f"{opening}{text}{closing}" if trained else text)
    return " ".join(runs)
