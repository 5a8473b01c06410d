"""hivemind's DHTNode without the rest of hivemind, which would import torch and take seconds: see
`hivemind_imports`."""

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType

from .hivemind_imports import import_p2p

_NODE = "hivemind.dht.node"


def import_dht_node() -> ModuleType:
    """The module `hivemind.dht.node`, with `DHTNode`."""
    import_p2p()
    if "hivemind" in sys.modules or _NODE in sys.modules:
        return importlib.import_module(_NODE)
    bare: dict[str, ModuleType] = {}
    try:
        for name in ("hivemind", "hivemind.utils", "hivemind.dht"):
            spec = find_spec(name)
            if spec is None:
                raise ModuleNotFoundError(f"{name} is not installed")
            bare[name] = sys.modules[name] = _bare_package(spec)
        for module, names in (
            ("serializer", ("MSGPackSerializer", "SerializerBase")),
            ("logging", ("get_logger",)),
            ("timed_storage", ("get_dht_time",)),
        ):
            source = importlib.import_module(f"hivemind.utils.{module}")
            for name in names:  # the modules of the DHT import these from the package itself
                setattr(bare["hivemind.utils"], name, getattr(source, name))
        return importlib.import_module(_NODE)
    finally:
        for name in bare:
            sys.modules.pop(name, None)


def _bare_package(spec: ModuleSpec) -> ModuleType:
    module = module_from_spec(spec)  # not executed
    module.__path__ = list(spec.submodule_search_locations or [])
    return module
