"""What a codec can refuse."""


class MalformedPayload(Exception):
    """Bytes that no encoder of ours writes for the shapes that were agreed on."""
