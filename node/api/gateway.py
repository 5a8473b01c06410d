"""What every route of the gateway shares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.swarm.text.text_source import Prepared, TextSource

from .choices import planned
from .gateway_metrics import GatewayMetrics
from .generation_answer import AnswerForm, GenerationAnswer
from .openai_requests import Generation


@dataclass(frozen=True, slots=True)
class Gateway:
    texts: TextSource
    metrics: GatewayMetrics
    unix_s: Callable[[], float]

    def answer(self, asked: Generation, form: AnswerForm, prompts: Sequence[tuple[Prepared, str]]) -> GenerationAnswer:
        """prompts: each with the text that goes before its answer (echo)"""
        runs = planned(prompts, asked.choices)
        stream, usage = bool(asked.stream), asked.wants_usage
        return GenerationAnswer(self.texts, self.metrics, form, runs, asked.choices, stream, usage)
