"""Planned speed-ups of the published models, as a table: temporal, spatial and spatio-temporal pyramids of 3 stages.

    python benchmarks/planned_speedups.py [MODEL ...]

Sizes are the models' own, or the nearest that all three pyramids can hold; as many steps in all as the plain schedule,
split evenly, and two fifths, two fifths and one fifth. Counts, not times: nothing is measured.
"""

from __future__ import annotations

import argparse

from tpdiff.cli.quiet import quiet
from tpdiff.evaluation.planning import AXES, plan
from tpdiff.families.models import PUBLISHED, find_published


def row(name: str) -> list[str]:
    """The cells of one model."""
    model = find_published(name)
    size = plan(model, axes="THW").plain.size
    two_fifths = round(model.steps * 0.4)
    cells: list[str] = []
    for axes in AXES:
        even = plan(model, size, axes)
        uneven = plan(model, size, axes, steps=[two_fifths, two_fifths, model.steps - 2 * two_fifths])
        cells.append(f"{even.speedup:.2f} / {uneven.speedup:.2f}")
    full = even.plain
    tflops = f"{full.tflops_per_step:,.0f}" if full.tflops_per_step >= 1000 else f"{full.tflops_per_step:.4g}"
    head = [name, "x".join(map(str, size)), f"{full.tokens:,}", tflops, str(model.passes)]
    return [*head, str(model.steps), *cells, f"{full.activation_gib:.1f}", f"{even.weights_gib:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all if not given")
    models = parser.parse_args().models or list(PUBLISHED)
    quiet()
    names = ["model", "size", "tokens", "TFLOPs a pass", "passes", "steps", *AXES, "activations, GiB", "weights, GiB"]
    for cells in (names, ["---"] * len(names), *map(row, models)):
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
