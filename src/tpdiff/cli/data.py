"""`tpdiff data`: make a small set of captioned videos, or look at a folder of your own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bars import progress_bar

if TYPE_CHECKING:
    from ..data.check import FolderReport
    from ..data.recipe import MadeSet

app = typer.Typer(no_args_is_help=True, help="Make or check folders of captioned videos.")

Out = Annotated[Path, typer.Option(help="Folder to write: new, empty, or one of the same settings to continue.")]
Seed = Annotated[int, typer.Option(help="Same seed and settings, same clips.")]
TestShare = Annotated[float, typer.Option(help="Part of the clips that goes to the test split, 0 to 0.5.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print figures as JSON, nothing else.")]


@app.command()
def doom(
    out: Out,
    scenario: Annotated[str, typer.Option(help="VizDoom scenario; a wrong name lists them all.")] = "my_way_home",
    clips: Annotated[int, typer.Option(help="Number of clips.")] = 200,
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 33,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels.")] = "120x160",
    frame_skip: Annotated[int, typer.Option(help="Game steps (35 a second) between two frames.")] = 2,
    pace: Annotated[float, typer.Option(help="How fast the marine turns and walks; 1: as the game does.")] = 1.0,
    fps: Annotated[float | None, typer.Option(help="Frames a second of the files; default: true speed.")] = None,
    seed: Seed = 0,
    test_share: TestShare = 0.1,
    as_json: AsJson = False,
) -> None:
    """Record real gameplay of VizDoom, one held action a clip, captioned."""
    from ..data.doom import record_doom

    with progress_bar("recording", hidden=as_json) as progress:
        made = record_doom(
            out,
            clips=clips,
            frames=frames,
            scenario=scenario,
            size=parse_size(size),
            frame_skip=frame_skip,
            pace=pace,
            fps=fps,
            seed=seed,
            test_share=test_share,
            progress=progress,
        )
    _tell_made(made, as_json)


@app.command()
def digits(
    out: Out,
    clips: Annotated[int, typer.Option(help="Number of clips.")] = 1000,
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    size: Annotated[int, typer.Option(help="Height and width in pixels.")] = 32,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 8,
    seed: Seed = 0,
    test_share: TestShare = 0.1,
    as_json: AsJson = False,
) -> None:
    """Render handwritten digits that move and bounce, captioned."""
    from ..data.digits import render_digits

    with progress_bar("rendering", hidden=as_json) as progress:
        made = render_digits(
            out,
            clips=clips,
            frames=frames,
            size=size,
            seed=seed,
            test_share=test_share,
            fps=fps,
            progress=progress,
        )
    _tell_made(made, as_json)


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of videos.")],
    frames: Annotated[int, typer.Option(help="Frames that a clip must have.")] = 16,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH of the clips, in pixels.")] = "64x64",
    fps: Annotated[float | None, typer.Option(help="Frames a second of the clips; default: each file's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Decode every video of a folder and say what can be used, and what cannot and why."""
    from ..data.check import check_folder
    from ..data.errors import DataError

    height, width = parse_size(size)
    with progress_bar("checking", hidden=as_json) as progress:
        report = check_folder(folder, frames, height, width, fps, progress=progress)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        _tell_report(report)
    if not report.usable:
        raise DataError(f"no video of {folder} gives a clip of {frames} frames of {size}")


def parse_size(text: str) -> tuple[int, int]:
    """ "48x64" -> (48, 64), height first. Raises ValueError for anything else."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"size {text!r} is not HEIGHTxWIDTH, such as 48x64")
    return int(parts[0]), int(parts[1])


def _tell_made(made: MadeSet, as_json: bool) -> None:
    if as_json:
        figures = {
            "folder": str(made.folder),
            "clips": sum(made.splits.values()),
            "splits": made.splits,
            "written": made.written,
            "captions": list(made.captions),
        }
        typer.echo(json.dumps(figures, indent=2, ensure_ascii=False))
        return
    parts = ", ".join(f"{count} {split}" for split, count in sorted(made.splits.items(), reverse=True))
    kept = sum(made.splits.values()) - made.written
    typer.echo(f"{made.folder}: {parts}" + (f" ({kept} were there already)" if kept else ""))
    typer.echo(f"{len(made.captions)} captions, such as {made.captions[0]!r}")


def _tell_report(report: FolderReport) -> None:
    wanted = report.geometry
    rate = "their own rate" if wanted.fps is None else f"{wanted.fps:g} fps"
    typer.echo(f"{report.folder}: {report.videos} videos, {report.total_duration:.1f} s that decode")
    for name, counts in (("size", report.sizes), ("fps", report.rates), ("split", report.splits)):
        if counts:
            typer.echo(f"  {name:8} " + ", ".join(f"{key} ({count})" for key, count in counts.items()))
    if report.duration:
        least, median, most = report.duration
        typer.echo(f"  duration {least:.2f} to {most:.2f} s, median {median:.2f} s")
    typer.echo(f"  captions {report.captioned} videos, {len(report.captions)} distinct")
    clips = f"{wanted.frames} frames of {wanted.height}x{wanted.width} at {rate}"
    given = f"{report.clips} clips of {clips}, {report.apart} of them without overlap"
    typer.echo(f"  usable   {report.usable} videos give {given}")
    for title, files in (("cannot be used", report.bad), ("break off early, but are used", report.damaged)):
        if files:
            typer.echo(f"  {len(files)} {title}:")
            for item in files:
                typer.echo(f"    {item.path}: {item.reason}")
    for line in report.filled:
        typer.echo(f"  {line}")
    if report.bare:
        typer.echo(
            f"  {len(report.bare)} have no caption, such as {report.bare[0]}; training and caching refuse them, unless "
            "condition.kind=none"
        )
    if report.unlisted:
        typer.echo(f"  {len(report.unlisted)} videos are not in the metadata and stay unused")
    if report.others:
        from ..data.folder import kinds_of

        typer.echo(f"  {sum(report.others.values())} files of other kinds are not read: {kinds_of(report.others)}")
