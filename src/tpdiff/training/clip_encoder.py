"""A clip and its caption to what a shard holds of them, as bytes: the same for the same clip, whatever came before."""

from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tpdiff.data import to_float
from tpdiff.models.autoencoder import compression, identity, load_autoencoder
from tpdiff.models.text import encode_prompts, load_text_encoder, text_identity
from tpdiff.training.clean import encode_stages
from tpdiff.training.config import Config
from tpdiff.training.objective import build_pyramid


class ClipEncoder:
    """The frozen models of a recipe, one clip and one caption at a time.

    Attributes:
        pyramid: the stages.
        autoencoder: encodes clips.
        text: (encoder, tokenizer); None where the recipe encodes no captions.

    Args:
        config: the recipe.
        device: where to encode.

    Raises:
        ValueError: no autoencoder is named or there, or no text encoder.
    """

    def __init__(self, config: Config, device: torch.device | str = "cpu"):
        if config.model.autoencoder is None:
            raise ValueError("a cache holds latents; set model.autoencoder (a model of pixels has data.cache=disk)")
        self.config, self.device = config, torch.device(device)
        self.pyramid = build_pyramid(config)
        self.autoencoder: Any = load_autoencoder(config.model.autoencoder).to(self.device)
        self.text: Any = None
        if config.condition.kind == "text":
            encoder, tokenizer = load_text_encoder(config.condition.encoder)
            self.text = encoder.to(self.device), tokenizer

    @property
    def ratio(self) -> tuple[int, int, int]:
        """(T, H, W) compression."""
        return compression(self.autoencoder)[1]

    @property
    def identities(self) -> tuple[str, str | None]:
        """Digests of the autoencoder and of the text encoder."""
        return identity(self.autoencoder), None if self.text is None else text_identity(*self.text)

    def latents(self, video: Tensor) -> bytes:
        """uint8 clip (3, T, H, W) -> float32 latents "stage0", ... (C, t, h, w), as safetensors."""
        stages = self.pyramid if self.config.data.stages == "pixel" else None
        encoded = encode_stages(self.autoencoder, to_float(video[None].to(self.device)), stages)
        return save({f"stage{k}": latents[0].cpu().contiguous() for k, latents in enumerate(encoded)})

    def states(self, caption: str) -> bytes:
        """A caption's token states "prompt_embeds" (n, D) and "prompt_attention_mask" (n,), as safetensors.

        What follows the last token is left out; nothing attends to it.
        """
        encoder, tokenizer = self.text
        encoded = encode_prompts(encoder, tokenizer, [caption], self.config.condition.max_length)
        mask = encoded.prompt_attention_mask[0].cpu()
        length = int(mask.nonzero().max()) + 1 if mask.any() else 0
        states = encoded.prompt_embeds[0, :length].cpu().contiguous()
        return save({"prompt_embeds": states, "prompt_attention_mask": mask[:length].clone()})
