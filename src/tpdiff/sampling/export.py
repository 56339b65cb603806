"""Low-rank matrices by the names of a model's own implementation, as ComfyUI reads them."""

from torch import Tensor

from tpdiff.families import find_family
from tpdiff.sampling.apply import stock_class
from tpdiff.sampling.tuned import TunedPipeline, adapter_name, low_rank_matrices

PREFIX = "diffusion_model"


def original_matrices(tuned: TunedPipeline) -> dict[str, Tensor]:
    """A pipeline's low-rank matrices, "diffusion_model.<layer>.lora_A.weight" and ".lora_B.weight"; a pair's product
    counts once.

    Raises:
        ValueError: whole weights, a set a stage, or a family whose own names diffusers does not read.
    """
    kind, adapters = stock_class(tuned.pipe).__name__, tuned.config.adapters
    if not adapters:
        raise ValueError("comfyui is a format of low-rank matrices, and this run trained weights; nearest: diffusers")
    if adapters != [adapter_name(None)]:
        raise ValueError(
            f"a file of the comfyui format holds one set of matrices, and this run has {len(adapters)}, one a stage; "
            "nearest: diffusers"
        )
    original, renamed = find_family(tuned.pipe).original_layer, {}
    for key, value in low_rank_matrices(tuned.network, adapters[0]).items():
        layer, matrix = key.split(".lora_")
        try:
            renamed[f"{PREFIX}.{original(layer)}.lora_{matrix}"] = value.detach().cpu().contiguous()
        except ValueError as error:
            raise ValueError(f"no comfyui format for {kind}: {error}; nearest: diffusers") from None
    return renamed
