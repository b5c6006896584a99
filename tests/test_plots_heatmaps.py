"""Heat maps in figures: colours against a loop, outlines against the grid, one scale where maps are compared."""

from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.collections import LineCollection

from hpdval import plots
from hpdval.plots.overlay import VEIL, limits_of, outline, overlay
from hpdval.scoring.maps import Heatmaps

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 24, 3), np.uint8)
NAMES = ("<b>bold</b>", "cash_$$", "$\\frac$")


def some_maps(n: int = 3, box: tuple[float, float, float, float] = (4, 0, 20, 16)) -> Heatmaps:
    values = RNG.normal(size=(n, 4, 4)).astype(np.float32)
    return Heatmaps(values=values, names=NAMES[:n], shape=(16, 24), box=box)


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.6, 1.0])
def test_an_overlay_is_the_grey_image_with_the_colours_of_the_map(opacity: float) -> None:
    values = RNG.random((16, 24)).astype(np.float32) * 3 - 1
    values[:, :5] = np.nan
    drawn = overlay(IMAGE, values, (0.0, 1.0), opacity)
    for y, x in np.ndindex(16, 24):
        own = IMAGE[y, x].astype(float)
        if np.isnan(values[y, x]):
            expected = own * (1 - VEIL) + 255 * VEIL
        else:
            colour = 255 * np.array(mpl.colormaps["viridis"](float(np.clip(values[y, x], 0, 1)))[:3])
            ground = own + (own @ [0.299, 0.587, 0.114] - own) * min(1, 2 * opacity)
            expected = ground + (colour - ground) * opacity
        assert np.abs(drawn[y, x] - expected).max() <= 4  # a colour's step and rounding
    if opacity == 0:
        np.testing.assert_array_equal(drawn[:, 5:], IMAGE[:, 5:])


def test_limits_leave_out_what_is_unknown_and_are_never_empty() -> None:
    assert limits_of([np.array([[np.nan, 2.0]]), np.array([[-1.0]])]) == (-1.0, 2.0)
    low, high = limits_of([np.full((2, 2), 5.0)])
    assert low == 5 < high
    assert limits_of([np.full((2, 2), np.nan)]) == (0.0, 1.0)


def test_an_outline_holds_the_sides_between_chosen_and_other_patches() -> None:
    chosen = RNG.random((5, 6)) < 0.5
    width, height = 7 / 3, 1.1
    cells = [(3.3 + x * width, 0.7 + y * height, width, height) for y, x in np.argwhere(chosen)]
    sides = outline(np.array(cells))
    padded = np.pad(chosen, 1)
    assert len(sides) == (padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum()
    for x1, y1, x2, y2 in sides:  # on either side of each: one chosen patch and one that is not
        x, y = ((x1 + x2) / 2 - 3.3) / width, ((y1 + y2) / 2 - 0.7) / height
        step = (0.5, 0.0) if x1 == x2 else (0.0, 0.5)
        both = [padded[int(np.floor(y + s * step[1])) + 1, int(np.floor(x + s * step[0])) + 1] for s in (-1, 1)]
        assert sorted(both) == [False, True]
    assert outline(np.zeros((0, 4))).shape == (0, 4)


def test_maps_share_a_scale_unless_they_cannot_be_compared() -> None:
    maps = some_maps()
    figure = plots.heatmaps(IMAGE, maps, top=3, boxes=np.array([[0, 2, 3, 10, 8]]), columns=3, title="$x_")
    assert figure._repr_png_().startswith(b"\x89PNG")
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(shown[0], IMAGE)
    for drawn, values in zip(shown[1:], maps.pixels, strict=True):
        np.testing.assert_array_equal(drawn, overlay(IMAGE, values, limits_of(maps.pixels)))
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == ["cosine"]
    own = plots.heatmaps(IMAGE, maps, shared=False)
    for axes, values in zip(own.axes[1:], maps.pixels, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), overlay(IMAGE, values, limits_of([values])))
    assert not any(axes.get_ylabel() for axes in own.axes)


def test_panels_show_their_names_boxes_and_best_patches() -> None:
    maps = some_maps()
    figure = plots.heatmaps(IMAGE, [maps, maps.pixels[:1]], top=2, boxes=np.array([[0, 2, 3, 10, 8]]))
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels[1:]] == [r"<b>bold</b>", r"cash_\$\$", r"\$\frac\$", ""]
    for axes, best in zip(panels[1:4], maps.top_patches(2), strict=True):
        (lines, _) = [c for c in axes.collections if isinstance(c, LineCollection)]
        assert np.array(lines.get_segments()).reshape(-1, 4).tolist() == (outline(best) - 0.5).tolist()
        assert axes.patches[0].get_bbox().bounds == (1.5, 2.5, 10, 8)  # type: ignore[attr-defined]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["best patches (top k)", "objects as annotated"]
    assert not plots.heatmaps(IMAGE, maps).legends


def test_a_grid_has_a_scale_for_each_row_and_says_which_model_and_class() -> None:
    rows = [[some_maps(1) for _ in range(2)] for _ in range(3)]
    captions = [[f"{r}{c} $" for c in range(2)] for r in range(3)]
    figure = plots.heatmap_grid(
        [IMAGE] * 3,
        rows,
        ["a_$", "b"],
        rows=NAMES,
        captions=captions,
        top=0.25,
        boxes=[np.zeros((0, 5))] * 3,
        title="t",
    )
    assert figure._repr_png_().startswith(b"\x89PNG")
    panels = np.array([axes for axes in figure.axes if axes.images]).reshape(3, 3)
    for r, maps in enumerate(rows):
        limits = limits_of([m.pixels for m in maps])
        for axes, m in zip(panels[r, 1:], maps, strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), overlay(IMAGE, m.pixels[0], limits))
    assert [axes.get_title() for axes in panels[0]] == ["image", r"a_\$", "b"]
    assert [axes.get_ylabel() for axes in panels[:, 0]] == [r"<b>bold</b>", r"cash_\$\$", r"\$\frac\$"]
    assert panels[2, 2].get_xlabel() == r"21 \$"
    assert sum(axes.get_ylabel() == "cosine" for axes in figure.axes) == 3


def test_maps_of_different_units_never_share_a_scale() -> None:
    cosines, products = some_maps(1), replace(some_maps(1), values=100 * some_maps(1).values, unit="dot product")
    for figure in (
        plots.heatmaps(IMAGE, [cosines, products]),
        plots.heatmap_grid([IMAGE], [[cosines, products]], ["a", "b"]),
    ):
        panels = [axes for axes in figure.axes if axes.images][1:]
        for axes, maps in zip(panels, (cosines, products), strict=True):
            own = overlay(IMAGE, maps.pixels[0], limits_of(maps.pixels))
            np.testing.assert_array_equal(axes.images[0].get_array(), own)
        assert not any(axes.get_ylabel() for axes in figure.axes)
    alone = plots.heatmaps(IMAGE, products)
    assert [axes.get_ylabel() for axes in alone.axes if axes.get_ylabel()] == ["dot product"]
