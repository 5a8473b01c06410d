"""How long a stretch of a prompt takes here: so much a position, and more the further back it has to attend."""

from dataclasses import dataclass

FADING = 0.9  # weight of what was seen before, with each new stretch


@dataclass(slots=True)
class PrefillPace:
    """seconds = count * (base + slope * middle position), by least squares in which older stretches weigh less."""

    _weight: float = 0.0
    _middle: float = 0.0
    _middle_squared: float = 0.0
    _rate: float = 0.0
    _product: float = 0.0

    def note(self, start: int, count: int, took_s: float) -> None:
        middle, rate = start + count / 2, took_s / count
        for name, value in (
            ("_weight", 1.0),
            ("_middle", middle),
            ("_middle_squared", middle * middle),
            ("_rate", rate),
            ("_product", middle * rate),
        ):
            setattr(self, name, FADING * getattr(self, name) + count * value)

    @property
    def is_known(self) -> bool:
        return self._weight > 0

    def seconds(self, start: int, count: int) -> float | None:
        """None while nothing was seen."""
        if not self._weight:
            return None
        mean_middle, mean_rate = self._middle / self._weight, self._rate / self._weight
        spread = self._middle_squared / self._weight - mean_middle**2
        slope = 0.0
        if spread > 1.0:
            slope = max(0.0, (self._product / self._weight - mean_middle * mean_rate) / spread)
        base = max(0.0, mean_rate - slope * mean_middle)
        return count * (base + slope * (start + count / 2))
