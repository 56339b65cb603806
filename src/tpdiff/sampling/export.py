"""Low-rank matrices as they were saved, for other programs: no weight of the pipeline beside them is read.

They are written as diffusers reads them, or by the names of a model's own implementation, as ComfyUI reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tpdiff.families import find_family
from tpdiff.sampling.apply import stock_class
from tpdiff.sampling.stock import load_stock
from tpdiff.sampling.trained import HERE, TOLD, Tuned, read_tuned
from tpdiff.sampling.tuned import LORA, adapter_folder, adapter_name, loader_name

PREFIX = "diffusion_model"


@dataclass(frozen=True)
class SavedMatrices:
    """The low-rank matrices of a fine-tuned pipeline.

    Attributes:
        folder: where they were saved.
        told: what it says of them.
        dtype: that they are given in.
    """

    folder: Path
    told: Tuned
    dtype: torch.dtype

    @classmethod
    def open(cls, folder: Path, dtype: torch.dtype = torch.float32) -> SavedMatrices:
        """Those that `TunedPipeline.save_pretrained` wrote."""
        return cls(folder, read_tuned(folder), dtype)

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Write them as they were written, with the stages."""
        for name in self.told.adapters:
            place = adapter_folder(Path(folder), name)
            place.mkdir(parents=True, exist_ok=True)
            weights, facts = self._read(name)
            save_file(weights, str(place / LORA), facts)
        (Path(folder) / TOLD).write_text(json.dumps(asdict(self.told), indent=1), encoding="utf-8")

    def original(self) -> dict[str, Tensor]:
        """`original_matrices` of them. The pipeline is opened without weights.

        Raises:
            ValueError: as `original_matrices`, or the pipeline that they were trained on is not where it was.
        """
        _check_one_set(self.told.adapters)
        pipe = load_stock(str(self.folder) if self.told.base == HERE else self.told.base, hollow=lambda name: True)
        prefix = f"{loader_name(self.told.component)}."
        sets = {
            name: {key.removeprefix(prefix): value for key, value in self._read(name)[0].items()}
            for name in self.told.adapters
        }
        return original_matrices(pipe, sets)

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, str] | None]:
        """A set's matrices by the names in its file, and what the file says beside."""
        with safe_open(str(adapter_folder(self.folder, name) / LORA), "pt") as file:
            weights = {key: file.get_tensor(key).to(self.dtype) for key in file.keys()}  # noqa: SIM118
            return weights, file.metadata()


def original_matrices(pipe: Any, sets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Low-rank matrices as "diffusion_model.<layer>.lora_A.weight" and ".lora_B.weight"; a pair's product counts once.

    Args:
        pipe: the pipeline that they belong to; its weights do not matter.
        sets: by name, matrices as `low_rank_matrices` gives them.

    Raises:
        ValueError: whole weights, a set a stage, or a family whose own names diffusers does not read.
    """
    _check_one_set([*sets])
    original, renamed = find_family(pipe).original_layer, {}
    for key, value in sets[adapter_name(None)].items():
        layer, matrix = key.split(".lora_")
        try:
            renamed[f"{PREFIX}.{original(layer)}.lora_{matrix}"] = value.detach().cpu().contiguous()
        except ValueError as error:
            kind = stock_class(pipe).__name__
            raise ValueError(f"no comfyui format for {kind}: {error}; nearest: diffusers") from None
    return renamed


def _check_one_set(adapters: Sequence[str]) -> None:
    if not adapters:
        raise ValueError("comfyui is a format of low-rank matrices, and this run trained weights; nearest: diffusers")
    if adapters != [adapter_name(None)]:
        raise ValueError(
            f"a file of the comfyui format holds one set of matrices, and this run has {len(adapters)}, one a stage; "
            "nearest: diffusers"
        )
