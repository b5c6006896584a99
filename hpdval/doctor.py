"""``hpdval doctor``: what is installed, which device, caches and weights, and how to get what is missing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import hpdval
from hpdval import assets
from hpdval.files import cache_dir, sha256_file
from hpdval.notebook_parameters import notebooks_dir

PACKAGES = ("torch", "torchvision", "open_clip_torch", "safetensors", "numpy", "scikit-learn", "pillow", "matplotlib")
NOTEBOOK_PACKAGES = ("papermill", "ipykernel", "jupyterlab", "nbval")
# what the recipes for photographs ask for
WEIGHTS = {"ViT-B-16-quickgelu (openai)": "timm/vit_base_patch16_clip_224.openai"}
GIB, MIB = 2**30, 2**20


def examine() -> str:
    """Return the report as text; what is missing comes with how to get it."""
    sections = {"software": software(), "device": device(), "files": files(), "weights": weights()}
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items())


def software() -> Iterator[str]:
    """Yield versions of this package, Python and what it stands on."""
    yield f"hpdval {hpdval.__version__} in {Path(hpdval.__file__).parent}"
    yield f"Python {platform.python_version()} ({sys.executable}) on {platform.platform()}"
    found, missing = [], []
    for name in (*PACKAGES, *NOTEBOOK_PACKAGES):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    yield ", ".join(found)
    if missing:
        yield f"missing: {', '.join(missing)}; get them with: make setup, or pip install 'hpdval[test]'"


def device() -> Iterator[str]:
    """Yield the processor, its bfloat16 instructions, and the GPU if torch sees one."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of CUDA is missing or damaged
        yield f"torch cannot be imported ({error}); repair it with: make setup, or pip install --force-reinstall torch"
        return
    flags = _cpu_flags()
    bf16 = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if name in flags]
    yield f"{os.cpu_count()} CPU cores, torch uses {torch.get_num_threads()} threads"
    yield f"bfloat16 instructions: {', '.join(bf16) or 'none found (float32 is faster on this CPU)'}"
    if bf16:
        yield "faster here where bits need not repeat: -p stage1.precision=pure-bfloat16 (reports/benchmarks)"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        native = "with" if torch.cuda.is_bf16_supported() else "without"
        memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        yield f"CUDA: {torch.cuda.get_device_name()}, {memory}, {native} bfloat16"
    else:
        yield f"no CUDA device (torch built for {torch.version.cuda or 'CPU only'}); everything runs on the CPU"


def _cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}


def files() -> Iterator[str]:
    """Yield notebooks and caches with their sizes."""
    count = len(list(notebooks_dir().glob("*.ipynb")))
    yield f"notebooks: {count} in {notebooks_dir()}" + ("" if count else " (none: the installation is incomplete)")
    yield f"cache: {_size(cache_dir())}; set HPDVAL_CACHE to move it, delete it whenever you like"
    yield f"downloads of the Hugging Face hub: {_size(_hub())}; set HF_HOME to move them"


def weights() -> Iterator[str]:
    """Yield which weights are here, and how to get the others."""
    shipped = assets.asset_path("scenes_clip.safetensors")
    if not shipped.is_file():
        yield "scenes: missing from the installation; reinstall hpdval"
    elif sha256_file(shipped) != assets.SCENES_CLIP_SHA256:
        yield f"scenes: {shipped} is damaged (its sha256 is not the pinned one); reinstall hpdval"
    else:
        yield f"scenes: shipped, {shipped.stat().st_size / MIB:.1f} MiB"
    for name, repository in WEIGHTS.items():
        folder = _hub() / f"models--{repository.replace('/', '--')}"
        if any(folder.glob("snapshots/*/*.safetensors")):
            yield f"{name}: in the hub's cache"
        else:
            yield f"{name}: not here; fetched on first use, or by: hf download {repository}"
    yield "OpenAI's ViT-B-32.pt, ViT-B-16.pt, ViT-L-14.pt, ViT-L-14-336px.pt: known by sha256 wherever they lie"
    yield "any other: give a local file or folder as `pretrained`; nothing is downloaded then"


def _hub() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _size(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} (empty)"
    count = total = 0
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            count, total = count + 1, total + path.stat().st_size
    return f"{folder} ({count} files, {total / MIB:.0f} MiB)"
