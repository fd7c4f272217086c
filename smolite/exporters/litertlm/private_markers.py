"""Chats for a runtime that writes them as one text and tokenizes that: markers under names that nobody types.

Such a runtime cannot tell a marker of the template from one that a user typed. So the tokenizer and the template that go into
a file call every marker by a character for private use, from U+100000 on. A typed `<end>` is text, as in `ChatTemplate.render`,
and the template drops those private characters from what a user says.

Our template encodes every turn by itself, and SentencePiece begins each with a space that the text does not have. The
tokenizer of the file adds none, and the template writes it: `<start>안녕<sep>` becomes U+100003, a space, `안녕` and U+100002,
with the same ids.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from smolite.checkpoint import Run
from smolite.data import ROLES, ChatTemplate, Message
from smolite.text import JsonTokenizer, Tokenizer

_FIRST = 0x100000


def private_names(tokenizer: Tokenizer) -> dict[str, str]:
    """Marker → the character that stands for it: `<end>`, the first by name, → U+100000, and so on."""
    # Sorted, so that a marker has the same character in the tokenizer, in the template and at every export.
    return {marker: chr(_FIRST + place) for place, marker in enumerate(sorted(tokenizer.markers))}


def private_tokenizer(tokenizer: Tokenizer) -> bytes:
    """The `tokenizer.model` or `tokenizer.json` of a tokenizer with its markers renamed, and no space put before a text."""
    names = private_names(tokenizer)
    return _renamed_json(tokenizer, names) if isinstance(tokenizer, JsonTokenizer) else _renamed_model(tokenizer, names)


def _renamed_model(tokenizer: Tokenizer, names: dict[str, str]) -> bytes:
    model = _sentencepiece_model(tokenizer)
    for marker, index in tokenizer.markers.items():
        piece = model.pieces[index]
        # User-defined, for the runtime renders a chat as text: there a marker must be found in text, and only the template
        # writes this character.
        piece.piece, piece.type = names[marker], piece.USER_DEFINED
    settings = model.trainer_spec
    for field in ("pad_piece", "bos_piece", "eos_piece"):
        setattr(settings, field, names.get(getattr(settings, field), getattr(settings, field)))
    settings.control_symbols[:] = [symbol for symbol in settings.control_symbols if symbol not in names]
    # The template writes the space where `render` has one, after every marker and not at the start of the whole text alone.
    model.normalizer_spec.add_dummy_prefix = False
    found: bytes = model.SerializeToString()
    return found


def _renamed_json(tokenizer: JsonTokenizer, names: dict[str, str]) -> bytes:
    content = json.loads(tokenizer.model_proto)
    for token in content.get("added_tokens") or []:
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {names.get(piece, piece): index for piece, index in vocabulary.items()}
    content["post_processor"] = None  # it may add markers, by their old names
    return json.dumps(content, ensure_ascii=False).encode()


class PrivateTemplate:
    """A chat template as text and as Jinja, for the tokenizer of `private_tokenizer`.

    The model itself picks the marker that ends its answer, and the runtime keeps it. What a template has after that marker,
    such as the newline of ChatML, comes before the next turn.

    Args:
        template: the template.
        tokenizer: the tokenizer as it is in the run.

    Attributes:
        stop: the private name of the marker that ends an answer.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer):
        self._names = private_names(tokenizer)
        self._space = _leading_space(tokenizer)
        self.stop = self._names[template.stop]
        parts = re.compile("(" + "|".join(map(re.escape, template.markers)) + ")")
        affixes = {role: (getattr(template, f"{role}_prefix"), getattr(template, f"{role}_suffix")) for role in ROLES}
        self._affixes = {role: tuple(self._named(parts.split(affix)) for affix in pair) for role, pair in affixes.items()}
        prefix, suffix = self._affixes["assistant"]
        before, _, self._after = suffix.partition(self.stop)
        self._affixes["assistant"] = (prefix, before + self.stop)
        self._default = template.default_system.strip()

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a dialogue that ends with the user's turn, to be tokenized whole."""
        turns, last = [], ""
        if self._default and messages[0].role != "system":
            messages = [Message("system", self._default), *messages]
        for message in messages:
            prefix, suffix = self._affixes[message.role]
            turns.append((self._after if last == "assistant" else "") + prefix + self.spoken(message.content) + suffix)
            last = message.role
        return "".join(turns) + self._affixes["assistant"][0]

    def spoken(self, content: str) -> str:
        """What somebody says, as it stands between the markers: without private characters and outer whitespace."""
        said = content.translate({ord(name): None for name in self._names.values()}).strip()
        return self._space + said if said else ""

    def jinja(self) -> str:
        """`render` in Jinja; the content of a message may be a text, or a list of parts with a `text`."""
        drop = "".join(f"|replace({_quoted(name)}, '')" for name in self._names.values())
        default = self._turn("system", _quoted(self._space + self._default))
        lines = [
            "{%- set last = namespace(role='') -%}",
            f"{{%- if messages[0]['role'] != 'system' -%}}{default}{{%- endif -%}}" if self._default else "",
            "{%- for message in messages -%}{%- set said = namespace(text='') -%}",
            "{%- if message['content'] is string -%}{%- set said.text = message['content'] -%}{%- else -%}",
            "{%- for part in message['content'] -%}{%- set said.text = said.text + part['text'] -%}{%- endfor -%}{%- endif -%}",
            f"{{%- set said.text = (said.text{drop})|trim -%}}",
            f"{{%- if said.text -%}}{{%- set said.text = {_quoted(self._space)} + said.text -%}}{{%- endif -%}}",
            f"{{%- if last.role == 'assistant' -%}}{{{{ {_quoted(self._after)} }}}}{{%- endif -%}}" if self._after else "",
            f"{{%- if message['role'] == 'system' -%}}{self._turn('system')}",
            f"{{%- elif message['role'] == 'user' -%}}{self._turn('user')}",
            f"{{%- else -%}}{self._turn('assistant')}{{%- endif -%}}",
            "{%- set last.role = 'assistant' if message['role'] == 'model' else message['role'] -%}{%- endfor -%}",
            f"{{%- if add_generation_prompt -%}}{{{{ {_quoted(self._affixes['assistant'][0])} }}}}{{%- endif -%}}",
        ]
        return "".join(lines)

    def _turn(self, role: str, content: str = "said.text") -> str:
        prefix, suffix = map(_quoted, self._affixes[role])
        return f"{{{{ {prefix} + {content} + {suffix} }}}}"

    def _named(self, parts: Sequence[str]) -> str:
        """The parts of a prefix or suffix, its markers under private names, its texts with the space that a tokenizer adds."""
        return "".join(self._names.get(part) or self._space + part for part in parts if part)


def prompt_of(run: Run, text: str) -> str:
    """What a user says, as the runtime reads it."""
    assert run.template is not None, "`build.check_run` refuses a run without one"
    return PrivateTemplate(run.template, run.tokenizer).render([Message("user", text)])


def _leading_space(tokenizer: Tokenizer) -> str:
    """The space that a SentencePiece tokenizer begins every text with, if it does."""
    if isinstance(tokenizer, JsonTokenizer):
        return ""
    return " " if _sentencepiece_model(tokenizer).normalizer_spec.add_dummy_prefix else ""


def _sentencepiece_model(tokenizer: Tokenizer) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    protos: Any = sentencepiece_model_pb2
    return protos.ModelProto.FromString(tokenizer.guarded_proto)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
