"""Turn a run, of a model or an autoencoder, into one that comes along: bfloat16 weights, and a card of how it was made.

    python examples/ship_model.py runs/gameplay-pyramid --name gameplay-pyramid --label "Temporal pyramid" \
        --command "tpdiff train configs/latent-doom.yaml" --figures quality.json

The figures are what `tpdiff eval ... --json` printed, or an autoencoder's quality.json. Writes pretrained/<name>.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tpdiff.evaluation import machine
from tpdiff.models.autoencoder import load_autoencoder
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.shipped import CARD
from tpdiff.training.checkpoint import read_state


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--label", required=True, help="what a reader sees")
    parser.add_argument("--command", required=True, help="what trained it")
    parser.add_argument("--figures", type=Path, required=True, help="what `tpdiff eval --json` printed")
    parser.add_argument("--out", type=Path, default=Path("pretrained"))
    args = parser.parse_args()
    state = read_state(max(args.run.glob("checkpoints/step-*")))
    figures, folder = json.loads(args.figures.read_text(encoding="utf-8")), args.out / args.name
    if "autoencoder" in state["config"]:
        model: Any = load_autoencoder(str(args.run))
        parts = [model]
    else:
        model = PyramidPipeline.from_pretrained(args.run)
        parts = [part for part in (model.transformer, model.vae) if part is not None]
    for part in parts:
        torch.nn.Module.to(part, dtype=torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, safe_serialization=True)
    train = state["config"]["train"]
    made = {
        "label": args.label,
        "summary": f"{state['seconds'] / 60:.0f} minutes, {state['step']} steps of {train['batch_size']} clips, "
        f"by `{args.command}`, seed {state['config']['seed']}",
        "command": args.command,
        "seed": state["config"]["seed"],
        "seconds": state["seconds"],
        "steps": state["step"],
        "machine": machine.one_line(),
        "config": state["config"],
        "figures": figures,
    }
    (folder / CARD).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
    print(f"{folder}: {size:.1f} MB")


if __name__ == "__main__":
    main()
