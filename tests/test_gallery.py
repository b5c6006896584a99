"""The page of a run's errors: true numbers, nothing unescaped, the same bytes, honest refusals."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import hpdval
from hpdval import cli
from hpdval.data.dataset import Dataset, Split
from hpdval.errors import ConfigError, DataError, RunError
from hpdval.metrics import apply_readout, best_f1_thresholds, best_false_positives, evaluate, worst_false_negatives
from hpdval.report.errors import Fitted, examine_errors, shown
from hpdval.report.gallery import write_gallery
from hpdval.run import Run

HOSTILE = (
    "<script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "' onerror='alert(1)",
    "<img src=x onerror=alert(1)>",
    "javascript:alert(1)",
    "two\nlines\tand\x00a null",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET} txt.exe",
    "x" * 5000,
    "class-0",
    "../../etc/passwd",
    "</style></title><b>",
    "{{ 7 * 7 }}{% raw %}",
    "--><!-- ]]>",
    "&lt;b&gt;",
)
PLAIN = ("cat", "dog", "tree", "cup")
N = 60


def images(index: int) -> np.ndarray:
    """Of every form: small, large, and extremely wide."""
    shape = ((20, 30), (400, 300), (3, 900))[index % 3]
    return np.random.default_rng(index).integers(0, 255, (*shape, 3), dtype=np.uint8)


def data(classes: Sequence[str] = PLAIN, *, hostile: bool = False, name: str = "toys") -> Dataset:
    rng = np.random.default_rng(0)
    probability = np.linspace(0.6, 0.2, len(classes))

    def split(part: str, n: int) -> Split:
        targets = (rng.random((n, len(classes))) < probability).astype(np.uint8)
        ids = tuple(f"{HOSTILE[i % len(HOSTILE)]}{i}\udcff" if hostile else f"{part}/{i}.jpg" for i in range(n))
        return Split(ids=ids, targets=targets, read=images, fingerprints=ids)

    train, val, test = split("train", 80), split("val", 40), split("test", N)
    counts = train.targets.sum(0, dtype=np.int64)
    notes = HOSTILE if hostile else ()
    return Dataset(
        name=name, classes=tuple(classes), train=train, val=val, test=test, class_counts=counts, notes=tuple(notes)
    )


def scored(targets: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    return (targets + 0.8 * rng.normal(size=targets.shape)).astype(np.float32)


def made(folder: Path, dataset: Dataset, *, readout: str = "raw", method: str = "stage 1") -> Path:
    """A finished run that holds predictions and no model."""
    scores, test = scored(dataset.test.targets), dataset.test
    with Run(folder, kind="stage1", config={"seed": 0}) as run:
        run.save_predictions(test.ids, scores, test.targets, dataset.classes)
        protocol = f"{dataset.name} test, {len(test)} images"
        result = evaluate(scores, test.targets, dataset.class_counts, readout=readout, protocol=protocol)
        run.finish({"method": method, "seed": 0, "notes": [], **result.as_dict()})
    return folder


def fitted(dataset: Dataset) -> Fitted:
    return Fitted(split="validation", scores=scored(dataset.val.targets), targets=dataset.val.targets)


def built(folder: Path, dataset: Dataset, **options: Any) -> Path:
    run = made(folder / "run", dataset, method=options.pop("method", "stage 1"))
    report = examine_errors(run, dataset, fitted(dataset), resamples=20, **options)
    return write_gallery(report, dataset, folder / "page", show=False).parent


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.captions: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), "no attribute is given twice"
        self._open.append(tag)
        if tag == "figcaption":
            self.captions.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open.pop() != tag:
            pass

    def handle_data(self, text: str) -> None:
        self.text.append(text)
        if "figcaption" in self._open:
            self.captions[-1] += text

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = data(HOSTILE, hostile=True, name="<b>name</b>")
    return built(tmp_path_factory.mktemp("hostile"), dataset, n=3, method="<i>method</i>")


# -- whatever things are called ----------------------------------------------------------------------------------------


def test_no_name_becomes_markup(hostile: Path) -> None:
    page = Page(hostile / "index.html")
    allowed = {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "ul", "li", "div", "table", "caption",
        "thead", "tbody", "tr", "th", "td", "a", "bdi", "small", "section", "figure", "figcaption", "img", "b", "br",
        "code",
    }  # fmt: skip
    assert {tag for tag, _ in page.tags} <= allowed
    known = {
        "lang", "charset", "name", "content", "http-equiv", "class", "role", "tabindex", "aria-label", "id", "scope",
        "href", "src", "alt", "width", "height", "loading", "aria-labelledby",
    }  # fmt: skip
    assert {name for _, attributes in page.tags for name in attributes} <= known, "no handler of an event among them"
    assert len(page.all("style")) == len(page.all("title")) == len(page.all("body")) == 1
    for attributes in page.all("a"):
        assert re.fullmatch(r"#(class-\d+|classes)", attributes["href"] or "")
    for attributes in page.all("img"):
        assert re.fullmatch(r"images/\d{6}\.jpg|figures/(calibration|leakage)\.svg", attributes["src"] or "")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert sorted(filter(None, ids)) == sorted(["classes", *(f"class-{i}" for i in range(len(HOSTILE)))]), (
        "no two alike"
    )


def test_every_name_is_there_as_text(hostile: Path) -> None:
    page = Page(hostile / "index.html")
    for name in (*map(shown, HOSTILE), "Errors of <i>method</i> on <b>name</b>"):
        assert name in page.text, name
    assert "\x00" not in page.source
    assert "x" * 501 not in page.source, "very long names are cut, and notes that hold them"
    assert "<script" not in page.source


def test_the_policy_allows_no_script_and_this_style_alone(hostile: Path) -> None:
    page = Page(hostile / "index.html")
    policy = next(a["content"] or "" for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    style = re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL)
    digest = base64.b64encode(sha256(style[0].encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src 'self' file:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "http://" not in page.source
    assert "https://" not in page.source


def test_no_file_is_named_after_anything(hostile: Path) -> None:
    tables = {f"tables/{name}.csv" for name in ("classes", "leakage", "mistakes", "calibration")}
    figures = {f"figures/{name}.{kind}" for name in ("calibration", "leakage") for kind in ("svg", "png")}
    found = contents(hostile)
    pictures = {name for name in found if re.fullmatch(r"images/\d{6}\.jpg", name)}
    assert set(found) == {"index.html", "manifest.json"} | tables | figures | pictures
    for name in figures:
        if name.endswith("svg"):
            kinds = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(found[name]).iter()}
            assert kinds <= {"svg", "metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title", "defs",
                             "style", "g", "path", "use", "clipPath", "rect"}  # fmt: skip
    names = pd.read_csv(io.BytesIO(found["tables/classes.csv"]))["class"]
    assert names[0] == HOSTILE[0], "tables hold names as they are"


def test_thumbnails_are_small_and_carry_no_metadata(hostile: Path) -> None:
    page, sizes = Page(hostile / "index.html"), {}
    for path in (hostile / "images").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == "JPEG"
            assert not picture.getexif()
            assert not {"exif", "icc_profile", "comment"} & set(picture.info)
            assert max(picture.size) <= 160
            sizes[f"images/{path.name}"] = picture.size
    assert {(30, 20), (120, 160), (160, 1)} == set(sizes.values()), "small ones are not enlarged, wide ones stay wide"
    for attributes in page.all("img"):
        assert attributes["alt"]
        if (source := attributes["src"] or "") in sizes:
            assert (int(attributes["width"] or 0), int(attributes["height"] or 0)) == sizes[source]


# -- what it says ------------------------------------------------------------------------------------------------------


def test_captions_say_what_the_metrics_do(tmp_path: Path) -> None:
    dataset = data()
    page = Page(built(tmp_path, dataset, n=2) / "index.html")
    scores, targets = scored(dataset.test.targets), dataset.test.targets
    expected = []
    for c in range(len(PLAIN)):
        for one in best_false_positives(scores, targets, c, 2) + worst_false_negatives(scores, targets, c, 2):
            labels = ", ".join(name for name, there in zip(PLAIN, targets[one.image], strict=True) if there)
            expected.append(
                f"rank {one.rank} score {one.score:.3f} costs {one.ap_lost:.2f} points "
                f"shows: {labels or 'no class'} test/{one.image}.jpg"
            )
    captions = [" ".join(text.split()) for text in page.captions]
    assert [text for text in captions if text.startswith("rank")] == expected
    assert "Thresholds and probabilities were fitted on 40 validation images." in page.text


@pytest.mark.parametrize("readout", ["raw", "l2"])
def test_numbers_are_those_of_the_run_under_its_read_out(readout: str, tmp_path: Path) -> None:
    dataset = data()
    run = made(tmp_path / "run", dataset, readout=readout)
    report, own = examine_errors(run, dataset, fitted(dataset), resamples=20), fitted(dataset)
    expected = evaluate(scored(dataset.test.targets), dataset.test.targets, dataset.class_counts, readout=readout)
    table = report.tables["classes"]
    np.testing.assert_allclose(table["AP"], expected.per_class)
    np.testing.assert_allclose([one.leakage.everywhere.ap.estimate for one in report.classes], expected.per_class)
    np.testing.assert_array_equal(
        table["threshold"], best_f1_thresholds(apply_readout(own.scores, readout), own.targets)
    )


def test_rare_classes_that_are_common_in_the_test_are_told_of(tmp_path: Path) -> None:
    """Probabilities carry the frequencies that they were fitted on."""
    world = hpdval.load_dataset("scenes-lt", val=0.2)
    tail = world.groups["tail"]
    run = made(tmp_path / "run", world)
    own = Fitted(split="training", scores=scored(world.train.targets), targets=world.train.targets)
    before, after = (100 * part.targets[:, tail].mean() for part in (world.train, world.test))
    assert after > 4 * before
    told = f"Tail classes are in {before:.1f} % of these images on average and in {after:.1f} % of the test images: "
    about = examine_errors(run, world, own, resamples=2, n=1).about
    assert any(sentence.startswith(told) and "too low" in sentence for sentence in about)
    same = Fitted(split="validation", scores=scored(world.test.targets), targets=world.test.targets)
    assert not any("prior shift" in one for one in examine_errors(run, world, same, resamples=2, n=1).about)


def test_without_a_model_there_is_no_calibration_and_it_says_so(tmp_path: Path) -> None:
    dataset = data()
    page = hpdval.error_report(made(tmp_path / "run", dataset), dataset, tmp_path / "page", resamples=20, show=False)
    assert "the run holds no model to score other images with" in page.read_text(encoding="utf-8")
    assert not (page.parent / "tables/calibration.csv").exists()


def test_a_class_without_test_positives_and_a_perfect_one(tmp_path: Path) -> None:
    dataset = data()
    targets = dataset.test.targets.copy()
    targets[:, 1] = 0
    dataset = replace(dataset, test=replace(dataset.test, targets=targets))
    run = made(tmp_path / "run", dataset)
    report = examine_errors(run, dataset, resamples=20, n=1)
    assert [len(report.classes[1].false_positives), len(report.classes[1].false_negatives)] == [1, 0]
    page = Page(write_gallery(report, dataset, tmp_path / "page", show=False))
    assert "No test image shows the class." in page.text


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_same_bytes_and_an_earlier_page_is_replaced(tmp_path: Path) -> None:
    dataset = data()
    first = contents(built(tmp_path / "a", dataset))
    second = built(tmp_path / "b", dataset)
    assert contents(second) == first
    manifest = json.loads(first["manifest.json"])
    assert manifest["status"] == "done"
    assert manifest["files"] == {n: sha256(b).hexdigest() for n, b in sorted(first.items()) if n != "manifest.json"}
    assert not any(str(tmp_path).encode() in data for data in first.values()), "no path is written"
    report = examine_errors(tmp_path / "b/run", dataset, resamples=20, n=1)
    write_gallery(report, dataset, second, show=False)
    fewer = contents(second)
    assert len(fewer) < len(first)
    assert "tables/calibration.csv" not in fewer
    assert set(json.loads(fewer["manifest.json"])["files"]) == set(fewer) - {"manifest.json"}


def test_another_data_set_an_unfinished_run_or_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    dataset = data()
    run, page = made(tmp_path / "run", dataset), tmp_path / "page"
    flipped = replace(dataset.test, targets=1 - dataset.test.targets)
    renamed = replace(dataset.test, ids=tuple(f"x{i}" for i in range(N)))
    for other, message in (
        (replace(dataset, test=flipped), "was made with other labels than toys has"),
        (replace(dataset, test=renamed), "was made with other ids than toys has"),
        (replace(dataset, classes=tuple("abcd")), "was made with other classes than toys has"),
    ):
        with pytest.raises(RunError, match=message):
            hpdval.error_report(run, other, page, show=False)
    with Run(tmp_path / "begun", kind="stage1", config={}), pytest.raises(RunError, match="is not a finished run"):
        hpdval.error_report(tmp_path / "begun", dataset, page, show=False)
    with pytest.raises(ConfigError, match="n is 0 and resamples 500"):
        hpdval.error_report(run, dataset, page, n=0, show=False)
    assert not page.exists()
    page.mkdir()
    (page / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds files that are not of a report .thesis.txt."):
        hpdval.error_report(run, dataset, page, show=False)


def test_an_image_that_cannot_be_read_leaves_the_earlier_page(tmp_path: Path) -> None:
    dataset = data()
    page = built(tmp_path, dataset)
    before = contents(page)

    def broken(index: int) -> np.ndarray:
        raise DataError(f"image {index} cannot be decoded")

    with pytest.raises(DataError, match="cannot be decoded"):
        hpdval.error_report(
            tmp_path / "run", replace(dataset, test=replace(dataset.test, read=broken)), page, show=False
        )
    assert contents(page) == before


# -- end to end --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def zero_shot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zero-shot run on few images of scenes-lt, with a validation part."""
    recipe = hpdval.get_recipe("scenes", val=0.3)
    dataset = hpdval.load_dataset("scenes-lt", val=0.3, val_seed=recipe.seed, train=100, test=60)
    scorer = hpdval.zero_shot_scorer(hpdval.load_clip("scenes"), dataset.classes)
    folder = tmp_path_factory.mktemp("scenes") / "run"
    with hpdval.open_run(folder, "zero-shot", dataset, recipe, scorer) as run:
        hpdval.report_run(run, scorer, dataset, recipe, show=False)
    return folder


def test_the_command_does_what_the_function_does(
    zero_shot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["errors", str(zero_shot), "--resamples", "20", "-n", "2"]
    assert cli.main([*asked, "-o", str(tmp_path / "a"), "-d", "train=100", "-d", "test=60"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "a/index.html")
    dataset = hpdval.load_dataset("scenes-lt", val=0.3, train=100, test=60)
    hpdval.error_report(zero_shot, dataset, tmp_path / "b", resamples=20, n=2, show=False)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    page = Page(tmp_path / "a/index.html")
    assert f"Thresholds and probabilities were fitted on {len(dataset.val)} validation images." in page.text
    assert pd.read_csv(tmp_path / "a/tables/calibration.csv")["classes"].iloc[0] == "total"
    for wrong, message in (
        (["-d", "train=100", "-d", "test=50"], "other ids than scenes-lt has; load it with the options of the run"),
        (
            ["-d", "train=90", "-d", "test=60"],
            "was made with other validation images than scenes-lt has here; load the",
        ),
        (["-d", "val=0.1"], "the validation part is the run's own"),
    ):
        assert cli.main([*asked, "-o", str(tmp_path / "c"), *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_without_a_validation_part_it_warns_of_training_images(tmp_path: Path) -> None:
    recipe = hpdval.get_recipe("scenes")
    dataset = hpdval.load_dataset("scenes-lt", train=60, test=40)
    scorer = hpdval.zero_shot_scorer(hpdval.load_clip("scenes"), dataset.classes)
    with hpdval.open_run(tmp_path / "run", "zero-shot", dataset, recipe, scorer) as run:
        hpdval.report_run(run, scorer, dataset, recipe, show=False)
    page = hpdval.error_report(tmp_path / "run", dataset, tmp_path / "page", resamples=20, n=1, show=False)
    told = "60 training images: if the model was trained on them they are optimistic, and the thresholds too high."
    assert told in page.read_text(encoding="utf-8"), "whole, not cut off"


def test_own_data_need_not_be_named_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From another folder, too: the run keeps how its data were loaded, beside its key."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("train", "test"):
        rows = ["path,labels"]
        for i in range(8):
            Image.fromarray(images(3 * i)).save(photos / f"{name}{i}.png")
            rows.append(f"{name}{i}.png,{('cat', 'dog', 'cat;dog', '')[i % 4]}")
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    recipe = hpdval.get_recipe("scenes", dataset="train.csv")
    dataset = hpdval.load_dataset("train.csv", root="photos", test=Path("test.csv"), classes=("cat", "dog"))
    scorer = hpdval.zero_shot_scorer(hpdval.load_clip("scenes"), dataset.classes)
    keys = set()
    for name, one in (("run", dataset), ("without", replace(dataset, origin={}))):
        with hpdval.open_run(name, "zero-shot", one, recipe, scorer) as run:
            hpdval.report_run(run, scorer, one, recipe, show=False)
            keys.add(run.key)
    assert len(keys) == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = ["--resamples", "20", "-n", "1"]
    assert cli.main(["errors", "../run", "-o", "page", *asked]) == 0
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(["errors", "without", "-o", "page", *asked, "-d", 'classes=["cat", "dog"]', "-d", "root=photos"]) == 2
    )
    error = capsys.readouterr().err
    assert "load it with the options of the run, such as test and root" in error
    assert error.count("\n") == 1
