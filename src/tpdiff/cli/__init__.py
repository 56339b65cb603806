"""The command line: one file a command, each a thin shell around the library."""

import sys

import typer

from tpdiff.threads import wait_passively

wait_passively()  # before any command loads PyTorch

from tpdiff.cli import bench, cache, data, demo, evaluate, export, plan, report, sample, train, vbench  # noqa: E402

app = typer.Typer(
    name="tpdiff",
    help="Make video diffusion models pyramidal: train them, sample them, compare them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data", help="Make or check a folder of captioned videos.")
app.add_typer(vbench.app, name="vbench", help="Make videos for VBench or VBench-2.0, or read what it measured.")
app.command("demo")(demo.demo)
app.command("cache")(cache.cache)
app.command("train")(train.train)
app.command("sample")(sample.sample)
app.command("export")(export.export)
app.command("eval")(evaluate.evaluate)
app.command("report")(report.report)
app.command("plan")(plan.plan)
app.command("bench")(bench.bench)


EXTRAS = {  # of the package, by what they bring
    "cv2": "metrics",
    "jinja2": "report",
    "markupsafe": "report",
    "matplotlib": "report",
    "tensorboard": "tracking",
    "torchao": "quantize",
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input prints one line and exits with 2, Ctrl-C with 130."""
    try:
        app(args=arguments, prog_name="tpdiff")
    except (ValueError, OSError) as error:
        print(f"error: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        raise SystemExit(2) from None
    except ModuleNotFoundError as error:
        print(f"error: {_missing(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _missing(error: ModuleNotFoundError) -> str:
    """Which extra to install. Raises the error itself, where an installation is broken that lacks no extra."""
    if error.name is None:
        return str(error)  # raised by tpdiff, in these words
    package = error.name.partition(".")[0]
    if package not in EXTRAS:
        raise error
    return f'{package} is not installed: pip install "tpdiff[{EXTRAS[package]}]"'
