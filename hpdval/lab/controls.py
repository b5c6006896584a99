"""The explorer's controls: each has a label, a tooltip and a CSS class ``hpdval-NAME``, in the tab key's order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from hpdval.groups import GROUPS
from hpdval.lab.markup import STYLE, part
from hpdval.lab.state import ANY, COMPARED, ONLY, ORDERS, Limits, State
from hpdval.scoring.maps import METHODS, PROMPTS

LABEL = "72px"
_METHODS = {"similarity": "similarity to patches", "gradient": "gradient (slower)", "rollout": "rollout (slower)"}


class Controls:
    """All controls, by the name of what they set; ``changed(name, value)`` is called when a user moves one.

    Attributes:
        inputs: name in :class:`State` -> control; ``position`` is the place in the list of images.
        buttons: ``previous``, ``next``, ``clear`` (the sentence).
        place, image: where among how many and the image's id; the image as it is.
        turn: held while one change is made: JupyterLab hands messages of widgets to two threads of a kernel.
    """

    def __init__(self, limits: Limits, state: State, changed: Callable[[str, Any], None]) -> None:
        self._quiet, self.turn = False, threading.RLock()
        self._changed = changed
        self._ticks: tuple[str, ...] = ()
        self._classes = limits.classes
        self.place, self.image = _named(widgets.HTML(), "place"), _named(widgets.HTML(), "image")
        self.inputs = {**_choosing(limits), **_seeing(limits)}
        self.buttons = {
            "previous": _button("previous", "◀ Previous", "The image before, in this order"),
            "next": _button("next", "Next ▶", "The image after, in this order"),
            "clear": _button("clear", "Clear words", "Show the class again"),
        }
        for name, control in self.inputs.items():
            control.observe(lambda event, name=name: self._moved(name, event["new"]), "value")
        for name, button in self.buttons.items():
            button.on_click(lambda _, name=name: changed(name, None))
        self.show(state, range(limits.images), ())

    def show(self, state: State, images: Sequence[int], present: Sequence[str], words: str = "") -> None:
        """Set all controls to a state; nobody is told.

        Args:
            images: the list of images.
            present: classes of the image, which get a ✓ in the list of classes.
            words: place and id of the image.
        """
        self._quiet = True
        try:
            if tuple(present) != self._ticks or not self.inputs["klass"].options:
                self._ticks = tuple(present)
                # a label begins with its mark, and the mark of others is as wide
                options = [(f"{'✓' if name in present else ' '} {name}", name) for name in self._classes]
                self.inputs["klass"].options = options
            slider = self.inputs["position"]
            count = len(images)
            slider.max = max(1, count)
            slider.disabled = not count
            at = next((i for i, image in enumerate(images) if image == state.image), None)
            if at is not None:
                slider.value = at + 1
            for name, control in self.inputs.items():
                if name != "position" and control.value != getattr(state, name):
                    control.value = getattr(state, name)
            self.place.value = words
            self.buttons["previous"].disabled = self.buttons["next"].disabled = not count
            self.buttons["clear"].layout.display = None if state.text else "none"
        finally:
            self._quiet = False

    def _moved(self, name: str, value: Any) -> None:
        with self.turn:  # within it: another thread may just show a state
            if not self._quiet:
                self._changed(name, value)

    def column(self) -> Any:
        """Return all controls: a column where there is room beside the pictures, two columns elsewhere."""
        inputs, buttons = self.inputs, self.buttons
        steps = widgets.HBox([buttons["previous"], buttons["next"]])
        chosen = [inputs[name] for name in ("only", "group", "small", "order", "find", "position") if name in inputs]
        seen = [inputs[name] for name in ("klass", "text")]
        drawn = [inputs[name] for name in ("prompts", "method", "opacity", "boxes")]
        groups = [
            [_words(part("Images")), *chosen, steps, self.place, self.image],
            [_words(part("What to see")), *seen, buttons["clear"], *drawn],
            [_words(part("Scores")), *(inputs[name] for name in ("alpha", "k", "own"))],
        ]
        first, *others = (widgets.VBox(group, layout={"min_width": "0"}) for group in groups)
        first.layout.flex = "1 1 250px"
        second = widgets.VBox(others, layout={"flex": "1 1 250px", "min_width": "0"})
        layout = {"flex": "1 1 280px", "min_width": "0", "align_content": "flex-start"}
        column = widgets.HBox([first, second], layout=layout)
        return _named(column, "controls")


def _choosing(limits: Limits) -> dict[str, Any]:
    orders = [
        (words, name)
        for name, words in ORDERS.items()
        if (limits.models > 1 or name not in COMPARED) and (limits.boxes or name != "smallest")
    ]
    groups = [("any", ANY), *((f"with a {name} class", name) for name in GROUPS)]
    small = "Smallest third of the images by their smallest object, or by that of the class 'with the class'"
    return {
        "only": _dropdown("only", "Show", [(w, n) for n, w in ONLY.items()], "Which images are in the list"),
        "group": _dropdown("group", "Group", groups, "Images that have a class of this group"),
        "order": _dropdown("order", "Order", orders, "Which images come first"),
        **({"small": _checkbox("small", "small objects only", small)} if limits.boxes else {}),
        "find": _text("find", "Find id", "part of an id", "Images whose id contains this; Enter applies it"),
        "position": _slider("position", "Image", 1, max(1, limits.images), "Place in the list; arrow keys go on"),
    }


def _seeing(limits: Limits) -> dict[str, Any]:
    return {
        "klass": _dropdown("klass", "Class", [], "Whose map is shown; ✓ marks classes of this image"),
        "text": _text("text", "Words", "a photo of a red thing", "Words of your own in place of the class; then Enter"),
        "prompts": _dropdown(
            "prompts",
            "Prompts",
            list(PROMPTS),
            "Texts that read the patches: local as the model scores, its global set, or hand-crafted for both views",
        ),
        "method": _dropdown(
            "method",
            "Map",
            [(_METHODS[name], name) for name in METHODS],
            "What the map shows; gradient and rollout run the encoder and take longer",
        ),
        "alpha": _named(
            widgets.FloatSlider(
                min=0,
                max=1,
                step=0.01,
                **_options(
                    "alpha", "Weight of a view: of the global one (of the local one in the released code's reading)"
                ),
            ),
            "alpha",
        ),
        "k": _slider("k", "k patches", 1, limits.patches, "How many of the best patches make the local score"),
        "own": _checkbox("own", "each model's own alpha and k", "As in the model's results; the sliders then wait"),
        "opacity": _named(
            widgets.FloatSlider(
                min=0, max=1, step=0.05, **_options("Opacity", "Of the map; 0 shows the image as it is")
            ),
            "opacity",
        ),
        "boxes": _checkbox("boxes", "annotated objects", "Dashed boxes; those of the class that is shown are orange"),
    }


def _options(label: str, tooltip: str) -> dict[str, Any]:
    layout = {"width": "auto", "margin": "1px 0"}
    return {"description": label, "tooltip": tooltip, "layout": layout, "style": {"description_width": LABEL}}


def _dropdown(name: str, label: str, options: Sequence[Any], tooltip: str) -> Any:
    return _named(widgets.Dropdown(options=options, **_options(label, tooltip)), name)


def _slider(name: str, label: str, low: int, high: int, tooltip: str) -> Any:
    return _named(widgets.IntSlider(min=low, max=high, **_options(label, tooltip)), name)


def _text(name: str, label: str, placeholder: str, tooltip: str) -> Any:
    text = widgets.Text(placeholder=placeholder, continuous_update=False, **_options(label, tooltip))
    return _named(text, name)


def _checkbox(name: str, label: str, tooltip: str) -> Any:
    return _named(widgets.Checkbox(indent=False, **_options(label, tooltip)), name)


def _button(name: str, label: str, tooltip: str) -> Any:
    return _named(
        widgets.Button(description=label, tooltip=tooltip, layout={"width": "auto", "flex": "1 1 auto"}), name
    )


def _words(markup: str) -> Any:
    return widgets.HTML(markup)


def _named(widget: Any, name: str) -> Any:
    widget.add_class(f"hpdval-{name}")
    return widget


def page(controls: Any, models: Sequence[Any], below: Sequence[Any]) -> list[Any]:
    """Return the parts of the explorer: controls beside the models where there is room, above them elsewhere."""
    right = widgets.VBox([widgets.HBox(list(models)), *below], layout={"flex": "999 1 560px", "min_width": "0"})
    return [widgets.HTML(STYLE), widgets.HBox([controls, right])]
