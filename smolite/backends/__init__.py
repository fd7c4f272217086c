"""The one room that knows TensorFlow, JAX and torch: a file a backend, and the list of what they do differently in `seams`.

The names that other wings may use are listed in `__init__.pyi`, and load at first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
