"""What the rounds of one peer put on the wire and took from it."""

from dataclasses import dataclass

from .messages import AnyMessage, payload_bytes

FRAME_BYTES = 5  # head of a frame, `framing.HEADER`


@dataclass(slots=True)
class RoundTraffic:
    """payload: compressed updates and aggregates; overhead: all else, with the frames' heads, without the transport's
    encryption."""

    sent_payload_bytes: int = 0
    sent_overhead_bytes: int = 0
    received_payload_bytes: int = 0
    received_overhead_bytes: int = 0

    def sent(self, message: AnyMessage, frame_bytes: int) -> None:
        payload = payload_bytes(message)
        self.sent_payload_bytes += payload
        self.sent_overhead_bytes += frame_bytes + FRAME_BYTES - payload

    def received(self, message: AnyMessage, frame_bytes: int) -> None:
        payload = payload_bytes(message)
        self.received_payload_bytes += payload
        self.received_overhead_bytes += frame_bytes + FRAME_BYTES - payload

    @property
    def sent_bytes(self) -> int:
        return self.sent_payload_bytes + self.sent_overhead_bytes

    @property
    def received_bytes(self) -> int:
        return self.received_payload_bytes + self.received_overhead_bytes
