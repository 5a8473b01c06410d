"""What `shoal up` and `shoal join` show of a node: facts on stdout, the rest on stderr; or events."""

import re
import sys
from typing import TYPE_CHECKING, Any, assert_never, get_args

import msgspec

from shoal.node.node_events import (
    DonorDropped,
    Identified,
    LayersChosen,
    LayersMoved,
    LayersMoving,
    Leaving,
    LoadProgress,
    NetworkUp,
    NodeEvent,
    Ready,
    SwarmFound,
    Warned,
    WeightsFetched,
    WeightsMissing,
)
from shoal.swarm.home import Home

from .moments import moment
from .output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PRIVACY = (
    "Privacy: peers that serve your layers can read your prompts and answers. "
    "Ask private things only in a swarm of people you trust."
)
PUBLIC = "This swarm is public: anybody may join it, serve its layers and use it."
LAYERS = "layers"  # what `LoadProgress` calls the units that are read into memory; else it names a file
_LABEL_WIDTH = 10


def event_name(kind: type) -> str:
    """SwarmFound -> swarm_found."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


_KINDS: dict[str, type[NodeEvent]] = {event_name(kind): kind for kind in get_args(NodeEvent)}


def read_event(name: str, facts: dict[str, Any]) -> NodeEvent | None:
    """The event that another process wrote with `--json`; None when it is not a node's."""
    kind = _KINDS.get(name)
    return None if kind is None else msgspec.convert(facts, kind)


class StartScreen:
    """Give `show` every event of the node, in order."""

    def __init__(
        self, output: Output, home: Home, stop_hint: str = "Ctrl-C stops the node.", privacy: str = PRIVACY
    ) -> None:
        self._privacy = privacy
        self._output = output
        self._home = home
        self._stop_hint = stop_hint
        self._public = False
        self._progress: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    def show(self, event: NodeEvent) -> None:
        facts = msgspec.to_builtins(event)
        if self._output.json:
            self._output.event(event_name(type(event)), **facts)
        else:
            self._tell(event)

    def close(self) -> None:
        """Take the bars off the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _tell(self, event: NodeEvent) -> None:
        match event:
            case Identified(name, peer):
                self._fact("node", f"{name}  {peer}")
            case SwarmFound():
                self._swarm(event)
            case NetworkUp(addresses, verdict, _):
                self._fact("network", verdict)
                for address in addresses:
                    self._output.note(f"{'':{_LABEL_WIDTH}}{address}")
            case LayersChosen(model, layers, reason, device, dtype):
                self._fact("model", f"{model}, layers {layers} ({reason})")
                self._fact("device", f"{device}, {dtype}")
            case LoadProgress(what, done, total):
                self._advance(what, done, total)
            case DonorDropped(peer, reason, fault):
                self._output.note(
                    f"{'warning' if fault else 'weights':{_LABEL_WIDTH}}peer {peer[-8:]} {_dropped(reason, fault)}"
                )
            case WeightsMissing(model, reason):
                self._output.note(
                    f"{'weights':{_LABEL_WIDTH}}nobody here has the rest of {model} now; waiting ({reason})"
                )
            case WeightsFetched():
                self._fetched(event)
            case LayersMoving(model, before, layers, reason):
                self._fact("moving", f"{model}, from layers {before} to {layers} ({reason})")
            case LayersMoved():
                self.close()
                self._moved(event)
            case Ready():
                self.close()
                self._ready(event)
            case Warned(text):
                self.close()
                self._output.note(f"warning   {text}")
            case Leaving(reason):
                self._output.note(f"stopping: {reason}")
            case _:
                assert_never(event)

    def _fact(self, label: str, value: str) -> None:
        self._output.line(f"{label:{_LABEL_WIDTH}}{value}")

    def _swarm(self, event: SwarmFound) -> None:
        kind = "public" if event.public else "private"
        role = "founded now, you own it" if event.founded else "you own it" if event.owner else "you are a member"
        self._public = event.public
        self._fact("swarm", f"{event.swarm} ({kind}; {role})")

    def _ready(self, event: Ready) -> None:
        self._fact("API", f"{event.api}/v1  (key: {_with_home('shoal key show', self._home)})")
        if event.invite:
            who = "any number of machines" if self._public else "one machine"
            until = "" if event.invite_expires_at is None else f", until {moment(event.invite_expires_at)}"
            more = _with_home("shoal invite", self._home)
            self._output.note(f"\nLet {who} in with this line{until} (`{more}` makes more):")
            self._fact("invite", event.invite)
        self._output.note()
        if self._public:
            self._output.note(PUBLIC)
        self._output.note(self._privacy)
        self._output.note(f"\nReady after {event.seconds:.1f} s. {self._stop_hint}")

    def _moved(self, event: LayersMoved) -> None:
        sessions = (
            f"; {event.moved} sessions went on elsewhere, {event.ended} ended" if event.moved + event.ended else ""
        )
        self._fact("moved", f"{event.model}, layers {event.layers} after {event.seconds:.1f} s{sessions}")

    def _fetched(self, event: WeightsFetched) -> None:
        givers = f"{len(event.givers)} peer{'s' if len(event.givers) != 1 else ''}"
        kept = f", {event.kept_bytes / 1e6:.1f} MB were here" if event.kept_bytes else ""
        amount = f"{event.fetched_bytes / 1e6:.1f} MB from {givers} in {event.seconds:.1f} s"
        self._fact("weights", f"{event.model}: {amount}{kept}")

    def _advance(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
        if what not in self._bars:
            self._bars[what] = self._progress.add_task(f"loading {what}", total=total, amount="")
        self._progress.update(self._bars[what], completed=done, total=total, amount=_amount(what, done, total))


def _dropped(reason: str, fault: bool) -> str:
    return f"{reason}; nothing is taken from it any more" if fault else f"gives no weights now ({reason})"


def _amount(what: str, done: int, total: int) -> str:
    """Layers are counted, files are measured."""
    return f"{done} of {total}" if what == LAYERS else f"{done / 1e6:.1f} of {total / 1e6:.1f} MB"


def _with_home(command: str, home: Home) -> str:
    """The command as the user has to type it."""
    return command if home == Home.find() else f"{command} --home {home.root}"
