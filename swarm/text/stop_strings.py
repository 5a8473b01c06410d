"""Where a text ends because the caller said so, found across token boundaries.

Text that may be the beginning of a stop string is held back until it is certain. The result does not depend on
how the text was cut into pieces: the stop string that is complete first wins, and of those complete at the same
character the longest. The stop string is not part of the output.
"""

from collections.abc import Sequence


class StopStrings:
    """raises: ValueError for an empty stop string"""

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(dict.fromkeys(stops))
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """The part of the text that is certain to belong to the output; "" once a stop string was found."""
        if self.matched is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return text[:at]
        certain = min(self._first_candidate(text, stop) for stop in self._stops)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The text ended: what was held back is output after all."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _first_candidate(text: str, stop: str) -> int:
        """The first position from which the rest of `text` is a proper prefix of `stop`."""
        at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while at >= 0:
            if stop.startswith(text[at:]):
                return at
            at = text.find(stop[0], at + 1)
        return len(text)
