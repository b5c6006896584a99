"""Losses against values, elements and gradients of the public reference code (../shared/golden, README section 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpdval.losses import LOSSES
from hpdval.losses.distribution_balanced import rebalance_weight

pytestmark = pytest.mark.shared
FILES = {
    "losses_voc": ("raw", "unit"),
    "losses_coco": ("raw", "unit"),
    "losses_edge_voc": ("edge",),
    "losses_edge_coco": ("edge",),
}

DB, NTR, NO_NTR = ("tau", "beta", "mu", "kappa", "lam"), ("kappa", "lam"), {"kappa": 0.0, "lam": 1.0}
DB_NO_NTR = ("tau", "beta", "mu")

# variant of the reference -> (our name, constants taken from the file, constants given)
VARIANTS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "db_focal": ("db_focal", DB, {}),
    "db_nofocal": ("db", DB, {}),
    "r_focal": ("db_focal", DB_NO_NTR, NO_NTR),
    "fl": ("focal", (), {}),
    "focalloss_module": ("focal", (), {"balance": 0.25}),
    "bce": ("bce", (), {}),
    "mls": ("multilabel_soft_margin", (), {}),
    "cb_focal": ("cb_focal", (), NO_NTR),
    "cb_ntr_focal": ("cb_focal", NTR, {}),
    "rw_inv_focal": ("cb_focal", (), {"weighting": "inverse", "scale": 1.0, **NO_NTR}),
    "rw_sqrtinv_focal": ("cb_focal", (), {"weighting": "inverse_sqrt", "scale": 1.0, **NO_NTR}),
    "rel_db_focal": ("db_focal", DB, {"focal": "scalar"}),
    "rel_db_nofocal": ("db", DB, {}),
    "rel_cb_ntr_focal": ("cb_focal", NTR, {"focal": "scalar"}),
    "rel_fl": ("focal", (), {"focal": "scalar"}),
    "hpdval_dbl_pos": ("db_focal", (*DB, "pos_scale"), {"focal": "scalar"}),
    "bl_db_focal": ("db_focal", DB, {"nu": "printed", "balance": 0.5}),
    "asl_mean": ("asl", (), {}),
    "asl_mean_nogradw": ("asl", (), {"detach_focal": True}),
    "asl_mean_gpos1": ("asl", (), {"gamma_pos": 1.0}),
    "asl_sum": ("asl", (), {"reduction": "sum"}),
    "asl_sum_nogradw": ("asl", (), {"reduction": "sum", "detach_focal": True}),
    "aslopt_sum": ("asl", (), {"reduction": "sum"}),
    "aslopt_sum_nogradw": ("asl", (), {"reduction": "sum", "detach_focal": True}),
    "paper_db_all": ("db", DB, {"nu": "printed", "denominator": "all"}),
    "paper_db_pos": ("db", DB, {"nu": "printed"}),
    "paper_dbstar_all": ("db_star", DB, {"denominator": "all"}),
    "paper_dbstar_pos": ("db_star", DB, {}),
}
# Quirks of other code, optional by the README.
NOT_WANTED = {"cb_avgw_ntr_focal", "cb_avgn_ntr_focal", "cb_minn_ntr_focal", "bl_ntr_focal"}


class Golden:
    """One file: its labels, counts and constants, and our loss under the file's constants."""

    def __init__(self, folder: Path, name: str) -> None:
        self.arrays = np.load(folder / f"{name}.npz", allow_pickle=False)
        self.counts, self.n = self.arrays["class_counts"], int(self.arrays["n_train"])
        self.targets = torch.from_numpy(self.arrays["labels"])
        names = {"tau": "alpha_tau", "mu": "gamma_mu", "kappa": "kappa_init_bias", "lam": "lambda_neg_scale"}
        self.constants = {key: float(self.arrays[f"const_{names.get(key, key)}"]) for key in (*DB, "pos_scale")}

    def compute(self, variant: str, kind: str, dtype: torch.dtype, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (or elements) and gradient of the loss of our implementation."""
        name, keys, given = VARIANTS[variant]
        constants = {key: self.constants[key] for key in keys} | given | changes
        logits = torch.from_numpy(self.arrays[f"{kind}__logits"]).to(dtype).requires_grad_()
        counts = () if name in ("focal", "bce", "multilabel_soft_margin", "asl") else (self.counts, self.n)
        loss = LOSSES[name](logits, self.targets, *counts, **constants)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        return loss.detach(), gradient


@pytest.fixture(scope="module", params=FILES)
def file(request: pytest.FixtureRequest, golden: Path) -> tuple[Golden, tuple[str, ...]]:
    return Golden(golden, request.param), FILES[request.param]


def test_every_variant_of_the_files_is_known(file: tuple[Golden, tuple[str, ...]]) -> None:
    variants = {key.split("__")[1] for key in file[0].arrays.files if key.count("__") == 2}
    assert variants - NOT_WANTED == set(VARIANTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64(file: tuple[Golden, tuple[str, ...]], variant: str) -> None:
    ours, kinds = file
    for kind in kinds:
        stored = {k.split("__")[2]: ours.arrays[k] for k in ours.arrays.files if k.startswith(f"{kind}__{variant}__")}
        loss, gradient = ours.compute(variant, kind, torch.float64)
        np.testing.assert_allclose(loss, stored["loss"], rtol=1e-9)
        np.testing.assert_allclose(gradient, stored["grad"], rtol=1e-9, atol=1e-14 * np.abs(stored["grad"]).max())
        if "elem" in stored:
            elements, _ = ours.compute(variant, kind, torch.float64, reduction="none")
            np.testing.assert_allclose(elements, stored["elem"], rtol=1e-9, atol=1e-14 * np.abs(stored["elem"]).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32(file: tuple[Golden, tuple[str, ...]], variant: str) -> None:
    ours, kinds = file
    for kind in kinds:
        loss, gradient = ours.compute(variant, kind, torch.float32)
        expected = ours.arrays[f"{kind}__{variant}__grad"]
        np.testing.assert_allclose(loss, ours.arrays[f"{kind}__{variant}__loss"], rtol=1e-5)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        if f"{kind}__{variant}__loss_f32" in ours.arrays:
            np.testing.assert_allclose(loss, ours.arrays[f"{kind}__{variant}__loss_f32"], rtol=2e-5)


@pytest.mark.parametrize("denominator", ["all", "positives"])
def test_rebalance_weight(file: tuple[Golden, tuple[str, ...]], denominator: str) -> None:
    ours, kinds = file
    constants = {key: ours.constants[key] for key in DB_NO_NTR}
    counts = torch.from_numpy(ours.counts).double()
    weight = rebalance_weight(ours.targets > 0, counts, denominator=denominator, **constants)
    for kind in kinds:
        np.testing.assert_allclose(weight, ours.arrays[f"{kind}__paper_db_{denominator[:3]}__r"], rtol=1e-9)
