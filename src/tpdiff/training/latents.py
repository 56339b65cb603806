"""What a run diffuses: pixels, or the latents of an autoencoder."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tpdiff.data import ClipDataset, ShardDataset, to_float
from tpdiff.models.autoencoder import compression, fingerprint, identity, load_autoencoder
from tpdiff.models.memory import moved
from tpdiff.pyramid.stages import Pyramid
from tpdiff.sampling.stock import is_hollow
from tpdiff.training.clean import Clean, encode_stages
from tpdiff.training.config import Config
from tpdiff.training.latent_cache import LatentCache, MemoryCache, open_latent_cache
from tpdiff.training.setup import check_sizes


class KeptFirst(Dataset[dict[str, Any]]):
    """A dataset's samples with "latents" (C, t, h, w) in place of "video" where a cache has them."""

    def __init__(self, dataset: ClipDataset, cache: LatentCache):
        self.dataset, self.cache = dataset, cache

    def __getitem__(self, index: int) -> dict[str, Any]:
        told = self.dataset.told(index)
        number, latents = told.pop("number"), self.cache.get(told["path"], told["start"])
        kept = {"video": self.dataset.clip(number, told["start"])} if latents is None else {"latents": latents}
        return {**kept, **told}


class Latents:
    """Clips to what the network sees.

    An autoencoder encodes one clip at a time, so that a clip's latents depend on nothing beside it in its batch and
    may be kept (`data.latents`).

    Attributes:
        autoencoder: None for pixels.
        identity: digest of the autoencoder, wherever it works; None for pixels, and until clips are served.
        ratio: its (T, H, W) compression, all ones for pixels.
        shape: (C, t, h, w) of a clip's latents.

    Args:
        config: the run.
        pyramid: the stages.
        device: where the autoencoder works.
        dataset: its clips, to be served at once; None keeps no latents, whatever the configuration says.
        autoencoder: in place of the configuration's; whoever brings it has checked the sizes.

    Raises:
        ValueError: no autoencoder there, a clip size that it, the patches or some stage cannot hold, or what `serve`
            refuses.
    """

    def __init__(
        self,
        config: Config,
        pyramid: Pyramid,
        device: torch.device,
        dataset: ClipDataset | ShardDataset | None = None,
        autoencoder: Any = None,
    ):
        data, channels = config.data, 3
        self.autoencoder: Any = None
        self.identity: str | None = None
        self.ratio = (1, 1, 1)
        self.scale, self.device = config.model.latent_scale, device
        if autoencoder is not None:
            stays = config.offload or is_hollow(autoencoder)
            self.autoencoder = autoencoder if stays else autoencoder.to(device)
        elif config.model.autoencoder is not None:
            self.autoencoder = load_autoencoder(config.model.autoencoder).to(device)
        if self.autoencoder is not None:
            channels, self.ratio = compression(self.autoencoder)
        self._check = None if autoencoder is not None else partial(check_sizes, config, pyramid.multiples, self.ratio)
        if self._check is not None:
            self._check()
        t, h, w = self.ratio
        frames = 1 + (data.frames - 1) // t if t > 1 else data.frames
        self.shape = (channels, frames, data.height // h, data.width // w)
        self._pixel_pyramid = pyramid if data.stages == "pixel" else None
        self._data = data
        self._cache: LatentCache | None = None
        if dataset is not None:
            self.serve(dataset)

    def serve(self, dataset: ClipDataset | ShardDataset) -> None:
        """Make ready for the clips of a run, whose latents are kept where `data.latents` says so.

        Raises:
            ValueError: shards of a clip size that the autoencoder, the patches or some stage cannot hold, or more
                latents than can be kept.
        """
        if isinstance(dataset, ShardDataset):
            if self._check is not None:
                self._check(dataset.buckets)
            self.identity = dataset.settings["model.autoencoder"]  # whose weights need not have been read
        elif self.autoencoder is not None:
            self.identity = identity(self.autoencoder)
            key = fingerprint(self.autoencoder) if self._data.latents == "disk" else self.identity
            self._cache = open_latent_cache(self._data, dataset, key, self.shape)

    def __call__(self, video: Tensor) -> Clean:
        """uint8 clips (B, 3, T, H, W) -> float32 latents (B, C, t, h, w); of a pixel pyramid, of each stage."""
        if self.autoencoder is None:
            return self.scale * to_float(video.to(self.device))
        return self._clean([torch.cat(stage) for stage in zip(*map(self._encode, video), strict=True)])

    def of_batch(self, batch: Mapping[str, Any]) -> Clean:
        """Latents of a collated batch, as of its "video"; stored ones where the batch or the cache has them."""
        if "stage0" in batch:
            return self._clean([batch[f"stage{k}"] for k in range(sum(key.startswith("stage") for key in batch))])
        if self._cache is None:
            return self(batch["video"])
        found, given = [], batch.get("latents", [None] * len(batch["path"]))
        for number, (path, start) in enumerate(zip(batch["path"], batch["start"], strict=True)):
            latents = self._cache.get(path, start) if given[number] is None else given[number]
            found.append(self._keep(self._cache, path, start, batch["video"][number]) if latents is None else latents)
        return self._clean([torch.stack(found)])

    def spared(self, dataset: ClipDataset | ShardDataset) -> ClipDataset | ShardDataset | KeptFirst:
        """The dataset with "latents" in place of "video" where they are kept: such clips are not decoded."""
        return dataset if self._cache is None or isinstance(dataset, ShardDataset) else KeptFirst(dataset, self._cache)

    def encode_ahead(self, dataset: ClipDataset | ShardDataset) -> None:
        """Keep the latents of all clips, of each video every start that `data.starts` allows, so that no step of
        training pays for them. What is kept already is not encoded anew; without a cache nothing is done.
        """
        if self._cache is None or not isinstance(dataset, ClipDataset):
            return
        for number, video in enumerate(dataset.videos):
            for start in dataset.starts_of(video):
                if self._cache.get(str(video.entry.path), start) is None:
                    self._keep(self._cache, str(video.entry.path), start, dataset.clip(number, start))

    @property
    def kept(self) -> bool:
        """Whether the latents of a clip that was encoded are kept."""
        return self._cache is not None

    def keep_in_memory(self) -> None:
        """Keep them from now on, whatever the configuration says."""
        self._cache = MemoryCache()

    def _keep(self, cache: LatentCache, path: str, start: int, clip: Tensor) -> Tensor:
        """Encode a clip, uint8 (3, T, H, W), and keep its latents (C, t, h, w), which are returned."""
        latents = self._encode(clip)[0][0].cpu()
        cache.put(path, start, latents)
        return latents

    def _encode(self, clip: Tensor) -> list[Tensor]:
        with moved([self.autoencoder], self.device):
            return encode_stages(self.autoencoder, to_float(clip[None].to(self.device)), self._pixel_pyramid)

    def _clean(self, stages: Sequence[Tensor]) -> Clean:
        scaled = [self.scale * stage.to(self.device) for stage in stages]
        return scaled[0] if self._pixel_pyramid is None else scaled
