"""Whether what is kept is of the study as it now is: another's is neither continued nor shown as its own."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tpdiff.files import write_whole
from tpdiff.training.config import Config
from tpdiff.training.section import Section

MOST_NAMED = 3
OWNER = "results.txt"  # names, in a folder of weights, the folder of the results that they are behind


def own_work(work: Path, results: Path) -> None:
    """Let a folder of weights belong to one folder of results: those of another would be taken for its own.

    Raises:
        ValueError: it belongs to another.
    """
    owner, here = work / OWNER, str(results.resolve())
    if owner.is_file() and (other := owner.read_text(encoding="utf-8").strip()) != here:
        raise ValueError(
            f"{work} holds the weights behind the results in {other}; give others a --work of their own, or remove "
            f"{owner} if those are gone"
        )
    write_whole(owner, f"{here}\n")


def settings_of(config: Section) -> dict[str, Any]:
    """What a run depends on, as JSON values: its configuration without where things lie and how it is watched."""
    settings = config.model_dump(mode="json", exclude={"log": True, "data": {"path", "cache_dir"}})
    if settings.get("pretrained"):
        settings["pretrained"].pop("path")
    return settings


def refuse_others(path: Path, result: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuse a result that was made with other settings. Those that only one side has are not compared, so that results
    of before there was a setting stay.

    Args:
        path: where the result is kept.
        result: what was read there; {} is nothing.
        asked: the present settings, as JSON values; those it was made with are in its "made", "asked".

    Raises:
        ValueError: naming up to three that differ.
    """
    _refuse(f"{path} was made", _apart(_kept(result), asked))


def refuse_other_judges(path: Path, result: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
    """Refuse to go on with a result whose first figures were taken by another protocol than the present one, as
    `refuse_others` does.

    Raises:
        ValueError: naming up to three entries that differ.
    """
    _refuse(f"{path} was judged", _apart(result.get("protocol", {}), protocol))


def _refuse(what: str, differences: Iterator[tuple[str, Any, Any]]) -> None:
    if apart := list(differences):
        named = ", ".join(f"{name}={kept!r} (now {now!r})" for name, kept, now in apart[:MOST_NAMED])
        more = f" and {len(apart) - MOST_NAMED} more" if len(apart) > MOST_NAMED else ""
        raise ValueError(f"{what} with {named}{more}; remove it, or work elsewhere with --results and --work")


def _kept(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a result was made with; of one from before that was written down, its study and its arms' configurations."""
    made = result.get("made", {})
    if "asked" in made:
        return made["asked"]
    study = {name: value for name, value in made.get("study", {}).items() if name != "arms"}
    rows = {name: row["config"] for name, row in result.get("arms", {}).items() if "config" in row}
    arms = {name: settings_of(Config.model_validate(config)) for name, config in rows.items()}
    for settings in arms.values():
        del settings["validation"], settings["pyramid"]["causal_time"]  # whose defaults were written otherwise then
    return {**study, "arms": arms}


def _apart(kept: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(kept.keys() & now.keys()):
        one, other = kept[key], now[key]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _apart(one, other, f"{within}{key}.")
        elif one != other:
            yield f"{within}{key}", one, other
