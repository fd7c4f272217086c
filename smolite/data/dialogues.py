"""Dialogues: messages in order, read from JSONL files in ShareGPT or messages form."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smolite.data.sources import checked_text, read_objects, read_texts

ROLES = ("system", "user", "assistant")
ROLE_NAMES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
COUNTS = {
    "read": "dialogues read",
    "kept": "kept",
    "dropped": "dropped, because nothing was left",
    "no_assistant": "without an assistant turn, so with nothing to learn",
    "empty_system": "empty system turn left out",
    "leading_assistant": "assistant turns before the first user turn left out",
    "empty_turn": "cut before an empty turn",
    "out_of_order": "cut before a turn out of order",
    "trailing_user": "last user turn without an answer left out",
}


@dataclass(frozen=True)
class Message:
    """One turn: who speaks (`"system"`, `"user"` or `"assistant"`) and the text."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(
                f"`role` must be one of {', '.join(ROLES)}. Received: {self.role!r}. Rename the role of this turn."
            )
        if not isinstance(self.content, str):
            raise ValueError(f"`content` must be a string. Received: {self.content!r:.60}. Write the text.")


@dataclass(frozen=True)
class Conversation:
    """Messages in order: perhaps a system turn, then user and assistant by turns, the user first.

    Args:
        messages: at least one user turn.
        source: where it was read, as `"file:line"`.

    Raises:
        ValueError: a role out of order, or no user turn.
    """

    messages: tuple[Message, ...]
    source: str = ""

    def __post_init__(self) -> None:
        roles = [message.role for message in self.messages]
        turns = roles[1:] if roles[:1] == ["system"] else roles
        if not turns or turns != ["user", "assistant"] * (len(turns) // 2) + ["user"] * (len(turns) % 2):
            origin = f" at {self.source}" if self.source else ""
            raise ValueError(
                f"A conversation{origin} must be user, assistant, user, … after at most one system turn. "
                f"Received: {', '.join(roles) or 'no message'}. Reorder the messages."
            )

    @property
    def answers(self) -> list[str]:
        """What the assistant says, the texts that are learnt."""
        return [message.content for message in self.messages if message.role == "assistant"]


@dataclass(frozen=True)
class ReadResult:
    """What was read of a file: the conversations, and how often each case of the rule came up.

    `counts` has the keys of `COUNTS`; `kept + dropped == read`; a dialogue may be counted in several cases.
    """

    conversations: list[Conversation]
    counts: dict[str, int] = field(default_factory=dict)
    path: str = ""

    def summary(self) -> str:
        """Return the counts as text, one a line, leaving out cases that never came up."""
        seen = [(self.counts[name], text) for name, text in COUNTS.items() if self.counts.get(name)]
        return "\n".join([self.path or "dialogues", *(f"  {count:>9,}  {text}" for count, text in seen)])


def read_conversations(path: str | Path, *, max_turn_characters: int = 20_000) -> ReadResult:
    """Read a file of dialogues.

    Each line (or each item, when the file is one JSON array) is an object in ShareGPT form,
    `{"conversations": [{"from": "human" | "gpt" | "system", "value": text}, …]}`, or in messages form,
    `{"messages": [{"role": "user" | "assistant" | "system", "content": text}, …]}`. Other keys are left
    alone. A text's outer whitespace is stripped and its line ends become newlines.

    Untidy dialogues are handled by one rule: an empty system turn and assistant turns before the first user
    turn are left out; the dialogue is cut before its first empty or out-of-order turn; it must then end with
    an assistant turn, so a last user turn is left out; when nothing is left, it is dropped, as is a dialogue
    without any assistant turn. Every case is counted.

    Args:
        path: the file, UTF-8.
        max_turn_characters: longer turns are refused; such a turn is mostly a file pasted by mistake.

    Returns:
        A `ReadResult` with the conversations in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: with file and line: broken JSON, not an object, an unknown role, a text that is no string,
            not UTF-8, a turn that is too long; without: an empty file, or no dialogue left.
    """
    counts = Counter(dict.fromkeys(COUNTS, 0))

    def convert(record: dict[str, Any], where: str) -> Conversation | None:
        return _tidy(_messages(record, where, limit=max_turn_characters), where, counts=counts)

    kept = [conversation for conversation in read_objects(path, convert) if conversation is not None]
    counts["kept"] = len(kept)
    counts["dropped"] = counts["read"] - len(kept)
    result = ReadResult(kept, dict(counts), str(path))
    if not kept:
        raise ValueError(
            f"{path}: must hold at least one dialogue with a user turn and its answer. Received:\n"
            f"{result.summary()}\nMend the dialogues: a user turn first, then the assistant's, none empty."
        )
    return result


def _messages(record: dict[str, Any], where: str, *, limit: int) -> list[Message]:
    turns = record.get("conversations", record.get("messages"))
    if not isinstance(turns, list):
        raise ValueError(
            f"{where}: must have a list `conversations` or `messages`. Received the keys: "
            f"{', '.join(map(str, record)) or 'none'}. Write the turns of the dialogue as such a list."
        )
    return [_message(turn, f"{where}: turn {number}", limit=limit) for number, turn in enumerate(turns, 1)]


def _message(turn: Any, where: str, *, limit: int) -> Message:
    keys = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
    if not isinstance(turn, dict) or keys[0] not in turn or keys[1] not in turn:
        raise ValueError(
            f'{where} must be an object {{"from", "value"}} or {{"role", "content"}}. '
            f"Received: {turn!r:.60}. Write who speaks and the text."
        )
    role, text = turn[keys[0]], checked_text(turn[keys[1]], f"{where}: `{keys[1]}`")
    if not isinstance(role, str) or role not in ROLE_NAMES:
        raise ValueError(f"{where}: `{keys[0]}` must be one of {', '.join(ROLE_NAMES)}. Received: {role!r}. Rename this role.")
    if len(text) > limit:
        raise ValueError(
            f"{where} must have at most {limit:,} characters. Received: {len(text):,}. Split or shorten the "
            f"turn, or raise `max_turn_characters`."
        )
    return Message(ROLE_NAMES[role], text)


def _tidy(messages: Sequence[Message], where: str, *, counts: Counter) -> Conversation | None:
    counts["read"] += 1
    counts["no_assistant"] += all(message.role != "assistant" for message in messages)
    system, turns = _split_system(messages, counts=counts)
    first = next((number for number, turn in enumerate(turns) if turn.role != "assistant"), len(turns))
    counts["leading_assistant"] += first > 0
    kept: list[Message] = []
    # A dialogue is cut at its first fault: what comes after it answers something that the model would not see.
    for turn in turns[first:]:
        if turn.role != ("user", "assistant")[len(kept) % 2]:
            counts["out_of_order"] += 1
            break
        if not turn.content:
            counts["empty_turn"] += 1
            break
        kept.append(turn)
    # A question without an answer trains nothing.
    if len(kept) % 2:
        counts["trailing_user"] += 1
        kept.pop()
    return Conversation((*system, *kept), where) if kept else None


def _split_system(messages: Sequence[Message], *, counts: Counter) -> tuple[list[Message], list[Message]]:
    if not messages or messages[0].role != "system":
        return [], list(messages)
    counts["empty_system"] += not messages[0].content
    return [turn for turn in messages[:1] if turn.content], list(messages[1:])


def read_documents(path: str | Path) -> list[str]:
    """Read plain text: the documents of a text file, or what everybody says in a file of dialogues.

    Args:
        path: a file for `read_texts` or for `read_conversations`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds neither; both reasons are given.
    """
    try:
        return read_texts(path)
    except ValueError as no_text:
        try:
            conversations = read_conversations(path).conversations
        except ValueError as no_dialogues:
            raise ValueError(f"{path} must hold text or dialogues.\nAs text: {no_text}\nAs dialogues: {no_dialogues}") from None
    return [message.content for conversation in conversations for message in conversation.messages]
