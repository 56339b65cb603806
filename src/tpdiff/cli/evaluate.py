"""`tpdiff eval`: how near made clips are to real ones."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpdiff.cli.bars import progress_bars
from tpdiff.cli.data import parse_size
from tpdiff.cli.device import Offload, as_device, as_dtype
from tpdiff.cli.quiet import quiet
from tpdiff.cli.sample import _steps, check_guidance

if TYPE_CHECKING:
    from tpdiff.data.clips import Geometry
    from tpdiff.evaluation.quality import Quality
    from tpdiff.metrics.clips import Clip

ALL = "all"


def evaluate(
    real: Annotated[Path, typer.Argument(help="A dataset folder with a training and a test split.")],
    made: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint, a pipeline, or a folder of videos.")],
    clips: Annotated[int | None, typer.Option(min=2, help="Real and made clips; all there are if not given.")] = None,
    split: Annotated[str, typer.Option(help="Split of the real clips; 'all' divides all videos into halves.")] = "test",
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of clips, the first sample and the intervals.")] = 0,
    features: Annotated[
        Path | None,
        typer.Option(
            help="An I3D file (TorchScript, safetensors, .pt): the distance is then FVD. Or a VideoMAE folder."
        ),
    ] = None,
    clip: Annotated[
        Path | None, typer.Option(help="A CLIP folder: measure too how like their captions clips are.")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a clip; as the model or the videos have.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH; as the model or the videos have.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second; as the model, else each file's own.")] = None,
    resize: Annotated[str | None, typer.Option(help="crop or stretch; as the model, else crop.")] = None,
    max_bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="The largest share of real videos that may be unusable.")
    ] = 0.1,
    steps: Annotated[str, typer.Option(help="Sampling steps: a total, or one count a stage (10,10,10).")] = "30",
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance; if not given a fine-tuned pipeline's own, else 1, which is none.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="euler (if not given), ddim or heun.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips sampled at a time; 16 if not given, of a fine-tuned pipeline 4.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=10, help="Of the bootstrap.")] = 1000,
    classify: Annotated[bool, typer.Option(help="Judge by a classifier whether clips show their captions.")] = True,
    cache_dir: Annotated[Path | None, typer.Option(help="Where features are kept; ~/.cache/tpdiff.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the network's weights; a fine-tuned one's bfloat16 on cuda, else float32.")
    ] = None,
    offload: Offload = False,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Fréchet and kernel distance of made clips to real ones, with a real-against-real floor and the protocol."""
    quiet()
    from tpdiff.evaluation import made as making
    from tpdiff.evaluation.quality import check_captions
    from tpdiff.evaluation.quality import evaluate as measure
    from tpdiff.files import check_writable, write_whole
    from tpdiff.metrics import Reference, open_features
    from tpdiff.metrics.captions import CaptionSimilarity
    from tpdiff.metrics.classifier import Classifier, NothingToTellApart
    from tpdiff.models.memory import keep_freed_memory

    if out is not None:
        check_writable(out)
    where, kind = as_device(device), None if dtype is None else as_dtype(dtype)
    keep_freed_memory()
    counts = _steps(steps)
    sampled = making.is_model(made)
    geometry = making.model_geometry(made) if sampled else making.folder_geometry(made, fps)
    geometry = _override(geometry, frames, size, fps, resize)
    ours = None if sampled else making.folder_clips(made, geometry, clips, seed)
    chosen = open_features(features, where)
    similarity = None if clip is None else CaptionSimilarity.load(clip, where)
    model = None
    if sampled:
        asked: dict[str, Any] = {"steps": counts, "guidance_scale": guidance_scale, "solver": solver, "batch": batch}
        model = making.open_model(made, geometry, **asked, device=where, dtype=kind, offload=offload)
        check_guidance(model.pipeline, guidance_scale)
        if similarity is not None and not model.told:
            raise ValueError(f"--clip compares clips with their captions, and the model in {made} is told none")
    if similarity is not None and ours is not None:
        check_captions("made", [fact.get("caption") for fact in ours.facts])

    def check(like: Sequence[Clip]) -> None:
        if len(like) < 2:
            raise ValueError(
                f"the real clips (split {split!r} of {real}) are {len(like)}, and a distance needs at least 2; give "
                "another --split, fewer --frames, or more videos"
            )
        if model is not None:
            model.check(like)
        if ours is not None and geometry.fps is None:
            ours.check_rate(like)
        if similarity is not None:
            check_captions("real", [one.source.entry.caption for one in like])

    place = cache_dir or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "tpdiff"
    with progress_bars() as bar:
        reference = Reference.fit(
            real,
            **geometry._asdict(),
            clips=clips,
            seed=seed,
            split=None if split == ALL else split,
            fit_split=None if split == ALL else "train",
            max_bad_share=max_bad_share,
            cache_dir=place,
            features=chosen,
            check=check,
            progress=bar("real clips"),
        )
        if model is not None:
            ours = model.clips(reference.clips, clips, seed)
        assert ours is not None  # the one or the other
        judge, lack = None, None
        if classify and all(fact.get("caption") for fact in ours.facts):
            told = bar("training the classifier")
            try:
                judge = Classifier.fit(reference.training, geometry, seed=seed, cache_dir=place, progress=told)
            except NothingToTellApart as error:
                lack = f"no classifier: {error}"
        quality = measure(
            reference,
            ours,
            place,
            classifier=judge,
            similarity=similarity,
            rounds=rounds,
            seed=seed,
            progress=bar("made clips"),
        )
    if lack is not None:
        print(lack, file=sys.stderr)
    figures = {"real": str(real), "made": str(made)} | quality.as_dict()
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    if out is not None:
        write_whole(out, text + "\n")
    if as_json:
        print(text)
    else:
        _tell(quality, made)


def _override(
    geometry: Geometry, frames: int | None, size: str | None, fps: float | None, resize: str | None
) -> Geometry:
    given: dict[str, Any] = {"frames": frames, "fps": fps, "resize": resize}
    if size is not None:
        given["height"], given["width"] = parse_size(size)
    geometry = geometry._replace(**{key: value for key, value in given.items() if value is not None})
    geometry.check()
    return geometry


def _tell(quality: Quality, made: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    distance = quality.distance
    name, kernel = (name.replace("_", " ") for name in (quality.distance_name, quality.kernel_name))
    table = Table(title=f"{made}: {quality.clips} clips against {quality.real_clips} real ones", title_justify="left")
    for column in ("", "made", "95 %", "real"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row(
        name, f"{distance.value:.4g}", f"{distance.low:.4g} ... {distance.high:.4g}", f"{quality.floor:.4g} (floor)"
    )
    table.add_row(kernel, f"{quality.kernel_distance:.4g}", "", f"{quality.kernel_floor:.4g} (floor)")
    for key, means in quality.figures.items():
        table.add_row(key.replace("_", " "), f"{means['made']:.4g}", "", f"{means['real']:.4g}")
    for key, shares in quality.accuracy.items():
        table.add_row(f"{key} recognized", f"{shares['made']:.1%}", "", f"{shares['real']:.1%}")
    console.print(table)
    console.print(
        f"floor: the same distance of {quality.floor_clips} real clips of the training split that the features were "
        "not fitted on",
        soft_wrap=True,
    )
    for line in _protocol_lines(quality.protocol):
        console.print(line, soft_wrap=True, highlight=False)
    if quality.warning:
        console.print(f"warning: {quality.warning}", style="bold", soft_wrap=True, highlight=False)


def _protocol_lines(protocol: dict[str, Any]) -> Iterator[str]:
    """The protocol, a line an entry."""
    yield "protocol"
    for key, value in protocol.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {entry}" for name, entry in value.items())
        yield f"  {key}: {value}"
