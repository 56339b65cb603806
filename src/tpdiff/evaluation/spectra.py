"""The spectrum of an autoencoder's latents, from a folder of videos, and what it says of stages without training."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tpdiff.data import ClipDataset, collate, to_float
from tpdiff.files import write_whole
from tpdiff.models.autoencoder import compression, encode_video, fingerprint, load_autoencoder
from tpdiff.pyramid.schedule import Schedule
from tpdiff.pyramid.spectral import power_lost, spectral_pyramid
from tpdiff.pyramid.spectrum import Spectrum, measure_spectrum
from tpdiff.pyramid.stages import Pyramid

TOLERANCES = (0.1, 0.03, 0.01)


def measure_folder(
    folder: Path,
    autoencoder: str,
    size: tuple[int, int, int],
    *,
    clips: int = 64,
    fps: float | None = None,
    scale: float = 1.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Spectrum:
    """The spectrum of the latents of a folder's videos, one clip a video.

    Args:
        folder: videos, in any layout that `tpdiff data check` takes; captions are not needed.
        autoencoder: a folder of diffusers' or our own.
        size: (num_frames, height, width) of the clips, in pixels.
        clips: at most so many.
        fps: frames a second of the clips; None: each file's own.
        scale: what the network sees of latents is so many times as large (`model.latent_scale`).
        seed: decides which videos, and where clips start.
        device: where clips are encoded.
        progress: called with (clips measured, clips in all).

    Raises:
        ValueError: no autoencoder, or a size that it cannot encode.
        DataError: no video that can be used.
    """
    vae = load_autoencoder(autoencoder).to(device)
    _, ratio = compression(vae)
    frames, height, width = size
    extra = int(ratio[0] > 1)
    if (frames - extra) % ratio[0] or height % ratio[1] or width % ratio[2]:
        raise ValueError(
            f"{frames}x{height}x{width} does not suit the autoencoder: frames {'1 + ' if extra else ''}a multiple of "
            f"{ratio[0]}, height and width multiples of {ratio[1]} and {ratio[2]}"
        )
    dataset = ClipDataset(
        folder, frames=frames, height=height, width=width, fps=fps, seed=seed, cache="none", require_captions=False
    )
    wanted = min(clips, len(dataset))

    def latents() -> Iterator[Tensor]:
        for i in range(wanted):
            video = to_float(collate([dataset[i]])["video"]).to(device)
            yield scale * encode_video(vae, video).cpu()
            if progress is not None:
                progress(i + 1, wanted)

    said = {"autoencoder": type(vae).__name__, "fingerprint": fingerprint(vae), "videos": folder.name, "seed": seed}
    said |= {"size": list(size), "fps": fps, "scale": scale}
    return measure_spectrum(latents(), causal_time=bool(extra), description=said)


def save_spectrum(spectrum: Spectrum, path: Path) -> None:
    """A JSON file, whole or not at all."""
    write_whole(path, json.dumps(spectrum.to_dict()) + "\n")


def load_spectrum(path: Path) -> Spectrum:
    """What `save_spectrum` wrote.

    Raises:
        ValueError: no such file, or none of ours.
    """
    try:
        return Spectrum.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"no spectrum in {path}: {error}") from error


def advise(spectrum: Spectrum, schedule: Schedule, factors: list[tuple[int, int, int]]) -> dict[str, list[dict]]:
    """What stages without training would cost, by tolerance, and what uniform ends would.

    Returns:
        "training_free": one entry a tolerance, with the starts and ends of its stages or the reason why there is none;
        "uniform": the share of the strongest band's power that each jump of uniform ends would lose.
    """
    found = []
    for tolerance in TOLERANCES:
        try:
            stages = spectral_pyramid(spectrum, schedule, factors, tolerance).stages
        except ValueError as error:
            found.append({"tolerance": tolerance, "refused": str(error)})
            continue
        levels = [{"stage": s.index, "start": round(s.start, 4), "end": round(s.end, 4)} for s in reversed(stages)]
        found.append({"tolerance": tolerance, "stages": levels})
    plain = Pyramid(schedule, factors, resize="dct", causal_time=spectrum.causal_time)
    return {"training_free": found, "uniform": [{"power_lost": round(v, 4)} for v in power_lost(spectrum, plain)]}
