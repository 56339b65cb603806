"""How well clips show what their captions say: CLIP (arXiv 2103.00020) from a folder that the user has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpdiff.metrics.encoders import colours, load_encoder
from tpdiff.metrics.features import SHORT, check_videos, resized
from tpdiff.models.text import text_identity

COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of the published weights
VOCABULARIES = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class CaptionSimilarity:
    """The cosine between CLIP's vectors of a caption and of each frame, averaged over the frames; in [-1, 1].

    The middle square of a frame is scaled to the network's size by antialiased bicubic interpolation; captions are cut
    to what it reads.

    Attributes:
        network: transformers' CLIPModel, ready for inference.
        tokenizer: its own.
        digest: of both, and of how colours are normalised.
        mean, deviation: of each colour in [0, 1].
    """

    network: Any
    tokenizer: Any
    digest: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> CaptionSimilarity:
        """From a folder that save_pretrained of transformers' CLIPModel and of its tokenizer wrote.

        Raises:
            ValueError: no CLIP there, no tokenizer, or not all weights.
        """
        from transformers import AutoTokenizer

        folder = Path(folder)
        network = load_encoder(folder, "clip", "CLIPModel")
        if not any((folder / name).is_file() for name in VOCABULARIES):  # of none, transformers makes an empty one
            raise ValueError(f"no tokenizer in {folder}: neither {' nor '.join(VOCABULARIES)} is there")
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"no tokenizer in {folder}: {' '.join(str(error).split())}") from error
        mean, deviation = colours(folder, COLOURS)
        digest = text_identity(network, tokenizer, str((mean, deviation)))
        return cls(network.to(device), tokenizer, digest, mean, deviation)

    @property
    def name(self) -> str:
        """What the figure is called: after the weights."""
        return f"clip_similarity_{self.digest[:SHORT]}"

    def identity(self) -> dict[str, Any]:
        """What a protocol holds of it."""
        side = self.network.config.vision_config.image_size
        resize = f"middle square, antialiased bicubic to {side}x{side}"
        return {"name": "CLIP, mean cosine of frames and caption", "digest": self.digest, "resize": resize}

    def __call__(self, videos: Tensor, captions: Sequence[str]) -> np.ndarray:
        """uint8 (B, 3, T, H, W) in [0, 255] and B captions -> float64 (B,).

        Raises:
            ValueError: what is not video, or another number of captions.
        """
        check_videos(videos)
        if len(captions) != len(videos):
            raise ValueError(f"{len(captions)} captions for {len(videos)} clips")
        return np.array([self._cosine(clip, caption) for clip, caption in zip(videos, captions, strict=True)])

    @torch.inference_mode()
    def _cosine(self, clip: Tensor, caption: str) -> float:
        """uint8 (3, T, H, W)."""
        config, device = self.network.config, self.network.device
        side, (height, width) = min(clip.shape[2:]), clip.shape[2:]
        top, left = (height - side) // 2, (width - side) // 2
        middle = clip[:, :, top : top + side, left : left + side].to(device).transpose(0, 1)
        frames = resized(middle, config.vision_config.image_size, "bicubic") / 255
        mean, deviation = (frames.new_tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        longest = config.text_config.max_position_embeddings
        tokens = self.tokenizer([caption], truncation=True, max_length=longest, return_tensors="pt").to(device)
        seen = self.network(**tokens, pixel_values=(frames - mean) / deviation)
        vectors, text = (
            torch.nn.functional.normalize(v.double(), dim=1) for v in (seen.image_embeds, seen.text_embeds)
        )
        return float((vectors @ text[0]).mean())
