"""Proof for a runtime that takes and gives texts: the same ids, answers and log probabilities as the Keras model."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from smolite.checkpoint import Run
from smolite.data import ChatTemplate, Conversation, Message
from smolite.evaluation import Evaluation, trace_at_once
from smolite.exporters.delivery.report import Row
from smolite.exporters.litertlm.browser_engine import BrowserEngine
from smolite.exporters.litertlm.engine import LiteRTLMEngine
from smolite.exporters.litertlm.private_markers import PrivateTemplate
from smolite.exporters.verification.proof import FLOAT_LIMIT, FileCheck
from smolite.exporters.verification.reference import Case
from smolite.exporters.verification.texts import TEXTS

_BROKEN = "\ufffd"  # what the tokenizer writes for bytes that are no character
_EVERY = 4  # of how many prompts one is rendered by the runtime


def prove(file: FileCheck) -> list[Row]:
    """Tokenizer and template in the file, greedy answers, in a browser, too, and log probabilities in place of logits."""
    engine, row, exact = file.engine, file.row, file.limits is None
    rows = [check_tokenizer(file.path.name, engine, file.run, file.texts)]
    known = {"slots": engine.context_length, "tie": FLOAT_LIMIT}
    check_answers(row, asker(engine, file.run), file.run, file.questions, **known, must_agree=exact)
    _check_probabilities(file)
    if exact and row.logits is not None and row.logits > FLOAT_LIMIT:
        row.problems.append(f"a log probability differs by {row.logits:.1e}; at most {FLOAT_LIMIT:.0e} is allowed")
    if file.browser is not None:
        page = check_page(file.browser, file.path, engine, file.run, file.questions, tie=FLOAT_LIMIT, exact=exact)
        rows.append(page)
    return rows


def _check_probabilities(file: FileCheck) -> None:
    """Log probabilities of an answer to what users say, and of held-out dialogues, which give bits per character."""
    answer, slots = Message("assistant", TEXTS[0]), file.engine.context_length
    room = slots - len(file.run.tokenizer.encode(answer.content)) - 1
    fitting = [text for text, case in file.questions if len(case.prompt) <= room]
    answered = [Conversation((Message("user", text), answer)) for text in fitting]
    check_scores(file.row, file.engine, file.run, answered, slots=slots)
    if file.held_out:
        bits = check_scores(file.row, file.engine, file.run, file.held_out, slots=slots)
        file.keras_row.bits_per_character, file.row.bits_per_character = bits
        file.limit_bits(bits[0])


def check_answers(
    row: Row,
    ask: Callable[[str, int], str],
    run: Run,
    said: Sequence[tuple[str, Case]],
    *,
    slots: int,
    tie: float,
    must_agree: bool,
) -> None:
    """Compares greedy answers, and counts the tokens that stand before the first difference.

    A text cannot tell more than that. An answer is compared up to the place where it ends, or has a marker, bytes of no
    character, or two tokens that Keras rates within `tie`.

    Args:
        row: gets the counts and problems.
        ask: gives the greedy answer to what a user says, of at most so many tokens.
        run: the run it was made from.
        said: what a user says, and what Keras does with it.
        slots: cache slots of the runtime.
        tie: a difference of logits.
        must_agree: whether a difference is a problem; a quantized file may go another way.
    """
    row.tokens = row.num_tokens = 0
    for text, case in said:
        room = slots - len(case.prompt)
        # Behind a tie either token is right, and what follows depends on which one was taken.
        reply = case.reply[: _first_tie(case, tie)][: max(room, 0)]
        if not reply:
            continue
        answer = ask(text, len(reply))
        same, compared = count_same(answer, reply, run)
        row.tokens, row.num_tokens = row.tokens + same, row.num_tokens + compared
        if must_agree and same < compared:
            row.problems.append(f"it answers {answer!r} to {text!r}, the model {run.tokenizer.decode(reply)!r}")


def asker(engine: LiteRTLMEngine, run: Run) -> Callable[[str, int], str]:
    """What `check_answers` asks a file in LiteRT-LM: the run's template, then the file's tokenizer."""
    template = _template(run)
    return lambda text, most: engine.reply(template.render([Message("user", text)]), max_new_tokens=most)


def check_page(
    page: str | Path, path: Path, engine: LiteRTLMEngine, run: Run, said: Sequence[tuple[str, Case]], *, tie: float, exact: bool
) -> Row:
    """`check_answers` of a file on the built page of `export/web`, in headless Chromium.

    Args:
        page: the folder of the page.
        path: the file.
        engine: LiteRT-LM on the same file.
        run, said, tie: as for `check_answers`.
        exact: whether a difference is a problem.
    """
    row = Row(artifact=f"{path.name} in Chromium", runtime="LiteRT-LM, WebAssembly")
    try:
        browser = BrowserEngine(page, path)
        try:
            check_answers(
                row,
                lambda text, most: browser.reply(text, max_new_tokens=most),
                run,
                said,
                slots=engine.context_length,
                tie=tie,
                must_agree=exact,
            )
        finally:
            browser.close()
    except (ValueError, RuntimeError) as error:
        row.problems.append(str(error))
    return row


def count_same(answer: str, reply: Sequence[int], run: Run) -> tuple[int, int]:
    """How many of the model's tokens stand at the beginning of an answer, and how many a text can tell of.

    Where 301 is `▁안녕` and 310 `네`: `count_same("안녕 하", [301, 310], run)` is `(1, 2)`.
    """
    stop = run.tokenizer.markers[_known(run).stop]
    texts, ended = _readable(reply, run, stop)
    answer = answer.lstrip(" ")
    same = next((place for place, text in enumerate(texts) if not answer.startswith(text)), len(texts))
    if not ended:
        return same, len(texts)
    return same + (same == len(texts) and answer == (texts[-1] if texts else "")), len(texts) + 1


def check_scores(
    row: Row, engine: LiteRTLMEngine, run: Run, conversations: Iterable[Conversation], *, slots: int
) -> tuple[float, float]:
    """Compares the log probabilities of every answer's tokens; puts the largest difference into the row.

    It is a share of the log probability where that is above 1 in size: float32 rounds large ones more coarsely.

    Args:
        row: gets the difference, and problems.
        engine: the runtime.
        run: the run that its file was made from.
        conversations: what is scored.
        slots: of the runtime's cache.

    Returns:
        Bits per character of the Keras model and of the runtime.
    """
    theirs, ours, characters = [0.0], [0.0], 0
    for conversation in conversations:
        found = trace_at_once(run.model, [conversation], tokenizer=run.tokenizer, template=run.template, context_length=slots)
        scores = score_answers(engine, run, conversation)
        if len(scores) != len(found.nll):
            row.problems.append(f"it reads {len(scores)} tokens in the answers of a dialogue, the model {len(found.nll)}")
            continue
        ours, theirs, characters = [*ours, *found.nll], [*theirs, *-scores], characters + found.num_characters
    # A log probability of -40 has fewer digits behind the point than one of -1, hence a share of the large ones.
    shares = np.abs(np.subtract(ours, theirs)) / np.maximum(np.abs(ours), 1)
    worst = float(np.nan_to_num(shares, nan=np.inf).max())
    row.logits = max(worst, row.logits or 0.0)
    sums = [Evaluation(float(np.sum(nll)), 0, len(nll), max(characters, 1)) for nll in (ours, theirs)]
    return sums[0].bits_per_character, sums[1].bits_per_character


def score_answers(engine: LiteRTLMEngine, run: Run, conversation: Conversation) -> np.ndarray:
    """Log probabilities of the tokens that are trained in a dialogue: every answer, and the marker that ends it."""
    template, messages = _template(run), conversation.messages
    turns = [place for place, message in enumerate(messages) if message.role == "assistant"]
    asked = [(template.render(messages[:place]), template.spoken(messages[place].content) + template.stop) for place in turns]
    return np.concatenate([engine.score(text, target) for text, target in asked])


def check_tokenizer(name: str, engine: LiteRTLMEngine, run: Run, texts: Sequence[str]) -> Row:
    """Whether the file's own template and tokenizer make the ids of `ChatTemplate.prompt` of what a user says.

    Each text is said alone and in a chat of three; of every fourth the template's text is compared, too, because that takes the
    runtime a conversation. Outer whitespace is left out: the runtime does not count U+001C to U+001F as such, and Python does.
    """
    template, known = _template(run), _known(run)
    row = Row(artifact=f"tokenizer in {name}", runtime="LiteRT-LM")
    texts = [text.strip() for text in texts if text.strip()]
    dialogues = [[Message("user", text)] for text in texts]
    dialogues += [[*dialogues[i], Message("assistant", texts[i + 1]), *dialogues[i + 2]] for i in range(len(texts) - 2)]
    rendered = [(messages, template.render(messages)) for messages in dialogues]
    wrong = [text for messages, text in rendered if engine.tokenize(text) != known.prompt(messages, run.tokenizer)]
    if wrong:
        row.problems.append(f"{len(wrong)} of {len(rendered)} prompts have other ids, for example {wrong[0]!r}")
    asked = rendered[::_EVERY]
    others = [text for messages, text in asked if engine.render(messages) != text]
    if others:
        row.problems.append(f"its template writes {len(others)} of {len(asked)} prompts otherwise, such as {others[0]!r}")
    if engine.stop_ids != (run.tokenizer.markers[known.stop],):
        row.problems.append(f"its answers end with {engine.stop_ids}, the model's with {run.tokenizer.markers[known.stop]}")
    return row


def _readable(reply: Sequence[int], run: Run, stop: int) -> tuple[list[str], bool]:
    """The text after each token, as far as a text can be told, and whether the answer ends there."""
    decoder, text = run.tokenizer.stream(), ""
    texts: list[str] = []
    for index in reply:
        # Markers leave no text, and `<unk>` the same one for many: from here on a text cannot tell tokens apart.
        if index in run.tokenizer.markers.values() or index == run.tokenizer.unk_id:
            return texts, index == stop
        text += decoder.push(index)
        if _BROKEN in text:
            break
        # Runtimes differ in whether an answer keeps the space that SentencePiece puts before its first word.
        texts.append(text.lstrip(" "))
    return texts, False


def _first_tie(case: Case, tie: float) -> int:
    """Tokens of a reply before the first place where two are rated alike."""
    second, first = np.partition(case.logits, -2, axis=-1)[:, -2:].T
    alike = np.flatnonzero(first - second <= tie)
    return int(alike[0]) if len(alike) else len(case.reply)


def _known(run: Run) -> ChatTemplate:
    assert run.template is not None, "`litertlm.check_run` refuses a run without one"
    return run.template


def _template(run: Run) -> PrivateTemplate:
    return PrivateTemplate(_known(run), run.tokenizer)
