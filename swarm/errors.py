"""What can go wrong between peers, sorted by whose fault it is.

Local: our own bug, never scored. Remote: the peer broke the protocol, scores the peer. Unavailable: nobody's fault,
worth a finite number of retries.
"""


class ShoalError(Exception):
    """Base of the errors a user may see; `exit_code` is what the command line returns."""

    exit_code = 1


class LocalFault(ShoalError):
    """Our own bug or our own broken machine; never scores a peer."""


class RemoteFault(ShoalError):
    """The peer sent what no honest peer sends."""


class MalformedMessage(RemoteFault):
    """Bytes that are not a message of ours."""


class FrameTooLarge(RemoteFault):
    """A frame announced more bytes than the limit; nothing was allocated for it."""


class BadActivation(RemoteFault):
    """Hidden states of the wrong shape or dtype, or with NaN or infinity in them."""


class BadChunk(RemoteFault):
    """A piece of a KV cache that is damaged, or is not the one that is due."""


class Unavailable(ShoalError):
    """The peer or the network did not answer; another try or another peer may."""

    exit_code = 3


class PeerUnreachable(Unavailable):
    """No connection to the peer could be made within the time allowed."""


class NotSpoken(PeerUnreachable):
    """The peer is there, and runs without what this protocol belongs to."""


class StreamBroken(Unavailable):
    """A stream ended without END: the peer died, the link died, or the tail was lost."""


class TimedOut(Unavailable):
    """No answer within the deadline."""


class DaemonDied(Unavailable):
    """Our own p2pd is gone; this transport is finished."""


class SwarmUnreachable(Unavailable):
    """No bootstrap peer answered."""


class Refused(ShoalError):
    """The peer understood and said no: not a member, revoked, bad invite."""

    exit_code = 4


class ModelNotServable(ShoalError):
    """Some units of the model have no holder; the message names the missing layers."""

    exit_code = 5


class OutOfMemory(ShoalError):
    """Not enough memory (or disk) for what was asked; the message says how much is needed and how much there is."""

    exit_code = 6


class VersionMismatch(ShoalError):
    """The peer speaks another protocol version."""

    exit_code = 7


class ContextTooLong(ShoalError):
    """Prompt plus new tokens exceed the model's context."""

    exit_code = 2


class UsageError(ShoalError):
    """The user asked for something that cannot be; the message says what to do."""

    exit_code = 2
