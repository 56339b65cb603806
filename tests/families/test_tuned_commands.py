"""`tpdiff train`, `sample` and `export` of fine-tuned pipelines: what other programs load is what was trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from command_line import call, refused_in_a_line
from diffusers import DiffusionPipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_tuning import sample, trained
from tiny import find_case, picture

from tpdiff.data.clips import Geometry
from tpdiff.evaluation.made import open_model
from tpdiff.pyramid import Pyramid
from tpdiff.sampling.apply import apply_pyramid, remove_pyramid
from tpdiff.sampling.export import original_matrices
from tpdiff.sampling.opening import open_pipeline
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.sampling.tuned import TOLD, Tuned, TunedPipeline, low_rank_matrices
from tpdiff.schedulers import schedule_of
from tpdiff.training.load_config import dump_config

WAN = find_case("wan")
LORA = {"lora": {"rank": 2, "alpha": 3}}


def size_of(path):
    """(frames, height, width) of a video."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return (len(frames), *frames[0].shape[:2])


@pytest.fixture
def run(tuning, tmp_path):
    """A case's run, trained by the command."""

    def train(case, *overrides, steps=2, **pretrained):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(dump_config(tuning(case, f"train.steps={steps}", "train.lr=0.05", **pretrained)))
        code, out, err = call("train", recipe, *overrides, "--out", tmp_path / "run")
        assert code == 0, err
        assert out == f"checkpoint: {tmp_path / 'run' / 'checkpoints' / f'step-{steps:08d}'}\n"
        return tmp_path / "run"

    return train


def test_sampling_keeps_to_the_pipelines_ways(run, tmp_path):
    folder, prompt = run(WAN), "a small red cat runs"
    quick = ["--steps", "1,1,1", "--device", "cpu", "--json"]
    for name, options in {
        "own": [],
        "five": ["--guidance-scale", 5],
        "none": ["--guidance-scale", 1],
        "away": ["--negative-prompt", "the blue ball"],
        "offloaded": ["--offload"],
    }.items():
        code, out, err = call("sample", folder, "--prompt", prompt, *quick, *options, "--out", tmp_path / f"{name}.mp4")
        assert code == 0, err
        assert json.loads(out)[0]["prompt"] == prompt
        assert size_of(tmp_path / f"{name}.mp4") == WAN.narrow
    made = {name: (tmp_path / f"{name}.mp4").read_bytes() for name in ("own", "five", "none", "away", "offloaded")}
    assert made["own"] == made["five"] == made["offloaded"] and len(set(made.values())) == 3  # 5 is this pipeline's own
    options = ["--size", "32x48", "--frames", 33, "--num-videos", 2, "--out", tmp_path / "more"]
    code, _, err = call("sample", folder, *quick, *options)
    assert code == 0, err
    assert [size_of(path) for path in sorted((tmp_path / "more").iterdir())] == [(33, 32, 48)] * 2
    for options, message in {
        ("--solver", "heun"): "WanPipeline has no solver to choose: it samples by its scheduler, UniPCMultistep",
        ("--size", "20x16"): "height 20 is not a multiple of 16",
        ("--frames", 0): "num_frames 0 is not 1 + a multiple of 16",
        ("--frames", 18): "num_frames 18 is not ",
        ("--steps", "2,2"): "2 step counts (2-2) for 3 stages; give 3",
        ("--image", tmp_path / "own.mp4"): "cannot identify image file",
        ("--image", tmp_path / "nothing.png"): "No such file",
        ("--dtype", "int8"): "dtype 'int8' is none of float32, bfloat16, float16",
    }.items():
        assert message in refused_in_a_line("sample", folder, *options, "--out", tmp_path / "no.mp4")
    picture().save(tmp_path / "first.png")
    said = refused_in_a_line("sample", folder, "--image", tmp_path / "first.png", "--out", tmp_path / "no.mp4")
    assert "WanPipeline takes no image; leave it out" in said
    assert not (tmp_path / "no.mp4").exists()


def test_what_is_offloaded_waits_on_the_cpu(run):
    """The hooks that move a part to the device and back; here from the CPU to itself."""
    folder, cpu = run(WAN, steps=1), torch.device("cpu")
    pipe = open_pipeline(folder, cpu, offload=True)[0].pipe
    assert [hook.model for hook in pipe._all_hooks] == [pipe.text_encoder, pipe.transformer, pipe.vae]
    assert not hasattr(open_pipeline(folder, cpu)[0].pipe, "_all_hooks")


def test_videos_for_vbench(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("a small red cat runs\nthe cat/the ball\n")
    asked = ["vbench", "make", run(WAN, steps=1, **LORA), "--prompts", tmp_path / "prompts.txt", "--num-videos", 1]
    asked += ["--steps", "1,1,1", "--device", "cpu", "--json"]
    message = refused_in_a_line(*asked, "--solver", "heun", "--out", tmp_path / "set")
    assert "WanPipeline has no solver to choose" in message and not (tmp_path / "set").exists()
    code, _, err = call(*asked, "--out", tmp_path / "set")
    assert code == 0, err
    assert [size_of(path) for path in sorted((tmp_path / "set" / "videos").iterdir())] == [WAN.narrow] * 2
    told = json.loads((tmp_path / "set" / "vbench.json").read_text())["sampling"]
    assert (told["num_frames"], told["height"], told["width"]) == WAN.narrow and told["guidance_scale"] is None
    for path in (tmp_path / "run").rglob("pytorch_lora_weights.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "holds another set: weights is" in refused_in_a_line(*asked, "--out", tmp_path / "set")


def test_prompts_must_be_text(run):
    pipeline = PyramidPipeline.from_pretrained(run(WAN, "train.method=vanilla", steps=1))
    for prompt in (3, ["a", 3], b"a"):
        with pytest.raises(ValueError, match="is no text; give words, or None for no prompt"):
            pipeline(prompt)
    with pytest.raises(ValueError, match=r"num_frames 18 .*nearest"):  # of a plain schedule as well
        pipeline("a", num_frames=18)


def test_a_target_per_stage_is_undone_by_the_sampler(run, tmp_path):
    """A network that says the flow per unit of a stage's time samples as one that says it per unit of sigma."""
    per_stage = PyramidPipeline.from_pretrained(run(WAN, "train.target=per_stage", steps=1))
    assert per_stage.pipe.scheduler.config.per_stage_target
    plain = TunedPipeline(per_stage.pipe, per_stage.network, replace(per_stage.config, per_stage_target=False))
    options = {"num_inference_steps": [2, 2, 1], "output_type": "latent", "guidance_scale": 1}
    remove_pyramid(plain.pipe)
    plain = TunedPipeline(plain.pipe, plain.network, plain.config)
    assert not plain.pipe.scheduler.config.per_stage_target
    wanted = plain("a red cat", generator=torch.Generator().manual_seed(0), **options).frames

    def per_unit_of_its_stage(network, args, output):
        ends = per_stage.pyramid.stages[per_stage.pipe.scheduler.stage]
        return ((ends.start_level.sigma - ends.end_level.sigma) * output[0],)

    with per_stage.network.register_forward_hook(per_unit_of_its_stage):
        made = per_stage("a red cat", generator=torch.Generator().manual_seed(0), **options).frames
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    unscaled = per_stage("a red cat", generator=torch.Generator().manual_seed(0), **options).frames
    assert not torch.allclose(made, unscaled)


def test_a_tuned_pipeline_is_evaluated(run, digits, tmp_path):
    height, width = WAN.narrow[1:]
    folder = run(WAN, **LORA)
    options = ["--clips", 2, "--steps", "1,1,1", "--batch", 2, "--rounds", 10, "--no-classify"]
    options += ["--device", "cpu", "--cache-dir", tmp_path / "cache", "--json"]
    code, out, err = call("eval", digits, folder, *options)
    assert code == 0, err
    figures = json.loads(out)
    assert figures["clips"] == 2 and figures["frechet_distance"]["value"] > 0
    made = figures["protocol"]["made"]
    assert (made["kind"], made["solver"], made["steps"]) == ("samples", None, [1, 1, 1])
    assert (made["guidance_scale"], made["dtype"], made["device"]) == (5.0, "float32", "cpu")  # 5 is the pipeline's own
    told = json.loads(call("eval", digits, folder, *options, "--guidance-scale", 5, "--batch", 2)[1])
    assert told == figures
    lower = open_model(folder, Geometry(*WAN.narrow), steps=3, guidance_scale=1, dtype=torch.bfloat16)
    assert lower.pipeline.network.dtype == torch.bfloat16 and lower.source["dtype"] == "bfloat16"
    assert (lower.source["guidance_scale"], lower.sampling.batch) == (1, 4)
    weights = load_file(matrices := next(folder.glob("checkpoints/*/pytorch_lora_weights.safetensors")))
    save_file({name: value + 1 for name, value in weights.items()}, matrices)
    other = json.loads(call("eval", digits, folder, *options)[1])
    assert other["protocol"]["made"]["weights"] != made["weights"]
    assert other["frechet_distance"]["value"] != figures["frechet_distance"]["value"]
    for wrong, message in {
        ("--solver", "heun"): "WanPipeline has no solver to choose",
        ("--size", f"{height + 4}x{width}"): f"height {height + 4} is not",
        ("--steps", "1,1"): "2 step counts (1-1) for 3 stages",
    }.items():
        code, out, err = call("eval", digits, folder, *options, *wrong)
        assert (code, out) == (2, "") and message in err


@pytest.mark.slow
def test_pictures_start_videos(run, tmp_path):
    case = find_case("wan-picture")
    folder = run(case)
    for seed in range(2):
        picture(seed).save(tmp_path / f"{seed}.png")
    quick = ["--steps", "1,1,1", "--device", "cpu"]
    images = ["--image", tmp_path / "0.png", "--image", tmp_path / "1.png"]
    two = ["--prompt", "a small red cat", "--prompt", "a small red cat"]
    code, _, err = call("sample", folder, *quick, *two, *images, "--out", tmp_path / "two")
    assert code == 0, err
    videos = sorted((tmp_path / "two").iterdir())
    assert [size_of(path) for path in videos] == [case.narrow] * 2
    again = ["--prompt", "a small red cat", "--image", tmp_path / "1.png", "--seed", 1, "--out", tmp_path / "one.mp4"]
    assert call("sample", folder, *quick, *again)[0] == 0
    assert (tmp_path / "one.mp4").read_bytes() == videos[1].read_bytes()
    other = ["--prompt", "a small red cat", "--image", tmp_path / "0.png", "--seed", 1, "--out", tmp_path / "two.mp4"]
    assert call("sample", folder, *quick, *other)[0] == 0
    assert (tmp_path / "two.mp4").read_bytes() != videos[1].read_bytes()
    said = refused_in_a_line("sample", folder, "--prompt", "a", "--out", tmp_path / "no.mp4")
    assert "WanImageToVideoPipeline starts from a picture: give it as image" in said
    said = refused_in_a_line("sample", folder, *two, "--prompt", "a", *images, "--out", tmp_path / "no.mp4")
    assert "2 pictures for 3 prompts; give one for all, or one each" in said


def test_samples_of_pictures_are_not_for_validation(tuning, tmp_path):
    config = tuning(find_case("wan-picture"), "data.split=train", "validation.every_steps=1")
    with pytest.raises(ValueError, match=r"set validation\.samples=0 and validation\.distance_clips=0"):
        trained(config, tmp_path / "run")


@pytest.mark.parametrize("name", ["wan", pytest.param("animatediff", marks=pytest.mark.slow)])
def test_whole_weights_are_exported_as_a_stock_pipeline(name, run, tmp_path):
    case = find_case(name)
    folder = run(case)
    code, out, err = call("export", folder, "--out", tmp_path / "stock")
    assert (code, out) == (0, f"{tmp_path / 'stock'}\n"), err
    loaded = PyramidPipeline.from_pretrained(folder)
    stock = DiffusionPipeline.from_pretrained(tmp_path / "stock")
    assert type(stock).__name__ == type(case.pipe()).__name__
    assert type(stock.scheduler) is type(loaded.pipe.scheduler.base)
    for part, module in stock.components.items():
        if isinstance(module, torch.nn.Module):
            mine = getattr(loaded.pipe, part).state_dict()
            assert all(torch.equal(mine[key], value) for key, value in module.state_dict().items())
    again = PyramidPipeline.from_pretrained(tmp_path / "stock")
    assert again.pyramid.config() == loaded.pyramid.config()
    apply_pyramid(stock, loaded.pyramid, [1, 1, 2])
    apply_pyramid(again.pipe, again.pyramid, [1, 1, 2])
    assert torch.equal(sample(stock, case), sample(again.pipe, case))
    assert "is there already" in refused_in_a_line("export", folder, "--out", tmp_path / "stock")
    said = refused_in_a_line("export", folder, "--format", "comfyui", "--out", tmp_path / "a.safetensors")
    assert "comfyui is a format of low-rank matrices, and this run trained weights; nearest: diffusers" in said


ALL = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "add_k_proj", "add_v_proj"]
AROUND = ["linear_1", "linear_2", "time_proj", "proj_out"]


@pytest.mark.parametrize(
    ("name", "targets", "layer"),
    [
        ("wan", ALL + AROUND, "blocks.0.cross_attn.k"),
        pytest.param("wan", ["to_q"], "blocks.0.self_attn.q", marks=pytest.mark.slow),
        pytest.param("wan-picture", ALL + AROUND, "blocks.0.cross_attn.k_img", marks=pytest.mark.slow),
        pytest.param("wan-picture", ["to_q", "to_v"], "blocks.0.cross_attn.v", marks=pytest.mark.slow),
        (
            "ltx",
            ["to_q", "to_k", "to_v", "to_out.0", "transformer_blocks.0.ff.net.2"],
            "transformer_blocks.0.attn2.to_k",
        ),
    ],
)
def test_matrices_are_exported_as_comfyui_names_them(name, targets, layer, run, saved, tmp_path):
    case = find_case(name)
    folder = run(case, lora={"rank": 2, "alpha": 3, "targets": targets})
    file = tmp_path / "matrices.safetensors"
    code, _, err = call("export", folder, "--format", "comfyui", "--out", file)
    assert code == 0, err
    weights = load_file(file)
    assert f"diffusion_model.{layer}.lora_A.weight" in weights
    assert all(key.startswith("diffusion_model.") for key in weights)
    assert any(value.abs().max() > 0 for key, value in weights.items() if "lora_B" in key)
    assert call("export", folder, "--out", tmp_path / "folder")[0] == 0
    made = []
    for source in (None, file, tmp_path / "folder"):
        stock = DiffusionPipeline.from_pretrained(saved(case))
        if source is not None:
            stock.load_lora_weights(source)
        made.append(sample(stock, case))
    assert torch.equal(made[1], made[2]) and float((made[1] - made[0]).abs().max()) > 1e-4


def test_matrices_count_as_much_as_in_training(tuning, saved, tmp_path):
    """alpha / rank is in the files: what loads them needs to know neither."""
    strong = ("train.lr=0.1", "train.warmup_steps=0", "train.ema_decay=0")
    trainer = trained(tuning(WAN, *strong, **LORA), tmp_path / "run")
    mine, loaded, without = trainer.pipeline(), *map(PyramidPipeline.from_pretrained, [trainer.save()] * 2)
    without.network.disable_adapters()
    made = [
        one("a", num_inference_steps=[1, 1, 1], generator=torch.Generator().manual_seed(0), output_type="latent").frames
        for one in (mine, loaded, without)
    ]
    torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-4)
    assert float((made[2] - made[0]).abs().max()) > 1e-2


@pytest.mark.slow
def test_matrices_of_a_second_network_load_into_it(tuning, saved, tmp_path):
    case = find_case("wan-experts")
    trainer = trained(tuning(case, "train.lr=0.1", **LORA), tmp_path / "run")
    loaded = PyramidPipeline.from_pretrained(trainer.save())
    assert loaded.pipe.transformer_2.peft_config and not getattr(loaded.pipe.transformer, "peft_config", None)
    stock = DiffusionPipeline.from_pretrained(saved(case))
    before = sample(stock, case)
    stock.load_lora_weights(tmp_path / "run" / "checkpoints" / "step-00000002", load_into_transformer_2=True)
    assert float((sample(stock, case) - before).abs().max()) > 1e-3


@pytest.mark.parametrize("per_stage", [False, True])
def test_matrices_are_exported_without_the_pipeline_that_they_belong_to(per_stage, run, saved, tmp_path):
    base = shutil.copytree(saved(WAN), tmp_path / "base")
    folder = run(WAN, steps=1, path=str(base), lora=LORA["lora"] | {"per_stage": per_stage})
    for weights in base.rglob("*.safetensors"):
        weights.unlink()
    (checkpoint,) = (folder / "checkpoints").iterdir()
    for dtype in ("float32", "bfloat16"):
        code, _, err = call("export", folder, "--out", tmp_path / dtype, "--dtype", dtype)
        assert code == 0, err
        files = {path.relative_to(tmp_path / dtype) for path in (tmp_path / dtype).rglob("*.*")}
        assert len(files) == (4 if per_stage else 2)
        for file in files - {Path(TOLD)}:
            before, after = load_file(checkpoint / file), load_file(tmp_path / dtype / file)
            assert before.keys() == after.keys()
            assert all(torch.equal(before[n].to(getattr(torch, dtype)), one) for n, one in after.items())
        assert (tmp_path / dtype / TOLD).read_bytes() == (checkpoint / TOLD).read_bytes()
    asked = ("export", folder, "--format", "comfyui", "--out", tmp_path / "matrices.safetensors")
    if per_stage:
        assert "this run has 3, one a stage; nearest: diffusers" in refused_in_a_line(*asked)
        return
    code, _, err = call(*asked)
    assert code == 0, err
    written = load_file(tmp_path / "matrices.safetensors")
    assert len(written) == len(before) and "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in written


@pytest.mark.parametrize(
    ("name", "targets", "message"),
    [
        ("cogvideox-rotary", ["to_q"], "CogVideoXPipeline: diffusers has no converter from"),
        ("hunyuan", ["to_q"], "HunyuanVideoPipeline: its own implementation holds a layer's queries"),
        ("mochi", ["to_q"], "MochiPipeline: diffusers has no converter"),
        ("animatediff", ["to_q"], "AnimateDiffPipeline: diffusers has no converter"),
        ("ltx", ["proj_in"], "LTXPipeline: diffusers' converter does not rename the layer proj_in"),
    ],
)
def test_a_family_without_a_converter_is_named(name, targets, message):
    tuned = untrained(find_case(name), targets, "default")
    with pytest.raises(ValueError, match=f"no comfyui format for {message}"):
        original_matrices(tuned.pipe, sets_of(tuned))


def test_a_set_of_matrices_a_stage_is_no_comfyui_file():
    tuned = untrained(WAN, ["to_q"], "stage_0", "stage_1")
    with pytest.raises(ValueError, match="this run has 2, one a stage; nearest: diffusers"):
        original_matrices(tuned.pipe, sets_of(tuned))


def sets_of(tuned):
    """A pipeline's low-rank matrices by the names of their sets."""
    return {name: low_rank_matrices(tuned.network, name) for name in tuned.config.adapters}


def untrained(case, targets, *names):
    """A pipeline with new low-rank matrices."""
    pipe, component = case.stageable(), case.networks[-1]
    network = getattr(pipe, component)
    for name in names:
        network.add_adapter(LoraConfig(r=2, target_modules=targets), name)
    pyramid = Pyramid(schedule_of(pipe.scheduler), [(1, 1, 1)]).config()
    return TunedPipeline(pipe, network, Tuned("base", component, None, [*names], pyramid, list(case.size), 8.0))


def test_networks_that_take_no_matrices_are_refused(tuning, tmp_path):
    with pytest.raises(ValueError, match="TextToVideoSDPipeline cannot load low-rank matrices; leave out"):
        trained(tuning(find_case("modelscope"), **LORA), tmp_path / "run")


def test_formats_have_their_kinds_of_files(tmp_path):
    for options, message in {
        ("--format", "onnx", "--out", "a"): "unknown format 'onnx'; known: diffusers, comfyui",
        ("--format", "comfyui", "--out", "a"): "--out a: the comfyui format is a .safetensors file",
        ("--out", "a.safetensors"): "--out a.safetensors: the diffusers format is a folder",
        ("--out", "a", "--dtype", "int4"): "dtype 'int4' is none of",
        ("--out", "a"): "no model in ",
    }.items():
        assert message in refused_in_a_line("export", tmp_path / "none", *options)
