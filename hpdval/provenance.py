"""Where a result comes from: code, packages and hardware, as manifests record them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import hpdval

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "scikit-learn", "pillow", "safetensors")


def code_state() -> dict[str, Any]:
    """Return version, commit and dirty flag of the code; the last two are None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    state: dict[str, Any] = {"version": hpdval.__version__, "commit": None, "dirty": None}
    if not (root / ".git").exists():
        return state
    try:
        git = ["git", "-C", str(root)]
        state["commit"] = (
            subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip() or None
        )
        changed = subprocess.run([*git, "status", "--porcelain", "--", "hpdval"], capture_output=True, text=True).stdout
        state["dirty"] = bool(changed.strip())
    except OSError:  # no git on this machine
        pass
    return state


def hardware() -> dict[str, Any]:
    """Return processor, cores, processes that worked together, and the CUDA device if torch is loaded and sees one."""
    torch = sys.modules.get("torch")
    cuda = torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None
    threads = torch.get_num_threads() if torch is not None else None
    return {
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": threads,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),  # as torchrun says
        "cuda": cuda,
    }


def packages() -> dict[str, str | None]:
    """Return the versions of the packages that results depend on; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
