"""A run that answers people: its engines, one answer at a time, and the page to talk with it.

The names that other wings may use are listed in `__init__.pyi`, and load at first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
