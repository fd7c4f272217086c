"""Guessing what comes next from what was said before: the drafts of prompt-lookup decoding (Saxena, 2023)."""

from collections.abc import Sequence

_MATCHES = (3, 2)  # tokens that must have stood together before; the more, the likelier what followed follows again


class Lookup:
    """A text that grows, and what followed its last tokens when they last stood there.

    Args:
        ids: the text so far.

    Example:
    >>> text = Lookup([5, 6, 7, 8, 9, 5, 6])
    >>> text.drafts(3)
    [7, 8, 9]
    """

    def __init__(self, ids: Sequence[int] = ()) -> None:
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # tokens that stood together → where they ended, the last time
        self._place: int | None = None
        for index in ids:
            self.add(index)

    def add(self, index: int) -> None:
        """Adds a token to the text."""
        self._ids.append(index)
        keys = [tuple(self._ids[-length:]) for length in _MATCHES if len(self._ids) >= length]
        # Looked up before the new ends are noted, or the text's own end would be what it finds.
        self._place = next((self._ends[key] for key in keys if key in self._ends), None)
        self._ends |= dict.fromkeys(keys, len(self._ids))

    def drafts(self, most: int) -> list[int]:
        """At most `most` tokens that may come next; none where the last two are new together."""
        return [] if self._place is None else self._ids[self._place : self._place + most]
