"""The log of a node or client: JSON lines in home/logs, from every part of it; nothing of it reaches the screen."""

import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

import structlog

from shoal.swarm.errors import UsageError

NODE, CLIENT = "node.log", "client.log"
MAX_BYTES = 8 << 20
KEPT_FILES = 3
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars of others would tear ours
    "TRANSFORMERS_VERBOSITY": "error",
    "HIVEMIND_LOGLEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}


def start_log(folder: Path, file: str = NODE) -> Path:
    """Send structlog, the standard library's logging and warnings to a rotating file.

    returns: its path. raises: UsageError
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    path = folder / file
    try:
        handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=KEPT_FILES, encoding="utf-8")
        path.chmod(0o600)
    except OSError as error:
        raise UsageError(f"cannot write the log {path}: {error.strerror}") from error
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.JSONRenderer(default=str),
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    logging.raiseExceptions = False  # a log that cannot be written (disk full) is no reason to disturb the screen
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for chatty in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return path
