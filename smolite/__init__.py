"""Smolite: small language models that train with Keras and run on anything.

The public names are listed in `__init__.pyi` and load at first use, so `import smolite` is quick and imports neither Keras nor
a backend.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_EXTRAS = {"tensorflow": "tf", "jax": "jax", "torch": "torch"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"Module 'smolite' has no attribute {name!r}. Choose one of: {', '.join(__all__)}.")
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        backend = (error.name or "").split(".")[0]
        if backend not in _EXTRAS:
            raise
        raise ModuleNotFoundError(
            f"`smolite.{name}` needs the Keras backend {backend}, which is not installed. Run `pip install "
            f"'smolite[{_EXTRAS[backend]}]'`, or set the environment variable KERAS_BACKEND to the backend "
            "that you have: tensorflow, jax or torch.",
            name=error.name,
        ) from error
