"""Models that this node's owner gives to the swarm from folders on the disk.

A node need not serve a model to give it away. The list is kept in the home, so it outlives a restart.
"""

from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from shoal.swarm import private_file
from shoal.swarm.errors import ShoalError, UsageError
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId
from shoal.swarm.transfer.block_transfer_listing import weights_listing

from .model_source import LocalModel, from_folder
from .weight_shelf import WeightShelf

log = structlog.get_logger(__name__)
MAX_PUBLISHED = 64
_FILE = "published.json"


class Publication(msgspec.Struct, frozen=True):
    """For the node's owner."""

    model: ModelId
    name: str
    folder: str
    total_bytes: int


class Publications:
    """`api.publishing.Publisher`."""

    def __init__(self, home: Home, shelf: WeightShelf) -> None:
        self._cache, self._file, self._shelf = home.cache, home.root / _FILE, shelf
        self._models: dict[ModelId, LocalModel] = {}
        self._changing = anyio.Lock()

    async def restore(self) -> None:
        """What was published before; folders that are gone are passed over and stay on the list."""
        for folder in self._kept():
            try:
                await self._add(Path(folder))
            except ShoalError as error:
                log.warning("not_published", folder=folder, reason=str(error))

    async def publish(self, folder: str) -> Publication:
        """raises: UsageError (not a model that can be served, too many, a node that gives nothing), OutOfMemory"""
        if not self._shelf.gives:
            raise UsageError("this node gives nothing away; start it with another --upload-limit than 0")
        made = await self._add(_full_path(folder))
        kept = self._kept()
        if made.folder not in kept:
            self._keep([*kept, made.folder])
        return made

    def published(self) -> list[Publication]:
        return [_publication(model) for model in self._models.values()]

    def withdraw(self, model: ModelId) -> bool:
        """raises: OutOfMemory"""
        held = self._models.pop(model, None)
        if held is None:
            return False
        self._keep([folder for folder in self._kept() if folder != str(held.folder)])
        self._shelf.drop(model, "published")
        return True

    async def _add(self, folder: Path) -> Publication:
        async with self._changing:
            described = partial(from_folder, folder, self._cache, folder.name)
            model = await anyio.to_thread.run_sync(described, abandon_on_cancel=True)
            if model.model_id not in self._models and len(self._models) >= MAX_PUBLISHED:
                raise UsageError(f"{MAX_PUBLISHED} models are published here already; withdraw one first")
            if weights_listing(model.manifest, [file.name for file in model.manifest.weights]) is None:
                raise UsageError(f"{folder} cannot be published: its files have names that cannot travel")
            await self._shelf.put(model, "published")
            self._models[model.model_id] = model
            return _publication(model)

    def _kept(self) -> list[str]:
        try:
            return msgspec.json.decode(private_file.read(self._file) or b"[]", type=list[str])
        except (msgspec.MsgspecError, UsageError):
            return []

    def _keep(self, folders: list[str]) -> None:
        private_file.write(self._file, msgspec.json.encode(folders))


def _full_path(folder: str) -> Path:
    """raises: UsageError"""
    path = Path(folder)
    if not path.is_absolute() or not path.is_dir():
        raise UsageError(f"{folder} is not the full path of a model's folder on the node's machine")
    return path.resolve()


def _publication(model: LocalModel) -> Publication:
    total = sum(file.size_bytes for file in model.manifest.weights)
    return Publication(model.model_id, model.manifest.name, str(model.folder), total)
