"""Learnable prompts: what classes share encoded once, against every prompt by itself at 77 tokens.

One measurement is what a step of stage 2 asks of the text tower: features of two sets of four context vectors, and the
gradient in them.  The tower has the size of ViT-B/16's and random weights; speed does not depend on what they are.

    python benchmarks/text_encoding.py --threads 1
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import open_clip
import torch
from torch import Tensor, nn

from hpdval.data.voc import CLASSES as VOC
from hpdval.files import atomic_write
from hpdval.models.text import prompt_slots, text_features, text_path, tokenise

TOKENS, WIDTH, LENGTH, VOCABULARY = 4, 512, 77, 49408
PART = {"cpu": 40, "cuda": 1000}  # classes that the plain way takes at a time; 1,000 would need 30 GB for a set
COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog,
pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell
phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
COLOURS = "red orange yellow green blue purple brown black white grey golden silver pale dark bright"
KINDS = "wooden plastic metal glass woollen leather stone paper small large old new striped spotted round"
THINGS = """
dog cat horse sheep cow bird boat bus car train chair sofa table bottle lamp clock vase book cup bowl kettle bridge
tower garden fountain lighthouse umbrella suitcase keyboard telephone guitar piano violin trumpet basket ladder hammer
scissors
"""
ENDINGS = "house shop toy picture"


class Timed(NamedTuple):
    """Seconds of one measurement by the clock and of this process's CPU time, and what it gave."""

    wall: float
    cpu: float
    features: Tensor
    gradient: Tensor


def class_list(count: int) -> list[str]:
    """Return VOC's 20 names, COCO's 80, or as many names of two to four words, each once."""
    if count == len(VOC):
        return list(VOC)
    coco = re.split(r",\s+", COCO.strip())
    if count == len(coco):
        return coco
    colours, kinds, things, endings = (words.split() for words in (COLOURS, KINDS, THINGS, ENDINGS))
    parts = (colours, things), (colours, kinds, things), (colours, kinds, things, endings)
    made = [[" ".join(words) for words in itertools.product(*part)] for part in parts]
    sizes = (count + 2) // 3, (count + 1) // 3, count // 3
    return [name for names, k in zip(made, sizes, strict=True) for name in random.Random(0).sample(names, k)]


def tower(device: str) -> nn.Module:
    """Return an open_clip CLIP with ViT-B/16's text tower, random and frozen, and next to no image tower."""
    torch.manual_seed(0)
    vision = {"layers": 1, "width": 64, "head_width": 64, "image_size": 32, "patch_size": 16}
    text = {"context_length": LENGTH, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 8, "layers": 12}
    return open_clip.CLIP(512, vision, text).requires_grad_(False).eval().to(device)


def measure(model: nn.Module, ids: Tensor, contexts: Tensor, start: int, cotangent: Tensor, plain: bool) -> Timed:
    """Time features (S, C, D) and the gradient (S, M, W) of their product with a cotangent.

    The plain way goes through the classes in parts, one set after the other; the gradient is the sum of theirs.
    """
    part = PART[contexts.device.type] if plain else len(ids)
    wait = torch.cuda.synchronize if contexts.is_cuda else lambda: None
    features, gradient = [], torch.zeros_like(contexts)
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(0, len(ids), part):
        for chosen in [slice(0, 1), slice(1, 2)] if plain else [slice(0, 2)]:
            given = contexts[chosen].detach().requires_grad_()
            found = text_features(model, ids[i : i + part], context=given, start=start, plain=plain)
            gradient[chosen] += torch.autograd.grad((found * cotangent[chosen, i : i + part]).sum(), given)[0]
            features.append(found.detach())
    wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    sets = [torch.cat(features[k::2]) if plain else features[0][k][None] for k in range(2)]
    return Timed(wall, cpu, torch.cat([one.reshape(1, len(ids), -1) for one in sets]), gradient)


def compare(model: nn.Module, count: int, repeats: int, most: int, device: str) -> list[str]:
    """Return a row of the table: both ways, measured alternately ``repeats`` times.

    The plain way gets at most ``most`` of the classes, and its time is scaled: every prompt costs it the same.
    """
    tokenizer = open_clip.SimpleTokenizer(context_length=LENGTH)
    words, start, _ = prompt_slots(tokenizer, TOKENS)
    ids = tokenise(tokenizer, [f"{words} {name}." for name in class_list(count)], LENGTH, VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    contexts = 0.02 * torch.randn(2, TOKENS, WIDTH, generator=generator).to(device)
    cotangent = torch.randn(2, count, 512, generator=generator).to(device)
    some = min(most, count)
    cotangent[:, some:] = 0  # so that both give the same gradient
    for plain in (True, False):
        measure(model, ids[:20], contexts, start, cotangent[:, :20], plain)  # warm-up
    pairs = []
    for repeat in range(repeats):
        found = {}
        for plain in (True, False) if repeat % 2 == 0 else (False, True):
            given = (ids[:some], contexts, start, cotangent[:, :some]) if plain else (ids, contexts, start, cotangent)
            found[plain] = measure(model, *given, plain)
            print(f"C = {count}, {'plain' if plain else 'shared prefix'}: {found[plain].wall:.3f} s", file=sys.stderr)
        slow, scale = found[True], count / some
        pairs.append((slow._replace(wall=slow.wall * scale, cpu=slow.cpu * scale), found[False]))
    wall, cpu = ([getattr(slow, kind) / getattr(fast, kind) for slow, fast in pairs] for kind in ("wall", "cpu"))
    return [
        str(count),
        str(int((ids > 0).sum(dim=1).max())),
        f"{median(slow.wall for slow, _ in pairs):.3f}" + (f" (from {some} classes)" if some < count else ""),
        f"{median(fast.wall for _, fast in pairs):.3f}",
        f"{median(wall):.1f} ({min(wall):.1f} to {max(wall):.1f})",
        f"{median(cpu):.1f} ({min(cpu):.1f} to {max(cpu):.1f})",
        str(repeats),
        f"{max(difference(slow, fast) for slow, fast in pairs):.0e}",
    ]


def difference(a: Timed, b: Timed) -> float:
    """Return the largest difference of features and of gradients, relative to their largest entry."""
    pairs = (a.features, b.features[:, : a.features.shape[1]]), (a.gradient, b.gradient)
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in pairs)


def processor() -> str:
    """Return the name of the processor."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def report(rows: Sequence[Sequence[str]], options: argparse.Namespace, load: str) -> str:
    """Return the Markdown page."""
    head = [
        "C",
        "longest prompt",
        "plain, s",
        "shared prefix, s",
        "ratio",
        "ratio of CPU time",
        "repeats",
        "difference",
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
    on = torch.cuda.get_device_name() if options.device == "cuda" else f"{processor()}, {os.cpu_count()} cores"
    command = " ".join(["python benchmarks/text_encoding.py", *options.arguments])
    return f"""# Text encoding

Forward and backward in the contexts of two sets of {TOKENS} context vectors for C classes, through a text tower of
ViT-B/16's size (12 layers, width 512, 8 heads; random weights, float32). Plain: every prompt by itself at {LENGTH}
tokens, one set after the other. Shared prefix: what `hpdval` does. They are measured in turn, in alternating order.
A ratio is the median over these pairs (least to largest), by the clock and by CPU time, which other programs on the
machine hardly change. The difference is the largest of features and gradients, relative to their largest entry.

{table}

C = 20 are VOC's classes, C = 80 COCO's, others are made of two to four words. The plain way takes
{PART[options.device]} classes at a time: what 1,000 would keep for the gradient does not fit into memory.
Where it was timed with only some of the classes, its time is scaled: {LENGTH} tokens cost the same whatever they say.

- Hardware: {on}; torch threads: {torch.get_num_threads()}; load average before and after: {load}
- torch {torch.__version__}, open_clip {open_clip.__version__}, Python {platform.python_version()}
- {time.strftime("%Y-%m-%d")}, `{command}`
"""


def main(arguments: Sequence[str]) -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--classes", type=int, nargs="+", default=[20, 80, 1000], help="how many classes, each measured"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--repeats", type=int, nargs="+", default=[5], help="pairs: one number, or one for each C")
    parser.add_argument("--plain-classes", type=int, default=1000, help="time the plain way with at most so many")
    parser.add_argument("--device", choices=sorted(PART), default="cpu")
    parser.add_argument("--out", type=Path, default=Path("reports/benchmarks"), help="folder of text_encoding.md")
    parser.add_argument("--quick", action="store_true", help="a smoke test: three classes, once")
    options = parser.parse_args(arguments)
    options.arguments = arguments
    if options.quick:
        options.classes, options.repeats = [3], [1]
    torch.set_num_threads(options.threads)
    before = f"{os.getloadavg()[0]:.1f}"
    model = tower(options.device)
    assert text_path(model) == "shared prefix"
    repeats = options.repeats if len(options.repeats) > 1 else options.repeats * len(options.classes)
    most, device = options.plain_classes, options.device
    rows = [compare(model, count, n, most, device) for count, n in zip(options.classes, repeats, strict=True)]
    page = report(rows, options, f"{before}, {os.getloadavg()[0]:.1f}")
    with atomic_write(options.out / "text_encoding.md", "w") as file:
        file.write(page)
    print(page)


if __name__ == "__main__":
    main(sys.argv[1:])
