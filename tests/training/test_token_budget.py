"""Token-budget batches: how many clips each stage's hold, what is drawn, and that a run of them can be cut anywhere."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

from tpdiff.data import ClipDataset
from tpdiff.training.batches import open_batches
from tpdiff.training.checkpoint import checkpoints
from tpdiff.training.objective import build_pyramid
from tpdiff.training.stage_mix import open_mix
from tpdiff.training.trainer import Trainer

LATENT, PATCH = (3, 8, 16, 16), (1, 8, 8)  # 32, 16 and 8 tokens a clip
FULL = [
    "train.token_budget=70",
    "train.accumulation=2",
    "train.steps=5",
    "condition.dropout=0.4",
    "train.stage_weights=[1,2,1]",
]


def mix_of(config, processes=1):
    return open_mix(config, build_pyramid(config), LATENT, PATCH, processes)


@pytest.mark.parametrize(
    ("budget", "processes", "sizes"),
    [(64, 1, (2, 4, 8)), (70, 1, (2, 4, 8)), (1, 1, (1, 1, 1)), (31, 1, (1, 1, 3)), (200, 2, (3, 6, 12))],
)
def test_a_batch_holds_as_many_clips_as_fit(tiny, budget, processes, sizes):
    mix = mix_of(tiny(f"train.token_budget={budget}"), processes)
    assert mix.tokens == (32, 16, 8)
    assert mix.clips == sizes
    for count, tokens in zip(mix.clips, mix.tokens, strict=True):
        assert count == 1 or count * tokens * processes <= budget
        assert (count + 1) * tokens * processes > budget


@pytest.mark.parametrize(
    ("budget", "processes", "alone", "here"),
    [
        (64, 2, "2-4-8", "2-4-8"),
        (100, 2, "3-6-12", "2-6-12"),
        (1, 3, "1-1-1", "3-3-3"),
        (900, 4, "28-56-112", "28-56-112"),
    ],
)
def test_on_several_processes_clips_are_those_of_one_rounded_down(tiny, recwarn, budget, processes, alone, here):
    config = tiny(f"train.token_budget={budget}")
    assert "-".join(map(str, mix_of(config).clips)) == alone and not recwarn
    assert "-".join(str(n * processes) for n in mix_of(config, processes).clips) == here
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (alone != here)
    if said:
        assert f"{budget} holds {alone} clips" in said[0] and f"{here} in {processes}" in said[0]
    assert open_mix(config, build_pyramid(config), LATENT, PATCH, processes, rank=1).clips and len(recwarn) == len(said)


@pytest.mark.parametrize("weights", ["", "[3,1,2]", "[0,1,1]"])
def test_the_weights_are_the_shares_of_the_samples(tiny, weights):
    mix = mix_of(tiny("train.token_budget=64", f"train.stage_weights={weights}", "train.accumulation=2"))
    drawn = Counter(mix.stages(step, micro)[0] for step in range(3000) for micro in range(2))
    seen = [drawn[k] * mix.clips[k] for k in range(3)]
    wanted = [float(w) for w in (weights.strip("[]") or "1,1,1").split(",")][::-1]
    for k in range(3):
        assert seen[k] / sum(seen) == pytest.approx(wanted[k] / sum(wanted), abs=0.025)
        assert drawn[k] / 6000 == pytest.approx(mix.shares[k], abs=0.025)


@pytest.mark.parametrize("budget", ["", "50", "64"])
def test_the_gradient_to_be_expected_is_that_of_batches_of_one_size(tiny, budget):
    mix = mix_of(tiny(f"train.token_budget={budget}", "train.stage_weights=[3,1,2]"))
    counted = [share * mix.counts(k) for k, share in enumerate(mix.shares)]
    assert counted == pytest.approx([2 / 6, 1 / 6, 3 / 6])


@pytest.mark.parametrize("weights", ["", "[3,1,2]", "[0,1,3]"])
def test_a_batch_through_all_stages_takes_each_with_its_weight(tiny, weights):
    """The gradient to be expected of a drawn stage; one without weight is left out."""
    mix = mix_of(tiny("train.all_stages=true", f"train.stage_weights={weights}"))
    drawn = mix_of(tiny(f"train.stage_weights={weights}"))
    stages = mix.stages(0, 0)
    assert stages == [k for k in range(3) if drawn.shares[k] > 0]
    assert [mix.counts(k) / len(stages) for k in range(3)] == pytest.approx(drawn.shares)
    assert all(replace(mix, in_turn=True).counts(k) == 1 for k in range(3))  # as a dry run takes them


def test_without_a_budget_nothing_is_weighed(tiny):
    mix = mix_of(tiny("train.stage_weights=[0.3,0.1,0.7]", "train.batch_size=7"))
    assert mix.clips == (7, 7, 7)
    assert mix.weights == [0.7, 0.1, 0.3]
    assert [mix.counts(k) for k in range(3)] == [1.0, 1.0, 1.0]


def test_the_loss_of_a_batch_counts_by_its_clips(tiny, tmp_path):
    """One plain step on the same clips, its loss multiplied so, moves the gradient as much."""
    gradients = []
    for name, options in (("budget", ["train.token_budget=64"]), ("plain", ["train.batch_size=8"])):
        common = ["train.steps=9", "train.max_grad_norm=null", "train.stage_weights=[1,1,1]", *options]
        trainer = Trainer(tiny(*common), tmp_path / name)
        trainer.step = next(step for step in range(99) if trainer.mix.stages(step, 0) == [2])
        trainer.mix = trainer.mix if name == "budget" else AtStage(trainer.mix, 2)
        kept = []
        trainer.optimizer.step = lambda network=trainer.network, kept=kept: kept.extend(
            p.grad.clone() for p in network.parameters() if p.grad is not None
        )
        trainer.samples = 0
        trainer.train_step(list(islice(open_batches(trainer.dataset, [8], 0), 1)))
        gradients.append(torch.cat([g.flatten() for g in kept]))
    assert mix_of(tiny("train.token_budget=64")).counts(2) == pytest.approx(8 * 7 / 24)
    torch.testing.assert_close(gradients[0], gradients[1] * (8 * 7 / 24), rtol=1e-4, atol=1e-6)


class AtStage:
    """A mix that knows one stage only."""

    def __init__(self, mix, stage):
        self.mix, self.stage = mix, stage

    def stages(self, step, micro):
        return [self.stage]

    def counts(self, stage):
        return 1.0


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_the_samples_of_every_batch(tiny, workers):
    config = tiny("train.token_budget=150", "train.accumulation=2")
    mixes = [mix_of(config, 2) for _ in range(2)]
    data = config.data
    dataset = ClipDataset(data.path, frames=8, height=16, width=16, fps=8, split="train", seed=5)
    streams = [
        open_batches(dataset, mix.sizes(3), workers, 40, rank, 2) for rank, mix in zip((0, 1), mixes, strict=True)
    ]
    first = 40
    for number, batches in enumerate(islice(zip(*streams, strict=True), 8)):
        stages = [mix.stages(3 + number // 2, number % 2) for mix in mixes]
        assert stages[0] == stages[1]
        size = mixes[0].clips[stages[0][0]]
        both = sorted(i for batch in batches for i in batch["index"].tolist())
        assert both == list(range(first, first + 2 * size))
        first += 2 * size


def test_the_network_sees_what_the_budget_allows(tiny, tmp_path):
    trainer = Trainer(tiny(*FULL), tmp_path / "run")
    shapes = []
    trainer.network.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    trainer.run()
    assert [stage for _, _, stage, _ in trainer.losses] == [trainer.mix.stages(n // 2, n % 2)[0] for n in range(10)]
    assert {(shape[0], shape[2]) for shape in shapes} <= {(2, 8), (4, 4), (8, 2)}
    assert len({shape[0] for shape in shapes}) > 1
    assert trainer.samples == sum(shape[0] for shape in shapes)
    assert trainer.tokens == 10 * 64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_at_any_step_is_the_uninterrupted_one(tiny, tmp_path, workers):
    config = tiny(
        *FULL, f"data.workers={workers}", "log.checkpoint_every_steps=1", "log.keep_checkpoints=9", "train.lr=1e-2"
    )
    whole = Trainer(config, tmp_path / "run")
    whole.run()
    whole.save()
    every = checkpoints(tmp_path / "run")
    assert len(every) == 5
    for folder in reversed(every[:-1] if workers == 0 else every[1:2]):
        for later in checkpoints(tmp_path / "run"):
            if later.name > folder.name:
                later.rename(tmp_path / f"{workers}-{folder.name}-{later.name}")
        resumed = Trainer(config, tmp_path / "run", resume=True)
        assert f"step-{resumed.step:08d}" == folder.name
        resumed.run()
        assert [point[1:] for point in resumed.losses] == [point[1:] for point in whole.losses]
        assert (resumed.samples, resumed.tokens) == (whole.samples, whole.tokens)
        pairs = zip(resumed.network.state_dict().values(), whole.network.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_budget_does_not_go_with_all_stages_in_a_batch(tiny):
    with pytest.raises(ValueError, match=r"train\.token_budget.*train\.all_stages"):
        tiny("train.token_budget=64", "train.all_stages=true")
    with pytest.raises(ValueError, match=r"train\.token_budget"):
        tiny("train.token_budget=0")


@pytest.mark.parametrize("buckets", ["auto", "4x16x32", "4x16x16,4x16x32"])
def test_a_budget_needs_clips_of_one_size(tiny, buckets):
    """Or a micro-batch of larger clips would hold as many as of the size in the recipe, whatever the memory."""
    size = ["data.frames=4", "data.height=16", "data.width=16"]
    tiny("train.token_budget=64", *size, "data.buckets=4x16x16")
    with pytest.raises(ValueError, match=r"train\.token_budget needs clips of one size, .* or name 4x16x16"):
        tiny("train.token_budget=64", *size, f"data.buckets={buckets}")


def test_another_budget_is_not_a_resumption(tiny, tmp_path):
    trainer = Trainer(tiny("train.steps=1", "train.token_budget=64"), tmp_path / "run")
    trainer.run()
    trainer.save()
    with pytest.raises(ValueError, match=r"train\.token_budget: 64 -> 128"):
        Trainer(tiny("train.steps=1", "train.token_budget=128"), tmp_path / "run", resume=True)
