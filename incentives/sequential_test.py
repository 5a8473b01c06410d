"""Is this server honest? Wald's test over the findings of its audited chunks, restarted whenever it clears the server.

Two alternatives are tested against honesty side by side: a server that cheats most of the time, and one that does so
now and then. Each adds log(p_cheat(finding) / p_honest(finding)) and is held at 0 from below, so that a thousand
honest chunks buy no credit for later (the defence against reputation farming).

False alarms: started anew at every chunk, the product of ratios of an honest server is a nonnegative supermartingale
that begins at 1, if the honest probabilities below are upper bounds given the past; by Ville's inequality each start
reaches exp(boundary) with probability exp(-boundary) at most. The sum over n starts bounds n chunks:
n * (exp(-16.3) + exp(-18.5)) < 9.3e-5 for n = 1,000.
source: Wald, Sequential Tests of Statistical Hypotheses (1945); Page, Continuous Inspection Schemes (1954); Ville,
Étude critique de la notion de collectif (1939)
"""

from dataclasses import dataclass
from math import exp, log

from .audit_threshold import Finding

FAR_HONEST = 5e-4  # bounds on an honest chunk's chances of being found far and gross; docs/measures.md: how measured
GROSS_HONEST = 2e-4


@dataclass(frozen=True, slots=True)
class Alternative:
    """A cheater: the chances of its findings. boundary: nats at which it is believed"""

    far: float
    gross: float
    boundary: float

    def gain(self, finding: Finding) -> float:
        """log of the ratio of the finding's chances, cheater to honest."""
        match finding:
            case Finding.SOUND:
                return log((1 - self.far - self.gross) / (1 - FAR_HONEST - GROSS_HONEST))
            case Finding.FAR:
                return log(self.far / FAR_HONEST)
            case Finding.GROSS:
                return log(self.gross / GROSS_HONEST)


MOSTLY = Alternative(far=0.2, gross=0.7, boundary=16.3)  # two gross findings or three far ones in a row
SOMETIMES = Alternative(far=0.03, gross=0.04, boundary=18.5)  # about one chunk in ten is false
ALTERNATIVES = (MOSTLY, SOMETIMES)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """nats: by alternative; chunks: audited so far; sound: of them"""

    nats: tuple[float, ...] = (0.0,) * len(ALTERNATIVES)
    chunks: int = 0
    sound: int = 0

    def after(self, finding: Finding) -> "Suspicion":
        nats = tuple(max(0.0, n + a.gain(finding)) for n, a in zip(self.nats, ALTERNATIVES, strict=True))
        return Suspicion(nats, self.chunks + 1, self.sound + (finding is Finding.SOUND))

    @property
    def convicted(self) -> bool:
        return any(n >= a.boundary for n, a in zip(self.nats, ALTERNATIVES, strict=True))

    @property
    def most(self) -> float:
        """nats; above 0, everything of this server is looked at"""
        return max(self.nats)


def false_alarm_bound(chunks: int) -> float:
    """The chance at most that an honest server is convicted within so many audited chunks."""
    return min(1.0, chunks * sum(exp(-a.boundary) for a in ALTERNATIVES))
