"""Where a model comes from: the embedded one, a Hugging Face folder, or a hub id. All three give the same thing.

`resolve` reads a few kilobytes (config, headers, hashes), never weights; `LocalModel.fetch` then brings the files
that a span needs. Folders are hashed once: the manifest is kept with each file's size and modification time.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Literal

from shoal.swarm.errors import UsageError
from shoal.swarm.identifiers import ModelId
from shoal.swarm.manifest import Manifest, model_id
from shoal.swarm.units import Span, whole

from .folder_manifest import folder_manifest

EMBEDDED = "novels-6m"  # DESIGN 11: served with no network and no accounts
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?$")

Progress = Callable[[str, int, int], None]  # what is going on, bytes done, bytes in all
Fetch = Callable[[Span, Progress | None], None]
Origin = Literal["embedded", "folder", "hub", "peers"]


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose small files are in `folder`, and whose weight files are too once fetched."""

    folder: Path
    manifest: Manifest
    model_id: ModelId
    fetch_span: Fetch | None = None  # None: the folder is complete
    text_folder: Path | None = None  # where a converted tokenizer.json lies, when not in `folder`
    origin: Origin = "folder"

    def fetch(self, span: Span | None = None, progress: Progress | None = None) -> None:
        """Make sure that the weights of a span (default: all) are here and right.

        raises: Unavailable (hub or peers not reachable), OutOfMemory (disk full), UsageError or RemoteFault (they are
        not what the manifest says)
        """
        if self.fetch_span is not None:
            self.fetch_span(span or whole(self.manifest.layers), progress)

    def text_file(self, name: str) -> bytes:
        """One of the manifest's small files.

        raises: UsageError when it is not there
        """
        for folder in (self.folder, self.text_folder):
            if folder is not None and (folder / name).is_file():
                return (folder / name).read_bytes()
        raise UsageError(f"{self.manifest.name} has no {name}")


def embedded_folder() -> Path:
    return Path(str(resources.files("shoal.node") / "embedded" / EMBEDDED))


def resolve(model: str, home_cache: Path, revision: str = "main", progress: Progress | None = None) -> LocalModel:
    """Find a model by what the user typed: the embedded model's name, a folder, or a hub id.

    home_cache: where manifests and downloads are kept
    raises: UsageError (unknown, no config.json, corrupt, not a model that can be served), Unavailable (hub not
    reachable),
        OutOfMemory (disk full)
    """
    if model == EMBEDDED:
        return replace(from_folder(embedded_folder(), home_cache, EMBEDDED, progress), origin="embedded")
    if not model.strip():
        raise UsageError(f"the model's name is empty; name a folder, a hub id, or {EMBEDDED}")
    path = Path(os.path.expanduser(model))  # noqa: PTH111  ~nobody/x is no error
    if os.path.isdir(path):  # noqa: PTH112  a name that is no path at all is no folder; Path.is_dir raises
        return from_folder(path, home_cache, path.resolve().name, progress)
    if os.path.exists(path):  # noqa: PTH110
        raise UsageError(f"{model} is a file; name the model's folder, which holds config.json and *.safetensors")
    if model.startswith((".", "/", "~")) or not _HUB_ID.match(model) or ".." in model:
        raise UsageError(f"there is no folder {model}, and it is not a hub id such as owner/name")
    from .hub_source import from_hub  # huggingface_hub costs .3 s that a local model need not pay

    return from_hub(model, home_cache, revision, progress)


def from_folder(folder: Path, home_cache: Path, name: str, progress: Progress | None = None) -> LocalModel:
    """raises: UsageError, OutOfMemory"""
    texts = home_cache / "tokenizers"
    manifest, text_folder = folder_manifest(folder, name, home_cache / "manifests", texts, progress)
    return LocalModel(folder, manifest, model_id(manifest), text_folder=text_folder)
