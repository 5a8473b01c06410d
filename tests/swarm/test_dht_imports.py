"""The DHT without torch: a node that only routes, and a thin client, start fast."""

import subprocess
import sys


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_directory_imports_neither_torch_nor_the_rest_of_hivemind() -> None:
    code = (
        "import sys; import shoal.swarm.transports.dht_directory;"
        "print(sorted({'torch', 'transformers', 'hivemind.averaging', 'hivemind.optim'} & set(sys.modules)))"
    )
    assert run(code) == "[]"


def test_the_pure_modules_import_neither_hivemind_nor_numpy() -> None:
    names = ["routing.chain_choice", "routing.placement", "directory", "records", "node_lock", "home"]
    names += ["members.invite_store", "members.membership", "transports.record_validator"]
    imports = "; ".join(f"import shoal.swarm.{name}" for name in names)
    code = f"import sys; {imports}; print(sorted({{'hivemind', 'numpy', 'torch'}} & set(sys.modules)))"
    assert run(code) == "[]"


def test_the_light_import_gives_the_same_classes_as_the_transport_uses() -> None:
    code = (
        "from shoal.swarm.transports.hivemind_imports import import_p2p;"
        "from shoal.swarm.transports.dht_imports import import_dht_node;"
        "print(import_dht_node().P2P is import_p2p().P2P, import_dht_node() is import_dht_node())"
    )
    assert run(code) == "True True"
