"""Which of the swarm's models a caller means."""

from collections.abc import Sequence

from shoal.swarm.errors import ModelNotServable
from shoal.swarm.sessions.generation import ServedModel


class UnknownModel(ModelNotServable):
    """No peer has ever announced this model; the message names those that are known."""


class NoModelNamed(UnknownModel):
    """The caller named no model, and there is not exactly one to choose."""


def public_names(models: Sequence[ServedModel]) -> dict[str, ServedModel]:
    """One name per model: its display name, or its id where another model took the name first.

    A servable model takes the name before one that is not; then the one with more holders, then the lower id.
    """
    names: dict[str, ServedModel] = {}
    for model in sorted(models, key=lambda model: (bool(model.missing), -model.holders, model.id)):
        names[model.id if model.name in names else model.name] = model
    return dict(sorted(names.items()))


def choose_model(models: Sequence[ServedModel], wanted: str | None, servable: bool = True) -> ServedModel:
    """By name or id; with no name, the only servable one.

    raises: UnknownModel, NoModelNamed; when it must be `servable`, ModelNotServable naming the missing layers
    """
    names = public_names(models)
    if wanted is None:
        candidates = [model for model in names.values() if not model.missing] or list(names.values())
        if len(candidates) != 1:
            raise NoModelNamed(f"name one of the models: {_listed(names)}")
        chosen = candidates[0]
    else:
        found = names.get(wanted) or next((model for model in models if model.id == wanted), None)
        if found is None:
            raise UnknownModel(f"no model {wanted!r} in this swarm; it knows {_listed(names)}")
        chosen = found
    if chosen.missing and servable:
        raise ModelNotServable(f"{chosen.name} cannot be served now: no peer holds {chosen.missing}")
    return chosen


def _listed(names: dict[str, ServedModel]) -> str:
    return ", ".join(names) if names else "none yet"
