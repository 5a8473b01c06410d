"""What a checkpoint consists of: one listing of blocks for what all replicas share, one for the peer's own part."""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from shoal.swarm.canonical import Canonical
from shoal.swarm.errors import MalformedMessage, UsageError
from shoal.swarm.transfer.block_transfer_listing import BundleId, Listing, bundle_id, encode_listing, read_listing

KIND = "checkpoint"
OWN_KIND = "own state"
FORMAT = 1
MANIFEST = "manifest.json"
MODEL, OUTER = "model.safetensors", "outer.safetensors"  # shared
OWN, INNER = "strategy.safetensors", "inner.safetensors"  # the peer's own
MAX_ABOUT_BYTES = 1 << 20


class SharedAbout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Header of the shared part; no field may differ between replicas."""

    run: str
    round: int
    state: bytes
    numbers: dict[str, int | float]  # of the strategy's state


class OwnAbout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    strategy: dict[str, int | float]
    inner: dict[str, int | float]
    position: dict[str, Any]


class CheckpointManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    shared: Listing
    own: Listing | None


SHARED_ABOUT = Canonical(SharedAbout, "the header of a checkpoint", MAX_ABOUT_BYTES)
_own_encoder = msgspec.msgpack.Encoder(order="deterministic")
_own_decoder = msgspec.msgpack.Decoder(OwnAbout)


def read_shared_about(listing: Listing) -> SharedAbout:
    """raises: MalformedMessage when the listing is not of a checkpoint"""
    if listing.kind != KIND or sorted(file.name for file in listing.files) != sorted((MODEL, OUTER)):
        raise MalformedMessage("not the listing of a checkpoint")
    about = SHARED_ABOUT.decode(listing.about)
    if len(about.state) != 32 or about.round < -1:
        raise MalformedMessage("a checkpoint without a round or a state")
    return about


def encode_own_about(about: OwnAbout) -> bytes:
    """raises: ValueError for a position that is not made of JSON values"""
    try:
        return _own_encoder.encode(about)
    except (TypeError, OverflowError, msgspec.MsgspecError) as error:
        raise ValueError(f"a state that a checkpoint cannot hold: {error}") from error


def read_own_about(listing: Listing) -> OwnAbout:
    """raises: MalformedMessage"""
    try:
        return _own_decoder.decode(listing.about)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedMessage(f"the own part of a checkpoint is not readable: {error}") from error


def encode_manifest(manifest: CheckpointManifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def digest_of(manifest: bytes) -> str:
    """The part of a checkpoint's folder name that its content decides."""
    return hashlib.sha256(manifest).hexdigest()[:16]


def read_manifest(folder: Path) -> CheckpointManifest:
    """raises: UsageError, one line that names the folder, when the manifest is missing, damaged or of another one"""
    try:
        data = (folder / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(data, type=CheckpointManifest)
    except OSError as error:
        raise UsageError(f"checkpoint {folder.name} has no readable manifest: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise UsageError(f"checkpoint {folder.name} has a damaged manifest: {error}") from error
    if manifest.format != FORMAT:
        raise UsageError(f"checkpoint {folder.name} is of format {manifest.format}; this version reads {FORMAT}")
    if not folder.name.endswith(digest_of(data)):
        raise UsageError(f"checkpoint {folder.name} has a manifest that was changed after it was written")
    try:
        for listing in (manifest.shared, manifest.own):
            if listing is not None:
                read_listing(encode_listing(listing))
        read_shared_about(manifest.shared)
    except MalformedMessage as error:
        raise UsageError(f"checkpoint {folder.name} has a damaged manifest: {error}") from error
    return manifest


def shared_bundle(manifest: CheckpointManifest) -> BundleId:
    return bundle_id(encode_listing(manifest.shared))
