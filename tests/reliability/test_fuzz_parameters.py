"""Parameters, grids, scores and logits: taken as documented, or refused in one line before anything starts."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from faults import Faults
from fuzz import NAMES, NUMBERS, Target, answer, broken_bytes, check_line, fuzz, one_of, other_values, parametrize
from hypothesis import strategies as st

from hpdval import losses, metrics
from hpdval.cli import main
from hpdval.config import Experiment
from hpdval.fewshot_recipes import FEWSHOT_RECIPES, get_fewshot
from hpdval.notebook_parameters import check_parameters, experiment_of, find_notebook
from hpdval.overrides import field_names, named_values, parse_overrides
from hpdval.recipes import RECIPES, get_recipe
from hpdval.sweep.grid import read_grid

pytestmark = pytest.mark.fault

# -- recipes and their fields ------------------------------------------------------------------------------------------

WORDS = (*NAMES, *NUMBERS, "0.5", "1", "3", "none", "db_focal", "released", "bfloat16", "scenes-lt", "coco-lt", "a {}.")
VALUES = st.one_of(
    one_of(WORDS),
    st.none() | st.booleans() | st.integers() | st.floats(),
    one_of((0, 1, -1, 10**400, 10**5000, 2**31, 1e-320, [], {}, [1], {"a": 1}, (), b"x", 1j, "x" * 5000, object)),
    st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=2), max_leaves=3),
)


def overrides(known: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    names = one_of(tuple(known)) | one_of((*NAMES, "stage1", "score", "rival.", "stage1.lr.x", "seed "))
    return st.dictionaries(names.filter(lambda name: name not in ("name", "dataset", "protocol")), VALUES, max_size=3)


RECIPE_FIELDS = sorted({name for recipe in RECIPES.values() for name in field_names(recipe())})


def check_config(config: Any) -> None:
    """Every field is of a type it may have, and in its range: read from the declaration, not from the check."""
    for item in fields(config):
        value, about = getattr(config, item.name), item.metadata
        if is_dataclass(value):
            check_config(value)
        if about.get("choices"):
            assert value in about["choices"]
        if "low" in about and value is not None and not isinstance(value, str):
            assert type(value) in (int, float)
            assert math.isfinite(value)
            assert about["low"] <= value <= about["high"]
            assert about["above"] < value < about["below"]
        assert isinstance(value, bool) == (item.type == "bool")
        assert value is None or is_dataclass(value) or isinstance(value, bool | int | float | str)


def check_recipe(folder: Path, case: tuple[Any, Any, dict[str, Any]]) -> None:
    name, dataset, values = case
    made = answer(lambda: get_recipe(name, dataset=dataset, **values))
    if made is not None:
        check_config(made)
        assert isinstance(made.dataset, str)
        for field, value in values.items():
            found: Any = made
            for part in field.split("."):
                found = getattr(found, part)
            assert found == value or isinstance(value, str), f"{field} is not what was asked for"


def check_fewshot(folder: Path, case: tuple[Any, Any, dict[str, Any]]) -> None:
    name, protocol, values = case
    made = answer(lambda: get_fewshot(name, protocol=protocol, **values))
    if made is not None:
        check_config(made)


# -- parameters of notebooks -------------------------------------------------------------------------------------------

PARAMETERS = (
    "recipe",
    "seed",
    "device",
    "overrides",
    "dataset",
    "stage1.lr",
    "stage1.epochs",
    "score.k",
    "template",
    "fewshot",
    "shots",
)


def check_command(folder: Path, case: tuple[str, list[tuple[str, str]]]) -> None:
    """What ``hpdval run NOTEBOOK -p NAME=VALUE`` does before it starts anything."""
    notebook, pairs = case
    words = [f"{name}={value}" for name, value in pairs]
    source = find_notebook(notebook)
    values = answer(lambda: check_parameters(source, named_values(words)))
    if values is not None:
        experiment = experiment_of(source, values)
        if isinstance(experiment, Experiment):
            check_config(experiment)
            for name, value in pairs:
                if name == "seed":
                    assert experiment.seed == int(value)
                if name == "stage1.lr":
                    assert experiment.stage1.lr == float(value)
    answer(lambda: parse_overrides(" ".join(words)))


# -- grids -------------------------------------------------------------------------------------------------------------

GRID = {
    "title": "a grid",
    "base": {"recipe": "scenes-small"},
    "comparisons": {
        "alpha": {
            "title": "weight",
            "claim": "none",
            "axis": "alpha",
            "set": {"stages": "stage1"},
            "method": "stage 1",
            "vary": {"score.alpha": ["default", 0, 0.5, {"value": 1, "unless": {"clip": "scenes"}}]},
        },
        "cells": {"reference": "two", "cells": {"one": {"stage1.lr": 0.001}, "two": {"stage1.lr": 0.002}}},
    },
}
BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + i, 98 + i, b", ".join([b"*%c" % (97 + i)] * 9)) for i in range(12)
)
TAGS = (
    b"!!python/object/apply:os.mkdir [../executed]",
    b"!!python/object/apply:subprocess.check_output [[touch, ../executed]]",
    b"!!python/name:os.system",
    b"!!python/object/new:os.system [touch ../executed]",
    b"!!timestamp 2020-01-01",
    b"!!binary aGVsbG8=",
    b"!!set {a, b}",
    b"2020-01-01",
    b"&a [*a]",
    b"<<: *x",
)


def grids() -> st.SearchStrategy[bytes]:
    valid = yaml.safe_dump(GRID).encode()
    spots = (b"a grid", b"scenes-small", b"stage1", b"0.5", b"clip", b"two", b"alpha")
    tagged = st.tuples(one_of(spots), one_of(TAGS)).map(lambda both: valid.replace(both[0], both[1]))
    bombs = one_of(
        (BOMB, b"title: x\ngrid: {seed: " + b"[" * 500, b"grid: &a {x: *a}", BOMB + b"grid: {a: *l}\n" + b"title: *l")
    )
    other = other_values(GRID).map(
        lambda value: yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    )
    return st.one_of(other, other, broken_bytes(valid), tagged, bombs, st.binary(max_size=60))


def check_grid(folder: Path, content: bytes) -> None:
    (folder / "g.yaml").write_bytes(content)
    grid = answer(lambda: read_grid(folder / "g.yaml"))
    if grid is not None:
        assert grid.questions
        assert all(question.settings for question in grid.questions)
    out, errors = io.StringIO(), io.StringIO()
    words = ["sweep", "05", "--grid", str(folder / "g.yaml"), "--seeds", "1", "--dry-run", "--out", str(folder / "out")]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = main(words)
    if code == 0:
        assert grid is not None
    else:
        assert code == 2
        line, end = errors.getvalue().removeprefix("hpdval: "), "\n"
        assert line.endswith(end)
        check_line(line.removesuffix(end))
    assert not (folder / "out").exists(), "a dry run wrote something"


# -- metrics and losses ------------------------------------------------------------------------------------------------


@st.composite
def arrays(draw: st.DrawFn, values: tuple[Any, ...], shape: tuple[int, ...]) -> Any:
    """An array of that shape or another, of one of many types, as an array or as lists."""
    kind = draw(
        one_of((np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64, object, "U5", "M8[s]"))
    )
    if draw(st.integers(0, 3)):
        kind = np.float64
    if not draw(st.integers(0, 3)):
        shape = draw(one_of(((), (0,), (3,), (0, 3), (4, 0), (2, 3), (4, 3, 1), (1, 1))))
    number = math.prod(shape)
    flat = [values[byte % len(values)] for byte in draw(st.binary(min_size=number, max_size=number))]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        array = np.array(flat, np.float64).reshape(shape)
        array = array.astype("i8").astype(kind) if kind == "M8[s]" else array.astype(kind)
    return array.tolist() if draw(st.booleans()) else array


ORDINARY = (0.0, 0.25, 0.5, 0.75, 1.0, -1.0, 2.0)
SCORES = (*ORDINARY, *ORDINARY, *ORDINARY, math.nan, math.inf, 1e308, -1e308, 1e-320)
BINARY = (0.0, 1.0) * 12
FUNCTIONS = {
    "ap": lambda s, t, c: metrics.average_precision(s, t),
    "map": lambda s, t, c: metrics.mean_average_precision(s, t),
    "micro": lambda s, t, c: metrics.micro_average_precision(s, t),
    "voc11": lambda s, t, c: metrics.voc11_average_precision(s, t),
    "evaluate": lambda s, t, c: metrics.evaluate(s, t, c),
    "softmax": lambda s, t, c: metrics.evaluate(s, t, c, readout="softmax"),
    "l2": lambda s, t, c: metrics.evaluate(s, t, c, readout="l2"),
    "thresholds": lambda s, t, c: metrics.best_f1_thresholds(s, t),
    "platt": lambda s, t, c: metrics.platt(s, t),
    "reliability": lambda s, t, c: metrics.reliability(s, t),
    "decisions": lambda s, t, c: metrics.decision_scores(s, t, threshold=0.5),
    "top k": lambda s, t, c: metrics.decision_scores(s, t, top_k=2),
    "bootstrap": lambda s, t, c: metrics.bootstrap(s, t, c, resamples=20),
    "paired": lambda s, t, c: metrics.paired_bootstrap(s, s, t, c, resamples=20),
    "permutation": lambda s, t, c: metrics.permutation_test(s, s, t, c, permutations=20),
    "false positives": lambda s, t, c: metrics.best_false_positives(s, t, 0),
    "pointing": lambda s, t, c: metrics.pointing_game(s, t),
    "energy": lambda s, t, c: metrics.energy_inside(s, t),
    "iou": lambda s, t, c: metrics.best_iou(s, t),
    "episodes": lambda s, t, c: metrics.episode_mean(s),
    "holm": lambda s, t, c: metrics.holm(s),
}


def metric_cases() -> st.SearchStrategy[Any]:
    targets = arrays((*BINARY, 2.0, -1.0, math.nan), (4, 3)) | arrays((0.0, 1.0), (4, 3))
    return st.tuples(
        one_of(tuple(FUNCTIONS)),
        arrays(SCORES, (4, 3)),
        targets,
        arrays((0.0, 5.0, 20.0, 500.0, -1.0, math.nan, math.inf), (3,)),
    )


def check_metric(folder: Path, case: tuple[str, Any, Any, Any]) -> None:
    name, scores, targets, counts = case
    before = repr((scores, targets, counts))
    found = answer(lambda: FUNCTIONS[name](scores, targets, counts))
    assert repr((scores, targets, counts)) == before, "an argument was changed"
    if found is not None and name in ("ap", "evaluate"):
        values = np.asarray(scores, float)
        assert np.isfinite(values).all()
        wanted = [slow_ap(*column) for column in zip(values.T, np.asarray(targets).T, strict=True)]
        np.testing.assert_allclose(found if name == "ap" else found.per_class / 100, wanted, rtol=0, atol=1e-12)


def slow_ap(scores: Any, targets: Any) -> float:
    """Average precision from its definition: at each positive, the share of positives among what scores as high."""
    ranks = [
        [bool(t) for s, t in zip(scores, targets, strict=True) if s >= at]
        for at, y in zip(scores, targets, strict=True)
        if y
    ]
    return sum(sum(above) / len(above) for above in ranks) / len(ranks) if ranks else math.nan


LOGITS = (*ORDINARY, 10.0, -10.0, 1e4, -1e4, math.nan, math.inf)


def loss_cases() -> st.SearchStrategy[Any]:
    constants = st.dictionaries(
        one_of(
            ("tau", "beta", "mu", "kappa", "lam", "gamma", "pos_scale", "nu", "denominator", "weights", "focal", "x")
        ),
        VALUES,
        max_size=2,
    )
    return st.tuples(
        one_of((*losses.LOSSES, "x")),
        arrays(LOGITS, (4, 3)),
        arrays(BINARY, (4, 3)),
        arrays((0.0, 5.0, 20.0, -1.0, math.nan, 0.5), (3,)),
        st.sampled_from((100, 30, 2, 1, 0, -1)),
        constants | st.just({}),
    )


def tensor(value: Any) -> Any:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):  # what no tensor can be made of, nobody can pass on
        return torch.zeros(4, 3)


def check_loss(folder: Path, case: Any) -> None:
    name, scores, labels, counts, n_train, constants = case
    logits, targets = tensor(scores), tensor(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = answer(lambda: losses.build_loss(name, counts, n_train, **constants))
        loss = answer(lambda: built(logits, targets)) if built is not None else None
    if loss is not None:
        assert loss.shape == ()
        assert torch.promote_types(loss.dtype, torch.float32) == loss.dtype
        if not constants and bool(torch.isfinite(logits).all()):
            assert bool(torch.isfinite(loss)), "no finite loss of finite logits"


TARGETS = [
    Target(
        "recipe",
        st.tuples(
            one_of((*RECIPES, *RECIPES, "x", None, 1, [])),
            st.sampled_from((None, None, "scenes-lt", "coco-lt", 5, "")),
            overrides(RECIPE_FIELDS),
        ),
        check_recipe,
        examples=[
            ([], None, {}),
            ("scenes", 5, {}),
            ("scenes", None, {"stage1.loss.beta": 10**400}),
            ("scenes", None, {"template": "{}{}"}),
        ],
        share=60,
        nightly=1500,
    ),
    Target(
        "few-shot recipe",
        st.tuples(
            one_of((*FEWSHOT_RECIPES, "x", [])),
            st.sampled_from((None, "voc2007", "x", 1)),
            overrides(field_names(get_fewshot("fewshot")) + RECIPE_FIELDS),
        ),
        check_fewshot,
    ),
    Target(
        "-p NAME=VALUE",
        st.tuples(
            st.sampled_from(("03", "05", "08")),
            st.lists(
                st.tuples(one_of((*PARAMETERS, *RECIPE_FIELDS, *NAMES)), one_of(WORDS) | st.text(max_size=4)),
                max_size=3,
            ),
        ),
        check_command,
    ),
    Target("sweep grid", grids(), check_grid),
    Target(
        "metrics",
        metric_cases(),
        check_metric,
        examples=[("reliability", [[1j]], [[1.0]], [5.0])],
        share=60,
        nightly=1500,
    ),
    Target(
        "losses",
        loss_cases(),
        check_loss,
        examples=[
            ("db", np.zeros((4, 3)), np.zeros((4, 3), complex), [5, 5, 5], 100, {}),
            ("db", np.zeros((4, 3)), np.zeros((4, 3)), [True, True, False], 100, {}),
            ("db", np.zeros((4, 3)), np.zeros((4, 3)), [5, 5, 5], 100, {"mu": "x"}),
        ],
        share=40,
        nightly=1000,
    ),
]


@parametrize(TARGETS)
def test_fuzz(target: Target, nightly: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: Faults) -> None:
    fuzz(target, nightly, tmp_path, monkeypatch, faults)
