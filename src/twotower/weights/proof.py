"""What a file carries so that it can be told from a damaged one: what it computed when it was written.

    proof       each layer's output for a built-in image, tower by tower, and each layer's weights, as short sketches;
                the logits of the image under the names of their classes
    errors      of the validation, with intervals of 95 %
    measured    what the exporter saw on validation images: labels against answers, and the errors with B, G, R

A file that does not compute what it did is compared with what would explain it: swapped towers, reversed colours,
shuffled labels, a layer that was drawn anew. So each of these has a sentence of its own, also where all checksums
were written again afterwards. What was wrong before a file was written is seen as far as errors and answers show it.

A sketch of n numbers is K sums of them with fixed signs. Of two lists of numbers it tells how far they are apart, and
of weights whether they have anything in common.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import FiniteFloat, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from twotower.config import NetworkConfig
from twotower.ground.stored_files import Three, damaged, parse_json, read_tensors
from twotower.ground.wording import counted
from twotower.model import plain
from twotower.model.layer_table import Row, plan
from twotower.weights.merged import expected_shapes, misfits
from twotower.weights.read_weights import FORMAT, MEAN_TENSOR, WHOLE_MEAN_IMAGE, read_about, read_merged
from twotower.weights.untrained import untrained_layers

BUILT_IN_IMAGE = "128 + 100 / 3 * (sin(0.05 x + c) + sin(0.07 (c + 1) y) + sin(0.11 (x + y) - c))"
TOLERANCE = 1e-4  # of a layer's norm; float32 differs by some 1e-6, the least defect that was seen by 1e-2
WEIGHTS_TOLERANCE = 1e-6  # of a layer's norm; the same numbers are added up, in float64
IN_COMMON = 0.5  # correlation of a layer's weights with those recorded; weights drawn anew have 0 +- 0.13
OF_OUTPUTS, OF_WEIGHTS = 16, 64  # numbers in a sketch
PERIOD = 65521  # after so many numbers the signs begin again; a prime
STANDARD_ERRORS = 3.0  # that a trained network must be better than guessing
SURE = 5.0  # standard errors that a suspicion about labels or colours must be worth
MOST_CLASSES = 100  # with which the answers are kept class by class
DIGITS = 9
REMEDY = "get it again, or load it with check=False"
Z_95 = 1.959964  # of a normal distribution


class StoredProof(TypedDict):
    """The form of `proof`."""

    image: str
    outputs: dict[str, list[list[FiniteFloat]]]  # by layer, a list a tower: norm, then the sketch
    weights: dict[str, list[FiniteFloat]]  # by layer: norm, then the sketch
    classes: list[str]
    logits: list[FiniteFloat]


class StoredMeasured(TypedDict):
    """The form of `measured`; see `Measured`."""

    num_images: int
    answers: list[list[int]] | None
    num_reversed: int
    error_as_is: FiniteFloat
    error_reversed: FiniteFloat


_PROOF: TypeAdapter[Any] = TypeAdapter(StoredProof)
_MEASURED: TypeAdapter[Any] = TypeAdapter(StoredMeasured | None)
_STD: TypeAdapter[list[float]] = TypeAdapter(Three)
_ERRORS: TypeAdapter[dict[str, float]] = TypeAdapter(dict[str, FiniteFloat])


@dataclass(frozen=True)
class Measured:
    """What a network answered for validation images, read by another way than training's.

    Attributes:
        errors: loss in nats, top1_error and top5_error in percent, of all `num_images`.
        answers: how many images of class i were taken for class j, [classes, classes]; None for many classes.
        num_reversed: images of which the colours were reversed as well.
        error_as_is, error_reversed: top-1 errors of these, in percent.
        source: of the data set, in a word.
        fingerprint: of the data set; see evaluation/measured.py.
    """

    errors: dict[str, float]
    num_images: int
    answers: list[list[int]] | None
    num_reversed: int
    error_as_is: float
    error_reversed: float
    source: str
    fingerprint: str


def interval(percent: float, num_images: int) -> tuple[float, float]:
    """The 95 % interval of an error rate, in percent (Wilson's, which stays within 0..100)."""
    p, z = percent / 100, Z_95
    centre = (p + z * z / (2 * num_images)) / (1 + z * z / num_images)
    half = z * math.sqrt(p * (1 - p) / num_images + z * z / (4 * num_images**2)) / (1 + z * z / num_images)
    # At the ends the difference is zero but for rounding.
    return 0.0 if p == 0 else 100 * (centre - half), 100.0 if p == 1 else 100 * (centre + half)


def with_intervals(errors: Mapping[str, float], num_images: int) -> dict[str, float]:
    """Errors with `num_images`, and `top1_error_low`, `top1_error_high` and those of top-5. Nothing for no errors."""
    if not errors:
        return {}
    full = {key: float(errors[key]) for key in ("loss", "top1_error", "top5_error")} | {"num_images": num_images}
    for key in ("top1_error", "top5_error"):
        full[f"{key}_low"], full[f"{key}_high"] = interval(full[key], num_images)
    return full


def built_in_image(size: int) -> Tensor:
    """float32 [1, 3, size, size], 28..228: `BUILT_IN_IMAGE` of channel c, row y and column x, from 0."""
    c, y, x = np.ogrid[0:3, 0:size, 0:size]
    waves = np.sin(0.05 * x + c) + np.sin(0.07 * (c + 1) * y) + np.sin(0.11 * (x + y) - c)
    return torch.from_numpy((128 + 100 / 3 * waves).astype(np.float32))[None]


# Sketches


def _signs(count: int) -> NDArray[np.float64]:
    """Fixed signs, -1 or 1, from whole numbers alone, so that they are the same everywhere."""
    mixed = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519)) & np.uint64(0xFFFFFFFF)
    return np.where((mixed >> np.uint64(13)) & np.uint64(1), 1.0, -1.0)


def _sketch(values: Tensor, size: int) -> list[float]:
    """The norm of some numbers, and `size` sums of them with fixed signs, added up in float64."""
    flat = values.detach().contiguous().flatten().numpy()
    whole = len(flat) // PERIOD * PERIOD
    folded = np.zeros(min(len(flat), PERIOD))
    if whole:
        folded += flat[:whole].reshape(-1, PERIOD).sum(0, dtype=np.float64)
    folded[: len(flat) - whole] += flat[whole:]
    signed = folded * _signs(len(folded))
    sums = np.bincount(np.arange(len(signed)) % size, signed, size)
    norm = float(torch.linalg.vector_norm(values.detach(), dtype=torch.float64))
    return [float(f"{value:.{DIGITS}g}") for value in (norm, *sums)]


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    """How far two lists of numbers are apart by their sketches, as a part of the larger norm."""
    if len(one) != len(other):
        return math.inf
    norm = max(one[0], other[0])
    distance = float(np.linalg.norm(np.subtract(one[1:], other[1:])))
    return max(distance, abs(one[0] - other[0])) / norm if norm > 0 else 0.0


def _in_common(one: Sequence[float], other: Sequence[float]) -> float:
    """The correlation of two lists of numbers by their sketches, -1..1, within 0.13 for 64 numbers."""
    norms = float(np.linalg.norm(one[1:]) * np.linalg.norm(other[1:]))
    return float(np.dot(one[1:], other[1:])) / norms if norms > 0 else 0.0


# What a network computes


@torch.no_grad()
def _run(network: plain.Network, rows: Sequence[Row], images: Tensor) -> dict[str, list[Tensor]]:
    """Each layer's output for images [1, 3, S, S] less their mean: by layer one tensor a tower."""
    outputs: dict[str, Tensor] = {}
    x, current = images, ""
    names = {row.name for row in rows}
    for name, module in network.named_children():
        x = module(x)
        current = name if name in names else current
        if not name.endswith(("_flatten", "_pad")):  # these belong to the layer that follows
            outputs[current] = x
    return {row.name: list(outputs[row.name].split(list(row.kernels), dim=1)) for row in rows}


def _describe_outputs(outputs: Mapping[str, list[Tensor]]) -> dict[str, list[list[float]]]:
    return {name: [_sketch(half.double(), OF_OUTPUTS) for half in halves] for name, halves in outputs.items()}


def _describe_weights(tensors: Mapping[str, Tensor], rows: Sequence[Row]) -> dict[str, list[float]]:
    return {row.name: _sketch(tensors[f"{row.name}.weight"].float(), OF_WEIGHTS) for row in rows}


def _logits(outputs: Mapping[str, list[Tensor]], rows: Sequence[Row]) -> list[float]:
    return [float(value) for value in torch.cat(outputs[rows[-1].name], dim=1)[0].double()]


def make_proof(tensors: Mapping[str, Tensor], network: NetworkConfig, classes: Sequence[str]) -> str:
    """`proof` of merged tensors with their mean image, as JSON; computed in float64."""
    rows = plan(network, len(classes))
    one_piece = plain.Network(asdict(network), {name: tensor.double() for name, tensor in tensors.items()}).eval()
    outputs = _run(one_piece, rows, built_in_image(network.image_size).double() - tensors["mean_image"].double())
    proof: StoredProof = {
        "image": BUILT_IN_IMAGE,
        "outputs": _describe_outputs(outputs),
        "weights": _describe_weights(tensors, rows),
        "classes": list(classes),
        "logits": [float(f"{value:.{DIGITS}g}") for value in _logits(outputs, rows)],
    }
    return json.dumps(proof)


def hash_metadata(about: Mapping[str, str]) -> str:
    """The SHA-256 of all other metadata, for their key `metadata_sha256`."""
    others = {key: value for key, value in about.items() if key != "metadata_sha256"}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


# What is wrong with a file


def check_file(path: Path, chance: bool = False) -> None:
    """Refuses a file of launch/export.py that is not what it was, or not worth loading.

    Files of earlier versions have no proof with them, and only their checksum says something.

    Args:
        chance: whether a network may be at chance, as those are with which a trajectory begins.

    Raises: ValueError with a sentence for each defect; see `check_proof`.
    """
    imported, about = read_merged(path), read_about(path)
    if about["format"] != FORMAT:
        return
    assert imported.network is not None
    assert imported.classes is not None
    tensors = {name: tensor.float() for name, tensor in read_tensors(path, REMEDY)[0].items()}
    network, side = imported.network, imported.network.image_size
    given = {name: tensor for name, tensor in tensors.items() if name != WHOLE_MEAN_IMAGE}
    wrong = misfits(given, expected_shapes(network, len(imported.classes)) | {MEAN_TENSOR: (3, side, side)})
    if wrong:
        raise ValueError(
            f"{path} was altered after it was written: {wrong[0]} is not as its table of layers has it; {REMEDY}."
        )
    check_proof(path, tensors, about, network, imported.classes, chance)


def check_proof(
    path: Path,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, str],
    network: NetworkConfig,
    classes: list[str],
    chance: bool = False,
) -> None:
    """Refuses a file that does not compute what it did, that was never trained, or that gives wrong answers.

    Args:
        tensors: merged, float32, with mean_image.
        about: the metadata.
        chance: whether it may be at chance, and untrained.

    Raises: ValueError with a sentence for each defect.
    """
    check_answers(path, about, classes)
    if not chance:
        check_chance(path, about, len(classes))
    check_outputs(path, tensors, about, network, classes)
    input_std = parse_json(about.get("std", "[1, 1, 1]"), _STD, path, REMEDY)
    untrained = untrained_layers(tensors, network, len(classes), input_std)
    untrained = [name for name in untrained if network.layers[name].rate > 0]
    if untrained and not chance:
        raise ValueError(
            f"{path} has random weights in {', '.join(untrained)}: they are as they were drawn, and were so when the "
            "file was written; train on, or load it with check=False."
        )
    if about.get("metadata_sha256") != hash_metadata(about):
        raise ValueError(
            f"{path} was changed or damaged: the SHA-256 of its metadata is not the one stored in it; {REMEDY}."
        )


def check_outputs(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str], network: NetworkConfig, classes: list[str]
) -> None:
    """Refuses a file that does not compute what it did when it was written. Arguments and errors: `check_proof`."""
    if "proof" not in about:
        raise damaged(path, "its metadata has no proof", REMEDY)
    proof = parse_json(about["proof"], _PROOF, path, REMEDY)
    rows = plan(network, len(classes))
    names = [row.name for row in rows]
    if list(proof["outputs"]) != names or list(proof["weights"]) != names or len(proof["logits"]) != len(classes):
        raise damaged(path, "its proof is of another network", REMEDY)
    one_piece = plain.Network(asdict(network), dict(tensors)).eval()
    image, mean = built_in_image(network.image_size), tensors["mean_image"]
    outputs = _run(one_piece, rows, image - mean)
    found = _describe_outputs(outputs)
    recorded: dict[str, list[list[float]]] = proof["outputs"]
    wrong = [name for name in names if _differ(found[name], recorded[name])]
    if not wrong:
        _check_names(path, proof, classes)
    _check_labels(path, wrong, names, proof, _logits(outputs, rows), classes)
    if wrong:
        first = wrong[0]
        if len(recorded[first]) == 2 and not _differ(found[first], recorded[first][::-1]):
            raise ValueError(
                f"{path} has its towers swapped: in {first} tower 0 computes what tower 1 did when the file was "
                f"written, and tower 1 what tower 0 did; {REMEDY}."
            )
        # Weights with reversed colours, a mean image with reversed colours, and both.
        for fed in ((image - mean).flip(1), image - mean.flip(0), image.flip(1) - mean):
            again = _describe_outputs(_run(one_piece, rows, fed))
            if not any(_differ(again[name], recorded[name]) for name in names):
                raise ValueError(
                    f"{path} takes blue for red: with B, G, R for R, G, B it computes what it did when it was "
                    f"written; {REMEDY}."
                )
    _check_weights(path, tensors, rows, proof, wrong)


def _differ(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    """Whether two towers' outputs are further apart than rounding."""
    apart = [_apart(mine, its) for mine, its in zip(one, other, strict=False)]
    return len(one) != len(other) or not max(apart) <= TOLERANCE


def _check_names(path: Path, proof: StoredProof, classes: list[str]) -> None:
    """Raises: ValueError if the outputs are those recorded, and stand under other names."""
    moved = [i for i, (now, then) in enumerate(zip(classes, proof["classes"], strict=False)) if now != then]
    if moved:
        index = moved[0]
        raise ValueError(
            f"{path} has its labels shuffled: {counted(len(moved), 'output')} of {len(classes)} "
            f"{'stands' if len(moved) == 1 else 'stand'} under another class, the first is output {index}, which was "
            f"{proof['classes'][index]} when the file was written and is {classes[index]} now; {REMEDY}."
        )


def _check_labels(
    path: Path, wrong: list[str], names: list[str], proof: StoredProof, logits: list[float], classes: list[str]
) -> None:
    """Raises: ValueError if the last layer puts out what was recorded in another order."""
    if wrong != names[-1:]:
        return
    scale = max(map(abs, proof["logits"])) or 1.0
    now, then = np.argsort(logits, kind="stable"), np.argsort(proof["logits"], kind="stable")
    apart = np.abs(np.array(logits)[now] - np.array(proof["logits"])[then]).max() / scale
    moved = [(int(a), int(b)) for a, b in zip(now, then, strict=True) if a != b]
    if apart <= TOLERANCE and moved:
        here, there = min(moved)
        raise ValueError(
            f"{path} has its labels shuffled: {counted(len(moved), 'output')} of {len(classes)} come in another "
            f"order, output {here} ({classes[here]}) is what output {there} ({classes[there]}) was when the file was "
            f"written; {REMEDY}."
        )


def _check_weights(
    path: Path, tensors: Mapping[str, Tensor], rows: Sequence[Row], proof: StoredProof, wrong: list[str]
) -> None:
    """Raises: ValueError if a layer's weights are others, or if nothing else explains what it computes."""
    now = _describe_weights(tensors, rows)
    changed = [name for name in now if not _apart(now[name], proof["weights"][name]) <= WEIGHTS_TOLERANCE]
    by_name = {row.name: row for row in rows}
    for name in changed:
        weight = tensors[f"{name}.weight"].float()
        for variant in _exchange_halves(weight, by_name[name]):
            if _apart(_sketch(variant, OF_WEIGHTS), proof["weights"][name]) <= WEIGHTS_TOLERANCE:
                raise ValueError(
                    f"{path} has its towers swapped in {name}: with the halves of its weights exchanged they are "
                    f"those that the file was written with; {REMEDY}."
                )
    drawn = [name for name in changed if _in_common(now[name], proof["weights"][name]) < IN_COMMON]
    if drawn:
        share = _in_common(now[drawn[0]], proof["weights"][drawn[0]])
        raise ValueError(
            f"{path} has random weights in {', '.join(drawn)}: they have nothing in common with those that the file "
            f"was written with (correlation {share:.2f}); {REMEDY}."
        )
    if changed or wrong:
        where = f"the weights of {', '.join(changed)}" if changed else "biases, its mean image or its table of layers"
        since = f", and from {wrong[0]} on it computes something else" if wrong else ""
        raise ValueError(f"{path} was altered after it was written: {where} are others{since}; {REMEDY}.")


def _exchange_halves(weight: Tensor, row: Row) -> list[Tensor]:
    """The weights of a layer of two equal towers with the towers' kernels exchanged, what they read, and both."""
    if len(row.kernels) != 2:
        return []
    variants = []
    if row.kernels[0] == row.kernels[1]:
        variants.append(torch.cat(weight.chunk(2)[::-1]))
    if row.reads_both:
        variants += [torch.cat(one.chunk(2, dim=1)[::-1], dim=1) for one in (weight, *variants)]
    return variants


def read_errors(path: Path, about: Mapping[str, str]) -> dict[str, float]:
    """`errors` as `with_intervals` makes them; empty if there are none. Raises: ValueError if they are damaged."""
    errors = parse_json(about.get("errors", "{}"), _ERRORS, path, REMEDY)
    if errors and not {"top1_error", "num_images"} <= errors.keys():
        raise damaged(path, "its errors are incomplete", REMEDY)
    return errors


def check_chance(path: Path | str, about: Mapping[str, str], num_classes: int) -> None:
    """Refuses a network without errors, or one whose top-1 error is not clearly below that of guessing.

    Raises: ValueError.
    """
    errors = read_errors(Path(path), about)
    if not errors:
        raise ValueError(
            f"{path} has no validation error, so nothing says that it is better than guessing; train on, or load it "
            "with check=False."
        )
    if not is_better(errors["top1_error"], int(errors["num_images"]), num_classes):
        low, high = interval(errors["top1_error"], int(errors["num_images"]))
        raise ValueError(
            f"{path} is at chance: its top-1 error is {errors['top1_error']:.2f} % ({low:.2f} to {high:.2f} %) on "
            f"{counted(int(errors['num_images']), 'image')}, guessing has {100 - 100 / num_classes:.2f} %, and only "
            f"below {highest_error(int(errors['num_images']), num_classes):.2f} % it is clearly better; train on, or "
            "load it with check=False."
        )


def is_better(top1_error: float, num_images: int, num_classes: int) -> bool:
    """Whether an error in percent is clearly below that of guessing: by three standard errors."""
    return top1_error < highest_error(num_images, num_classes)


def highest_error(num_images: int, num_classes: int) -> float:
    """The top-1 error in percent below which a network is clearly better than guessing."""
    hit = 1 / num_classes
    return 100 * (1 - hit) - STANDARD_ERRORS * 100 * math.sqrt(hit * (1 - hit) / max(1, num_images))


def check_answers(path: Path | str, about: Mapping[str, str], classes: Sequence[str]) -> None:
    """Refuses a network that takes whole classes for each other, or that knows more in B, G, R.

    Raises: ValueError.
    """
    measured = parse_json(about.get("measured", "null"), _MEASURED, Path(path), REMEDY)
    if measured is None:
        return
    answers = measured["answers"]
    if answers is not None and [len(row) for row in answers] != [len(classes)] * len(classes):
        raise damaged(Path(path), "its answers are those of another number of classes", REMEDY)
    taken = find_taken(np.array(answers)) if answers is not None else np.arange(len(classes))
    cycle = find_cycle(taken)
    n = measured["num_reversed"]
    as_is, reverse = measured["error_as_is"] / 100, measured["error_reversed"] / 100
    error = math.sqrt(max(as_is * (1 - as_is) + reverse * (1 - reverse), 1 / max(1, n)) / max(1, n))
    knows_reversed = n > 0 and as_is - reverse > SURE * error
    # Where colours are what tells classes apart, both may explain the errors; colours are the simpler reason.
    if cycle and answers is not None:
        unshuffled = 1 - float(np.array(answers)[np.arange(len(taken)), taken].sum()) / max(1, measured["num_images"])
        knows_reversed = knows_reversed and reverse < unshuffled + SURE * error
    if cycle and not knows_reversed:
        first, second = classes[cycle[0]], classes[cycle[1]]
        raise ValueError(
            f"{path} was trained or written with its labels shuffled: on {counted(measured['num_images'], 'image')} "
            f"most of {first} are taken for {second}, and so on in a circle of {len(cycle)} classes; check the "
            "classes' names and order, or load it with check=False."
        )
    if knows_reversed:
        raise ValueError(
            f"{path} was trained or written with blue for red: on {counted(n, 'image')} its top-1 error is "
            f"{100 * as_is:.2f} %, and {100 * reverse:.2f} % with B, G, R for R, G, B; turn the colours of its "
            "weights and mean image, or load it with check=False."
        )


def find_taken(answers: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each class the one that it is clearly taken for more often than for itself, else itself: int64 [classes].

    Args:
        answers: [classes, classes], how many images of class i were taken for class j.
    """
    taken = answers.argmax(1)
    for i, j in enumerate(taken):
        n, own = answers[i, j], answers[i, i]
        if n - own <= SURE * math.sqrt(max(1, n + own)):
            taken[i] = i
    return taken


def find_cycle(taken: NDArray[np.int64]) -> list[int]:
    """Classes that are taken for each other in a circle, first for second ... last for first; [] if none are.

    A network that is merely bad says one class for many, and that makes no circle.
    """
    for start in range(len(taken)):
        cycle, at = [start], int(taken[start])
        while at not in cycle:
            cycle.append(at)
            at = int(taken[at])
        if at == start and len(cycle) > 1:
            return cycle
    return []
