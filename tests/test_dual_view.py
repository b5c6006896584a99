"""Dual-view scores against slow loops written from the formulas, and against the reference code's numbers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import hpdval.models.dual_view as dual_view
from hpdval.errors import ConfigError
from hpdval.models.dual_view import LogitScale, dual_view_scores, fuse, global_scores, local_scores
from hpdval.models.numeric import resolve_device

B, P, C, D = 3, 7, 5, 8


def random_features(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, D), (B, P, D), (C, D), (C, D))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def slow_scores(
    cls: NDArray[np.float64],
    patches: NDArray[np.float64],
    text_global: NDArray[np.float64],
    text_local: NDArray[np.float64],
    alpha: float,
    k: int,
    reading: str,
) -> NDArray[np.float64]:
    """One image and one class at a time."""

    def similarity(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        dot = float(sum(x * y for x, y in zip(a, b, strict=True)))
        return dot / float(np.sqrt(sum(a * a)) * np.sqrt(sum(b * b))) if reading == "paper" else dot

    s_global, s_local = np.zeros((B, C)), np.zeros((B, C))
    for b in range(B):
        for c in range(C):
            s_global[b, c] = similarity(cls[b], text_global[c])
            s_local[b, c] = np.mean(sorted(similarity(patches[b, p], text_local[c]) for p in range(P))[-k:])
        if reading == "released":
            s_global[b] /= np.sqrt(sum(s_global[b] ** 2))
            s_local[b] /= np.sqrt(sum(s_local[b] ** 2))
    return alpha * s_global + (1 - alpha) * s_local if reading == "paper" else alpha * s_local + (1 - alpha) * s_global


@pytest.mark.parametrize("reading", ["paper", "released"])
@pytest.mark.parametrize(("alpha", "k"), [(0.4, 3), (0.0, 1), (1.0, P)])
def test_equals_a_slow_loop(reading: str, alpha: float, k: int) -> None:
    features = random_features()
    expected = slow_scores(*(x.numpy() for x in features), alpha=alpha, k=k, reading=reading)  # type: ignore[arg-type]
    np.testing.assert_allclose(dual_view_scores(*features, alpha=alpha, k=k, reading=reading), expected, atol=1e-12)


@pytest.mark.parametrize("reading", ["paper", "released"])
def test_no_image_has_no_scores(reading: str) -> None:
    cls, patches, text, _ = random_features()
    assert dual_view_scores(cls[:0], patches[:0], text, k=2, reading=reading).shape == (0, C)


@pytest.mark.parametrize(
    ("seen", "asked", "words"), [(0, "cuda", "sees no CUDA"), (2, "cuda:9", "sees 2 CUDA"), (2, "abacus", "'auto'")]
)
def test_a_device_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, seen: int, asked: str, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    with pytest.raises(ConfigError, match=words):
        resolve_device(asked)
    assert resolve_device("auto").type == ("cuda" if seen else "cpu")
    assert seen == 0 or resolve_device("cuda:1") == torch.device("cuda", 1)


def test_one_text_serves_both_views() -> None:
    cls, patches, text, _ = random_features()
    assert torch.equal(dual_view_scores(cls, patches, text, k=2), dual_view_scores(cls, patches, text, text, k=2))


@pytest.mark.parametrize("reading", ["paper", "released"])
def test_gradients_equal_finite_differences(reading: str) -> None:
    features = [x.requires_grad_() for x in random_features()]
    assert torch.autograd.gradcheck(lambda *x: dual_view_scores(*x, k=3, reading=reading), features)


# -- the reference code's numbers ------------------------------------------------------------------------------------


def close_to_golden(value: torch.Tensor, expected: NDArray[np.floating], relative: float = 1e-5) -> None:
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=0, atol=relative * float(np.abs(expected).max()))


@pytest.fixture(scope="module")
def vectors(golden: Path) -> dict[str, NDArray[np.floating]]:
    with np.load(golden / "dualview.npz") as file:
        return dict(file)


CASES = [("paper", f"paper_a{a}", a) for a in (0.0, 0.4, 1.0)] + [("released", f"rel_r{a}", a) for a in (0.4, 0.5)]


@pytest.mark.shared
@pytest.mark.parametrize(("reading", "key", "alpha"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_golden_scores_and_gradients(
    vectors: dict[str, NDArray[np.floating]], reading: str, key: str, alpha: float, dtype: torch.dtype, tolerance: float
) -> None:
    cls, patches, text, text2 = (
        torch.from_numpy(vectors[name]).to(dtype) for name in ("f_cls", "f_patch", "text", "text2")
    )
    cotangent = torch.from_numpy(vectors["cotangent"]).to(dtype)
    options = {"alpha": alpha, "k": int(vectors["k"]), "reading": reading}

    text.requires_grad_()
    scores = dual_view_scores(cls, patches, text, **options)  # type: ignore[arg-type]
    assert scores.dtype == dtype
    close_to_golden(scores, vectors[f"{key}__score"], tolerance)
    (gradient,) = torch.autograd.grad((scores * cotangent).sum(), text)
    close_to_golden(gradient, vectors[f"{key}__grad_text"], 1e-5)  # stored as float32

    # the paper gives `text` to the global view, the released prompt model to the local one
    text2.requires_grad_()
    texts = (text, text2) if reading == "paper" else (text2, text)
    names = ("grad_textG", "grad_textL") if reading == "paper" else ("grad_text2_global", "grad_text_local")
    scores = dual_view_scores(cls, patches, *texts, **options)  # type: ignore[arg-type]
    close_to_golden(scores, vectors[f"{key}__score_two"], tolerance)
    for gradient, name in zip(torch.autograd.grad((scores * cotangent).sum(), texts), names, strict=True):
        close_to_golden(gradient, vectors[f"{key}__{name}"], 1e-5)


@pytest.mark.shared
def test_golden_parts(vectors: dict[str, NDArray[np.floating]]) -> None:
    cls, patches, text = (torch.from_numpy(vectors[name]).double() for name in ("f_cls", "f_patch", "text"))
    raw = fuse(local_scores(patches, text, 32), global_scores(cls, text), 0.4)  # the released code without its norm
    close_to_golden(raw, vectors["rel_nonorm_r0.4__score"], 1e-9)
    unit = torch.nn.functional.normalize
    close_to_golden(global_scores(unit(cls), unit(text)), vectors["paper__global_cos"], 1e-9)
    local = local_scores(unit(patches, dim=-1), unit(text), 32)
    close_to_golden(local, vectors["paper__topk_local_cos"], 1e-9)


# -- options and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [(3 / P, 3), (1.0, P), (1e-6, 1), (0.35, 2)])
def test_k_as_a_share_of_the_patches(share: float, count: int) -> None:
    features = random_features()
    assert torch.equal(dual_view_scores(*features, k=share), dual_view_scores(*features, k=count))


def test_half_precision_features_give_float32_scores() -> None:
    features = random_features(torch.bfloat16)
    expected = dual_view_scores(*(x.float() for x in features), k=3)
    assert dual_view_scores(*features, k=3).dtype == torch.float32
    assert torch.equal(dual_view_scores(*features, k=3), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dual_view_scores(*features, k=3), expected)


def test_classes_in_chunks_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_features()
    whole = dual_view_scores(*features, k=3)
    monkeypatch.setattr(dual_view, "CHUNK", 2 * B * P)  # two classes at once, of five
    torch.testing.assert_close(dual_view_scores(*features, k=3), whole, rtol=0, atol=1e-15)


TEN_THOUSAND = """
import re, torch
from pathlib import Path
from hpdval.models.dual_view import dual_view_scores

def mib(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

inputs = [torch.randn(shape) for shape in ((64, 32), (64, 196, 32), (10_000, 32))]
before = mib("VmRSS")
with torch.no_grad():
    dual_view_scores(*inputs)
forward = mib("VmHWM")
inputs = [x[:32].clone().requires_grad_() for x in inputs[:2]] + [inputs[2].requires_grad_()]
dual_view_scores(*inputs).sum().backward()
print(forward - before, mib("VmHWM") - before, mib("VmHWM"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak of a process's memory")
def test_ten_thousand_classes_fit_in_two_gib() -> None:
    """All similarities of 64 images would take 479 MiB, and more while the best are chosen; those of 32 images 239
    MiB, and their gradients as much.
    """
    out = subprocess.run([sys.executable, "-c", TEN_THOUSAND], capture_output=True, text=True, check=True).stdout
    forward, with_backward, in_all = map(float, out.split())
    assert forward < 250
    assert with_backward < 400
    assert in_all < 2048


def test_nan_in_features_shows_in_the_scores() -> None:
    cls, patches, text, _ = random_features()
    patches[1, 2, 3] = torch.nan
    bad = dual_view_scores(cls, patches, text, k=3).isnan()
    assert bad[1].all()
    assert not bad[[0, 2]].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 8}, "k is 8 of 7 patches"),
        ({"k": 0}, "k is 0"),
        ({"k": 1.5}, "k is 1.5"),
        ({"k": float("nan")}, "k is nan"),
        ({"k": True}, "k is True"),
        ({"alpha": 1.1}, r"alpha is 1.1.*\[0, 1\]"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": "0.4"}, "alpha is '0.4'"),
        ({"reading": "ours"}, "reading is 'ours'; use one of paper, released"),
    ],
)
def test_options_out_of_range_are_errors(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        dual_view_scores(*random_features(), **{"k": 3, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", range(4))
def test_shapes_that_do_not_fit_are_errors(broken: int) -> None:
    features = list(random_features())
    features[broken] = features[broken][..., :-1]
    with pytest.raises(ConfigError, match=r"must be \(B, D\), \(B, P, D\), \(C, D\)"):
        dual_view_scores(*features, k=3)
    features[broken] = features[broken][0]
    with pytest.raises(ConfigError, match="must be"):
        dual_view_scores(*features, k=3)


def test_logit_scale_starts_at_twenty_and_stays_positive() -> None:
    objective = LogitScale()
    scores = torch.tensor([-1.0, 0.0, 0.25])
    torch.testing.assert_close(objective(scores), 20 * scores)
    optimiser = torch.optim.SGD(objective.parameters(), lr=100.0)
    objective(torch.ones(1)).sum().backward()  # a step that would take a plain factor far below 0
    optimiser.step()
    assert objective(torch.ones(1)) - objective(torch.zeros(1)) >= 0
    assert objective.bias.item() == -100
