"""What the page shows of one model."""

from __future__ import annotations

import ipywidgets as widgets

from hpdval.lab import markup


class Panel:
    """The picture of one model, with its name above, and its bars: below, or beside where there is one model."""

    def __init__(self, side: int, alone: bool) -> None:
        self._parts = [widgets.HTML() for _ in range(3)]
        for part, name in zip(self._parts, ("name", "map", "scores"), strict=True):
            part.add_class(f"hpdval-{name}")
        layout = {"flex": "1 1 270px", "max_width": f"{side}px", "min_width": "0"}
        self.box = widgets.VBox(self._parts[: 2 if alone else 3], layout=layout)
        if alone:
            self._parts[2].layout = {"flex": "1 1 270px", "min_width": "0", "max_width": "480px", "margin": "26px 0 0"}
            self.box = widgets.HBox([self.box, self._parts[2]], layout={"flex": "1 1 auto", "min_width": "0"})

    def show(self, name: str, picture: str, bars: str) -> None:
        """Show the model's name, its picture and its bars."""
        for part, text in zip(self._parts, (markup.heading(name), picture, bars), strict=True):
            part.value = text  # what is as it was is not sent again
