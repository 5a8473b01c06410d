"""What a person sees of a training: one line a round on stdout, a bar on stderr; with `--json`, events on stdout."""

import math
import sys
from typing import TYPE_CHECKING, assert_never

from shoal.node.cli.output import Output

from . import events

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

STEP_EVENTS_S = 0.2  # `step_done` no more often than this with --json
_LABEL_WIDTH = 10


class TrainingScreen:
    """rounds: how many there will be, 0 for unknown; clock: seconds"""

    def __init__(self, output: Output, rounds: int, clock: "events.Clock") -> None:
        self._output, self._rounds, self._clock = output, rounds, clock
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._peers = 0
        self._sent = self._received = 0
        self._told_at = -math.inf

    def show(self, event: events.TrainingEvent) -> None:
        if isinstance(event, events.StepDone) and not self._step_is_due():
            return
        if self._output.json:
            self._output.event(**events.as_json(event))
        else:
            self._tell(event)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _step_is_due(self) -> bool:
        now = self._clock()
        if now - self._told_at < STEP_EVENTS_S:
            return False
        self._told_at = now
        return True

    def _tell(self, event: events.TrainingEvent) -> None:
        match event:
            case events.Planned():
                self._plan(event)
            case events.Progress(what, done, total):
                self._output.note(f"{what} ({done} of {total})")
            case events.StepDone():
                self._advance(event)
            case events.RoundDone():
                self._round(event)
            case events.RoundLost(round_, reason):
                self._output.note(f"round {round_} was lost: {reason}")
            case events.Waiting(reason):
                said = reason if reason.startswith("waiting") else f"waiting: {reason}"
                self._output.note(said if reason else "going on")
            case events.Noticed(text):
                self._output.note(f"notice: {text}")
            case events.CaughtUp(round_, source):
                self._output.note(f"caught up with the group at round {round_}: {source}")
            case events.Evaluated(round_, loss, perplexity):
                self._output.line(f"held out  round {round_}  loss {loss:.4f}  perplexity {perplexity:.2f}")
            case events.Saved(round_, path):
                self._output.note(f"saved     round {round_}  {path}")
            case events.StageChosen(stage, stages, units, reason):
                self._fact("stage", f"{stage} of 0 to {stages - 1}: {units} ({reason})")
            case events.MicrobatchRedone(step, microbatch, peer, stage, reason, _):
                self._output.note(f"step {step}: microbatch {microbatch} again, stage {stage} at {peer}: {reason}")
            case events.Finished(rounds, tokens, reason, path):
                self.close()
                self._output.note(f"finished  {reason}: {rounds} in all, {tokens} tokens learned from here")
                if path and rounds:
                    self._output.note(f"`shoal models export {path} FOLDER` writes the model; all else lies there too")
            case _:
                assert_never(event)

    def _plan(self, plan: events.Planned) -> None:
        self._fact("run", f"{plan.run}  {plan.run_id[:16]}")
        self._fact("model", f"{plan.model}, {plan.parameters / 1e6:.2f} M parameters")
        self._fact("strategy", f"{plan.strategy}, an exchange every {plan.interval} steps, compressed as {plan.preset}")
        self._fact("data", f"{plan.windows} sequences, {plan.tokens_per_round} tokens a round and peer")
        self._fact("memory", f"about {plan.memory_bytes / 1e9:.2f} GB")
        ways = f"{_megabytes(plan.upload_bytes)} up and {_megabytes(plan.download_bytes)} down"
        self._fact("traffic", f"{ways} a round, with {plan.peers} peers")
        if plan.uplink_bit_s is None or plan.exchange_s is None:
            self._fact("link", "not measured: no other peer of the swarm answers")
        else:
            self._fact(
                "link", f"about {plan.exchange_s:.1f} s for an exchange at {plan.uplink_bit_s / 1e6:.1f} Mbit/s up"
            )
        if plan.train_s is not None:
            round_s = plan.train_s + (plan.exchange_s or 0.0)
            whole = f", {_duration(self._rounds * round_s)} for {self._rounds} rounds" if self._rounds else ""
            self._fact("time", f"about {plan.train_s:.1f} s of training in a round{whole}")

    def _fact(self, label: str, value: str) -> None:
        self._output.line(f"{label:{_LABEL_WIDTH}}{value}")

    def _round(self, event: events.RoundDone) -> None:
        self._peers = len(event.peers)
        self._sent += event.sent_bytes
        self._received += event.received_bytes
        loss = "arrived" if event.loss is None else f"loss {event.loss:.4f}"
        traffic = f"{_megabytes(event.sent_bytes)} up  {_megabytes(event.received_bytes)} down"
        waited = f"{event.train_s:.1f} s + {event.exchange_s:.1f} s"
        self._output.line(
            f"round {event.round:<5}{loss}  {_counted(len(event.peers), 'peer')}  {_counted(event.tokens, 'token')}  "
            f"{traffic}  {waited}  "
            f"state {event.state[:8]}"
        )

    def _advance(self, event: events.StepDone) -> None:
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
            more = (TimeRemainingColumn(),) if self._rounds else ()
            self._bar = Progress(*columns, *more, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._rounds or None, facts="")
        assert self._task is not None
        traffic = f"{_megabytes(self._sent)} up {_megabytes(self._received)} down"
        facts = f"loss {event.loss:.3f}  {event.tokens_s:,.0f} tokens/s  {self._peers} peers  {traffic}"
        self._bar.update(self._task, description=f"round {event.round}", completed=event.round, facts=facts)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB"
