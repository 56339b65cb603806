"""Configurations: what is refused and how it is said, overrides, and the way to YAML and back."""

import copy
from functools import reduce
from pathlib import Path

import pytest
import yaml

from tpdiff.training.autoencoder_config import AutoencoderConfig, load_recipe
from tpdiff.training.load_config import (
    ConfigError,
    build_config,
    config_difference,
    dump_config,
    load_config,
    read_values,
)
from tpdiff.training.objective import build_pyramid

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
RECIPES = [path for path in CONFIGS if "\ntrain:" in path.read_text()]  # the others are studies, tested as such
LEAST = {"data": {"path": "somewhere"}, "train": {"steps": 3}}


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("dat.path", "data"),
        ("sede", "seed"),
        ("data.pth", "data.path"),
        ("data.heigth", "data.height"),
        ("model.hidden", "model.hidden_size"),
        ("model.num_layer", "model.num_layers"),
        ("condition.drop_out", "condition.dropout"),
        ("diffusion.prediction", "diffusion.prediction_type"),
        ("pyramid.factor", "pyramid.factors"),
        ("train.learning_rate_schedule", "train.lr_schedule"),
        ("train.max_grad_nrom", "train.max_grad_norm"),
        ("log.keep", "log.keep_checkpoints"),
        ("pretrained.pth", "pretrained.path"),
        ("pretrained.lora.ranks", "pretrained.lora.rank"),
    ],
)
@pytest.mark.parametrize("way", ["override", "file"])
def test_an_unknown_key_names_the_closest_known_one(key, closest, way, tmp_path):
    if way == "override":
        with pytest.raises(ConfigError) as caught:
            build_config(LEAST, [f"{key}=1"])
    else:
        values = copy.deepcopy(LEAST)
        *sections, name = key.split(".")
        reduce(lambda inside, section: inside.setdefault(section, {}), sections, values)[name] = 1
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
        with pytest.raises(ConfigError) as caught:
            load_config(tmp_path / "run.yaml")
    wrong = key if closest.count(".") else key.split(".")[0]
    assert f"unknown key {wrong}; did you mean {closest}?" in str(caught.value)


def test_all_unknown_keys_are_named_at_once():
    with pytest.raises(ConfigError) as caught:
        build_config(LEAST, ["data.hight=3", "train.step=3"])
    assert "data.hight" in str(caught.value)
    assert "train.step;" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=fast", "'fast'"),
        ("train.lr=0", "0"),
        ("train.lr=.nan", "nan"),
        ("train.batch_size=2.5", "2.5"),
        ("train.batch_size=0", "0"),
        ("train.method=both", "'both'"),
        ("train.ema_decay=1", "1"),
        ("data.frames=many", "'many'"),
        ("data.resize=squash", "'squash'"),
        ("data.max_bad_share=2", "2"),
        ("model.patch_size=8", "8"),
        ("model.hidden_size=-8", "-8"),
        ("condition.kind=image", "'image'"),
        ("diffusion.schedule=cosine", "'cosine'"),
        ("diffusion.prediction_type=noise", "'noise'"),
        ("pyramid.causal_time=perhaps", "'perhaps'"),
        ("log.trackers=tensorboard", "'tensorboard'"),
        ("seed=-1", "-1"),
        ("train=5", "5"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override, value):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        build_config(LEAST, [override])
    assert key in str(caught.value)
    assert value in str(caught.value)


def test_patches_of_several_frames_do_not_fill_a_causal_time_axis():
    with pytest.raises(ConfigError, match=r"keeps 1 \+ n frames, which patches of 2 do not fill; nearest: model"):
        build_config(LEAST, ["model.patch_size=[2,8,8]", "pyramid.causal_time=true"])


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("pyramid.factors=[[1,1,1],[2,1]]", r"pyramid\.factors\.1"),
        ("pyramid.factors=[[1,1,1],[2,1,x]]", r"pyramid\.factors\.1\.2"),
        ("model.patch_size=[1,8]", r"model\.patch_size\.2"),
        ("train.betas=[0.9,high]", r"train\.betas\.1"),
    ],
)
def test_a_wrong_value_inside_a_list_is_named(override, place):
    with pytest.raises(ConfigError, match=place):
        build_config(LEAST, [override])


def test_the_data_folder_is_required():
    with pytest.raises(ConfigError, match=r"data\.path is required"):
        build_config({"data": {"frames": 4}, "train": {"steps": 1}})
    with pytest.raises(ConfigError, match=r"data is required"):
        build_config({"train": {"steps": 1}})


def test_a_run_needs_an_end():
    with pytest.raises(ConfigError, match=r"train\.steps or train\.seconds"):
        build_config({"data": {"path": "x"}, "train": {}})
    assert build_config({"data": {"path": "x"}, "train": {"seconds": 2}}).train.steps is None


@pytest.mark.parametrize("override", ["train.lr", "=3", "", "train.lr:1"])
def test_an_override_without_a_value_is_refused(override):
    with pytest.raises(ConfigError, match=r"is not section\.key=value"):
        build_config(LEAST, [override])


@pytest.mark.parametrize("override", ["data.path.name=1", "train.steps.x=1"])
def test_an_override_below_a_value_is_refused(override):
    with pytest.raises(ConfigError, match="is not a section"):
        build_config(LEAST, [override])


@pytest.mark.parametrize("override", ["data.path=[clips", "data.path=@clips", "data.path={a: b", "data.path=a: b: c"])
def test_an_override_that_is_no_yaml_is_a_configuration_error(override):
    with pytest.raises(ConfigError, match=r"data\.path"):
        build_config(LEAST, [override])


@pytest.mark.parametrize(("text", "number"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("5e3", 5e3), ("0.25", 0.25), ("3", 3)])
def test_numbers_are_read_as_people_write_them(text, number):
    assert build_config(LEAST, [f"train.lr={text}"]).train.lr == number


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_every_precision_can_be_written_plainly(precision, tmp_path):
    """YAML takes a bare no for a truth value."""
    assert build_config(LEAST, [f"train.precision={precision}"]).train.precision == precision
    (tmp_path / "run.yaml").write_text(f"data: {{path: x}}\ntrain:\n  steps: 1\n  precision: {precision}\n")
    assert load_config(tmp_path / "run.yaml").train.precision == precision


@pytest.mark.parametrize("path", ["/clips/my #1 set", "/clips/a b", "C#", "/clips/100%"])
def test_a_folder_s_name_is_not_cut(path):
    """YAML takes what follows " #" for a remark."""
    assert build_config(LEAST, [f"data.path={path}"]).data.path == path
    assert build_config(LEAST, [f"data.path='{path}'"]).data.path == path


TEXTS = [
    "2024-05-01",
    "2024-13-45",
    "007",
    "1e5",
    "0x10",
    "1_000",
    "12:30:45",
    "no",
    "true",
    ".nan",
    "=",
    "a # b",
    "# b",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["data.path", "data.split", "data.cache_dir", "condition.encoder", "model.autoencoder"])
def test_text_is_taken_as_typed(key, text):
    """YAML takes most of these for dates, numbers, truth values or remarks."""
    section, name = key.split(".")
    for typed in (text, f" {text} ", f"'{text}'"):
        assert getattr(getattr(build_config(LEAST, [f"{key}={typed}"]), section), name) == text


def test_text_inside_a_section_that_may_be_absent_is_taken_as_typed():
    config = build_config(LEAST, ["pretrained.path=2024-05-01", "pretrained.network=no"])
    assert (config.pretrained.path, config.pretrained.network) == ("2024-05-01", "no")


@pytest.mark.parametrize("text", ["", "null", "~", " "])
def test_nothing_is_no_text(text):
    config = build_config(LEAST, [f"data.split={text}", f"data.cache_dir={text}"])
    assert config.data.split is None and config.data.cache_dir is None
    with pytest.raises(ConfigError, match=r"data\.path is required"):
        build_config(LEAST, [f"data.path={text}"])
    with pytest.raises(ConfigError, match=r"condition\.encoder: input should be a valid string, got None"):
        build_config(LEAST, [f"condition.encoder={text}"])
    assert build_config(LEAST, ["data.split='null'"]).data.split == "null"


@pytest.mark.parametrize("typed", ["[a, b]", "a: b"])
def test_lists_and_mappings_are_no_text(typed):
    with pytest.raises(ConfigError, match=r"data\.path: input should be a valid string, got [\[{]'a'"):
        build_config(LEAST, [f"data.path={typed}"])


def test_other_values_are_read_as_ever():
    overrides = ["data.fps=007", "data.starts=null", "pyramid.causal_time=no", "train.precision=no"]
    config = build_config(LEAST, overrides)
    assert (config.data.fps, config.data.starts, config.pyramid.causal_time) == (7, None, False)
    assert config.train.precision == "no"
    options = ["pretrained.path=x", "pretrained.options.max_sequence_length=5", "pretrained.options.fast=yes"]
    assert build_config(LEAST, options).pretrained.options == {"max_sequence_length": 5, "fast": True}


@pytest.mark.parametrize(
    "key", ["data.path", "data.cache_dir", "data.shards", "model.autoencoder", "condition.encoder"]
)
def test_a_tilde_is_the_user_s_own_folder(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    section, name = key.split(".")
    more = ["model.autoencoder=x"] if key == "data.shards" else []
    for place, meant in [("~/a b", f"{tmp_path}/a b"), ("a/~/b", "a/~/b"), ("s3://b/~x", "s3://b/~x"), ("x", "x")]:
        assert getattr(getattr(build_config(LEAST, [*more, f"{key}={place}"]), section), name) == meant
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(LEAST | {section: LEAST.get(section, {}) | {name: place}}))
        assert getattr(getattr(load_config(tmp_path / "run.yaml", more), section), name) == meant


def test_a_tilde_in_the_path_of_a_pipeline(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_config(LEAST, ["pretrained.path=~/wan"]).pretrained.path == f"{tmp_path}/wan"


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ("49", "data.buckets 49 is not FRAMESxHEIGHTxWIDTH, such as 49x480x832"),
        ("[49,480,832]", "data.buckets [49, 480, 832] is one size, not a list of them; nearest: 49x480x832"),
        ("[[49,480]]", "data.buckets [49, 480] is not FRAMESxHEIGHTxWIDTH, such as 49x480x832"),
        ("[[49,480,0]]", "data.buckets [49, 480, 0] is not FRAMESxHEIGHTxWIDTH, such as 49x480x832"),
        ("[49x480x832,7]", "data.buckets 7 is not FRAMESxHEIGHTxWIDTH, such as 49x480x832"),
        ("{a: b}", "data.buckets {'a': 'b'} is not FRAMESxHEIGHTxWIDTH, such as 49x480x832"),
        ("49x480", "data.buckets '49x480' is not FRAMESxHEIGHTxWIDTH, such as 49x480x832"),
    ],
)
def test_buckets_that_are_no_sizes(buckets, message):
    with pytest.raises(ConfigError) as caught:
        build_config(LEAST, [f"data.buckets={buckets}"])
    assert str(caught.value) == message


@pytest.mark.parametrize("buckets", ["49x480x832,1x480x832", "[[49,480,832],[1,480,832]]", "[49x480x832, 1×480×832]"])
def test_buckets_can_be_written_in_several_ways(buckets):
    data = build_config(LEAST, [f"data.buckets={buckets}"]).data
    assert data.buckets == [(49, 480, 832), (1, 480, 832)]
    assert (data.frames, data.height, data.width) == (49, 480, 832)


def test_overrides_win_and_the_last_of_them_most(tmp_path):
    (tmp_path / "run.yaml").write_text("data: {path: there}\ntrain: {steps: 3, lr: 1e-3}\n")
    config = load_config(tmp_path / "run.yaml", ["train.lr=2e-4", "train.lr=3e-4", "model.hidden_size=48", "data.fps="])
    assert config.train.lr == 3e-4
    assert config.model.hidden_size == 48
    assert config.data.fps is None
    assert config.train.steps == 3


def test_building_leaves_the_values_alone():
    values = {"data": {"path": "x"}, "train": {"steps": 1}}
    build_config(values, ["train.steps=9", "data.path=y"])
    assert values == {"data": {"path": "x"}, "train": {"steps": 1}}


@pytest.mark.parametrize("weights", ["[1,2]", "[1,1,1,1]", "[]", "[0,0,0]", "[1,-1,1]", "[1,.nan,1]"])
def test_stage_weights_are_one_a_stage(weights):
    with pytest.raises(ConfigError, match=r"train\.stage_weights needs 3 weights"):
        build_config(LEAST, [f"train.stage_weights={weights}"])


def test_large_networks_are_validated_clip_by_clip():
    pretrained = LEAST | {"pretrained": {"path": "somewhere"}}
    assert [build_config(values).validated_at_once for values in (LEAST, pretrained)] == [16, 1]
    assert build_config(pretrained, ["validation.batch_size=4"]).validated_at_once == 4


def test_stage_weights_of_the_right_length_pass():
    assert build_config(LEAST, ["train.stage_weights=[2,0,1]"]).train.stage_weights == [2, 0, 1]
    config = build_config(LEAST, ["pyramid.factors=[[1,1,1],[2,1,1]]", "train.stage_weights=[1,3]"])
    assert config.train.stage_weights == [1, 3]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_target_per_stage_wants_the_flow(prediction):
    with pytest.raises(ConfigError, match=r"per_stage.*flow_prediction"):
        build_config(LEAST, ["train.target=per_stage", f"diffusion.prediction_type={prediction}"])


def test_arc_length_over_stages_wants_flow_matching():
    ddim = ["diffusion.schedule=ddim", "train.timestep_policy=pyramid_flow"]
    with pytest.raises(ValueError, match="timestep_policy='pyramid_flow' belong to flow matching"):
        build_pyramid(build_config(LEAST, ddim))
    assert len(build_pyramid(build_config(LEAST, [*ddim, "train.method=vanilla"]))) == 1
    with pytest.raises(ConfigError, match=r"train\.timestep_policy"):
        build_config(LEAST, ["train.timestep_policy=arc"])


def test_pure_noise_and_epsilon_do_not_go_together():
    ddim = ["diffusion.schedule=ddim", "diffusion.prediction_type=epsilon"]
    build_pyramid(build_config(LEAST, ddim))
    with pytest.raises(ValueError, match="epsilon prediction cannot start from pure noise"):
        build_pyramid(build_config(LEAST, [*ddim, "diffusion.zero_terminal_snr=true"]))
    with pytest.raises(ValueError, match="epsilon prediction cannot start from pure noise"):
        build_pyramid(build_config(LEAST, ["diffusion.prediction_type=epsilon"]))
    with pytest.raises(ValueError, match="belongs to schedule ddim"):
        build_pyramid(build_config(LEAST, ["diffusion.zero_terminal_snr=true"]))


def test_the_vanilla_method_is_one_stage_whatever_the_pyramid():
    assert len(build_pyramid(build_config(LEAST, ["train.method=vanilla"]))) == 1
    assert len(build_pyramid(build_config(LEAST))) == 3


def test_default_predictions_follow_the_schedule():
    assert build_config(LEAST).diffusion.prediction == "flow_prediction"
    assert build_config(LEAST, ["diffusion.schedule=ddim"]).diffusion.prediction == "v_prediction"


def test_a_missing_file_suggests_its_neighbours(tmp_path):
    for name in ("digits.yaml", "demo.yaml"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "digit.yaml")
    assert f"no configuration at {tmp_path / 'digit.yaml'}" in str(caught.value)
    assert str(tmp_path / "digits.yaml") in str(caught.value)
    with pytest.raises(ConfigError, match="no configuration at"):
        load_config(tmp_path / "nowhere" / "digits.yaml")


def test_a_bare_name_is_a_shipped_recipe_where_no_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = next(path for path in RECIPES if path.stem == "text-to-video")
    assert read_values("text-to-video") == yaml.safe_load(shipped.read_text())
    with pytest.raises(ConfigError, match=r"^no configuration at a/text-to-video$"):
        read_values("a/text-to-video")
    with pytest.raises(ConfigError, match=r"^no configuration at vide; no recipe 'vide'; known: .*text-to-video"):
        read_values("vide")
    (tmp_path / "text-to-video").write_text("seed: 7\n")
    assert read_values("text-to-video") == {"seed": 7}


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "data: [unclosed\n"])
def test_a_file_that_is_no_configuration_is_named(text, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("name", "key", "program"),
    [
        ("study-gameplay-flow", "arms", "training_comparison"),
        ("ablation-fronts", "variants", "ablations"),
        ("conversion-wan", "original", "conversion"),
    ],
)
def test_a_study_is_told_from_a_recipe(name, key, program):
    path = CONFIGS[0].with_name(f"{name}.yaml")
    said = f"^{path} is a study, since it has '{key}', and no recipe; run it by: python benchmarks/{program}.py {path}$"
    with pytest.raises(ConfigError, match=said):
        load_recipe(path)


def test_an_empty_file_lacks_its_sections(tmp_path):
    (tmp_path / "run.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"data is required.*train is required"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["train.lr=1e-7", "train.betas=[0.9,0.999]", "train.stage_weights=[1,2,3]", "pyramid.ends=[0.3,0.7]"],
        ["train.seconds=0.1", "train.steps=", "data.fps=12.5", "data.split=", "model.autoencoder=vae"],
        ["diffusion.schedule=ddim", "diffusion.zero_terminal_snr=true", "condition.kind=none", "log.trackers=[]"],
    ],
)
def test_a_resolved_configuration_survives_yaml(overrides, tmp_path):
    config = build_config(LEAST, overrides)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "config.yaml")
    assert again == config
    assert config_difference(config, again) == []


def test_differences_are_lines_with_both_values():
    a, b = build_config(LEAST), build_config(LEAST, ["train.lr=3e-4", "seed=2"])
    assert config_difference(a, b) == ["seed: 0 -> 2", "train.lr: 0.001 -> 0.0003"]


def test_a_configuration_cannot_be_changed_in_place():
    config = build_config(LEAST)
    with pytest.raises(ValueError, match="frozen"):
        config.train.lr = 1.0


def test_there_are_recipes():
    assert "demo" in {path.stem for path in RECIPES}
    assert len(RECIPES) > 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_can_be_built(path):
    config = load_recipe(path)
    if isinstance(config, AutoencoderConfig) or config.pretrained is not None:  # the latter: families/test_recipes.py
        return
    pyramid = build_pyramid(config)
    if config.model.autoencoder is None:
        pyramid.check_shape((1, 3, config.data.frames, config.data.height, config.data.width))


def test_a_target_per_stage_wants_flow_matching():
    flow = ["train.target=per_stage", "diffusion.prediction_type=flow_prediction"]
    assert len(build_pyramid(build_config(LEAST, flow))) == 3
    with pytest.raises(
        ValueError, match="flows per stage belong to flow matching; this schedule is variance_preserving"
    ):
        build_pyramid(build_config(LEAST, [*flow, "diffusion.schedule=ddim"]))


def test_strides_of_a_recipe_may_be_fractions():
    config = build_config(LEAST, ["pyramid.factors=[[1,1,1],[1,1.5,1.5]]", "pyramid.resize=dct"])
    assert build_pyramid(config).factors == ((1, 1, 1), (1, 1.5, 1.5))
    whole = build_config(LEAST).pyramid.factors[1]
    assert whole == (2, 1, 1) and {type(stride) for stride in whole} == {int}
