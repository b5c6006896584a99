"""Maps of a model measured on a split: the same numbers as one image after another, whatever the view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hpdval
from hpdval.data.dataset import Dataset
from hpdval.errors import ConfigError, DataError
from hpdval.metrics.localisation import best_iou, centre_map, energy_inside, pointing_game
from hpdval.scoring import DualViewScorer, heatmaps, localise, localise_models
from hpdval.scoring.maps import grid_box, upsample


@pytest.fixture(scope="module")
def data() -> Dataset:
    return hpdval.load_dataset("scenes-lt", train=20, test=24, size=80)


@pytest.fixture(scope="module")
def scorer(data: Dataset) -> DualViewScorer:
    return hpdval.zero_shot_scorer(hpdval.load_clip("scenes"), data.classes, resize="squash")


def region_of(data: Dataset, image: int, c: int) -> np.ndarray:
    """The union of the masks of a class, by the data set's own word."""
    assert data.test.boxes is not None
    assert data.test.masks is not None
    masks = data.test.masks(image)
    assert masks is not None
    return masks[data.test.boxes(image)[:, 0] == c].any(0)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("method", ["similarity", "gradient"])
def test_a_record_is_what_each_image_gives_by_itself(
    data: Dataset, scorer: DualViewScorer, method: str, resize: str
) -> None:
    model = hpdval.zero_shot_scorer(scorer.clip, data.classes, resize=resize)
    record = localise(model, data, method=method, show=False)
    assert len(record) == data.test.targets.sum()
    assert record.by_mask.all()
    for row in range(0, len(record), 7):
        image, c = int(record.image[row]), int(record.cls[row])
        pixels = heatmaps(model, data.test.image(image), [data.classes[c]], method=method).pixels[0]
        region = region_of(data, image, c)
        assert record.size[row] == region.mean()
        assert record.values["iou"][row] == pytest.approx(best_iou(pixels, region), abs=0.02)  # float16 on disk
        assert record.values["energy"][row] == pytest.approx(energy_inside(pixels, region), abs=0.005)


def test_the_map_of_the_middle_goes_the_same_way(data: Dataset, scorer: DualViewScorer) -> None:
    record = localise(scorer, data, method="centre")
    middle = upsample(centre_map((8, 8))[None], (80, 80), grid_box(scorer, (80, 80)))[0]
    for row in range(len(record)):
        region = region_of(data, int(record.image[row]), int(record.cls[row]))
        assert record.values["pointing"][row] == pointing_game(middle, region)


def test_models_are_measured_beside_maps_that_know_nothing(data: Dataset, scorer: DualViewScorer) -> None:
    records = localise_models({"zero-shot": scorer}, data, methods=["rollout"], tolerance=3, show=False)
    assert list(records) == ["random", "centre", "rollout: zero-shot"]
    assert {record.tolerance for record in records.values()} == {3}
    again = localise(scorer, data, method="random", tolerance=3)
    np.testing.assert_array_equal(again.values["iou"], records["random"].values["iou"])


def test_classes_are_found_by_name_whatever_their_order(data: Dataset, scorer: DualViewScorer) -> None:
    backwards = hpdval.zero_shot_scorer(scorer.clip, data.classes[::-1], resize="squash")
    one, other = (localise(model, data, show=False) for model in (scorer, backwards))
    np.testing.assert_array_equal(one.cls, other.cls)
    np.testing.assert_allclose(one.values["energy"], other.values["energy"], atol=1e-6)


def test_what_cannot_be_measured_is_refused_in_one_line(data: Dataset, scorer: DualViewScorer) -> None:
    with pytest.raises(ConfigError, match=r"method is 'saliency'; use one of 'similarity', .*'centre'"):
        localise(scorer, data, method="saliency")
    with pytest.raises(ConfigError, match=r"the model does not know 'person' \(19 of 20 classes\)"):
        localise(hpdval.zero_shot_scorer(scorer.clip, ["cat"]), data)
    with pytest.raises(ConfigError, match="split is 'all'; use 'train', 'val' or 'test'"):
        localise(scorer, data, split="all")
    with pytest.raises(DataError, match="this source knows no boxes"):
        localise(scorer, replace(data, test=replace(data.test, boxes=None, masks=None)))
