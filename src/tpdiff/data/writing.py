"""Write video files whole or not at all."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import torch
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter
from torch import Tensor
from torch.nn import functional

from .errors import VideoError
from .frames import check_rate

# Between RGB and YCbCr: rounded rather than cut (cutting darkens by a level each way), colour at full width.
CONVERSION = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# The default frame weighting of x264 differs from run to run on small pictures: without it, same frames, same file.
# The converter puts colour samples in the middle of four pixels, which readers must be told.
X264 = {"x264-params": "mbtree=0:chromaloc=1"}
WRITTEN = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
BT709 = 1  # the number of that standard in colour tags


def write_video(
    path: str | Path,
    frames: Tensor,
    fps: float,
    codec: str = "libx264",
    crf: int = 18,
    preset: str = "medium",
) -> Path:
    """Write frames as a video that browsers play: 4:2:0 colour, BT.709, index at the front.

    frames: uint8 (T, H, W, 3), RGB. fps: frames a second. crf: quality, 0 (best) to 51. preset: the encoder's
    trade of time for size. The container follows the suffix (.mp4, .mov, .mkv, ...). Browsers refuse other
    colour layouts and 4:2:0 needs even sides, so an odd side grows by one pixel, a copy of the last row or
    column: every given pixel is kept.
    The file appears under its name when it is complete; a failure leaves what was there before.
    Returns the path. Raises ValueError for bad frames, fps, crf, codec or suffix, VideoError when it cannot be
    encoded or stored.
    """
    path = Path(path)
    frames = torch.as_tensor(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise ValueError(f"frames must be uint8 (T, H, W, 3), got {frames.dtype} {tuple(frames.shape)}")
    check_rate(fps)
    if not 0 <= crf <= 51:
        raise ValueError(f"crf {crf} is outside 0 ... 51; nearest: {min(max(crf, 0), 51)}")
    if path.suffix.lower() not in WRITTEN:
        raise ValueError(f"{path} has none of the suffixes of videos: {', '.join(WRITTEN)}")
    try:
        known = av.Codec(codec, "w").type == "video"
    except av.codec.codec.UnknownCodecError:
        known = False
    if not known:
        raise ValueError(f"codec {codec!r} is not a video codec that can be written here; use libx264")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    options = {"crf": str(crf), "preset": preset} | (X264 if codec == "libx264" else {})
    try:
        _encode(aside, _even(frames), fps, codec, options)
        os.replace(aside, path)
    except (OSError, av.FFmpegError) as error:
        raise VideoError(path, f"cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return path


def _encode(path: Path, frames: Tensor, fps: float, codec: str, options: dict[str, str]) -> None:
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)  # for the type checker; the codec was looked up
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = 1  # the narrow range that players expect
        converter = VideoReformatter()  # one for all frames: setting it up costs more than a small frame
        for index, picture in enumerate(frames.contiguous().numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = converter.reformat(
                frame, format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=CONVERSION
            )
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _even(frames: Tensor) -> Tensor:
    odd_h, odd_w = frames.shape[1] % 2, frames.shape[2] % 2
    if not odd_h and not odd_w:
        return frames
    planes = frames.permute(0, 3, 1, 2).to(torch.float32)  # padding is not defined for uint8
    planes = functional.pad(planes, (0, odd_w, 0, odd_h), mode="replicate")
    return planes.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
