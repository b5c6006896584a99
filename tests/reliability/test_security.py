"""What others wrote is read and never run: pickles at every door, names in every output, no network, no way out."""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import test_data_download
import test_data_extract
import test_gallery
import test_report
import torch
from conftest import ROOT
from faults import Faults
from fuzz import check_line
from PIL import Image
from test_clip_load import _Payload
from toys import CLASSES, TINY, coloured, coloured_set, recipe

import hpdval
from hpdval import cli, plots, tables
from hpdval.data.dataset import Dataset
from hpdval.data.decode import decode
from hpdval.data.prepare.extract import extract
from hpdval.errors import DataError, HpdvalError
from hpdval.files import write_json
from hpdval.lab import markup
from hpdval.lab.live.page import details, heading
from hpdval.lab.start import explore
from hpdval.metrics.localisation import Localisation
from hpdval.models import Clip, load_clip
from hpdval.models.backbone import make_backbone
from hpdval.models.cnn import load_cnn
from hpdval.models.semantic import word_vectors
from hpdval.models.student import make_student
from hpdval.plots import figure_bytes
from hpdval.report import build_report
from hpdval.run import Run, read_manifest, read_predictions
from hpdval.scoring import load_run, zero_shot_scorer
from hpdval.training.stage1 import train_stage1

pytestmark = pytest.mark.fault

PICKLE = "malicious pickle"
REFUSED = "refused in one line, did not run"

# -- no line of the package can load a pickle or run a text ------------------------------------------------------------

ALWAYS = {  # calls that run what a file holds, whatever their arguments
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "dill.load",
        "dill.loads",
        "cloudpickle.load",
        "cloudpickle.loads",
    ),
    *("joblib.load", "shelve.open", "marshal.load", "marshal.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("pd.read_pickle", "pandas.read_pickle", "torch.hub.load", "torch.hub.load_state_dict_from_url", "eval", "exec"),
    *("os.system", "os.popen", "__import__", "torch.jit.load", "tarfile.extractall", "shutil.unpack_archive"),
}
NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
FORBIDDEN = {"shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True}
ONLY_HERE = {("models/weights.py", "torch.jit.load")}  # of an archive whose bytes have the pinned sha256


def dangers(source: str) -> Iterator[str]:
    """Calls in a source text that could run what they read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        word, value = NEEDED.get(name, ("", None))
        forbidden = any(given.get(each) is setting for each, setting in FORBIDDEN.items())
        extracts = name.endswith((".extractall", ".extract")) and name != "extract"
        if name in ALWAYS or forbidden or extracts or (word and given.get(word) is not value):
            yield name


@pytest.mark.parametrize("path", sorted((ROOT / "hpdval").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_line_loads_a_pickle_or_runs_a_text(path: Path) -> None:
    place = path.relative_to(ROOT / "hpdval").as_posix()
    assert {name for name in dangers(path.read_text()) if (place, name) not in ONLY_HERE} == set()


@pytest.mark.parametrize(
    "line",
    [
        *(
            "pickle.load(file)",
            "torch.load(path)",
            "torch.load(path, weights_only=False)",
            "np.load(path)",
            "eval(text)",
        ),
        *(
            "np.load(path, allow_pickle=True)",
            "yaml.load(file)",
            "subprocess.run(line, shell=True)",
            "archive.extractall()",
        ),
        *("torch.load(path, weights_only=flag)", "np.load(path, allow_pickle=1)", "pd.read_pickle(path)", "exec(text)"),
    ],
)
def test_such_a_line_would_be_found(line: str) -> None:
    assert list(dangers(line))


# -- a pickle through every door ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours() -> Dataset:
    return coloured_set(12, 8)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def clip(config: Path) -> Clip:
    return load_clip(config, seed=0)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, config: Path) -> list[str]:
    """Data of one's own, and the words of a short training on them."""
    folder = tmp_path_factory.mktemp("own")
    split = coloured(20, 3)
    rows = []
    for i, row in enumerate(split.targets):
        Image.fromarray(split.image(i)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{';'.join(name for name, has in zip(CLASSES, row, strict=True) if has)}")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    for name, part in (("train", rows[:12]), ("test", rows[12:])):
        (folder / f"{name}.csv").write_text("\n".join(["path,labels", *part]) + "\n")
    short = [word for name in ("stages=stage1", "stage1.epochs=1", f"clip={config}") for word in ("-p", name)]
    return [str(folder / "train.csv"), "-d", "test=test.csv", *short, "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, own: list[str]) -> Path:
    """The runs of a short training, which tests copy before they change them."""
    folder = tmp_path_factory.mktemp("finished")
    assert cli.main(["train", *own, "--out", str(folder)]) == 0
    return folder


def as_pickle(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps({"visual.proj": _Payload(trace)}, protocol=2))


def as_torch(path: Path, trace: Path) -> None:
    torch.save({"visual.proj": _Payload(trace)}, path)


def as_array(path: Path, trace: Path) -> None:
    """An npz with all the arrays of predictions, one of them of pickled objects."""
    plain = {"scores": np.zeros((1, 1), np.float32), "targets": np.zeros((1, 1), np.uint8), "classes": np.array(["a"])}
    with open(path, "wb") as file:
        np.savez(file, ids=np.array([_Payload(trace)], dtype=object), **plain)


def as_shared(path: Path, trace: Path) -> None:
    """The pickle of the development data, which writes ``pwned`` into the working directory."""
    from conftest import shared_folder

    source = shared_folder() / "data" / "hostile" / "weights.pt"
    if not source.is_file():
        pytest.skip(f"development data is not here ({source}); set HPDVAL_SHARED")
    path.write_bytes(source.read_bytes())


SHARED = pytest.param(as_shared, marks=pytest.mark.shared, id="shared")


@pytest.mark.parametrize("write", [as_pickle, as_torch, as_array, SHARED])
def test_these_files_do_run_where_they_are_loaded(
    write: Callable[[Path, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: without it a payload that is dead from the start would pass every test."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    write(path, tmp_path / "pwned")
    if write is as_torch:
        torch.load(path, weights_only=False)
    elif write is as_array:
        np.load(path, allow_pickle=True)["ids"]
    else:
        pickle.loads(path.read_bytes())
    assert (tmp_path / "pwned").exists()


def folder_of(path: Path, name: str, **files: object) -> Path:
    """A folder with the file under another name, and json files beside it."""
    folder = path.parent / "folder"
    folder.mkdir()
    (folder / name).write_bytes(path.read_bytes())
    for stem, content in files.items():
        write_json(folder / f"{stem}.json", content)
    return folder


def in_run(path: Path, finished: Path, name: str, *, listed: bool = True) -> Path:
    """A copy of a finished run in which the file stands for another, with its true hash in the manifest."""
    from shutil import copytree

    run = copytree(finished / "stage1", path.parent / "run")
    (run / name).unlink(missing_ok=True)  # it may be a link to another run's
    (run / name).write_bytes(path.read_bytes())
    if listed:
        manifest = read_manifest(run)
        manifest["files"][name] = sha256(path.read_bytes()).hexdigest()
        write_json(run / "manifest.json", manifest)
    return run


Door = Callable[[Path, dict[str, Any]], object]
TIMM = {"architecture": "test_vit", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
DOORS: dict[str, Door] = {
    "load_clip": lambda path, at: load_clip(at["config"], pretrained=path),
    "load_clip, pinned": lambda path, at: load_clip(
        at["config"], pretrained=path, sha256=sha256(path.read_bytes()).hexdigest()
    ),
    "folder of open_clip": lambda path, at: load_clip(
        folder_of(path, "open_clip_pytorch_model.bin", open_clip_config={"model_cfg": TINY, "preprocess_cfg": {}})
    ),
    "a model's name": lambda path, at: load_clip(path),
    "load_cnn": lambda path, at: load_cnn("test_resnet", path, image_size=32),
    "backbone": lambda path, at: make_backbone("test_resnet", path),
    "student weights": lambda path, at: make_student(at["clip"], student="test_vit", student_weights=str(path)),
    "student folder": lambda path, at: make_student(
        at["clip"], student=str(folder_of(path, "pytorch_model.bin", config=TIMM)), projection="head"
    ),
    "semantic vectors": lambda path, at: word_vectors(path, CLASSES),
    "encoder of a run": lambda path, at: load_run(in_run(path, at["finished"], "clip.safetensors"), device="cpu"),
    "model of a run": lambda path, at: load_run(in_run(path, at["finished"], "model.safetensors"), device="cpu"),
    "predictions of a run": lambda path, at: read_predictions(in_run(path, at["finished"], "predictions.npz")),
    "record of localisation": lambda path, at: Localisation.load(path),
    "data set": lambda path, at: hpdval.load_dataset(path),
    "class list": lambda path, at: hpdval.load_dataset(at["own"][0], classes=path),
    "list of images": lambda path, at: hpdval.load_dataset(path.rename(path.with_suffix(".txt")), classes=CLASSES),
    "CSV": lambda path, at: hpdval.load_dataset(path.rename(path.with_suffix(".csv")), classes=CLASSES),
    "COCO": lambda path, at: hpdval.load_dataset(path.rename(path.with_suffix(".json"))),
    "image": lambda path, at: decode(path),
}
COMMANDS: dict[str, Callable[[Path, dict[str, Any]], list[str]]] = {
    "hpdval train": lambda path, at: ["train", str(path), "--out", "out"],
    "hpdval train -p clip": lambda path, at: ["train", at["own"][0], "-p", f"clip={path}", "--out", "out"],
    "hpdval train -p pretrained": lambda path, at: ["train", *at["own"], "-p", f"pretrained={path}", "--out", "out"],
    "hpdval train -p stage1.student_weights": lambda path, at: [
        *("train", *at["own"], "-p", "stage1.student=test_vit", "-p", f"stage1.student_weights={path}", "--out", "out")
    ],
    "hpdval train -d classes": lambda path, at: ["train", *at["own"], "-d", f"classes={path}", "--out", "out"],
    "hpdval predict, run": lambda path, at: [
        "predict",
        str(in_run(path, at["finished"], "model.safetensors")),
        at["own"][0],
    ],
    "hpdval predict, image": lambda path, at: ["predict", str(at["finished"] / "stage1"), str(path), "--device", "cpu"],
    "hpdval report": lambda path, at: ["report", str(in_run(path, at["finished"], "predictions.npz")), "--out", "page"],
    "hpdval sweep": lambda path, at: ["sweep", "03", "--grid", str(path), "--out", "out"],
    "hpdval run": lambda path, at: ["run", str(path), "--out", "out"],
}


USUAL = ("hpdval train -p pretrained", "hpdval train -d classes", "hpdval report", "hpdval sweep")  # for every change


@pytest.fixture
def at(config: Path, clip: Clip, own: list[str], finished: Path) -> dict[str, Any]:
    return {"config": config, "clip": clip, "own": own, "finished": finished}


def at_every_door() -> list[Any]:
    """One kind of pickle at each door for every change, all kinds at night."""
    cases = []
    for door in DOORS:
        usual = as_array if door in ("predictions of a run", "record of localisation") else as_pickle
        for write in (as_pickle, as_torch, as_array, as_shared):
            marks = [] if write is usual else [pytest.mark.nightly]
            marks += [pytest.mark.shared] if write is as_shared else []
            cases.append(pytest.param(door, write, marks=marks, id=f"{door}-{write.__name__}"))
    return cases


def check_no_trace(tmp_path: Path) -> None:
    assert [
        path for path in (*tmp_path.rglob("pwned"), Path("pwned").absolute(), ROOT / "pwned") if path.exists()
    ] == []


@pytest.mark.parametrize(("door", "write"), at_every_door())
def test_a_pickle_is_refused_at_every_door(
    door: str,
    write: Callable[[Path, Path], None],
    tmp_path: Path,
    at: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    write(path, tmp_path / "pwned")
    with faults.injected(PICKLE, door, REFUSED):
        with pytest.raises(HpdvalError) as caught:
            DOORS[door](path, at)
        check_line(str(caught.value), *(name for name in ("weights.", "folder", "run") if door != "a model's name"))
        check_no_trace(tmp_path)


@pytest.mark.parametrize("write", [as_torch, pytest.param(as_shared, marks=[pytest.mark.shared, pytest.mark.nightly])])
@pytest.mark.parametrize(
    "command", [each if each in USUAL else pytest.param(each, marks=pytest.mark.nightly) for each in COMMANDS]
)
def test_a_pickle_is_refused_at_the_command_line(
    command: str,
    write: Callable[[Path, Path], None],
    tmp_path: Path,
    at: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faults: Faults,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    write(path, tmp_path / "pwned")
    words = COMMANDS[command](path, at)
    capsys.readouterr()
    with faults.injected(PICKLE, command, REFUSED):
        assert cli.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        check_line(line, "weights.pt", "run/")
        check_no_trace(tmp_path)


def stopped(trainer: object) -> None:
    """What comes after the last checkpoint of a training."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("write", [as_pickle, as_torch])
def test_a_pickle_in_the_place_of_a_checkpoint(
    write: Callable[[Path, Path], None],
    tmp_path: Path,
    colours: Dataset,
    clip: Clip,
    monkeypatch: pytest.MonkeyPatch,
    faults: Faults,
) -> None:
    run = tmp_path / "run"
    train = {"run": run, "clip": clip, "show": False}
    monkeypatch.setattr("hpdval.training.loop._settle", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_stage1(colours, recipe(**{"stage1.epochs": 1}), **train)
    monkeypatch.undo()
    (path,) = run.glob("checkpoint-stage1.safetensors")
    with faults.injected(PICKLE, "checkpoint", REFUSED):
        for each in run.glob("checkpoint*"):
            write(each, tmp_path / "pwned")
        with pytest.warns(RuntimeWarning, match="damaged"), pytest.raises(HpdvalError) as caught:
            train_stage1(colours, recipe(**{"stage1.epochs": 1}), **train)
        check_line(str(caught.value), path)
        check_no_trace(tmp_path)


# -- the work as a whole: nothing unpickled, nobody called -------------------------------------------------------------

WATCHED = """
    import sys
    seen = []
    def own_processes():  # whether what is unpickled came through a pipe of multiprocessing, from a child of ours
        frame = sys._getframe(2)
        while frame is not None and "/multiprocessing/" not in frame.f_code.co_filename:
            frame = frame.f_back
        return frame is not None
    def hook(event, arguments):
        if event == "pickle.find_class" and not own_processes():
            seen.append(f"{event} {arguments[0]}.{arguments[1]}")
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]
            inside = not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1")
            if not inside:
                seen.append(f"{event} {address}")
                raise OSError("no network here")
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request"):
            seen.append(f"{event} {arguments[:2]}")
            raise OSError("no network here")
    sys.addaudithook(hook)
"""
IMPORT_ALL = """
    import importlib, pkgutil
    import hpdval
    count = 0
    for module in pkgutil.walk_packages(hpdval.__path__, "hpdval."):
        if module.name.startswith("hpdval._") or module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
            count += 1
        except ImportError as error:
            assert not (error.name or "").startswith("hpdval"), error
    assert count > 100, count
"""
TRAIN = """
    import hpdval
    from hpdval import cli
    train, folder = sys.argv[1:-1], sys.argv[-1]
    assert cli.main(["train", *train, "--out", folder]) == 0
    assert cli.main(["predict", f"{folder}/stage1", train[0].replace("train.csv", "0.png"), "--device", "cpu"]) == 0
"""
REPORT = """
    quick = ["--resamples", "5", "--permutations", "5", "--figures", "svg"]
    assert cli.main(["report", f"{folder}/stage1", "--out", f"{folder}/page", *quick]) == 0
    assert cli.main(["errors", f"{folder}/stage1", "--out", f"{folder}/errors", "--resamples", "5"]) == 0
    assert cli.main(["runs", folder]) == 0
"""
CONTROL = """
    import pickle, socket, urllib.request
    pickle.loads(pickle.dumps(OSError("x")))
    for call in (lambda: socket.create_connection(("192.0.2.1", 9), 0.1), lambda: urllib.request.urlopen("http://a.invalid")):
        try:
            call()
        except OSError:
            pass
    assert [each.split()[0] for each in seen][:2] == ["pickle.find_class", "socket.getaddrinfo"], seen
    assert len(seen) >= 3, seen
    seen.clear()
"""


def watched(*parts: str, arguments: list[str]) -> list[str]:
    """Run parts of a script under the hook; return what was unpickled, looked up or called, after the parts before."""
    code = "\n".join(textwrap.dedent(part) for part in (WATCHED, *parts)) + "\nprint('SEEN', *seen, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.rpartition("SEEN")[2].split("\n")[1:-1]


@pytest.mark.parametrize(
    ("where", "parts"),
    [
        ("train, predict", (TRAIN,)),
        pytest.param("train, predict, report, errors", (TRAIN, REPORT), marks=pytest.mark.nightly),
        pytest.param("import of every module", (IMPORT_ALL,), marks=pytest.mark.nightly),
    ],
)
def test_nothing_is_unpickled_and_nobody_is_called(
    where: str, parts: tuple[str, ...], own: list[str], tmp_path: Path, faults: Faults
) -> None:
    """Every lookup and connection that leaves this machine is forbidden, and would be seen: that is tried last."""
    parts = (*parts, "kept = list(seen); seen.clear()", CONTROL, "seen[:] = kept")
    with faults.injected("network cut off, unpickling watched", where, "completes; nothing called, nothing unpickled"):
        assert watched(*parts, arguments=[*own, str(tmp_path / "runs")]) == []


# -- names in outputs --------------------------------------------------------------------------------------------------

NAMES = (
    *("<script>alert(1)</script>", '" onmouseover="alert(1)', "' onerror='alert(1)", "<img src=x onerror=alert(1)>"),
    *("javascript:alert(1)", "</style></title><b>", "--><!-- ]]>", "&lt;b&gt;", "</text><script/>", "=1+1|'cmd'!A0"),
)
MARKUP = {"script", "iframe", "object", "embed", "base", "form", "link", "meta", "foreignObject"}


class Markup(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(page: str, *, whole: bool = False) -> Markup:
    """No name became an element, an attribute that runs, or an address."""
    found = Markup(page)
    assert not found.tags & (MARKUP - ({"meta", "link"} if whole else set())), found.tags & MARKUP
    assert [name for name, _ in found.attributes if name.startswith("on")] == []
    addresses = [value for name, value in found.attributes if name in ("href", "src", "action", "xlink:href")]
    assert [
        value for value in addresses if not value.startswith(("#", "data:image/", "thumbnails/", "images/", "figures/"))
    ] == []
    return found


def hostile_runs(folder: Path) -> list[Path]:
    options: dict[str, Any] = {"classes": NAMES[:6]}
    runs = [test_report.made(folder / f"{i}", 1.0 + i / 2, 0, method=NAMES[i], **options) for i in range(2)]
    for i, run in enumerate(runs):
        record = json.loads((run / "result.json").read_text())
        assert record["method"] == NAMES[i]
    return runs


def report_page(folder: Path) -> list[str]:
    page = build_report(
        hostile_runs(folder), folder / "page", figures=("svg",), resamples=5, permutations=5, show=False
    )
    for svg in page.parent.glob("figures/*.svg"):
        check_svg(svg.read_bytes())
    return [page.read_text()]


def gallery_page(folder: Path) -> list[str]:
    data = test_gallery.data(NAMES, hostile=True, name=NAMES[0])
    return [(test_gallery.built(folder, data, n=2, method=NAMES[3]) / "index.html").read_text()]


def table_cells(folder: Path) -> list[str]:
    frame = pd.DataFrame({NAMES[0]: NAMES, "AP": np.arange(float(len(NAMES)))})
    frame.attrs["footnotes"] = list(NAMES)
    return [tables.ShownTable(frame)._repr_html_()]


def live_view(folder: Path) -> list[str]:
    from hpdval.lab.live.follow import Follower

    place = folder / NAMES[3]
    with Run(place / "stage1", kind="stage1", config={}) as run:
        run.log(stage=NAMES[0], step=1, epoch=0, loss=1.0, lr=1.0)
        write_json(place / "train.json", {"runs": ["stage1", *NAMES[:2]], "status": "failed", "error": " ".join(NAMES)})
        (place / "train.log").write_text("\n".join(NAMES))
        now = Follower(place).look()
    return [heading(now), details(now, " ".join(NAMES))]


def explorer_parts(folder: Path) -> list[str]:
    rows = [markup.Bar(name, 0.5, group=name) for name in NAMES]
    said = [markup.note, markup.heading, markup.part, markup.status]
    parts = [
        markup.bars(rows, (0.0, 1.0), 20, name) + markup.scale((0.0, 1.0), name, name, name=name) for name in NAMES
    ]
    return [*parts, *(make(name) for make in said for name in NAMES), markup.picture(b"", (1, 1), " ".join(NAMES))]


def explorer_of_two(folder: Path) -> list[str]:
    """The whole explorer, with a title for each of two models that is not ours."""
    world = hpdval.load_dataset("scenes-lt", train=20, test=20)
    classes = (*NAMES[:3], *world.classes[3:])
    ids = tuple(f"{NAMES[i % len(NAMES)]}{i}" for i in range(20))
    test = replace(world.test, ids=ids)
    one, other = (zero_shot_scorer(load_clip("scenes"), classes) for _ in range(2))
    one.method, other.method = NAMES[0], NAMES[3]
    view = explore(one, replace(world, classes=classes, test=test), other=other, images=4, show=False)
    view.set(klass=NAMES[0], find=NAMES[0])
    shown = [part.value for panel in view._panels for part in panel._parts]
    return [*shown, view._status.value, view._scale.value, view.controls.place.value]


PAGES: dict[str, Callable[[Path], list[str]]] = {
    "report page": report_page,
    "error gallery": gallery_page,
    "tables in a notebook": table_cells,
    "live view": live_view,
    "explorer": explorer_parts,
    "explorer, two models": explorer_of_two,
}


LONG = ("report page", "error gallery", "explorer, two models")  # their own tests look at other hostile names


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.nightly) if p in LONG else p for p in PAGES])
def test_no_name_becomes_markup_anywhere(page: str, tmp_path: Path, faults: Faults) -> None:
    with faults.injected("hostile names", page, "shown as text", times=len(NAMES)):
        made = PAGES[page](tmp_path)
        found = [check_page(text, whole=text.lstrip().lower().startswith("<!doctype")) for text in made]
        assert any("<script>alert(1)</script>" in each.text for each in found), "the names are shown, not dropped"


def check_svg(data: bytes) -> None:
    """A browser that opens the file finds nothing to run and nothing to fetch."""
    tree = ElementTree.fromstring(data)
    names = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert not names & MARKUP
    for element in tree.iter():
        for name, value in element.attrib.items():
            assert not name.rpartition("}")[2].startswith("on")
            assert "href" not in name or value.startswith("#")


def test_no_name_becomes_markup_in_a_figure(faults: Faults) -> None:
    with faults.injected("hostile names", "figure (svg)", "shown as text", times=len(NAMES)):
        data = figure_bytes(plots.class_frequency(NAMES, np.arange(1, len(NAMES) + 1), title=NAMES[6]), "svg")
        check_svg(data)
        assert b"alert" in data, "the names are there: as comments beside their outlines"


def test_names_stay_in_their_cells_in_csv_and_latex(tmp_path: Path, faults: Faults) -> None:
    """A CSV holds names as they are, a leading = too: a program that reads it would take a mark for a part of it."""
    from hpdval.commands.predict import write_scores

    odd = (*NAMES, 'a,b"c', "two\nlines", "\\input{/etc/passwd}", "$\\write18{x}$", "%", "a & b \\\\")
    with faults.injected("hostile names", "CSV", "shown as text", times=len(odd)):
        frame = pd.DataFrame({"class": odd, "AP": np.arange(float(len(odd)))})
        tables.save_table(frame, tmp_path, "x")
        assert pd.read_csv(tmp_path / "tables" / "x.csv")["class"].tolist() == list(odd)
        file = io.StringIO()
        write_scores(file, odd, odd, np.zeros((len(odd), len(odd))), top=len(odd))
        file.seek(0)
        back = pd.read_csv(file)
        assert set(back["path"]) == set(back["class"]) == set(odd)
    with faults.injected("hostile names", "LaTeX", "shown as text", times=len(odd)):
        from hpdval.report.latex import escape

        for name in odd:
            text = escape(name)
            assert "\n" not in text
            commands = set(re.findall(r"\\([A-Za-z]+)", text))
            assert commands <= {"textbackslash", "ensuremath", "textasciitilde", "textasciicircum", "ldots"}
            assert not re.search(r"(?<!\\)[%&#$]", text)


def test_no_name_reaches_a_file_name_of_a_report(tmp_path: Path, faults: Faults) -> None:
    record = {"title": "x", "command": "", "runs": {"a": {"status": "done"}}}
    outside = "../../outside"
    test_report.made(tmp_path / "sweep" / "runs" / "a", 1.0, 0)
    with faults.injected("a path out of the folder", "name of a comparison", "stays in the folder"):
        cells = [{"label": outside, "value": None, "runs": {"0": "a"}}]
        write_json(tmp_path / "sweep" / "sweep.json", {**record, "comparisons": [
            {"name": outside, "title": outside, "reference": outside, "cells": cells}]})  # fmt: skip
        build_report(
            [tmp_path / "sweep"], tmp_path / "in" / "page", resamples=5, permutations=5, figures=(), show=False
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "sweep"]
        assert [path.name for path in (tmp_path / "in").iterdir()] == ["page"]


# -- archives and downloads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt"])
@pytest.mark.parametrize("write", [test_data_extract.write_tar, test_data_extract.write_zip])
def test_archives_write_nothing_outside(name: str, write: Any, tmp_path: Path, faults: Faults) -> None:
    archive = write(tmp_path / "archive", {"fine.txt": b"fine", name: b"evil"})
    with faults.injected("a path out of the folder", "archive", "refused in one line, nothing written"):
        with pytest.raises(DataError) as caught:
            extract(archive, tmp_path / "inner" / "root", lambda name: True)
        check_line(str(caught.value), archive)
        assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["archive"]


def test_a_download_with_another_hash_is_not_kept(loopback: Any, tmp_path: Path, faults: Faults) -> None:
    body = test_data_download.BODY
    loopback.files["/file"] = body
    with faults.injected("another file in its place", "download", "refused in one line, nothing kept"):
        target = tmp_path / "download" / "file.bin"
        wrong = sha256(body + b"x").hexdigest()
        with pytest.raises(DataError) as caught:
            test_data_download.fetch(f"{loopback.url}/file", target, sha256=wrong)
        check_line(str(caught.value), "/file")
        assert not target.parent.exists() or list(target.parent.iterdir()) == []
