"""A trained network from Python: load it, show it images, and look at what any layer of either tower makes of them.

    network = twotower.load_network("runs/NAME")
    network.predict(["cat.jpg"])                    # the five likeliest classes
    network.activations(["cat.jpg"], ["conv5"])     # {"conv5": [1, 256, 6, 6]}, tower 0's maps first

Both towers compute in this process. Images are brought to the network as evaluation brings validation images to it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twotower.config import InputConfig
from twotower.data.class_names import name_classes
from twotower.data.crops import ten_views
from twotower.data.decode import cut_square
from twotower.data.normalise import Normaliser, choose_mean
from twotower.data.photographs import read_photograph
from twotower.distributed.exchange import InProcessExchange
from twotower.evaluation.evaluate import average_crops, log_probabilities
from twotower.evaluation.layer_outputs import find_module, list_steps, read_outputs
from twotower.ground.devices import choose_memory_format
from twotower.model import plain
from twotower.model.tower import Tower, forward
from twotower.weights.merged import merge

Photographs = str | Path | NDArray[np.uint8] | Sequence[str | Path | NDArray[np.uint8]]
AT_ONCE = 32  # images in a forward pass


class TrainedNetwork(nn.Module):
    """Both towers of a network in one process, with all that they need to be shown an image.

    Made by `load_network` and `build_network`, in evaluation mode. `logits`, `predict` and `activations` take images
    and compute without gradients; calling the network itself takes what `preprocess` returns, and gradients flow.

    Images are paths, or uint8 arrays [H, W, 3] or [B, H, W, 3], RGB, of any size: one or a list of them. The shorter
    side is brought to `size` pixels, the centre square is cut out, and of it the crops that the network reads.

    Attributes:
        towers: the `Tower`s, tower 0 first; `towers[0].layers["conv3"]` is a module that takes forward hooks.
        classes: names of the classes as the data set has them, in the order of the logits.
        names: the same in words, where they are WordNet's ids.
        mean_image: float32 [size, size, 3], RGB, 0..255; what training subtracted.
        input: how images were brought to the network.
        title: where the weights came from.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        input: InputConfig,
        exchange_precision: str,
        classes: Sequence[str],
        mean_image: NDArray[np.float32],
        title: str,
    ) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.exchange = InProcessExchange(exchange_precision)
        self.input = input
        self.classes = list(classes)
        self.names = name_classes(self.classes)
        self.mean_image = mean_image
        self.title = title
        self.eval()

    @property
    def layers(self) -> list[str]:
        """The names of the layers, conv1 ... fc8."""
        return [row.name for row in self._towers()[0].rows]

    @property
    def steps(self) -> list[str]:
        """The names of all steps in the order in which they are computed: conv1.sum, conv1.activation ... fc8.sum."""
        layers = zip(self.layers, self._towers()[0].table(), strict=True)
        return [f"{name}.{step}" for name, layer in layers for step in list_steps(layer)]

    @property
    def size(self) -> int:
        """Pixels of the square that images are brought to, 256 for the paper's network."""
        return len(self.mean_image)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def _towers(self) -> list[Tower]:
        return [cast(Tower, tower) for tower in self.towers]

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, classes] of images [B, 3, S, S] as `preprocess` returns them."""
        memory_format = choose_memory_format(images.device)
        return forward(self._towers(), images.contiguous(memory_format=memory_format), self.exchange)

    def preprocess(self, images: Photographs, crops: str = "centre") -> Tensor:
        """Prepares images: float32 [B, 3, S, S] of the centre crops, [B, 10, 3, S, S] with crops="ten".

        The pixels are evaluation's, bit for bit, where nothing is resized, and where its images are decoded with
        input.loader=torch. DALI rounds resized pixels otherwise: in one measurement 12.7 % of them differed by 1/255,
        and log-probabilities by up to 0.004.

        Raises: ValueError for a file that is no image, an array that is no uint8 RGB image, or another `crops`.
        """
        squares = [self._read(image) for image in _list_images(images)]
        if not squares:
            raise ValueError("there are no images; give paths, or uint8 arrays [H, W, 3].")
        views = self.cut_crops(np.stack(squares), crops)
        return views[:, 0] if crops == "centre" else views

    def _read(self, image: str | Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
        if isinstance(image, str | Path):
            return read_photograph(Path(image), self.size)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"an image is an array of {image.dtype} {list(image.shape)}; give uint8 [H, W, 3], RGB, or a path."
            )
        return cut_square(np.ascontiguousarray(image), self.size)

    def cut_crops(self, squares: NDArray[np.uint8], crops: str) -> Tensor:
        """float32 [B, V, 3, S, S] of prepared squares [B, size, size, 3]: the centre crop, or all ten views.

        Raises: ValueError for another word than `centre` or `ten`.
        """
        if crops not in ("centre", "ten"):
            raise ValueError(f"crops={crops} is not known; choose one of centre, ten.")
        side = self.input.crop_size
        span = squares.shape[1] - side
        views = ten_views(span) if crops == "ten" else [(span // 2, span // 2, 0)]
        cut = np.stack(
            [
                part[:, :, ::-1] if flip else part
                for y, x, flip in views
                for part in [squares[:, y : y + side, x : x + side]]
            ],
            axis=1,
        )
        pixels = torch.from_numpy(np.ascontiguousarray(cut.reshape(-1, side, side, 3)))
        offsets = np.tile(np.array(views, np.int32), (len(squares), 1))
        mean = choose_mean(self.mean_image, self.input)
        normalise = Normaliser(mean, self.input.mean, side, self.device, self.input.std)
        images = normalise(pixels, offsets[:, :2], offsets[:, 2])
        return images.view(cut.shape).movedim(-1, -3)

    def _batches(self, images: Photographs, crops: str = "centre") -> Iterator[Tensor]:
        """`preprocess` of a few images at a time, because ten crops of many photographs would fill the memory."""
        listed = _list_images(images)
        for first in range(0, max(1, len(listed)), AT_ONCE):
            yield self.preprocess(listed[first : first + AT_ONCE], crops)

    @torch.no_grad()
    def logits(self, images: Photographs) -> Tensor:
        """float32 [B, classes], before the softmax, of the centre crops."""
        return torch.cat([self(batch) for batch in self._batches(images)])

    @torch.no_grad()
    def log_probabilities(self, images: Photographs, crops: str = "centre") -> Tensor:
        """float32 [B, classes]; with crops="ten" the probabilities are averaged over them (paper section 4.1)."""
        return torch.cat(
            [
                average_crops(log_probabilities(self._towers(), batch, self.exchange))
                for batch in self._batches(images, crops)
            ]
        )

    def predict(self, images: Photographs, top: int = 5, crops: str = "centre") -> list[list[tuple[str, float]]]:
        """For each image its `top` likeliest classes in words, with their probabilities 0..1, the likeliest first.

        Raises: ValueError if `top` is not at least 1, or an image cannot be read.
        """
        if top < 1:
            raise ValueError(f"top={top} is not at least 1.")
        values, indices = rank_classes(self.log_probabilities(images, crops), top)
        return [
            [(self.names[index], value) for index, value in zip(*row, strict=True)]
            for row in zip(indices.tolist(), values.tolist(), strict=True)
        ]

    def activations(
        self, images: Photographs, layers: str | Sequence[str], tower: int | None = None
    ) -> dict[str, Tensor]:
        """Computes the outputs of layers for the centre crops.

        Args:
            layers: "conv2" for the output of the whole layer, after activation, norms and pooling; "conv2.sum" before
                all of these, "conv2.lrn" after a single one; see `steps`.

        Returns: by layer float32 [B, C, H, W], or [B, C] for fc6, fc7, fc8; tower 0's maps or units first. With
            `tower` only the half of that tower.

        Raises: ValueError for a layer, a step or a tower that the network does not have.
        """
        wanted = [layers] if isinstance(layers, str) else list(layers)
        self.check_names(wanted, tower)
        parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
        for batch in self._batches(images):
            for name, values in self.read_layers(batch, wanted, tower).items():
                parts[name].append(values)
        return {name: torch.cat(batches).contiguous() for name, batches in parts.items()}

    def check_names(self, layers: Sequence[str], tower: int | None = None) -> None:
        """Raises: ValueError for a layer, a step or a tower that the network does not have."""
        for name in layers:
            find_module(self._towers()[0], name)
        if tower is not None and tower not in range(len(self.towers)):
            raise ValueError(f"there is no tower {tower}; the network has {len(self.towers)}, the first is tower 0.")

    def read_layers(self, batch: Tensor, layers: Sequence[str], tower: int | None = None) -> dict[str, Tensor]:
        """`activations` of a batch [B, 3, S, S] that `preprocess` made."""
        outputs = read_outputs(self._towers(), layers, batch, self.exchange)
        return {
            name: torch.cat(halves, dim=1) if tower is None else halves[tower] for name, halves in outputs.items()
        }

    def in_one_piece(self) -> plain.Network:
        """A copy of the network as one module of plain torch layers, which other libraries can hook and trace.

        Its modules are called conv1, conv1_lrn, conv1_pool ... fc8; tower 0's maps come first. It takes what
        `preprocess` returns. Values agree to rounding, but for a network whose towers exchange in half precision,
        where these are not rounded.
        """
        towers = self._towers()
        tensors = merge([{n: p.detach() for n, p in tower.paper_named_parameters().items()} for tower in towers])
        mean = choose_mean(self.mean_image, self.input)
        begin, side = (len(mean) - self.input.crop_size) // 2, self.input.crop_size
        central = torch.from_numpy(mean[begin : begin + side, begin : begin + side]).permute(2, 0, 1)
        tensors["mean_image"] = central.contiguous().to(self.device)
        return plain.Network(asdict(towers[0].network), tensors).eval()


def _list_images(images: Photographs) -> list[str | Path | NDArray[np.uint8]]:
    if isinstance(images, str | Path) or (isinstance(images, np.ndarray) and images.ndim != 4):
        return [images]
    return list(images)


def rank_classes(log_probabilities: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Probabilities and indices [B, top] of the likeliest classes; of classes that tie the first one comes first."""
    values, indices = log_probabilities.cpu().exp().sort(dim=1, descending=True, stable=True)
    return values[:, :top], indices[:, :top]
