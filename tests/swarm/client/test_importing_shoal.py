"""What `import shoal` costs, in an interpreter of its own."""

import subprocess
import sys

import pytest

import shoal

ADDRESS_ONLY = {"torch", "transformers", "hivemind", "fastapi", "tokenizers", "jinja2"}
HEAVY = ADDRESS_ONLY | {"uvicorn", "httpx", "pydantic", "numpy", "anyio", "msgspec"}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_importing_shoal_loads_nothing_but_itself() -> None:
    code = f"import shoal, sys; print(sorted({HEAVY} & set(sys.modules)))"
    assert python(code) == "[]"


def test_importing_shoal_takes_a_moment_only() -> None:
    code = "import time; t = time.process_time(); import shoal; print(time.process_time() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.05


def test_a_client_of_an_address_needs_neither_torch_nor_hivemind() -> None:
    code = (
        f"import shoal, sys; c = shoal.connect('http://127.0.0.1:1'); c.close(); "
        f"print(sorted({ADDRESS_ONLY} & set(sys.modules)))"
    )
    assert python(code) == "[]"


def test_a_process_ends_even_when_its_client_was_never_closed() -> None:
    assert python("import shoal; c = shoal.connect('http://127.0.0.1:1'); print('left')") == "left"


@pytest.mark.parametrize("name", shoal.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(shoal, name) is not None
    assert name in dir(shoal)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = shoal.conect  # type: ignore[attr-defined]
