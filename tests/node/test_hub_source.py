"""Models by hub id, from a hub on loopback. The client is a process of its own: it reads HF_ENDPOINT when imported."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from node.hub_server import Hub, running_hub
from node.tiny_models import make_model, save_model

from shoal.node.model_source import resolve
from shoal.node.model_units import files_of
from shoal.swarm.errors import OutOfMemory
from shoal.swarm.manifest import FileEntry
from shoal.swarm.units import Span

SPAN = Span(2, 4)
CLIENT = """
import json, sys
from pathlib import Path
from shoal.node.model_source import resolve
from shoal.swarm.errors import ShoalError
from shoal.swarm.units import Span
name, cache, spans = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
try:
    model = resolve(name, cache)
    for start, stop in spans:
        model.fetch(Span(start, stop))
    here = sorted(path.name for path in model.folder.iterdir() if path.suffix == ".safetensors")
    print(json.dumps({"id": model.model_id, "name": model.manifest.name, "folder": str(model.folder), "here": here}))
except ShoalError as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error), "code": error.exit_code}))
"""


class Client(NamedTuple):
    hub: Hub
    cache: Path
    home: Path

    def get(self, name: str = "novels/tiny", *spans: Span, offline: bool = False, url: str = "") -> dict[str, Any]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": url or self.hub.url, "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        if offline:
            environment["HF_HUB_OFFLINE"] = "1"
        arguments = [
            sys.executable,
            "-c",
            CLIENT,
            name,
            str(self.cache),
            json.dumps([[s.start, s.stop] for s in spans]),
        ]
        run = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0, run.stderr
        answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        assert "\n" not in answer.get("text", "")
        return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny"
    make_model("llama", num_hidden_layers=6).save_pretrained(folder, max_shard_size="150KB")
    (folder / "tokenizer.json").write_text('{"model": {}}')
    return folder


@pytest.fixture
def client(folder: Path, tmp_path: Path) -> Iterator[Client]:
    with running_hub({"novels/tiny": folder}) as hub:
        yield Client(hub, tmp_path / "cache", tmp_path / "home")


def test_a_hub_id_and_a_folder_with_the_same_files_are_the_same_model(client: Client, folder: Path) -> None:
    answer = client.get()
    assert answer["id"] == resolve(str(folder), client.cache / "local").model_id
    assert answer["name"] == "novels/tiny"


def test_describing_a_model_reads_headers_and_no_weights(client: Client) -> None:
    assert client.get()["here"] == []
    weights = {file: ranges for file, ranges in client.hub.downloads().items() if file.endswith(".safetensors")}
    assert weights
    assert all(
        range_.startswith("bytes=0-") and range_ != "bytes=0-" for ranges in weights.values() for range_ in ranges
    )


def test_only_the_files_of_the_span_are_downloaded_and_only_once(client: Client, folder: Path) -> None:
    wanted = list(files_of(resolve(str(folder), client.cache / "local").manifest, SPAN))
    assert client.get("novels/tiny", SPAN)["here"] == wanted
    client.hub.requests.clear()
    answer = client.get("novels/tiny", SPAN, Span(0, 1))
    assert set(wanted) < set(answer["here"])
    assert not set(client.hub.downloads()) & set(wanted)
    for file in answer["here"]:
        assert (Path(answer["folder"]) / file).read_bytes() == (folder / file).read_bytes()


def test_a_broken_download_goes_on_where_it_stopped(client: Client, folder: Path) -> None:
    client.get()
    client.hub.cut_after = 10_000
    broken = client.get("novels/tiny", Span(0, 1))
    assert (broken["error"], broken["code"]) == ("Unavailable", 3)
    client.hub.requests.clear()
    answer = client.get("novels/tiny", Span(0, 1))
    (file,) = answer["here"]
    (asked,) = client.hub.downloads()[file]
    assert asked.startswith("bytes=")
    assert int(asked.removeprefix("bytes=").removesuffix("-")) > 0
    assert (Path(answer["folder"]) / file).read_bytes() == (folder / file).read_bytes()


def test_a_file_that_is_not_what_the_hub_announced_is_never_used(client: Client) -> None:
    client.hub.lies = True
    answer = client.get("novels/tiny", SPAN)
    assert answer["error"] == "UsageError"
    assert "did not arrive as the hub describes it" in answer["text"]
    assert not list(client.cache.rglob("*.safetensors")) + list(client.cache.rglob("*.part"))
    client.hub.lies = False
    assert client.get("novels/tiny", SPAN)["here"]


def test_a_full_disk_says_so_and_leaves_nothing_corrupt(client: Client, folder: Path) -> None:
    described = client.get()
    (name,) = files_of(resolve(str(folder), client.cache / "local").manifest, Span(0, 1))
    part = Path(described["folder"]) / f"{name}.part"
    part.symlink_to("/dev/full")
    answer = client.get("novels/tiny", Span(0, 1))
    assert (answer["error"], answer["code"]) == ("OutOfMemory", 6)
    assert "disk is full" in answer["text"]
    assert not (Path(described["folder"]) / name).exists()
    part.unlink()
    assert client.get("novels/tiny", Span(0, 1))["here"] == [name]


def test_what_was_brought_serves_without_network(client: Client) -> None:
    online = client.get("novels/tiny", SPAN)
    assert client.get("novels/tiny", SPAN, offline=True) == online
    assert client.get("novels/tiny", SPAN, url="http://127.0.0.1:9") == online
    missing = client.get("novels/tiny", Span(0, 8), offline=True)
    assert (missing["error"], missing["code"]) == ("Unavailable", 3)


def test_a_hub_that_is_down_is_named(client: Client) -> None:
    answer = client.get(url="http://127.0.0.1:9")
    assert (answer["error"], answer["code"]) == ("Unavailable", 3)
    assert "http://127.0.0.1:9" in answer["text"]
    assert client.get(offline=True)["error"] == "Unavailable"


def test_an_unknown_hub_id_is_the_users_error(client: Client) -> None:
    answer = client.get("novels/nothing")
    assert (answer["error"], answer["code"]) == ("UsageError", 2)
    assert "there is no model novels/nothing" in answer["text"]


def test_pickled_and_truncated_checkpoints_are_refused(client: Client, folder: Path, tmp_path: Path) -> None:
    pickled = save_model(make_model("llama"), tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cut = Path(shutil.copytree(folder, tmp_path / "cut"))
    shard = sorted(cut.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-8])
    client.hub.repositories.update({"novels/pickled": pickled, "novels/cut": cut})
    assert "only pickled weights" in client.get("novels/pickled")["text"]
    answer = client.get("novels/cut")
    assert (answer["error"], answer["code"]) == ("UsageError", 2)
    assert "truncated" in answer["text"]
    assert shard.name in answer["text"]


def test_a_disk_with_too_little_room_is_noticed_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shoal.node.hub_files import HubFiles

    usage = shutil.disk_usage(tmp_path)._replace(free=20 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    hub = HubFiles("novels/large", "main", {})
    with pytest.raises(OutOfMemory, match=r"model.safetensors of novels/large needs 100 MiB on disk.*20 MiB free"):
        hub.download(FileEntry("model.safetensors", 100 << 20, "0" * 64), tmp_path)
