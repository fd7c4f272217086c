"""Smolite: small language models that train with Keras and run on anything.

The public names are listed in `__init__.pyi` and load at first use, so `import smolite` is quick and imports neither Keras nor
a backend.
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"Module 'smolite' has no attribute {name!r}. Choose one of: {', '.join(__all__)}.")
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        from smolite.backends import what_to_install

        advice = what_to_install(error, wanted_by=f"smolite.{name}")
        if not advice:
            raise
        raise ModuleNotFoundError(advice, name=error.name) from error
