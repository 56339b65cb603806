"""What a pretrained pipeline makes of clips and captions, by its own autoencoder and text encoders."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from tpdiff.data.buckets import Bucket
from tpdiff.data.shard_files import digest_of, digest_of_file
from tpdiff.families.sizes import geometry, stage_sizes
from tpdiff.models.memory import moved
from tpdiff.sampling.stock import stock_folder
from tpdiff.training.captions import warn_of_cut_by_pipeline
from tpdiff.training.clip_encoder import ClipEncoder, OwnEncoder
from tpdiff.training.config import Config
from tpdiff.training.pretrained_pipeline import encodes, open_pipeline, pipeline_stages

READ = (".json", ".safetensors", ".txt", ".model")  # how files end that decide what encoders make


class PipelineEncoder(ClipEncoder):
    """The autoencoder and the text encoders of a pretrained pipeline. Its networks are opened without weights.

    Args:
        config: the recipe, with its section `pretrained`.
        device: where to encode; None: nothing is to be encoded, so that no weights are read but for their digests.

    Raises:
        ValueError: no such pipeline, one that stages cannot run, or one that starts from pictures.
    """

    def __init__(self, config: Config, device: torch.device | str | None = "cpu"):
        assert config.pretrained is not None
        asker = open_pipeline(config, lambda name: device is None or not encodes(name))
        self.asker, pipe, family = asker, asker.pipe, asker.family
        if family.from_picture(pipe):
            raise ValueError(
                f"{type(pipe).__name__} starts from pictures, which shards do not keep: train it on the videos"
            )
        pyramid = pipeline_stages(config, asker)
        sizes = geometry(pipe, family, pyramid), family.limits(pipe)
        super().__init__(config, device or "meta", pyramid, pipe.vae, *sizes)
        parts = {name: part for name, part in pipe.components.items() if encodes(name) and isinstance(part, nn.Module)}
        self._text = [part for name, part in parts.items() if name != "vae"]
        if device is not None and not config.offload:
            for part in parts.values():
                part.to(self.device)
        folder = stock_folder(config.pretrained.path)
        told = [name for name in pipe.components if name.startswith(("text_encoder", "tokenizer"))]
        self.settings = {
            "model.autoencoder": files_digest(folder / "vae"),
            "condition.encoder": files_digest(*(folder / name for name in told)),
            "condition.max_length": None,
            "pretrained.dtype": config.pretrained.dtype,
            "pretrained.options": json.loads(json.dumps(asker.text_options)),
        }

    def check(self, sizes: Iterable[Bucket]) -> None:
        data = self.config.data
        for size in ((data.frames, data.height, data.width), *sizes):
            stage_sizes(self.asker.pipe, self.asker.family, self.pyramid, size)

    def warn_of_cut(self, captions: Iterable[str | None]) -> None:
        warn_of_cut_by_pipeline(captions, self.asker)

    def latents(self, video: Tensor) -> bytes:
        with moved([self.autoencoder], self.device):
            return super().latents(video)

    def states(self, caption: str) -> bytes:
        """The arguments that the pipeline's call takes in place of a caption, one row each."""
        with moved(self._text, self.device):
            condition = self.asker.encode([caption], self.device)[0]
        return save({name: value.contiguous() for name, value in condition.items()})


def open_encoder(config: Config, device: torch.device | str | None = "cpu") -> ClipEncoder:
    """What encodes the clips and captions of a recipe.

    Args:
        config: the recipe.
        device: where to encode; None: only the settings are asked for.

    Raises:
        ValueError: whatever either encoder refuses.
    """
    return OwnEncoder(config, device or "cpu") if config.pretrained is None else PipelineEncoder(config, device)


def files_digest(*folders: Path) -> str:
    """A digest of components as they are saved: names and contents of their files."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in READ]
    return digest_of(json.dumps([[path.parent.name, path.name, digest_of_file(path)] for path in files]).encode())
