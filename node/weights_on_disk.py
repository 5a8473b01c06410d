"""What lies in a home's cache of models from peers and hubs, whether a node runs or not."""

from pathlib import Path

from .held_weights import HeldWeights, held_weights
from .hub_source import kept_hub_models
from .peer_folder import PeerFolder
from .peer_model import kept_model


def held_on_disk(cache: Path) -> list[HeldWeights]:
    """What came from peers and hubs, whoever serves it."""
    found = []
    for folder in PeerFolder.every(cache):
        kept = kept_model(folder)
        if kept is not None:
            found.append(held_weights(kept))
    for local in kept_hub_models(cache):
        present = [entry.name for entry in local.manifest.weights if (local.folder / entry.name).is_file()]
        found.append(HeldWeights(local, local.manifest, dict.fromkeys(present)))
    return found
