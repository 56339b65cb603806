"""Every page's snippets run, on tiny weights in place of those that they name, and the sizes on them are legal."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from test_training_free import falling
from tiny import find_case, picture

from tpdiff import PyramidScheduler
from tpdiff.evaluation.planning import stage_factors
from tpdiff.evaluation.spectra import save_spectrum
from tpdiff.families import base, families, find_family, register_family
from tpdiff.families.sizes import stage_sizes
from tpdiff.pyramid.geometry import AXIS_NAMES

DOCS = Path(__file__).resolve().parents[2] / "docs"
TINY = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": "wan-small-picture",
    "zai-org/CogVideoX-5b": "cogvideox-rotary",
    "zai-org/CogVideoX1.5-5B-I2V": "cogvideox-pairs-picture",
    "Lightricks/LTX-Video": "ltx",
    "hunyuanvideo-community/HunyuanVideo": "hunyuan",
    "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v": "hunyuan15",
    "genmo/mochi-1-preview": "mochi",
    "guoyww/animatediff-motion-adapter-v1-5-2": "animatediff",
    "emilianJR/epiCRealism": "animatediff",
    "ali-vilab/text-to-video-ms-1.7b": "modelscope",
}


def snippets():
    for page in [DOCS.parent / "README.md", *sorted((DOCS / "families").glob("*.md"))]:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            if "from_pretrained" in code:  # tests/test_python_page.py runs the README's other one
                yield pytest.param(code, id=f"{page.stem}-{number}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """name of a case -> the folder that its pipeline is saved in, saved when first asked for."""
    folder = tmp_path_factory.mktemp("pipelines")

    def path(name):
        if not (folder / name).exists():
            find_case(name).pipe().save_pretrained(folder / name, safe_serialization=True)
        return folder / name

    return path


@pytest.fixture
def tiny_weights(monkeypatch, saved):
    """`from_pretrained` finds tiny weights under the names of real ones."""
    for kind, inside in ((DiffusionPipeline, ""), (ModelMixin, "motion_adapter"), (SchedulerMixin, "")):
        stock = kind.from_pretrained.__func__

        def load(cls, name, stock=stock, inside=inside, **options):
            if name not in TINY:
                return stock(cls, name, **options)
            made = stock(cls, saved(TINY[name]) / inside, **options)
            return find_case(TINY[name]).quiet(made) if isinstance(made, DiffusionPipeline) else made

        monkeypatch.setattr(kind, "from_pretrained", classmethod(load))


def smaller(code):
    """The snippet at its tiny pipeline's size, in few steps, without a GPU; that pipeline's case; the page's size."""
    case = find_case(next(tiny for name, tiny in TINY.items() if f'"{name}"' in code))
    size = tuple(int(re.search(rf"{name}=(\d+)", code)[1]) for name in AXIS_NAMES)
    for name, value in zip(AXIS_NAMES, case.size, strict=True):
        code = re.sub(rf"{name}=\d+", f"{name}={value}", code)
    code = re.sub(r"steps=\(([\d, ]+)\)", lambda found: f"steps=({'2, ' * len(found[1].split(','))})", code)
    return code.replace('"cuda"', '"cpu"').replace("torch.float16", "torch.bfloat16"), case, size


def run(code):
    """Run a snippet with tiny weights; its sizes must be legal for the published ones."""
    code, case, size = smaller(code)
    names = {}
    exec(compile(code, "snippet", "exec"), names)
    pipe, video = names["pipe"], names["video" if "video" in names else "frames"]
    assert isinstance(pipe.scheduler, PyramidScheduler)
    assert len(video) == case.size[0]
    whole = replace(find_family(pipe), limits=lambda pipe: {})  # those of tiny networks are tiny
    assert stage_sizes(pipe, whole, pipe.scheduler.pyramid, size)[0] == size
    return names


@pytest.mark.parametrize("code", snippets())
def test_the_snippet_runs(code, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture().save("first.png")
    run(code)


def test_a_pipeline_runs_through_the_stages_of_a_spectrum(tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "families.md").read_text(encoding="utf-8").partition("## Without training")[2]
    save_spectrum(falling(causal=True), Path(re.search(r"--spectrum-out (\S+)", page)[1]))
    axes, stages = re.search(r"--axes (\w+) --stages (\d)", page).groups()
    names = run(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    pyramid = names["pipe"].scheduler.pyramid
    assert [tuple(map(int, factors)) for factors in pyramid.factors] == stage_factors(axes, int(stages))
    assert pyramid.stages[1].end == names["pyramid"].stages[1].end != 0.5  # where one of two equal stages ends


def test_a_third_party_can_register_a_family(monkeypatch, capsys):
    """The page's whole example."""
    monkeypatch.setattr(base, "_REGISTERED", dict(base._REGISTERED))
    page = (DOCS / "families.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    names = {"__name__": "ball"}
    exec(compile(code, "snippet", "exec"), names)
    assert capsys.readouterr().out == re.search(r"# (\(.*\))", code)[1] + "\n"
    pipe = names["pipe"]
    assert find_family(pipe).name == "ball"
    assert "ball" in [family.name for family in families()]
    with pytest.raises(ValueError, match=r"height 66 is not a multiple of 16 .*; nearest: 64 or 80"):
        pipe(height=66)


def test_a_familys_page_names_its_pipelines():
    for family in families():
        page = (DOCS / "families" / f"{family.name}.md").read_text(encoding="utf-8")
        assert all(f"`{pipeline}`" in page for pipeline in family.pipelines)
        overview = (DOCS / "families.md").read_text(encoding="utf-8")
        assert all(f"`{pipeline}`" in overview for pipeline in family.pipelines)


def test_a_family_takes_the_place_of_an_earlier_one(monkeypatch):
    monkeypatch.setattr(base, "_REGISTERED", dict(base._REGISTERED))
    pipe = find_case("wan").pipe()
    old = find_family(pipe)
    new = register_family(replace(old, name="mine", pipelines=("WanPipeline",)))
    assert find_family(pipe) is new
    assert find_family(find_case("wan-picture").pipe()) is old


def test_a_subclass_belongs_to_the_family():
    pipe = find_case("wan").pipe()
    pipe.__class__ = type("MyPipeline", (type(pipe),), {})
    assert find_family(pipe).name == "wan"
