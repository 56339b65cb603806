"""What a run is measured by while it trains."""

from pydantic import Field, field_validator

from tpdiff.training.section import Section


class ValidationConfig(Section):
    """What the averaged weights are measured by during training; off unless `every_steps` or `every_seconds` is set.

    A validation falls after every so many steps or training seconds, whichever comes, and at the end. Its own time is
    not training time. `clips` held-out clips (at most one a video of `split`) give the loss at `quantiles` fixed
    places of every stage, `samples` are videos to look at, and `distance_clips` samples give a Fréchet distance
    (0: none). All of it is drawn by `seed`, whatever the seed of the run.

    `guidance_scale` None: a fine-tuned pipeline's own, otherwise 1, none. `batch_size` clips are worked on together;
    None: 1 of a fine-tuned pipeline, whose networks are large, otherwise 16.
    """

    every_steps: int | None = Field(None, ge=1)
    every_seconds: float | None = Field(None, gt=0)
    split: str = "test"
    clips: int = Field(64, ge=1)
    quantiles: int = Field(8, ge=1)
    samples: int = Field(4, ge=0)
    sample_steps: int = Field(30, ge=1)
    guidance_scale: float | None = None
    distance_clips: int = Field(0, ge=0)
    batch_size: int | None = Field(None, ge=1)
    seed: int = Field(0, ge=0)

    @property
    def on(self) -> bool:
        """Whether there is any."""
        return self.every_steps is not None or self.every_seconds is not None

    @property
    def sampled(self) -> bool:
        """Whether videos are made in it."""
        return self.on and bool(self.samples or self.distance_clips)

    @field_validator("distance_clips")
    @classmethod
    def _has_a_covariance(cls, value: int) -> int:
        if value == 1:
            raise ValueError("validation.distance_clips=1: a distance needs at least 2; nearest: 0 (none) or 2")
        return value
