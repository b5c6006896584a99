"""Few-shot training: a base model, and every episode adapted from that saved model afresh: ``hpdval.train_fewshot``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hpdval.config import ScoreConfig
from hpdval.data.dataset import Dataset
from hpdval.data.episodes import Episode, make_episodes
from hpdval.data.fewshot import PROTOCOLS, base_dataset, novel_test
from hpdval.distributed import join, rank
from hpdval.errors import ConfigError
from hpdval.fewshot_recipes import BASELINES, FewShot, get_fewshot
from hpdval.models import Clip, load_clip
from hpdval.models.numeric import resolve_device
from hpdval.run import read_manifest
from hpdval.scoring import clip_of, load_run, open_run, report_run, zero_shot_scorer
from hpdval.training.stages import check_experiment, train


def train_fewshot(
    dataset: Dataset,
    fewshot: FewShot | str = "scenes-fewshot",
    *,
    run: str | os.PathLike[str],
    episodes: Sequence[Episode] | None = None,
    shared: str | os.PathLike[str] | None = None,
    clip: Clip | None = None,
    device: str = "auto",
    show: bool = True,
) -> dict[str, list[Path]]:
    """Train the base model, adapt it in every episode, and return the finished runs of each method.

    ``zero-shot`` is CLIP and ``base model`` the base model, by their global view, with hand-crafted prompts for the
    novel classes and no novel image; ``base model, both views`` is the latter under the score of the adapted stages,
    without which what the second view gives would pass for adaptation.  These have one folder each.  A method of
    ``fewshot.adapt`` has one for each episode, in order.  All are scored on the same novel test images.  Below ``run``
    lie ``base``, ``novel-zero-shot``, ``novel-both-views`` and ``5shot/episode-01`` and so on; what is finished is
    skipped, what was interrupted continues, and an episode never sees what another learned, since each loads the saved
    base model.

    Args:
        dataset: of ``fewshot.protocol`` over all classes, see ``PROTOCOLS[name].load``; with a validation part if
            ``fewshot.base`` asks for one.
        fewshot: a few-shot recipe's name or the recipe.
        episodes: such as the published ones; by default ``fewshot.episodes`` are drawn by ``fewshot.episode_seed``.
        shared: a folder where base runs are kept for other shots, as in :func:`hpdval.train`.
        clip: the model to start from; by default what the recipe names.

    Raises:
        ConfigError: the data set or an episode is not of the recipe's protocol and shots.
        DataError: an episode and the test images share one, or were made for other images.
        RunError: a folder is in use or holds another run.
        NonFiniteLossError: the loss became NaN or infinite; nothing was updated from it.
    """
    fewshot = get_fewshot(fewshot) if isinstance(fewshot, str) else fewshot
    protocol, folder = PROTOCOLS[fewshot.protocol], Path(run)
    sides: dict[str, Any] = {"novel": protocol.novel, "mixed": protocol.mixed}
    if dataset.name != protocol.name:
        raise ConfigError(f"the data set is {dataset.name}, the protocol {protocol.name}; load that, or set protocol")
    test = novel_test(dataset, **sides)
    if episodes is None:
        sizes: dict[str, Any] = {"shots": fewshot.shots, "episodes": fewshot.episodes}
        episodes = make_episodes(dataset, seed=fewshot.episode_seed, **sizes, **sides)
    _check(fewshot, episodes, protocol.novel)
    supports = [episode.dataset(dataset, test) for episode in episodes]  # refused here, before hours are spent
    join(device)
    where = str(resolve_device(device))
    clip = (clip or load_clip(fewshot.base.clip, pretrained=fewshot.base.pretrained, device=where)).to(where)
    if getattr(fewshot.base.rival, "backbone", None):
        raise ConfigError("a base model with a CNN has no texts for novel classes; choose a base that trains CLIP")
    check_experiment(supports[0], fewshot.adapt, clip)
    runs = {BASELINES[0]: [_unadapted(supports[0], fewshot, clip, folder / "novel-zero-shot", show=show)]}
    base = base_dataset(dataset, **sides)
    trained = train(base, fewshot.base, run=folder / "base", shared=shared, clip=clip, device=device, show=show)
    start = [*trained.values()][-1]
    for episode, support in zip(episodes, supports, strict=True):
        own = folder / f"{episode.shots}shot" / f"episode-{episode.number:02d}"
        fresh = clip_of(load_run(start, device=where))  # never the model of an episode before
        adapted = train(support, fewshot.adapt, run=own, clip=fresh, device=device, show=show)
        unadapted = adapted.pop("zero-shot")  # of the base model: the same in every episode
        if rank() == 0:
            _link_weights(unadapted, start)
        if episode is episodes[0]:
            runs[BASELINES[1]] = [unadapted]
            if fewshot.adapt.stages != "rival":  # whose score is its own
                views = folder / "novel-both-views"
                runs[BASELINES[2]] = [_unadapted(support, fewshot, fresh, views, both=True, show=show)]
        for method, made in adapted.items():
            runs.setdefault(method, []).append(made)
    return runs


def _check(fewshot: FewShot, episodes: Sequence[Episode], novel: Sequence[str]) -> None:
    """Refuse episodes that the recipe does not speak of, or that would share a folder."""
    if not episodes:
        raise ConfigError("there is no episode; give some, or None to draw them")
    for episode in episodes:
        if episode.shots != fewshot.shots or set(episode.classes) != set(novel):
            raise ConfigError(
                f"{episode.name} has {episode.shots} shots of {', '.join(episode.classes)}; the recipe wants "
                f"{fewshot.shots} of {', '.join(novel)}"
            )
    numbers = [episode.number for episode in episodes]
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"episodes have the numbers {numbers}; give each its own")


def _unadapted(support: Dataset, fewshot: FewShot, clip: Clip, folder: Path, *, both: bool = False, show: bool) -> Path:
    """Score the novel test images with hand-crafted prompts, by one view or both; no training image belongs to it."""
    nothing = replace(
        support,
        name=f"{fewshot.protocol}-novel",
        train=support.train.subset([]),
        class_counts=np.zeros(len(support.classes), np.int64),
    )
    prompts: dict[str, Any] = {"template": fewshot.adapt.template, "resize": fewshot.adapt.resize}
    score: ScoreConfig | None = fewshot.adapt.evaluation_score if both else None
    scorer = zero_shot_scorer(clip, support.classes, score=score, **prompts)
    with open_run(folder, "zero-shot", nothing, fewshot.adapt, scorer) as opened:
        if not opened.finished:
            report_run(opened, scorer, nothing, fewshot.adapt, show=show and rank() == 0)
    return folder


def _link_weights(folder: Path, start: Path) -> None:
    """Let the unadapted model of an episode share the base model's file of the same content: ten would fill a disk."""
    name = "clip.safetensors"
    own, other = folder / name, start / name
    if read_manifest(folder)["files"][name] != read_manifest(start)["files"][name] or own.samefile(other):
        return
    link = folder / f".{name}.tmp"
    try:
        link.unlink(missing_ok=True)
        os.link(other, link)
        link.replace(own)
    except OSError:  # another file system
        link.unlink(missing_ok=True)
