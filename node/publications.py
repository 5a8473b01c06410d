"""Models that this node gives to its swarm from folders on its disk: manifest, small files and blocks of the weights.

A node need not serve a model to give it away. The list is kept in the home, so it outlives a restart.
"""

from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from shoal.swarm import manifest as manifests
from shoal.swarm import private_file
from shoal.swarm.blobs import MANIFEST
from shoal.swarm.block_transfer_donor import BlockDonor, Bundle, FilePart
from shoal.swarm.block_transfer_listing import BundleId, encode_listing, weights_listing
from shoal.swarm.errors import ShoalError, UsageError
from shoal.swarm.home import Home
from shoal.swarm.identifiers import ModelId, PeerId
from shoal.swarm.member_calls import MemberCalls

from .model_source import LocalModel, from_folder

log = structlog.get_logger(__name__)
LIST_METHOD = "/shoal/publications/1"
WEIGHTS_METHOD = "/shoal/weights/1"
MAX_PUBLISHED = 64
MAX_LISTED_BYTES = 64 << 10
_FILE = "published.json"


class Published(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a peer says it can give."""

    model: ModelId
    name: str
    total_bytes: int  # of the weights


class Publication(msgspec.Struct, frozen=True):
    """For the node's owner."""

    model: ModelId
    name: str
    folder: str
    total_bytes: int


_listed = msgspec.msgpack.Encoder()


class Publications:
    """`api.publishing.Publisher`, and the shelf of the node's weights: the bundle of a model is named by its id."""

    def __init__(self, home: Home) -> None:
        self._cache, self._file = home.cache, home.root / _FILE
        self._models: dict[ModelId, tuple[LocalModel, dict[str, bytes], Bundle]] = {}
        self._changing = anyio.Lock()

    async def serve(self, calls: MemberCalls) -> None:
        await BlockDonor((self,)).serve(calls, WEIGHTS_METHOD)
        await calls.answer(LIST_METHOD, self._answer)

    async def restore(self) -> None:
        """What was published before; folders that are gone are passed over and stay on the list."""
        for folder in self._kept():
            try:
                await self._add(Path(folder))
            except ShoalError as error:
                log.warning("not_published", folder=folder, reason=str(error))

    async def publish(self, folder: str) -> Publication:
        """raises: UsageError (not a model that can be served, too many), OutOfMemory"""
        made = await self._add(_full_path(folder))
        kept = self._kept()
        if made.folder not in kept:
            self._keep([*kept, made.folder])
        return made

    def published(self) -> list[Publication]:
        return [_publication(model) for model, _, _ in self._models.values()]

    def withdraw(self, model: ModelId) -> bool:
        """raises: OutOfMemory"""
        held = self._models.pop(model, None)
        if held is None:
            return False
        self._keep([folder for folder in self._kept() if folder != str(held[0].folder)])
        return True

    def blobs(self, model: ModelId) -> dict[str, bytes] | None:
        held = self._models.get(model)
        return None if held is None else held[1]

    def find(self, bundle: BundleId) -> Bundle | None:
        held = self._models.get(ModelId(bundle))
        return None if held is None else held[2]

    async def _add(self, folder: Path) -> Publication:
        async with self._changing:
            described = partial(from_folder, folder, self._cache, folder.name)
            model = await anyio.to_thread.run_sync(described, abandon_on_cancel=True)
            if model.model_id not in self._models and len(self._models) >= MAX_PUBLISHED:
                raise UsageError(f"{MAX_PUBLISHED} models are published here already; withdraw one first")
            listing = weights_listing(model.manifest, [file.name for file in model.manifest.weights])
            if listing is None:
                raise UsageError(f"{folder} cannot be published: its files have names that cannot travel")
            blobs = {text.name: model.text_file(text.name) for text in model.manifest.texts}
            blobs[MANIFEST] = manifests.encode(model.manifest)
            files = {file.name: FilePart(folder / file.name, file.size_bytes) for file in model.manifest.weights}
            self._models[model.model_id] = model, blobs, Bundle(encode_listing(listing), files)
            return _publication(model)

    async def _answer(self, _: PeerId, __: bytes) -> bytes:
        return _listed.encode([Published(p.model, p.name[:200], p.total_bytes) for p in self.published()])

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
