"""A trained network as one HTML file: two Web Workers are the towers, and Figure 2 shows what they make of a picture.

    browser/page.html, page.css, page.js    what a person sees: pictures, switches, maps, the answer
    browser/tower.js                        one tower in a worker of its own

The file holds all of it and the weights, float32 in base 64, so it opens from a disk without a network; a content
security policy lets it ask nobody for anything. Each worker is given the weights of its own tower, and halves cross
between the workers at the rows that read both, as they do between processes.
"""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from twotower.config import NetworkConfig
from twotower.data.class_names import name_classes
from twotower.data.decode import cut_square
from twotower.data.shapes import CLASSES, DRAWING, draw_image
from twotower.model.layer_table import Row, plan
from twotower.weights.merged import split
from twotower.weights.verify import TOLERANCE

MOST_MEGABYTES = 100  # of weights: the file takes a third more, and a browser's tab about three times as much
DRAWN = ("red_star", "blue_circle", "green_triangle", "red_square")  # the pictures that are there from the start
STREAM = 2  # of the drawn pictures; those of a training set have 0 here, those of a validation set 1
FOLDER = "browser"
_ABOUT = re.compile(rb'<script type="text/plain" id="about">([^<]*)</script>')


def check_size(tensors: Mapping[str, Tensor], network: NetworkConfig) -> None:
    """Raises: ValueError if the network has more weights than a page takes."""
    megabytes = sum(4 * tensor.numel() for name, tensor in tensors.items() if "mean_image" not in name) / 1e6
    if megabytes > MOST_MEGABYTES:
        raise ValueError(
            f"{network.name} of width {network.width:g} has {megabytes:,.1f} MB of weights, and a page takes at most "
            f"{MOST_MEGABYTES} MB; train a narrower one (network.width=0.25), or give to=merged or to=onnx."
        )


def _list_steps(row: Row, network: NetworkConfig) -> list[dict[str, Any]]:
    """The steps after a layer's sum as a tower computes them when it does not train; see `tower._after`."""
    steps: list[dict[str, Any]] = []
    for step in row.config.then:
        if step == "activation":
            steps.append({"kind": step, "of": network.activation})
        elif step == "lrn" and network.lrn is not None:
            n, k, alpha, beta = network.lrn.n, network.lrn.k, network.lrn.alpha, network.lrn.beta
            alpha = alpha / n if network.lrn.alpha_over_n else alpha
            steps.append({"kind": step, "n": n, "k": k, "scale": alpha, "beta": beta})
        elif step == "spatial_norm" and network.spatial_norm is not None:
            norm = network.spatial_norm
            steps.append({"kind": step, "n": norm.n, "alpha": norm.alpha, "beta": norm.beta})
        elif step == "pool":
            window = {"size": network.pool.size, "stride": network.pool.stride, "side": row.size_out}
            steps.append({"kind": step, "average": row.config.pooling == "average", **window})
        elif step == "dropout" and network.dropout_scaling == "test" and network.dropout_keep < 1:
            steps.append({"kind": "scale", "factor": network.dropout_keep})
    return steps


def _describe_layer(row: Row, network: NetworkConfig) -> dict[str, Any]:
    """A row of the table, as page.js and tower.js read it; lists hold a number for each tower."""
    c = row.config
    return {
        "name": row.name,
        "kind": c.kind,
        "both": row.reads_both,
        "kernels": row.kernels,
        "maps_in": row.maps_in,
        "size": c.size,
        "stride": c.stride,
        "pad": c.pad,
        "overhang": c.overhang,
        "groups": c.groups,
        "size_conv": row.size_conv,
        "size_out": row.size_out,
        "steps": _list_steps(row, network),
    }


def _draw_picture(name: str, number: int, size: int) -> str:
    """A picture [size, size] of the embedded set's kind, in none of its sets, as a PNG in base 64."""
    picture = draw_image(name, np.random.default_rng([DRAWING, STREAM, number]))
    file = io.BytesIO()
    Image.fromarray(cut_square(np.array(picture), size)).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _embed(tensors: Sequence[Tensor]) -> str:
    """The values of all tensors one after the other, float32 with the lowest byte first, in base 64."""
    values = np.concatenate([tensor.detach().float().numpy().ravel() for tensor in tensors]).astype("<f4")
    return base64.b64encode(values.tobytes()).decode()


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def find_about(page: bytes) -> bytes | None:
    """The page's data, JSON; None if it is no page of a network."""
    found = _ABOUT.search(page)
    return None if found is None else found[1]


def render(
    tensors: Mapping[str, Tensor],
    network: NetworkConfig,
    classes: Sequence[str],
    *,
    mean_image: Tensor,
    prepared_size: int,
    answer: Tensor,
    title: str,
    facts: Mapping[str, str],
    origin: Mapping[str, str],
) -> str:
    """The page of a network: one HTML document, to be written in UTF-8.

    Args:
        tensors: the merged form.
        mean_image: float32 [3, S, S] of the centre crop, 0..255.
        prepared_size: pixels of the square that pictures are brought to before the crop.
        answer: logits of the known images, [2, classes], which the page checks itself against.
        title: what the network is called on the page.
        facts: of the run, each with its name.
        origin: what `origin` finds in the page when it would be replaced; nobody sees it.

    Raises: ValueError if the network is too large for a page.
    """
    check_size(tensors, network)
    rows = plan(network, len(classes))
    about = {
        "classes": name_classes(classes),
        "towers": network.towers,
        "precision": network.exchange_precision,
        "size": network.image_size,
        "prepared": prepared_size,
        "layers": [_describe_layer(row, network) for row in rows],
        "known": {"logits": answer.tolist(), "tolerance": TOLERANCE},
        "are_shapes": set(classes) == set(CLASSES),
        "origin": dict(origin),
        "pictures": [
            {"name": name.replace("_", " "), "png": _draw_picture(name, number, prepared_size)}
            for number, name in enumerate(DRAWN)
        ],
    }
    weights = [_embed(list(split(tensors, network, len(classes), t).values())) for t in range(network.towers)]
    folder = resources.files("twotower.weights").joinpath(FOLDER)
    style, script, tower = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js", "tower.js"))
    # Workers are made from texts in the page, which `blob:` allows; they have this policy, too.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; worker-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(
        loader=PackageLoader("twotower.weights", FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        facts=facts,
        network=network,
        layers=about["layers"],
        crossing=[row.name for row in rows if row.reads_both],
        prepared_size=prepared_size,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        tower=Markup(tower),
        # In a script's element only "<" could end it; JSON has another way to write it.
        about=Markup(json.dumps(about).replace("<", "\\u003c")),
        mean=_embed([mean_image]),
        weights=weights,
    )
