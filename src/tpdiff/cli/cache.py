"""`tpdiff cache`: a folder of videos to shards of latents."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tpdiff.cli.quiet import quiet
from tpdiff.cli.stop import stop_on_signals


def cache(
    out: Annotated[Path, typer.Option(help="The cache's folder: new, empty, or one of the same settings.")],
    recipe: Annotated[
        list[str] | None,
        typer.Argument(help="A YAML recipe, as for training, and section.key=value, e.g. data.path=my_videos"),
    ] = None,
    buckets: Annotated[
        str | None, typer.Option(help="49x480x832,1x480x832,... or auto; one size if not given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that encode; if not given one a core, of a pipeline one a GPU.")
    ] = None,
    shards: Annotated[int | None, typer.Option(help="Files to spread the clips over, once for all.")] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop the clips of videos that are gone, however many.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures as JSON, nothing else.")] = False,
) -> None:
    """Encode videos and captions once, for training. Ctrl-C keeps what is done; the same command continues."""
    from tpdiff.training.load_config import build_config, read_values

    words = list(recipe or ())
    values: dict[str, Any] = read_values(words.pop(0)) if words and "=" not in words[0] else {"train": {"steps": 1}}
    words += [] if buckets is None else [f"data.buckets={buckets}"]
    config = build_config(values, words)
    quiet()
    from tpdiff.training.cache import make_cache
    from tpdiff.training.cache_workers import usual_workers
    from tpdiff.training.progress import ProgressReport

    stopped: list[bool] = []
    with ProgressReport(out.name) as report, stop_on_signals(lambda: stopped.append(True), "these shards"):
        made = make_cache(
            config,
            out,
            workers=workers or usual_workers(config),
            shards=shards,
            prune=prune,
            report=None if as_json else report,
            stop=lambda: bool(stopped),
        )
    for bad in made.bad:
        print(f"skipped {bad.path}: {bad.reason}", file=sys.stderr)
    if as_json:
        figures = {
            "folder": str(made.folder),
            "complete": made.complete,
            "shards": made.shards,
            "files": made.files,
            "clips": made.buckets,
            "encoded": made.encoded,
            "bad": [{"path": str(file.path), "reason": file.reason} for file in made.bad],
            "seconds": made.seconds,
        }
        print(json.dumps(figures, indent=2, ensure_ascii=False))
    elif made.complete:
        sizes = ", ".join(f"{count} of {size}" for size, count in made.buckets.items())
        print(f"{out}: {sum(made.buckets.values())} clips ({sizes}) in {made.shards} shards")
        print(f"{made.encoded} encoded now, in {made.seconds:.1f} s; {len(made.bad)} of {made.files} files skipped")
    if not made.complete:
        options = [*(["--buckets", buckets] if buckets else []), *(["--prune"] if prune else [])]
        options += [] if workers is None else ["--workers", str(workers)]
        again = ["tpdiff", "cache", *(recipe or ()), *options, "--out", str(out)]
        print(f"stopped; continue with: {shlex.join(again)}", file=sys.stderr)
        raise SystemExit(130)
