"""hivemind's p2p classes without the rest of hivemind.

`import hivemind` runs averaging, experts and optimisers and so imports torch, which takes seconds; a thin client needs
none of it. The packages `hivemind` and `hivemind.utils` are put in place for the time of the import without running
their `__init__`, and taken out again, so that a later real `import hivemind` in the same process does everything as
usual.
"""

import importlib
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_BARE = ("hivemind", "hivemind.utils")


def _bare_package(spec: ModuleSpec) -> ModuleType:
    module = importlib.util.module_from_spec(spec)  # not executed
    module.__path__ = list(spec.submodule_search_locations or [])
    return module


def import_p2p() -> ModuleType:
    """The module `hivemind.p2p.p2p_daemon`, with `P2P`; in about .3 s instead of seconds."""
    os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
    if "hivemind" in sys.modules or "hivemind.p2p.p2p_daemon" in sys.modules:
        return importlib.import_module("hivemind.p2p.p2p_daemon")
    root = importlib.util.find_spec("hivemind")
    if root is None:
        raise ModuleNotFoundError("hivemind is not installed")
    sys.modules["hivemind"] = _bare_package(root)
    try:
        utils = importlib.util.find_spec("hivemind.utils")
        assert utils is not None
        sys.modules["hivemind.utils"] = _bare_package(utils)
        return importlib.import_module("hivemind.p2p.p2p_daemon")
    finally:
        for name in _BARE:
            sys.modules.pop(name, None)


def p2pd_path() -> Path:
    """The Go libp2p daemon that hivemind's wheel carries."""
    spec = importlib.util.find_spec("hivemind")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("hivemind is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "hivemind_cli" / "p2pd"
