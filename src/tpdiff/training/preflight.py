"""What is wrong with a run and costs nothing to find: refused before models are read and videos decoded, which may
take hours.
"""

import torch

from tpdiff.data import ShardDataset
from tpdiff.metrics.efficientnet import weights_path
from tpdiff.models.text import text_encoder_config
from tpdiff.models.video_dit import VideoDiT
from tpdiff.pyramid.steps import split_steps
from tpdiff.training.config import Config
from tpdiff.training.held_out import look_at_held_out
from tpdiff.training.objective import build_pyramid
from tpdiff.training.setup import check_sizes, look_at_videos, said_of


def look_ahead(config: Config, opened: bool = False, main: bool = True) -> ShardDataset | None:
    """Refuse stages, networks, sizes, steps, videos, captions and encoders that cannot be, as far as names,
    configurations and folders tell. Returns the shards of the run, which are open then, if it has any.

    Args:
        config: the run.
        opened: its clips are open already.
        main: whether this process validates, too.

    Raises:
        ValueError: what is wrong.
    """
    if config.pretrained is None:
        pyramid = build_pyramid(config)
        if config.model.autoencoder is None:
            check_sizes(config, pyramid.multiples)
        with torch.device("meta"):  # a network without numbers
            VideoDiT(**config.model.network(len(pyramid)))
    source = None if opened else _look_at_source(config)
    condition, shards = config.condition, config.data.shards
    if config.pretrained is None and condition.kind == "text" and shards is None:
        text_encoder_config(condition.encoder, condition.max_length)
    if main and config.validation.on:
        _look_at_validation(config)
    return source


def _look_at_source(config: Config) -> ShardDataset | None:
    data = config.data
    if data.shards is None:
        look_at_videos(data, captions=config.condition.kind != "none")
        return None
    return ShardDataset(data.shards, seed=config.seed, window=data.shuffle)


def _look_at_validation(config: Config) -> None:
    wanted = config.validation
    if wanted.sampled:
        with said_of("validation.sample_steps"):
            split_steps(wanted.sample_steps, config.num_stages)
    if wanted.distance_clips:
        weights_path()
    look_at_held_out(config)
