"""Fine-tuning of real pipelines with tiny random weights: what is trained, what is saved, and where it loads."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from recording import PICTURE_ENCODERS, encodings, evaluations
from safetensors.torch import load_file
from tiny import CASES, find_case

from tpdiff.data import collate
from tpdiff.evaluation.budget import warm_up
from tpdiff.models.kept import KeptConditions
from tpdiff.sampling.apply import apply_pyramid
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.sampling.tuned import LORA as LORA_FILE
from tpdiff.schedulers import PyramidScheduler
from tpdiff.training.checkpoint import checkpoints, read_checkpoint
from tpdiff.training.pretrained import Pretrained
from tpdiff.training.trainee import Told
from tpdiff.training.trainer import Trainer

USUAL = ("wan", "cogvideox-rotary", "ltx", "hunyuan", "animatediff")
EACH = pytest.mark.parametrize(
    "name", [pytest.param(c.name, marks=[] if c.name in USUAL else pytest.mark.slow) for c in CASES]
)


def trained(config, out, **options):
    trainer = Trainer(config, out, **options)
    trainer.run()
    return trainer


def parts(pipe):
    return {name: one for name, one in pipe.components.items() if isinstance(one, torch.nn.Module)}


def moved(before, after):
    """Names of the parameters that differ."""
    return {n for n, p in after.items() if not torch.equal(p, before[n])}


def sample(pipe, case, seed=0, **options):
    """A call of a stock pipeline, latents out."""
    return case.run(case.quiet(pipe), generator=torch.Generator().manual_seed(seed), **options)


@EACH
def test_a_network_is_trained_whole_and_loads_as_stock(name, tuning, saved, tmp_path):
    case = find_case(name)
    config = tuning(case)
    trainer = trained(config, tmp_path / "run")
    assert len(trainer.losses) == 2 * 3 and {k for _, _, k, _ in trainer.losses} == {0, 1, 2}
    base = DiffusionPipeline.from_pretrained(saved(case))
    component = case.networks[-1]
    untouched, now = parts(base), parts(trainer.trainee.pipe)
    changed = moved(dict(untouched[component].named_parameters()), dict(trainer.network.named_parameters()))
    assert len(changed) > 0.7 * len(list(trainer.network.parameters()))  # some are not used for some inputs
    for other in untouched.keys() - {component}:
        assert not moved(untouched[other].state_dict(), now[other].state_dict())
    folder = trainer.save()
    stock = type(untouched[component]).from_pretrained(folder / component)
    averaged = trainer.ema.network.state_dict()
    assert all(torch.equal(t, averaged[n]) for n, t in stock.state_dict().items())
    loaded = PyramidPipeline.from_pretrained(tmp_path / "run")
    base.register_modules(**{component: stock})
    apply_pyramid(base, folder, [1, 1, 2])  # with the folder's own frame rate, as `loaded`
    apply_pyramid(loaded.pipe, loaded.pyramid, [1, 1, 2])
    assert torch.equal(sample(base, case), sample(loaded.pipe, case))


LORA = {"lora": {"rank": 2}}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in USUAL else pytest.mark.slow) for n in (*USUAL, "mochi", "wan-picture")]
)
def test_low_rank_matrices_change_the_stock_pipeline(name, tuning, saved, tmp_path):
    case = find_case(name)
    trainer = trained(tuning(case, "train.lr=0.1", **LORA), tmp_path / "run")
    asking = {n for n, p in trainer.network.named_parameters() if p.requires_grad}
    assert asking and all("lora_" in n for n in asking)
    assert {
        n for n, p in trainer.ema.network.named_parameters() if "lora_" not in n and p.dtype != torch.float32
    } == set()
    folder = trainer.save()
    component = case.networks[-1]
    weights = load_file(folder / LORA_FILE)
    assert weights and all(key.startswith(f"{component}.") for key in weights)
    assert not (folder / component).exists()
    stock = DiffusionPipeline.from_pretrained(saved(case))
    before = sample(stock, case)
    stock.load_lora_weights(folder)
    after = sample(stock, case)
    assert float((after - before).abs().max()) > 1e-4
    loaded = PyramidPipeline.from_pretrained(folder)
    apply_pyramid(stock, folder, [1, 1, 2])
    apply_pyramid(loaded.pipe, loaded.pyramid, [1, 1, 2])
    assert torch.equal(sample(stock, case), sample(loaded.pipe, case))
    mine = trainer.pipeline()
    apply_pyramid(mine.pipe, loaded.pyramid, [1, 1, 2])
    torch.testing.assert_close(sample(mine.pipe, case), sample(loaded.pipe, case), rtol=1e-5, atol=1e-5)


def test_every_stage_may_have_matrices_of_its_own(tuning, tmp_path):
    case = find_case("wan")
    config = tuning(case, "train.all_stages=false", "train.stage_weights=[0,1,0]", lora={"rank": 2, "per_stage": True})
    trainer = trained(config, tmp_path / "run")
    state = dict(trainer.network.named_parameters())
    moved_from_zero = {n.split(".")[-2] for n, p in state.items() if "lora_B" in n and p.abs().max() > 0}
    assert moved_from_zero == {"stage_1"}  # the only one drawn
    assert all(p.requires_grad for n, p in state.items() if "lora_" in n)
    folder = trainer.save()
    assert sorted(p.parent.name for p in folder.glob(f"*/{LORA_FILE}")) == ["stage_0", "stage_1", "stage_2"]
    loaded, used = PyramidPipeline.from_pretrained(folder), []
    layer = loaded.network.blocks[0].attn1.to_q
    layer.register_forward_pre_hook(lambda m, args: used.append((loaded.pipe.scheduler.stage, *m.active_adapters)))
    made = [
        pipeline(
            "a",
            num_inference_steps=[1, 2, 1],
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            guidance_scale=1,
        )
        for pipeline in (loaded, trainer.pipeline())
    ]
    assert used == [(2, "stage_2"), (1, "stage_1"), (1, "stage_1"), (0, "stage_0")]
    torch.testing.assert_close(made[1].frames, made[0].frames, rtol=1e-4, atol=1e-4)


def test_matrices_of_every_stage_may_follow_the_original(tuning, tmp_path):
    """To which nothing of any stage's is lost, however many were drawn."""
    options = ("train.distillation=1", "train.lr=0.1", "train.warmup_steps=0")
    trainer = trained(tuning(find_case("wan"), *options, lora={"rank": 2, "per_stage": True}), tmp_path / "run")
    matrices = {n: p for n, p in trainer.network.named_parameters() if "lora_" in n}
    assert all(p.requires_grad for p in matrices.values())
    moved_from_zero = {n.split(".")[-2] for n, p in matrices.items() if "lora_B" in n and p.abs().max() > 0}
    assert moved_from_zero == {"stage_0", "stage_1", "stage_2"}
    kept = {n.removeprefix("network.") for n in load_file(trainer.save() / "training_state.safetensors")}
    assert kept >= matrices.keys()


def test_times_by_arc_length_are_told_in_training_and_in_sampling(tuning, tmp_path):
    """The original, which training may follow, is told the times that it knows."""
    case, stages = find_case("wan"), (2, 2, 1, 1, 0, 0)
    options = ["train.steps=1", "train.timestep_policy=pyramid_flow", "train.distillation=0.1"]
    trainer = trained(tuning(case, *options, **LORA), tmp_path / "run")
    trainer.save()
    pipe = PyramidPipeline.from_pretrained(tmp_path / "run")
    with evaluations(case, pipe.pipe) as sampled:
        pipe("a red cat", num_inference_steps=[2, 2, 2], output_type="latent", guidance_scale=1)
    scheduler = PyramidScheduler(pipe.pipe.scheduler.base, pipe.pyramid)
    scheduler.set_timesteps([2, 2, 2])
    native = scheduler.timesteps / 1000
    latents = torch.zeros(1, 16, *trainer.trainee.family.latent_size(pipe.pipe, case.narrow))
    given = Told(["a red cat"], None, latents, [torch.Generator().manual_seed(0)])
    denoisers = trainer.trainee.denoiser(trainer.network, given), trainer.trainee.original(given)
    with evaluations(case, trainer.trainee.pipe) as asked, torch.no_grad():
        for denoise in denoisers:
            for t, k in zip(native, stages, strict=True):
                denoise(pipe.pyramid.down(latents, k), t[None], k)
    for calls in (sampled, asked[:6], asked[6:]):
        assert [call.size for call in calls] == [call.size for call in sampled]
    times = [torch.cat([call.time for call in calls]) for calls in (sampled, asked[:6], asked[6:])]
    torch.testing.assert_close(times[1], times[0], rtol=0, atol=0.01)
    torch.testing.assert_close(times[2], 1000 * native, rtol=0, atol=0.01)
    assert times[0][::2].tolist() == pytest.approx([1000, 710.902, 359.246], abs=0.01)  # MATH 3's starts, end to end


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cogvideox-rotary", "timestep_policy='pyramid_flow' belong to flow matching; this schedule is variance"),
        ("wan-experts", "would change which network is asked when: transformer_2 is asked at times 0 to "),
    ],
)
def test_where_times_by_arc_length_cannot_be_told(name, message, tuning, tmp_path):
    options = ["train.timestep_policy=pyramid_flow"]
    with pytest.raises(ValueError, match=message):
        Trainer(tuning(find_case(name), *options), tmp_path / "run")
    assert len(Trainer(tuning(find_case(name), *options, "train.method=vanilla"), tmp_path / "run").pyramid) == 1


@pytest.mark.parametrize("pretrained", [{}, LORA, {"lora": LORA["lora"] | {"dropout": 0.5}}])
def test_a_resumed_run_is_the_uninterrupted_one(tuning, tmp_path, pretrained):
    case = find_case("wan")
    config = tuning(case, "train.steps=4", "log.checkpoint_every_steps=2", "train.all_stages=false", **pretrained)
    whole = trained(config, tmp_path / "run")
    resumed = Trainer(config, tmp_path / "run", resume=True)
    assert resumed.step == 2
    resumed.run()
    assert [row[1:] for row in resumed.losses] == [row[1:] for row in whole.losses]
    for one, other in ((resumed.network, whole.network), (resumed.ema.network, whole.ema.network)):
        assert not moved(dict(other.named_parameters()), dict(one.named_parameters()))


def test_a_gradient_that_is_no_number_ends_the_run(tuning, saved, tmp_path):
    """HunyuanVideo 1.5 divides by the tokens of a caption: with none its answer is a number, its gradient is not."""
    case = find_case("hunyuan15")
    stock = shutil.copytree(saved(case), tmp_path / "stock")
    template = stock / "tokenizer" / "chat_template.jinja"
    template.write_text(template.read_text().removesuffix(" left"))  # what stays of an empty caption
    options = ("seed=4", "condition.dropout=0.4", "train.batch_size=1", "train.all_stages=false", "train.steps=9")
    trainer = Trainer(tuning(case, *options, "log.checkpoint_every_steps=1", path=str(stock)), tmp_path / "run")
    with pytest.raises(ValueError, match=r"the gradient of stage \d is nan at step \d+\. .*no captions of which"):
        trainer.run()
    last = checkpoints(tmp_path / "run")[-1]
    assert last.name == f"step-{trainer.step - 1:08d}"
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(last)[0].values())


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("ltx-picture", {"vae.encoder": 1 + 1}),  # the clip, and its first frame for all stages
        ("wan-picture", {"vae.encoder": 5 + (5 + 3 + 2), "image_encoder": 1}),  # a call a latent frame of each stage
    ],
)
def test_a_picture_is_encoded_once_a_clip(name, calls, tuning, tmp_path):
    """However many stages are asked about it, and networks: here the original one, too."""
    config = tuning(find_case(name), "train.steps=1", "train.distillation=1")
    trainer = Trainer(config, tmp_path / "run")
    with encodings(trainer.trainee.pipe, PICTURE_ENCODERS) as seen:
        trainer.run()
    assert seen == {encoder: config.train.batch_size * count for encoder, count in calls.items()}


def test_latents_that_are_kept_do_not_take_the_pictures_away(tuning, tmp_path):
    plain, kept = (
        trained(
            tuning(find_case("ltx-picture"), "train.steps=6", "data.starts=1", f"data.latents={how}"), tmp_path / how
        )
        for how in ("none", "memory")
    )
    assert [point[1:] for point in kept.losses] == [point[1:] for point in plain.losses]


@pytest.mark.parametrize("name", ["ltx-picture", pytest.param("wan-picture", marks=pytest.mark.slow)])
def test_pictures_are_encoded_in_float32(name, tuning, tmp_path):
    """As the clips are, whatever the network computes in."""
    config, seen = tuning(find_case(name), "train.precision=bf16", "train.steps=1", dtype="bfloat16"), []
    trainer = Trainer(config, tmp_path / "run")
    trainer.trainee.pipe.vae.encoder.register_forward_hook(lambda m, args, out: seen.extend([args[0].dtype, out.dtype]))
    trainer.run()
    assert set(seen) == {torch.float32}


def test_captions_are_encoded_anew_where_too_many_are_kept(tuning):
    trainee = Pretrained(tuning(find_case("wan")))
    trainee.device, trainee._conditions = torch.device("cpu"), KeptConditions(limit=0)
    with encodings(trainee.pipe) as seen:
        first, again = trainee._encoded(["a", None, "b", "a"], {}), trainee._encoded([None, "a"], {})
    assert seen == {"text_encoder": 3 + 1}
    for one, other in ((first[1], again[0]), (first[0], again[1]), (first[0], first[3])):
        assert torch.equal(one["prompt_embeds"], other["prompt_embeds"])


def test_parts_are_trained_by_name(tuning, saved, tmp_path):
    case = find_case("animatediff")
    trainer = trained(tuning(case, trainable=["*motion_modules*"]), tmp_path / "run")
    before = dict(DiffusionPipeline.from_pretrained(saved(case)).unet.named_parameters())
    changed = moved(before, dict(trainer.network.named_parameters()))
    assert changed and all("motion_modules" in name for name in changed)
    kept = load_file(trainer.save() / "training_state.safetensors")
    assert all("motion_modules" in key for key in kept if key.startswith(("network.", "ema.", "optimizer.")))


def test_one_stage_is_the_base_method(tuning, tmp_path):
    """Flow matching as Wan is trained: the noise minus the clean latents at t·1000, by the network's own call."""
    case = find_case("wan")
    trainer = Trainer(tuning(case, "train.method=vanilla", "train.alignment=none", "train.steps=1"), tmp_path / "run")
    seen = []

    def note(module, args, kwargs, out):
        seen.append((kwargs["hidden_states"].double(), kwargs["timestep"].double() / 1000, out[0].detach().double()))

    trainer.network.register_forward_hook(note, with_kwargs=True)
    trainer.run()
    noisy, t, said = seen[0]
    clean = trainer.latents.of_batch(collate([trainer.dataset[i] for i in range(2)]))
    target = (noisy - clean) / t.view(-1, 1, 1, 1, 1)  # x_t = x_0 + t (ε - x_0)
    assert trainer.losses[0][-1] == pytest.approx(float((said - target).square().mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("pretrained", "overrides", "message"),
    [
        ({"path": "/nowhere"}, [], "no diffusers pipeline in '/nowhere'"),
        ({"network": "unet"}, [], "'unet' does not predict; choose one of transformer"),
        ({"trainable": ["*motion*"]}, [], r"no parameter of transformer is named like \*motion\*; one is "),
        ({"lora": {"targets": ["query"]}}, [], "targets query: no layer of transformer is named so; one that could be"),
        ({"lora": {}, "trainable": ["a"]}, [], "leave out pretrained.trainable"),
        (
            {"options": {"max_sequence": 8}},
            [],
            "'max_sequence' is no option of WanPipeline; nearest: max_sequence_length",
        ),
        ({"guidance": 3.0}, [], "this network is not told its guidance"),
        ({}, ["data.frames=18"], "18 .*nearest"),
        ({}, ["model.hidden_size=32"], "model describes a new network; with pretrained, leave the section out"),
        ({}, ["diffusion.schedule=ddim"], "diffusion describes a new network"),
        ({}, ["condition.kind=label"], "nearest: text or none"),
        ({}, ["train.loss_space=epsilon"], "train.loss_space is defined for"),
        ({"dtype": "bfloat16"}, [], r"under autocast; nearest: train\.precision=bf16, or pretrained\.dtype=float32"),
        ({"dtype": "float16"} | LORA, [], r"nearest: train\.precision=fp16, or pretrained\.dtype=float32"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tuning, tmp_path, pretrained, overrides, message):
    with pytest.raises(ValueError, match=message):
        Trainer(tuning(find_case("wan"), *overrides, **pretrained), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_elsewhere_is_said_before_the_pipeline_is_fetched(tuning, tmp_path, monkeypatch):
    def fetched(config):
        raise AssertionError("fetched")

    monkeypatch.setattr("tpdiff.training.trainer.Pretrained", fetched)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.yaml").write_text("")
    for out, override, message in (
        ("used", "seed=3", "holds a run already; add --resume"),
        ("run", "data.path=elsewhere", "no such folder: elsewhere"),
        ("run", "data.split=extra", "split 'extra' is not in"),
        ("run", "data.shards=elsewhere", "elsewhere"),
        ("run", "log.trackers=[nothing]", "nothing"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(tuning(find_case("wan"), override), tmp_path / out)
    with pytest.raises(AssertionError, match="fetched"):
        Trainer(tuning(find_case("wan")), tmp_path / "run")


def test_following_the_original_costs_a_forward_pass_more(tuning, tmp_path):
    plain, following = (
        warm_up(Trainer(tuning(find_case("wan"), *more), tmp_path / "run", dry=True))
        for more in ((), ("train.distillation=1",))
    )
    ratios = [b / a for a, b in zip(plain, following, strict=True)]
    assert ratios == pytest.approx([4 / 3] * 3, rel=0.05)


def test_a_run_finds_its_pipeline_from_anywhere(tuning, saved, tmp_path, monkeypatch):
    place = saved(find_case("wan"))
    monkeypatch.chdir(place.parent)
    trainer = Trainer(tuning(find_case("wan"), path=place.name), tmp_path / "run")
    folder = trainer.save()
    monkeypatch.chdir(tmp_path)
    assert (
        PyramidPipeline.from_pretrained(folder)("a", num_inference_steps=[1, 1, 1], output_type="pt")
        .frames.isfinite()
        .all()
    )
    told = json.loads((folder / "tpdiff.json").read_text())
    (folder / "tpdiff.json").write_text(json.dumps(told | {"base": "gone"}))
    with pytest.raises(ValueError, match=r"step-00000000 was trained from a pipeline that cannot be opened: .*'gone'"):
        PyramidPipeline.from_pretrained(folder)


def test_averaging_the_picture_with_others_is_refused_before_training(tuning, tmp_path):
    config = tuning(find_case("wan-picture"), "pyramid.causal_time=false", "data.frames=13")
    with pytest.raises(ValueError, match=r"must not be averaged with others: .*pyramid\.causal_time=true"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_expert_is_trained_at_its_own_times(tuning, tmp_path):
    case = find_case("wan-experts")
    with pytest.raises(ValueError, match=r"pretrained\.network is not said; choose one of transformer, transformer_2"):
        Trainer(tuning(case, network=None), tmp_path / "none")
    with pytest.raises(ValueError, match=r"transformer is asked at times 0.875 to 1, of which stage 0 .* weight 0"):
        Trainer(tuning(case, network="transformer"), tmp_path / "none")
    for network, stages in (("transformer", "[1,0,0]"), ("transformer_2", "[1,1,1]")):
        config = tuning(
            case, "train.all_stages=false", f"train.stage_weights={stages}", "train.steps=6", network=network
        )
        trainer, told = Trainer(config, tmp_path / network), []
        trainer.network.register_forward_pre_hook(
            lambda m, a, kw, told=told: told.append(kw["timestep"]), with_kwargs=True
        )
        trainer.run()
        times = torch.cat(told)
        assert ((times >= 875) if network == "transformer" else (times < 875)).all()


def test_an_expert_of_some_stages_is_trained_and_validated_at_these(tuning, tmp_path):
    wanted = ("every_steps=1", "samples=0", "clips=1", "quantiles=1")
    options = ("train.stage_weights=[1,0,0]", "data.split=train", *(f"validation.{one}" for one in wanted))
    config = tuning(find_case("wan-experts"), *options, "train.steps=1", network="transformer")
    trainer, told = Trainer(config, tmp_path / "run"), []
    for network in (trainer.network, trainer.ema.network):
        network.register_forward_pre_hook(lambda m, a, kw: told.append(kw["timestep"]), with_kwargs=True)
    trainer.run()
    assert config.train.all_stages and len(told) == 2
    assert (torch.cat(told) >= 875).all()
    assert {stage for _, _, stage, _ in trainer.losses} == {2}
    assert trainer.validation.records[0]["loss"].keys() == {"2"}


@pytest.mark.parametrize("pretrained", [{}, LORA])
def test_a_network_may_follow_what_it_said_before(tuning, tmp_path, pretrained):
    """At first it says just that, so the further loss is 0; in the end it says nearly that, where it weighs enough."""
    first, away = {}, {}
    for weight in (0, 1000):
        config = tuning(
            find_case("wan"), f"train.distillation={weight}", "train.steps=20", "train.lr=0.01", **pretrained
        )
        trainer, said = Trainer(config, tmp_path / f"run-{weight}"), []

        def note(module, args, kwargs, out, said=said):
            said.append((kwargs, out[0].detach()))

        handle = trainer.network.register_forward_hook(note, with_kwargs=True)
        trainer.run()
        handle.remove()
        first[weight] = trainer.losses[0][-1]
        kwargs, before = said[0]
        with torch.no_grad():
            away[weight] = float((trainer.network(**kwargs)[0] - before).square().mean())
    assert first[0] == pytest.approx(first[1000], rel=1e-5)
    assert away[1000] < 0.2 * away[0]


def test_the_network_to_follow_is_where_the_other_is(tuning, tmp_path):
    trainer = Trainer(tuning(find_case("wan"), "train.distillation=1"), tmp_path / "run")
    trainer.trainee.place(SimpleNamespace(is_fsdp2=False, device=torch.device("meta")))
    assert {p.device.type for p in trainer.trainee._frozen.parameters()} == {"meta"}


def test_samples_of_a_validation_are_made_in_the_precision_of_training(tuning, tmp_path):
    wanted = ("data.split=train", "validation.every_steps=1", "validation.clips=1")
    trainer = Trainer(tuning(find_case("animatediff"), *wanted), tmp_path / "run")
    for precision, dtype in {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
        train = trainer.config.train.model_copy(update={"precision": precision})
        trainer.validation.config = trainer.config.model_copy(update={"train": train})
        assert trainer.validation._sampler(trainer).dtype == dtype


def test_validation_and_samples_are_of_the_tuned_pipeline(tuning, tmp_path):
    wanted = ["every_steps=2", "samples=1", "sample_steps=3", "clips=1", "quantiles=2"]
    config = tuning(find_case("wan"), "data.split=train", *(f"validation.{one}" for one in wanted))
    record = trained(config, tmp_path / "run").validation.records[-1]
    assert set(record["loss"]) == {"0", "1", "2"}
    assert (tmp_path / "run" / record["samples"][0]).stat().st_size > 0


def test_both_networks_are_asked_alike(tuning, tmp_path):
    """CogVideoX 1.5 patches pairs of frames, so that one with noise of its own is put before an odd number of them."""
    first = []
    for weight in (0, 1000):
        config = tuning(find_case("cogvideox-pairs"), f"train.distillation={weight}", "train.steps=1")
        trainer = trained(config, tmp_path / f"run-{weight}")
        assert trainer.trainee.asker.filling((3, 8, 8)) == 1
        first.append([row[-1] for row in trainer.losses])
    assert first[0] == pytest.approx(first[1], rel=1e-5)
