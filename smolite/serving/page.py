"""A page in the browser to talk with a run, made with Gradio.

What people and models write is shown as text, never as HTML or Markdown, and the page asks nothing of other servers.
"""

import html
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from smolite import checkpoint
from smolite.data import Message
from smolite.generation import Sampling
from smolite.serving.open import KERAS, engine_names
from smolite.serving.talker import Talker

ERRORS = (ValueError, OSError, ImportError, RuntimeError, ArithmeticError)
# The reader's own, so that none is fetched.
FONT, MONOSPACE = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def serve_app(run: str | Path, *, engine: str = KERAS, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serves the page of a run until it is interrupted.

    Args:
        run: run directory, or a model's name on the hub.
        engine: what runs the model at first; see `build_app`.
        host: address to listen at; `"0.0.0.0"` lets others in.
        port: port to listen at.

    Raises:
        OSError: the port is taken.
        FileNotFoundError, ValueError, ImportError: as `build_app`.
    """
    page = build_app(run, engine=engine)
    print(f"Talk with {run} at http://{host}:{port} in a browser; Ctrl+C ends it.", flush=True)
    launch_app(page, host=host, port=port)


def build_app(run: str | Path, *, engine: str = KERAS) -> Any:
    """The page of a run: chat where it has a chat template, and text to be continued.

    Args:
        run: run directory, or a model's name on the hub.
        engine: what runs the model at first: `"keras"` or the name of a file in the run's export folder. The page offers all.

    Returns:
        A `gradio.Blocks`; `launch_app` serves it.

    Raises:
        ImportError: gradio is not installed.
        FileNotFoundError: there is no such run.
        ValueError: the run is broken, or has no such engine.
    """
    gradio = _gradio()
    # The weights are read here only where they are asked for first: what is broken should be said before a page is served.
    talker = Talker(checkpoint.load(run) if engine == KERAS else checkpoint.open_run(run))
    names = engine_names(talker.run)
    if engine not in names:
        raise ValueError(f"`engine` must be one of {', '.join(names)}. Received: {engine}. Export it first, or choose another.")
    with gradio.Blocks(title=f"{talker.run.path.name} · smolite") as page, gradio.Row():
        with gradio.Column(scale=3), gradio.Tabs():
            tabs = [gradio.Tab("Chat")] if talker.run.template else []
            tabs.append(gradio.Tab("Continue a text"))
        with gradio.Column(scale=1, min_width=260):
            settings = _settings(names, engine)
        for tab, add in zip(tabs, [_add_chat, _add_continuation][-len(tabs) :], strict=True):
            with tab:
                add(talker, settings)
    return page


def build_notice(text: str) -> Any:
    """A page that only says why there is none of a run; a `gradio.Blocks`."""
    gradio = _gradio()
    with gradio.Blocks(title="smolite") as page:
        gradio.Textbox(text, label="There is no model to talk with", interactive=False, lines=4)
    return page


def launch_app(page: Any, *, host: str = "127.0.0.1", port: int = 7860, wait: bool = True) -> None:
    """Serves a page of `build_app` or `build_notice`; nothing is recorded, and nothing is sent elsewhere.

    Args:
        page: the page.
        host: address to listen at.
        port: port to listen at.
        wait: whether to return only after an interrupt.

    Raises:
        OSError: the port is taken.
    """
    gradio = _gradio()
    page.queue(max_size=64).launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not wait,
        quiet=True,
        share=False,
        ssr_mode=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        theme=gradio.themes.Default(font=FONT, font_mono=MONOSPACE),
    )


def _gradio() -> Any:
    # Each of its functions that would report looks here.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ImportError('The app is made with gradio. Run: pip install "smolite[app]"') from error
    return gradio


def _settings(names: Sequence[str], engine: str) -> list[Any]:
    """The controls; their values arrive in `_spoken` in this order."""
    gradio = _gradio()
    return [
        gradio.Dropdown(list(names), value=engine, label="Engine"),
        gradio.Slider(0.1, 2.0, value=0.7, step=0.05, label="Temperature", elem_id="temperature"),
        gradio.Slider(10, 500, value=128, step=1, label="Most new tokens", elem_id="max-new-tokens"),
        gradio.Slider(1, 100, value=40, step=1, label="Top-k", elem_id="top-k"),
        gradio.Slider(0.05, 1.0, value=0.9, step=0.05, label="Top-p", elem_id="top-p"),
        gradio.Number(0, precision=0, minimum=0, label="Seed"),
    ]


def _spoken(engine: str, temperature: float, max_new_tokens: int, top_k: int, top_p: float, seed: int) -> dict[str, Any]:
    """The values of the controls as arguments of `Talker`."""
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return {"engine": engine, "sampling": sampling, "max_new_tokens": max_new_tokens}


def _add_chat(talker: Talker, settings: list[Any]) -> None:
    gradio = _gradio()
    turns = gradio.State([])
    shown = gradio.Chatbot(
        label=talker.run.path.name,
        height=420,
        elem_id="dialogue",
        render_markdown=False,
        latex_delimiters=[],
        buttons=[],
        feedback_options=None,
    )
    figures = gradio.Textbox(show_label=False, container=False, interactive=False, elem_id="figures")
    prompt = gradio.Textbox(label="Say something", elem_id="prompt", autofocus=True)
    with gradio.Row():
        send = gradio.Button("Send", variant="primary", elem_id="send")
        stop = gradio.Button("Stop", elem_id="stop")
        clear = gradio.Button("New chat", elem_id="clear")
    outputs = [turns, shown, prompt, figures]
    running = _on([send.click, prompt.submit], answering(talker), [turns, prompt, *settings], outputs, name="chat")
    stop.click(displayed, turns, shown, cancels=running, api_visibility="private")
    _gradio().on([clear.click, shown.clear], lambda: ([], [], "", ""), None, outputs, cancels=running, api_visibility="private")


def _add_continuation(talker: Talker, settings: list[Any]) -> None:
    gradio = _gradio()
    prompt = gradio.Textbox(label="Beginning", lines=3, elem_id="beginning")
    with gradio.Row():
        go = gradio.Button("Continue", variant="primary", elem_id="continue")
        stop = gradio.Button("Stop", elem_id="stop-text")
    text = gradio.Textbox(label="Text", lines=12, interactive=False, elem_id="text")
    figures = gradio.Textbox(show_label=False, container=False, interactive=False, elem_id="text-figures")
    running = _on([go.click], continuing(talker), [prompt, *settings], [text, figures], name="continue")
    stop.click(None, cancels=running)


def _on(triggers: list[Any], handler: Callable, inputs: list[Any], outputs: list[Any], *, name: str) -> Any:
    """Calls `handler` when something happens; one call at a time, whatever its name, since all share the engines."""
    # Gradio counts calls by handler; under one name chat and continuation wait for each other.
    one = {"concurrency_id": "engines", "concurrency_limit": 1}
    return _gradio().on(triggers, handler, inputs, outputs, api_name=name, show_progress="minimal", **one)


def answering(talker: Talker) -> Callable[..., Iterator[tuple]]:
    """The handler of the chat.

    Args:
        talker: who answers.

    Returns:
        A function of the turns so far, the prompt and the values of the controls; it yields the turns, what is displayed of
        them, what the prompt's field holds, and a line of figures or the error. After an error turns and prompt are as before.
    """

    def handler(turns: list[Message], prompt: str, *values: Any) -> Iterator[tuple]:
        asked = [*turns, Message("user", prompt)]
        try:
            answers = talker.chat(asked, **_spoken(*values))
            # At once, before the first token: the field is empty again and the question stands in the chat.
            yield turns, displayed(asked), "", "…"
            for answer in answers:
                now = [*asked, Message("assistant", answer.text)]
                yield now, displayed(now), "", answer.figures
        except ERRORS as error:
            yield turns, displayed(turns), prompt, str(error)

    return handler


def continuing(talker: Talker) -> Callable[..., Iterator[tuple[str, str]]]:
    """The handler of texts to be continued: a function of prompt and controls that yields text, and figures or error."""

    def handler(prompt: str, *values: Any) -> Iterator[tuple[str, str]]:
        try:
            for answer in talker.continue_text(prompt, **_spoken(*values)):
                yield answer.text, answer.figures
        except ERRORS as error:
            yield "", str(error)

    return handler


def displayed(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns for `gradio.Chatbot`, which takes text for HTML: `<b>` becomes `&lt;b&gt;`, and is read as `<b>` again."""
    return [
        {"role": turn.role, "content": [{"type": "text", "text": html.escape(turn.content, quote=False)}]} for turn in turns
    ]
