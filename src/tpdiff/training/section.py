"""What all configurations are made of."""

from os.path import expanduser

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def at_home(place: str | None) -> str | None:
    """A path in which a leading ~ is the user's own folder, as in a shell, which leaves it in `data.path=~/clips`."""
    return None if place is None else expanduser(place)
