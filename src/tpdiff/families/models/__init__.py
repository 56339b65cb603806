"""Configurations of the published models, by name: what is planned and measured without their weights."""

from __future__ import annotations

import difflib

from tpdiff.families.models import animatediff, cogvideox, hunyuan, ltx, mochi, modelscope, wan
from tpdiff.families.models.published import Published

PUBLISHED: dict[str, Published] = {
    model.name: model
    for module in (wan, cogvideox, ltx, hunyuan, mochi, animatediff, modelscope)
    for model in module.MODELS
}


def find_published(name: str) -> Published:
    """A published model by name.

    Raises:
        ValueError: there is none of that name, with the nearest and all that there are.
    """
    if name.lower() in PUBLISHED:
        return PUBLISHED[name.lower()]
    nearest = difflib.get_close_matches(name.lower(), PUBLISHED, 1, 0)
    raise ValueError(f"unknown model {name!r}; nearest: {nearest[0]}; known: {', '.join(PUBLISHED)}")


__all__ = ["PUBLISHED", "Published", "find_published"]
