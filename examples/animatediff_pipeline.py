"""An AnimateDiff pipeline in one folder, from a Stable Diffusion 1.5 model and a motion adapter, to train from.

    python examples/animatediff_pipeline.py --out animatediff

With `--fresh` the motion modules begin from random weights, as TPDiff trains them, and add nothing yet: every frame is
the picture model's own.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="stable-diffusion-v1-5/stable-diffusion-v1-5")
    parser.add_argument("--adapter", default="guoyww/animatediff-motion-adapter-v1-5-2")
    parser.add_argument("--fresh", action="store_true", help="the adapter's shape with random weights")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    adapter = MotionAdapter.from_pretrained(args.adapter)
    if args.fresh:
        torch.manual_seed(0)
        adapter = MotionAdapter.from_config(adapter.config)
        for name, parameter in adapter.named_parameters():
            if ".proj_out." in name:
                torch.nn.init.zeros_(parameter)
    pipe = AnimateDiffPipeline.from_pretrained(args.model, motion_adapter=adapter, use_safetensors=True)
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config,
        beta_schedule="linear",  # which the motion modules were trained with
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="linspace",
        steps_offset=1,
    )
    pipe.save_pretrained(args.out, safe_serialization=True)
    print(args.out)


if __name__ == "__main__":
    main()
