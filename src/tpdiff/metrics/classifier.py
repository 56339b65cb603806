"""A judge of what clips show and how it moves: a small network trained on the real training clips, a head an attribute.

It tells whether a model's samples show what their captions say. Its accuracy on real clips it was not trained on
belongs beside every figure: it is what a perfect sample set would get.

Training and answers run on one thread in float32: the same clips give the same bits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from tpdiff.data import DataError, read_clip
from tpdiff.data.clips import Geometry
from tpdiff.data.stream import draw_start, epoch_order
from tpdiff.metrics.attributes import Labels, find_attributes, labels_of
from tpdiff.metrics.clip_network import RECIPE, ClipNet, drift, fewer_pixels, network_input, thin, thinning
from tpdiff.metrics.clips import Source
from tpdiff.metrics.motion import one_thread

VERSION = 2
VIDEOS, STRETCH = 4096, 3  # most videos, and clips' lengths of each, that are kept for training: bounds its memory
STEPS, BATCH = 800, 16
RATE, DECAY, SMOOTHING = 3e-3, 0.05, 0.05
Progress = Callable[[int, int], None]  # (steps done, steps in all)


class NothingToTellApart(DataError):
    """No attribute has two values or more in the training clips."""


@dataclass(frozen=True)
class Accuracy:
    """How often a clip was recognized.

    Attributes:
        attribute: what was asked for.
        hits: bool (N,), whether each clip got the value it should have.
        guess: the share that always naming the most frequent value would get.
    """

    attribute: str
    hits: Tensor
    guess: float

    @property
    def value(self) -> float:
        """Share of hits, 0 ... 1."""
        return float(self.hits.double().mean())

    @property
    def clips(self) -> int:
        """N."""
        return len(self.hits)


@dataclass(frozen=True)
class Classifier:
    """A trained judge.

    Attributes:
        network: in evaluation mode.
        values: the values of each attribute that it tells apart, sorted.
        left_out: attributes that were asked for and have nothing to tell apart, each with the reason.
        geometry: of the clips.
        key: SHA-256 over all that training depends on: contents and labels of the clips, geometry, seed, recipe.
    """

    network: ClipNet
    values: dict[str, tuple[str, ...]]
    left_out: dict[str, str]
    geometry: Geometry
    key: str

    @classmethod
    def fit(
        cls,
        sources: Sequence[Source],
        geometry: Geometry,
        attributes: Sequence[str] | None = None,
        *,
        seed: int = 0,
        steps: int = STEPS,
        cache_dir: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Classifier:
        """Train on the training videos of a captioned set, or read what an earlier call has trained.

        Names and order of the files do not matter. Each step takes 16 clips that start at random frames. At most
        4096 videos, of each at most three clips' lengths from the start, are held in memory, at most
        1024 pixels a frame.

        Args:
            sources: `metrics.clips.find_sources(folder, geometry, "train")`.
            geometry: of the clips that will be judged.
            attributes: columns of the metadata; None: `find_attributes` of all videos, those that are not held too.
                Those of a single value are left out.
            seed: of weights, order and starts.
            steps: of training.
            cache_dir: where the weights are kept as <key>.safetensors; None: nowhere.
            progress: called with (steps done, steps in all).

        Raises:
            ValueError: steps below 1.
            DataError: no videos, or an attribute that an entry lacks; as `NothingToTellApart`, no attribute to learn.
        """
        if steps < 1:
            raise ValueError(f"steps {steps} is below 1; nearest: 1")
        if not sources:
            raise DataError("no training videos to learn from")
        sources = sorted(sources, key=lambda source: (source.digest, source.entry.path))
        sources = [sources[number] for number in epoch_order(seed, 0, len(sources))]
        entries = [source.entry for source in sources]
        asked = find_attributes(entries) if attributes is None else tuple(dict.fromkeys(attributes))
        sources = sources[:VIDEOS]
        labels = {name: column[:VIDEOS] for name, column in labels_of(entries, asked).items()}
        left_out = {name: _alone(labels[name]) for name in asked if len(set(labels[name])) == 1}
        labels = {name: labels[name] for name in asked if name not in left_out}
        if not labels:
            why = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "captions determine no column"
            raise NothingToTellApart(f"nothing to tell apart in the training clips ({why})")
        values = {name: tuple(sorted(set(column))) for name, column in labels.items()}
        key = _key([source.digest for source in sources], labels, geometry, seed, steps)
        path = Path(cache_dir) / f"classifier-{key[:32]}.safetensors" if cache_dir else None
        network = _network(values, seed)
        if path is None or not _read(path, network, key):
            _train(network, sources, labels, values, geometry, seed, steps, progress)
            if path is not None:
                _write(path, network, key, values)
        return cls(network.eval().requires_grad_(False), values, left_out, geometry, key)

    def predict(self, videos: Tensor | Iterable[Tensor]) -> Labels:
        """The value named for each clip, by attribute.

        Args:
            videos: uint8 RGB (B, 3, T, H, W) in [0, 255], or batches of them, of which one is held at a time.

        Raises:
            ValueError: another dtype or geometry than that of the clips learnt from.
        """
        named: dict[str, list[str]] = {name: [] for name in self.values}
        for batch in [videos] if isinstance(videos, Tensor) else videos:
            self._check(batch)
            for part in batch.cpu().split(BATCH):
                clips = thin(part)
                with one_thread(), torch.no_grad():
                    moved = torch.stack([drift(clip) for clip in clips])
                    answers = self.network(network_input(fewer_pixels(clips)), moved)
                for (name, values), answer in zip(self.values.items(), answers, strict=True):
                    named[name] += [values[number] for number in answer.argmax(1).tolist()]
        return {name: tuple(column) for name, column in named.items()}

    def accuracy(
        self, videos: Tensor | Iterable[Tensor], labels: Mapping[str, Sequence[object]]
    ) -> dict[str, Accuracy]:
        """How often clips are recognized as what they should show, by attribute.

        Args:
            videos: as for `predict`.
            labels: a value a clip for every attribute in `values` (compared as text); others are ignored.

        Raises:
            ValueError: an attribute without labels, a value that was never learnt, another number of labels than
                clips, no clips, or as `predict`.
        """
        wanted = {name: self._known(name, labels) for name in self.values}
        found = self.predict(videos)
        return {name: _accuracy(name, found[name], wanted[name]) for name in self.values}

    def _known(self, name: str, labels: Mapping[str, Sequence[object]]) -> list[str]:
        if name not in labels:
            raise ValueError(f"no labels for {name!r}; given: {', '.join(labels) or 'none'}")
        column = [str(value) for value in labels[name]]
        strange = sorted(set(column) - set(self.values[name]))
        if strange:
            known = ", ".join(self.values[name])
            raise ValueError(f"{name} {strange[0]!r} is in none of the training clips; known: {known}")
        return column

    def _check(self, videos: Tensor) -> None:
        if videos.dtype != torch.uint8:
            raise ValueError(f"clips are judged as uint8 in [0, 255], got {videos.dtype}")
        wanted = (3, *self.geometry[:3])
        if videos.ndim != 5 or tuple(videos.shape[1:]) != wanted:
            raise ValueError(f"clips of (B, 3, T, H, W) = (B, {str(wanted)[1:]} were learnt, got {tuple(videos.shape)}")


def _accuracy(name: str, found: Sequence[str], wanted: Sequence[str]) -> Accuracy:
    if len(found) != len(wanted) or not wanted:
        raise ValueError(f"{len(wanted)} labels of {name} for {len(found)} clips")
    most = max(wanted.count(value) for value in set(wanted))
    return Accuracy(name, torch.tensor([a == b for a, b in zip(found, wanted, strict=True)]), most / len(wanted))


def _alone(column: Sequence[str]) -> str:
    return f"all training clips have {column[0]!r}"


def _network(values: Mapping[str, Sequence[str]], seed: int) -> ClipNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ClipNet([len(one) for one in values.values()])


def _train(
    network: ClipNet,
    sources: Sequence[Source],
    labels: Labels,
    values: Mapping[str, Sequence[str]],
    geometry: Geometry,
    seed: int,
    steps: int,
    progress: Progress | None,
) -> None:
    """Adam with decoupled decay and one cycle of the learning rate, on all attributes together."""
    with one_thread():
        videos = [_stretch(source, geometry) for source in sources]
    targets = [torch.tensor([values[name].index(value) for value in labels[name]]) for name in labels]
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.1)
    with one_thread():
        for step in range(steps):
            picked, clips, moved = [], [], []
            for index in range(step * BATCH, (step + 1) * BATCH):
                epoch, place = divmod(index, len(videos))
                number = epoch_order(seed, epoch, len(videos))[place]
                frames, drifts = videos[number]
                start = draw_start(seed, index, frames.shape[1] - geometry.frames + 1)
                window = slice(start, start + geometry.frames)
                picked.append(number)
                clips.append(thin(frames[:, window]))
                moved.append(thin(drifts[:, window]).index_fill(1, torch.tensor(0), 0))
            answers = network(network_input(torch.stack(clips)), torch.stack(moved))
            wanted = [target[picked] for target in targets]
            losses = map(_loss, answers, wanted)
            optimizer.zero_grad()
            torch.stack(list(losses)).sum().backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps)


def _loss(answers: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(answers, wanted, label_smoothing=SMOOTHING)


def _stretch(source: Source, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """The first frames of a video, shrunk: uint8 (3, T, h, w); and their drift (2, T, 4, 4)."""
    path, size = source.entry.path, (geometry.height, geometry.width)
    count = min(source.video.length, STRETCH * geometry.frames)
    frames = read_clip(path, frames=count, fps=geometry.fps, size=size, resize=geometry.resize)
    video = frames.permute(3, 0, 1, 2)
    return fewer_pixels(video), drift(video, thinning(geometry.frames))


def _key(digests: Sequence[str], labels: Labels, geometry: Geometry, seed: int, steps: int) -> str:
    recipe = [VERSION, *RECIPE, STRETCH, BATCH, RATE, DECAY, SMOOTHING, seed, steps]
    return hashlib.sha256(json.dumps([recipe, geometry, labels, digests]).encode()).hexdigest()


def _read(path: Path, network: ClipNet, key: str) -> bool:
    """Load weights that were kept under this key; False when there are none, or none that can be used."""
    try:
        with safe_open(str(path), "pt") as file:
            if json.loads((file.metadata() or {}).get("classifier", "{}")).get("key") != key:
                return False
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, ValueError):
        return False
    return True


def _write(path: Path, network: ClipNet, key: str, values: Mapping[str, Sequence[str]]) -> None:
    """The name appears when the file is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(network.state_dict(), str(aside), {"classifier": json.dumps({"key": key, "values": values})})
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
