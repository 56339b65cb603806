"""A clip and its caption to what a shard holds of them, as bytes: the same for the same clip, whatever came before."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tpdiff.data import to_float
from tpdiff.data.buckets import Bucket
from tpdiff.models.autoencoder import compression, identity, load_autoencoder
from tpdiff.models.text import encode_prompts, load_text_encoder, text_identity
from tpdiff.pyramid.geometry import AXIS_NAMES, Geometry, axis_rules, largest_video_size
from tpdiff.pyramid.stages import Pyramid
from tpdiff.training.captions import warn_of_cut
from tpdiff.training.clean import encode_stages
from tpdiff.training.config import Config
from tpdiff.training.objective import build_pyramid
from tpdiff.training.setup import check_sizes


class ClipEncoder(ABC):
    """The frozen models of a recipe, one clip and one caption at a time.

    Attributes:
        pyramid: the stages.
        autoencoder: encodes clips.
        settings: what the models decide of the contents of a cache, by dotted name.
        size_rules: what legal sizes are multiples of; JSON values.
        largest: the largest legal size within a size, or None. It holds no model, so that processes can share it.

    Args:
        config: the recipe.
        device: where to encode.
        pyramid: the stages.
        autoencoder: encodes clips.
        geometry: of the sizes that all stages can hold.
        limits: (least, greatest) value of num_frames, height or width, where there are any.
    """

    settings: Mapping[str, Any]

    def __init__(
        self,
        config: Config,
        device: torch.device | str,
        pyramid: Pyramid,
        autoencoder: Any,
        geometry: Geometry,
        limits: Mapping[str, tuple[int, int]],
    ):
        self.config, self.device, self.pyramid, self.autoencoder = config, torch.device(device), pyramid, autoencoder
        self.size_rules = [list(rule) for rule in axis_rules(*geometry)]
        self.largest = partial(_largest, geometry, limits)

    @abstractmethod
    def check(self, sizes: Iterable[Bucket]) -> None:
        """Raise ValueError for a clip size that the autoencoder, the patches or some stage cannot hold."""

    @abstractmethod
    def warn_of_cut(self, captions: Iterable[str | None]) -> None:
        """Warn of captions that are longer than what is encoded of them."""

    def latents(self, video: Tensor) -> bytes:
        """uint8 clip (3, T, H, W) -> float32 latents "stage0", ... (C, t, h, w), as safetensors."""
        stages = self.pyramid if self.config.data.stages == "pixel" else None
        encoded = encode_stages(self.autoencoder, to_float(video[None].to(self.device)), stages)
        return save({f"stage{k}": latents[0].cpu().contiguous() for k, latents in enumerate(encoded)})

    @abstractmethod
    def states(self, caption: str) -> bytes | None:
        """What a caption becomes, as safetensors; None where the recipe encodes none."""


class OwnEncoder(ClipEncoder):
    """The autoencoder and the text encoder that a recipe of a new network names.

    Raises:
        ValueError: no autoencoder is named or there, or no text encoder.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        if config.model.autoencoder is None:
            raise ValueError("a cache holds latents; set model.autoencoder (a model of pixels has data.cache=disk)")
        pyramid, autoencoder = build_pyramid(config), load_autoencoder(config.model.autoencoder).to(device)
        self._ratio = compression(autoencoder)[1]
        causal = bool(config.pyramid.causal_time), self._ratio[0] > 1
        geometry = (pyramid.multiples, config.model.patch_size, self._ratio, *causal)
        super().__init__(config, device, pyramid, autoencoder, geometry, {})
        self._text: Any = None
        if config.condition.kind == "text":
            encoder, tokenizer = load_text_encoder(config.condition.encoder, config.condition.max_length)
            self._text = encoder.to(self.device), tokenizer
        self.settings = {
            "model.autoencoder": identity(autoencoder),
            "condition.encoder": None if self._text is None else text_identity(*self._text),
            "condition.max_length": None if self._text is None else config.condition.max_length,
        }

    def check(self, sizes: Iterable[Bucket]) -> None:
        check_sizes(self.config, self.pyramid.multiples, self._ratio, sizes)

    def warn_of_cut(self, captions: Iterable[str | None]) -> None:
        if self._text is not None:
            encoder, tokenizer = self._text
            warn_of_cut(captions, encoder, tokenizer, self.config.condition.max_length)

    def states(self, caption: str) -> bytes | None:
        """A caption's token states "prompt_embeds" (n, D) and "prompt_attention_mask" (n,).

        What follows the last token is left out; nothing attends to it.
        """
        if self._text is None:
            return None
        encoder, tokenizer = self._text
        encoded = encode_prompts(encoder, tokenizer, [caption], self.config.condition.max_length)
        mask = encoded.prompt_attention_mask[0].cpu()
        length = int(mask.nonzero().max()) + 1 if mask.any() else 0
        states = encoded.prompt_embeds[0, :length].cpu().contiguous()
        return save({"prompt_embeds": states, "prompt_attention_mask": mask[:length].clone()})


def _largest(geometry: Geometry, limits: Mapping[str, tuple[int, int]], size: Bucket) -> Bucket | None:
    reach = [limits.get(name, (1, value)) for name, value in zip(AXIS_NAMES, size, strict=True)]
    within = [min(value, greatest) for value, (_, greatest) in zip(size, reach, strict=True)]
    found = largest_video_size(within, *geometry)
    if found is None or any(value < least for value, (least, _) in zip(found, reach, strict=True)):
        return None
    return Bucket(*found)
