"""TensorBoard files of a run."""

from pathlib import Path

from shoal.swarm.errors import UsageError

from . import events


class Board:
    """raises: UsageError when tensorboard is not installed"""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError(
                "output.tensorboard is on and tensorboard is not installed: pip install tensorboard"
            ) from error
        self._writer = SummaryWriter(str(folder))
        self._sent = 0

    def show(self, event: events.TrainingEvent) -> None:
        match event:
            case events.StepDone():
                self._add("loss/step", event.loss, event.step)
                self._add("speed/tokens a second", event.tokens_s, event.step)
            case events.RoundDone():
                if event.loss is not None:
                    self._add("loss/round", event.loss, event.round)
                self._sent += event.sent_bytes
                self._add("network/peers", len(event.peers), event.round)
                self._add("network/sent bytes a round", event.sent_bytes, event.round)
                self._add("network/received bytes a round", event.received_bytes, event.round)
                self._add("network/seconds waited", event.exchange_s, event.round)
                if event.loss is not None:
                    self._add("loss by megabytes sent", event.loss, self._sent // 1_000_000)
            case events.Evaluated():
                self._add("loss/held out", event.loss, event.round)
                self._add("perplexity/held out", event.perplexity, event.round)
            case _:
                return

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
