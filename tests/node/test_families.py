"""Every family gives, over three engines with bytes between them, the tokens that transformers gives in one process.

Prompts are longer than a batch, so they are computed in pieces between the steps of the other sessions.
"""

from pathlib import Path

import anyio
import pytest
from node.engine_chain import EngineChain, local_model
from node.tiny_models import FAMILIES, VOCABULARY, greedy, make_model, save_model

PROMPTS = [[(7 * i + 3 * n + 1) % VOCABULARY for i in range(length)] for n, length in enumerate((5, 17, 40, 1))]
NEW = 20


@pytest.mark.parametrize("family", FAMILIES)
def test_three_engines_in_a_row_give_the_tokens_of_transformers(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    expected = [greedy(model, prompt, NEW) for prompt in PROMPTS]
    assert len({token for tokens in expected for token in tokens}) > 10, (
        "the random model repeats itself: nothing is tested"
    )
    save_model(model, tmp_path / "model")
    with EngineChain(local_model(tmp_path / "model", tmp_path / "cache"), cuts=(2, 4), batch_tokens=16) as chain:
        alone = anyio.run(chain.generate_all, PROMPTS[1:2], NEW)
        together = anyio.run(chain.generate_all, PROMPTS, NEW)
    assert alone == expected[1:2]
    assert together == expected
