"""The main module of an examining process, which decodes files and may crash on one (examiner.py is the other end).

It is started with two arguments: the decoder as MODULE:CLASS, and the size of images in pixels.

A request is a line of JSON, and so is its answer, after which come the sums of the images, uint32 [SIZE, SIZE, 3]:

    {"paths": [...], "fit": true}  ->  {"num_images": 31, "products": [[...]], "rejects": {path: reason}, ...}

The first answer, without sums, says that the decoder is there. After an error that a decoder should not have, the
last answer is {"problem": ...}.
"""

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twotower.data.preparing.mean_and_pca import Fit
from twotower.ground.processes import die_with_parent


def _take_streams() -> tuple[BinaryIO, BinaryIO]:
    """Takes standard input and output for requests and answers, so that no library can read or print into them."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return requests, answers


def _silence_libraries() -> None:
    """Discards what libraries print about a file, because the answer has the reason."""
    os.dup2(1, 2)


def _examine(decoder: Any, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    images, rejects = decoder.decode([Path(path) for path in request["paths"]])
    fit = Fit(decoder.size)
    for image in images if request["fit"] else ():
        fit.add(image)
    answer = {
        "num_images": fit.num_images,
        "products": fit.products.tolist(),
        "rejects": {str(path): reason for path, reason in rejects.items()},
        "needs_resize": decoder.needs_resize,
    }
    return answer, fit.image_sum.astype(np.uint32).tobytes()


def _serve(make_decoder: Callable[[], Any], requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until they end."""

    def answer(content: dict[str, Any], sums: bytes = b"") -> None:
        answers.write(json.dumps(content).encode() + b"\n" + sums)
        answers.flush()

    try:
        decoder = make_decoder()
        _silence_libraries()
        answer({})
        for line in requests:
            answer(*_examine(decoder, json.loads(line)))
    except Exception as error:  # any kind, because a person reads it at the other end
        answer({"problem": f"{type(error).__name__}: {error}"})


def main() -> None:
    die_with_parent()
    requests, answers = _take_streams()
    module, _, name = sys.argv[1].partition(":")
    size = int(sys.argv[2])
    _serve(lambda: getattr(import_module(module), name)(1, size), requests, answers)


if __name__ == "__main__":
    main()
