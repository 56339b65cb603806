"""The guide's commands and snippets run, in its order, in one folder: small videos, tiny weights, few steps."""

import re
import shlex
from pathlib import Path

from test_tuned_commands import call, size_of
from tiny import find_case, picture

from tpdiff import PyramidScheduler

PAGE = Path(__file__).resolve().parents[2] / "docs" / "make-your-model-pyramidal.md"
CONFIGS = PAGE.parents[1] / "configs"
NAMES = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
    "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers": "wan-picture",
}
SMALL = (17, 64, 64)  # frames, height, width in place of the page's
RUN = ["data.workers=0", "train.batch_size=1", "train.accumulation=1", "train.steps=1", "train.warmup_steps=0"]
RUN += ["validation.clips=1", "validation.samples=1", "validation.sample_steps=3", "validation.quantiles=1"]
RUN += ["pretrained.options.max_sequence_length=8", "train.precision=no", "pretrained.dtype=float32"]


def parts():
    """("command", a line) and ("python", a snippet), as they stand on the page."""
    page = PAGE.read_text(encoding="utf-8")
    for found in re.finditer(r"```python\n(.*?)```|^    (tpdiff [^\n]*)$", page, re.S | re.M):
        yield ("python", found[1]) if found[1] else ("command", found[2])


def smaller(words, saved):
    """A command's words, with small sizes, few steps and tiny weights."""
    if words[0] == "plan":
        return words
    frames, height, width = SMALL
    for option, value in (("--frames", frames), ("--size", f"{height}x{width}"), ("--fps", 8), ("--steps", "1,1,1")):
        if option in words:
            words[words.index(option) + 1] = str(value)
    if words[0] in ("cache", "train"):
        given = [word.removeprefix("pretrained.path=") for word in words if word.startswith("pretrained.path=")]
        case = find_case(NAMES[given[0]] if given else "wan")
        words[1] = str(CONFIGS / Path(words[1]).name)
        words += [f"data.frames={frames}", f"data.height={height}", f"data.width={width}", *RUN]
        words += [f"pretrained.path={saved(case)}"]
    return words


def smaller_code(code, saved):
    """A snippet with tiny weights, small sizes, few steps, without a GPU."""
    for name, case in NAMES.items():
        code = code.replace(f'"{name}"', repr(str(saved(find_case(case)))))
    for axis, n in zip(("num_frames", "height", "width"), SMALL, strict=True):
        code = re.sub(rf"{axis}=\d+", f"{axis}={n}", code)
    code = re.sub(r"steps=\([\d, ]+\)", "steps=(1, 1, 1)", code)
    return code.replace('"cuda"', '"cpu"').replace("bfloat16", "float32")


def assert_shares_are_told(page, plan):
    """The page says each stage's share of the operations, and how many plain steps all of them are."""
    coarse, middle, fine = (round(float(share)) for share in re.findall(r"([\d.]+)%", plan))
    assert f"{coarse}, {middle} and {fine} %" in page
    staged, steps, plain = re.search(r"([\d,]+) TFLOPs; plain, (\d+) steps: ([\d,]+)", plan).groups()
    whole = int(staged.replace(",", "")) * int(steps) / int(plain.replace(",", ""))
    assert f"as many as {whole:.1f}" in page.replace("\n", " ")


def test_the_guide_runs(digits, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_videos").symlink_to(digits)
    picture().save("first.png")
    page = PAGE.read_text(encoding="utf-8")
    commands = []
    for kind, text in parts():
        if kind == "command":
            words = smaller(shlex.split(text)[1:], saved)
            code, out, err = call(*words)
            assert code == 0, (text, out, err)
            commands.append(words[0])
            if words[0] == "plan":
                assert_shares_are_told(page, out)
            continue
        names = {}
        exec(compile(smaller_code(text, saved), "snippet", "exec"), names)
        assert len(names["video"]) == SMALL[0]
        stock = getattr(names["pipe"], "pipe", names["pipe"])
        assert isinstance(stock.scheduler, PyramidScheduler)
    assert [commands.count(one) for one in ("plan", "data", "cache", "train", "sample", "export")] == [2, 1, 1, 6, 2, 3]
    assert size_of("kite.mp4") == size_of("rises.mp4") == SMALL
    assert {p.name for p in Path().iterdir()} >= {"my_shards", "kites", "kites.safetensors", "whole", "runs"}
    assert Path("runs/validated/validation.jsonl").read_text().count("\n") == 1


def test_its_links_and_recipes_are_there():
    page = PAGE.read_text(encoding="utf-8")
    assert all((CONFIGS / f"{name}.yaml").is_file() for name in re.findall(r"^\| `([\w-]+)`", page, re.M))
    assert [link for link in re.findall(r"\]\((\w+\.md)\)", page) if not (PAGE.parent / link).is_file()] == []
