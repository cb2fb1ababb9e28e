"""Random changes to whole batches of images, the same for every run with the same seed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edgepress.targets.errors import TrainingError

#: Name -> may it have a number, and what the number is.
NAMES = {"flip": "", "crop": "pixels of padding", "cutout": "pixels of the square's side", "mixup": "alpha of the Beta distribution"}
_EXAMPLES = "flip, crop4, cutout8, mixup0.2"


def parse_augment(names: Sequence[str]) -> dict[str, float]:
    """`("flip", "crop4")` -> `{"flip": 0.0, "crop": 4.0}`.

    Raises:
        TrainingError: an unknown or repeated name, or a number that is missing or makes no sense.
    """
    found: dict[str, float] = {}
    for text in names:
        match = re.fullmatch(r"([a-z]+)([0-9]*\.?[0-9]*)", str(text))
        name, number = (match[1], match[2]) if match else (str(text), "")
        if name not in NAMES:
            raise TrainingError(f"augment has {text!r}", f"known are {_EXAMPLES}", "")
        if bool(number) != bool(NAMES[name]) or (number and not float(number if number != "." else 0) > 0):
            needs = f"{name} needs its {NAMES[name]}" if NAMES[name] else f"{name} takes no number"
            raise TrainingError(f"augment has {text!r}", needs, f"Write it as in {_EXAMPLES}.")
        if name in ("crop", "cutout") and "." in number:
            raise TrainingError(f"augment has {text!r}", "pixels are whole", f"Write it as in {_EXAMPLES}.")
        if name in found:
            raise TrainingError(f"augment has {name} twice", "", "Name each once.")
        found[name] = float(number or 0)
    return found


class Augment:
    """Applies the named changes to a batch.

    Flips and crops (He et al. 2016, section 4.2), one square of zeros per image (DeVries & Taylor 2017), and blends of two samples with
    their labels (Zhang et al. 2018).

    Args:
        names: as of `TrainConfig.augment`.
        classes: width of the labels that mixup makes of class numbers.
        world: processes; each draws for the whole batch and keeps the numbers of its own part, so that their number does not change a
            sample. Mixup pairs the samples of one process, by the same share in all of them: which ones meet depends on `world`.
        rank: which of them this is.
    """

    def __init__(self, names: Sequence[str], classes: int, world: int = 1, rank: int = 0) -> None:
        self._wanted = parse_augment(names)
        self._classes, self._world, self._rank = classes, world, rank

    def __call__(self, inputs: tuple[Tensor, ...], labels: Tensor | None, seed: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Change a batch.

        Args:
            inputs: the first is the images, float (N, C, H, W); others stay as they are, mixup excepted, which blends every floating-point
                one.
            labels: class numbers (N,), any float tensor (N, ...), or None.
            seed: all random numbers follow from it.

        Returns:
            Inputs of the same shapes; labels likewise, but after mixup class numbers are probabilities (N, classes), float32.
        """
        if not self._wanted:
            return inputs, labels
        random = torch.Generator().manual_seed(seed)
        images, *others = inputs
        if "crop" in self._wanted or "flip" in self._wanted:
            images = self._shift(images, random)
        if "cutout" in self._wanted:
            images = self._cutout(images, int(self._wanted["cutout"]), random)
        if "mixup" in self._wanted:
            return self._mixup((images, *others), labels, self._wanted["mixup"], random)
        return (images, *others), labels

    def _draw(self, high: int, own: int, random: torch.Generator, device: torch.device) -> Tensor:
        """Integers in [0, high), one per sample of this process."""
        return torch.randint(high, (own * self._world,), generator=random)[self._rank :: self._world].to(device)

    def _shift(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Crop and flip as one gather: each image is copied once."""
        count, channels, height, width = images.shape
        pad = int(self._wanted.get("crop", 0))
        padded = F.pad(images, (pad, pad, pad, pad)) if pad else images
        rows = torch.arange(height, device=images.device).expand(count, -1)
        columns = torch.arange(width, device=images.device).expand(count, -1)
        if "flip" in self._wanted:
            flipped = self._draw(2, count, random, images.device).bool()
            columns = torch.where(flipped[:, None], columns.flip(1), columns)
        if pad:
            rows = rows + self._draw(2 * pad + 1, count, random, images.device)[:, None]
            columns = columns + self._draw(2 * pad + 1, count, random, images.device)[:, None]
        flat = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).view(count, 1, -1)
        return padded.flatten(2).gather(2, flat.expand(-1, channels, -1)).view(count, channels, height, width)

    def _cutout(self, images: Tensor, side: int, random: torch.Generator) -> Tensor:
        count, _, height, width = images.shape
        masks = []
        for size in (height, width):
            centre = self._draw(size, count, random, images.device)[:, None]
            distance = torch.arange(size, device=images.device) - (centre - side // 2)
            masks.append((distance >= 0) & (distance < side))
        return images.masked_fill(masks[0][:, None, :, None] & masks[1][:, None, None, :], 0.0)

    def _mixup(
        self, inputs: tuple[Tensor, ...], labels: Tensor | None, alpha: float, random: torch.Generator
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        share = _beta(alpha, random)
        mixed = tuple(_blend(x, share) if x.is_floating_point() else x for x in inputs)
        if labels is None:
            return mixed, None
        if not labels.is_floating_point():
            labels = F.one_hot(labels, self._classes).float()
        return mixed, _blend(labels, share)


def _blend(values: Tensor, share: float) -> Tensor:
    """Each sample with its counterpart from the other end of the (shuffled) batch."""
    return torch.lerp(values.flip(0), values, share)


def _beta(alpha: float, random: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha), as the share of the first of two gamma draws."""
    seeds = torch.randint(2**62, (1,), generator=random)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeds))
        return float(torch.distributions.Beta(alpha, alpha).sample())
