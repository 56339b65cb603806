"""Clips of a real game: VizDoom with the freely licensed assets in its package, without a window.

Each clip is an episode of its own in which one action is held, so its caption is true for all of it and no
episode stands in both splits.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError
from .frames import check_rate, check_size, resize_frames
from .recipe import MadeSet, count_test, finish_set, open_set
from .stream import generator_for
from .writing import write_video

TICS = 35  # game steps a second
ATTEMPTS = 200  # episodes tried for one clip
CRF = 14
PRESSES = {  # action: (button, degrees or the engine's units of speed a step at pace 1, verb in the caption)
    "turn_left": ("TURN_LEFT_RIGHT_DELTA", -3.5, "turns left"),
    "turn_right": ("TURN_LEFT_RIGHT_DELTA", 3.5, "turns right"),
    "forward": ("MOVE_FORWARD_BACKWARD_DELTA", 25.0, "walks forward"),
    "strafe_left": ("MOVE_LEFT_RIGHT_DELTA", -24.0, "steps to the left"),
    "strafe_right": ("MOVE_LEFT_RIGHT_DELTA", 24.0, "steps to the right"),
    "attack": ("ATTACK", 1.0, "fires"),
}
BUTTONS = tuple(dict.fromkeys(button for button, _, _ in PRESSES.values()))
TURNS = ("turn_left", "turn_right")
STRAFES = ("strafe_left", "strafe_right")
MOVES = ("forward", *STRAFES)
LEAST_DEPTH = 8.0  # mean of a clip's depth pictures (0 ... 255); below it a wall fills the view
LEAST_STEP = 1.5  # map units a tic, at pace 1, that a moving action covers in each third of a clip; a free walk makes 8
OVERSAMPLING = 4  # pixels rendered for one kept, a side: the engine does not filter textures, distant ones flicker
SCREENS = ((160, 120), (320, 240), (640, 480), (800, 600), (1024, 768), (1600, 1200))  # width, height


@dataclass(frozen=True)
class Scenario:
    """A place, as the caption names it; the actions that show there; and how long to stray before a clip."""

    place: str
    actions: tuple[str, ...]
    warm_up: int = 40  # tics at most
    weapon: bool = False


SCENARIOS = {
    "basic": Scenario("a stone room with a monster", (*TURNS, "forward", *STRAFES)),
    "deadly_corridor": Scenario("a brick corridor with soldiers", (*TURNS, "forward", "attack"), 12, True),
    "defend_the_center": Scenario("a round arena with monsters", (*TURNS, "attack"), weapon=True),
    "defend_the_line": Scenario("a hall with a line of monsters", (*TURNS, "attack"), weapon=True),
    "health_gathering": Scenario("a wide hall with medical kits", (*TURNS, "forward")),
    "health_gathering_supreme": Scenario("a grey maze with medical kits", (*TURNS, "forward", *STRAFES)),
    "my_way_home": Scenario("a maze of coloured rooms", (*TURNS, "forward", *STRAFES)),
    "predict_position": Scenario("a wide room with a monster far away", TURNS),
    "take_cover": Scenario("a long hall with monsters throwing fire", STRAFES, 20),
}


def record_doom(
    out: str | Path,
    *,
    clips: int = 200,
    frames: int = 33,
    scenario: str = "my_way_home",
    size: tuple[int, int] = (120, 160),
    frame_skip: int = 2,
    pace: float = 1.0,
    fps: float | None = None,
    seed: int = 0,
    test_share: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> MadeSet:
    """Record gameplay into `out`: <split>/NNNNN.mp4 and metadata.jsonl.

    A line of the metadata has file_name, caption, split, scenario, action, episode and fps. A caption is
    "a marine turns left in a maze of coloured rooms": one for each action of a scenario. Actions come in turn.
    A clip shows every `frame_skip`-th of the game's 35 steps a second and plays at `fps` (None: true speed,
    35 / frame_skip). pace: how fast the marine turns and walks, as a share of the game's own walk, in (0, 2]; at 1
    the camera of a game, at 0.25 about one of film: a view's width in three seconds. A clip starts where some random
    steps have led; an episode that ends too soon, or in which a wall fills the view or stops a moving action, is
    dropped for another. size: (height, width) in pixels.
    Same parameters, same clips; a call that was interrupted is continued.
    progress: called with (clips done, clips in all).
    Raises ValueError for a bad number, DataError for an unknown scenario, when `out` holds something else,
    when VizDoom is missing or stops, or when no episode gives a clip.
    """
    setting = _known(scenario)
    check_size(size)
    if not 0 < pace <= 2:
        raise ValueError(f"pace {pace} is not in (0, 2]")
    for name, value in (("frames", frames), ("frame_skip", frame_skip)):
        if value < 1:
            raise ValueError(f"{name} {value} is below 1")
    testing = count_test(clips, test_share)
    rate = TICS / frame_skip if fps is None else fps
    check_rate(rate)
    recipe = dict(kind="doom", scenario=scenario, clips=clips, frames=frames, size=list(size), frame_skip=frame_skip)
    recipe |= dict(oversampling=OVERSAMPLING, pace=pace)
    paths = [Path(out) / ("test" if n < testing else "train") / f"{n:05d}.mp4" for n in range(clips)]
    vizdoom = None if all(path.is_file() for path in paths) else require_vizdoom()
    folder = open_set(out, recipe | dict(fps=rate, seed=seed, test_share=test_share))
    rows, written = [], 0
    with _game(vizdoom, scenario, setting, size) if vizdoom else nullcontext() as game:
        for number, path in enumerate(paths):
            split = path.parent.name
            action = setting.actions[number % len(setting.actions)]
            if not path.is_file():
                video = _clip(game, setting, action, number, frames, frame_skip, pace, seed)
                write_video(path, resize_frames(video, size), rate, crf=CRF, preset="veryfast")
                written += 1
            rows.append(
                {
                    "file_name": f"{split}/{path.name}",
                    "caption": f"a marine {PRESSES[action][2]} in {setting.place}",
                    "split": split,
                    "scenario": scenario,
                    "action": action,
                    "episode": number,
                    "fps": rate,
                }
            )
            if progress is not None:
                progress(number + 1, clips)
    return finish_set(folder, rows, written)


def _clip(
    game: Any, setting: Scenario, action: str, number: int, frames: int, frame_skip: int, pace: float, seed: int
) -> Tensor:
    """uint8 (T, H, W, 3) of an episode in which `action` is held for the whole clip."""
    for attempt in range(ATTEMPTS):
        generator = generator_for(seed, "episode", number * ATTEMPTS + attempt)
        game.set_seed(int(torch.randint(2**31, (), generator=generator)))
        game.new_episode()
        _stray(game, setting, generator)
        pictures: list[np.ndarray] = []
        places: list[np.ndarray] = []
        depths: list[float] = []
        while len(pictures) < frames and not game.is_episode_finished():
            state = game.get_state()
            pictures.append(state.screen_buffer.copy())
            depths.append(float(state.depth_buffer.mean()))
            places.append(state.game_variables[:2].copy())
            if len(pictures) < frames:
                game.make_action(_press(action, pace), frame_skip)
        if len(pictures) < frames or sum(depths) < LEAST_DEPTH * frames:
            continue
        if action not in MOVES or _keeps_moving(places, frame_skip * pace):
            return torch.from_numpy(np.stack(pictures))
    raise DataError(
        f"{ATTEMPTS} episodes gave no clip of {frames} frames ({frames * frame_skip} game steps) with "
        f"{action!r}; ask for fewer frames or a smaller frame_skip"
    )


def _stray(game: Any, setting: Scenario, generator: torch.Generator) -> None:
    """Random actions, so that clips start from different places and headings."""
    left = int(torch.randint(setting.warm_up // 2, setting.warm_up + 1, (), generator=generator))
    walks = [action for action in setting.actions if action != "attack"]
    while left > 0 and not game.is_episode_finished():
        action = walks[int(torch.randint(len(walks), (), generator=generator))]
        length = min(left, int(torch.randint(3, 13, (), generator=generator)))
        game.make_action(_press(action), length)
        left -= length
    if not game.is_episode_finished():
        game.make_action([0.0] * len(BUTTONS), 4)  # come to rest


def _keeps_moving(places: list[np.ndarray], walk: float) -> bool:
    """Whether each third of a clip covers ground. walk: game steps a frame, times the pace."""
    marks = [places[round(part * (len(places) - 1) / 3)] for part in range(4)]
    ways = [float(np.hypot(*(b - a))) for a, b in pairwise(marks)]
    least = LEAST_STEP * walk * (len(places) - 1) / 3
    return min(ways) >= least


def _press(action: str, pace: float = 1.0) -> list[float]:
    pressed, amount, _ = PRESSES[action]
    return [amount * (pace if button != "ATTACK" else 1) if button == pressed else 0.0 for button in BUTTONS]


@contextmanager
def _game(vizdoom: Any, scenario: str, setting: Scenario, size: tuple[int, int]) -> Iterator[Any]:
    """A game without window, sound or status bar. It leaves nothing behind in the current folder."""
    litter = Path("_vizdoom").absolute()
    was_there = litter.exists()
    least = OVERSAMPLING * size[1], OVERSAMPLING * size[0]
    width, height = next((s for s in SCREENS if s[0] >= least[0] and s[1] >= least[1]), SCREENS[-1])
    game = vizdoom.DoomGame()
    with tempfile.TemporaryDirectory() as scratch:
        game.load_config(os.path.join(vizdoom.scenarios_path, f"{scenario}.cfg"))
        game.set_doom_config_path(os.path.join(scratch, "engine.ini"))
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{width}X{height}"))
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_available_buttons([getattr(vizdoom.Button, button) for button in BUTTONS])
        game.set_available_game_variables([vizdoom.GameVariable.POSITION_X, vizdoom.GameVariable.POSITION_Y])
        game.set_depth_buffer_enabled(True)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_render_hud(False)
        game.set_render_crosshair(False)
        game.set_render_messages(False)
        game.set_render_weapon(setting.weapon)
        game.set_doom_skill(1)  # the mildest, so that episodes last
        with suppress(OSError):
            litter.mkdir()  # of two engines that make it at the same moment one would crash
        try:
            game.init()
            yield game
        except (vizdoom.ViZDoomErrorException, vizdoom.ViZDoomUnexpectedExitException) as error:
            raise DataError(f"the game engine stopped: {error}") from error
        finally:
            game.close()
            if not was_there:
                with suppress(OSError):
                    litter.rmdir()


def _known(scenario: str) -> Scenario:
    if scenario not in SCENARIOS:
        near = difflib.get_close_matches(scenario, SCENARIOS, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise DataError(f"scenario {scenario!r} is unknown{hint} Known: {', '.join(SCENARIOS)}")
    return SCENARIOS[scenario]


def require_vizdoom() -> Any:
    """The module vizdoom. Raises DataError, with what to install, where it is not."""
    try:
        import vizdoom
    except ImportError as error:
        raise DataError('recording gameplay needs VizDoom: pip install "tpdiff[games]"') from error
    return vizdoom
