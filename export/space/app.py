"""A Space to talk with a run of smolite: SMOLITE_MODEL is its folder, or a model's name on the hub."""

import os

from smolite.serving.page import build_app, build_notice, launch_app

NO_MODEL = (
    "The variable SMOLITE_MODEL must name a model: a folder in this Space, such as `run`, or `owner/name` on the hub. "
    "Received: nothing. Set it in the Space's settings, under variables."
)


def build_page(model):
    """The page of the model, or one that says what is wrong."""
    try:
        return build_app(model) if model else build_notice(NO_MODEL)
    except (ValueError, OSError, ImportError) as error:
        return build_notice(str(error))


if __name__ == "__main__":
    page = build_page(os.environ.get("SMOLITE_MODEL", ""))
    host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT", "7860")
    launch_app(page, host=host, port=int(port))
