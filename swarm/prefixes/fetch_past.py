"""How fetches went so far, to know before the first answer whether one is worth a wait."""

from dataclasses import dataclass, field

NEWEST = 0.5  # weight of the newest


@dataclass(slots=True)
class FetchPast:
    """first_s: from the wish to the first chunk; chunk_s: from one chunk to the next, by whether all are exact"""

    first_s: float | None = None
    chunk_s: dict[bool, float] = field(default_factory=dict)

    def note(self, *, exact: bool, first_s: float, chunks: int, took_s: float) -> None:
        """took_s: from the first chunk to the last of so many"""
        self.first_s = first_s if self.first_s is None else (1 - NEWEST) * self.first_s + NEWEST * first_s
        if chunks > 1:
            newest = took_s / (chunks - 1)
            before = self.chunk_s.get(exact, newest)
            self.chunk_s[exact] = (1 - NEWEST) * before + NEWEST * newest

    def predicted_s(self, chunks: int, *, exact: bool) -> float | None:
        """Until so many are there; None while nothing is known."""
        if self.first_s is None or exact not in self.chunk_s:
            return None
        return self.first_s + chunks * self.chunk_s[exact]
