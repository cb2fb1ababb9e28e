"""Random changes to batches of images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgepress.compress.training.augment import Augment
from edgepress.targets.errors import TrainingError

IMAGES = torch.arange(16 * 2 * 6 * 6, dtype=torch.float32).view(16, 2, 6, 6) + 1
LABELS = torch.arange(16) % 3


def apply(*names: str, seed: int = 0, classes: int = 0) -> Tensor:
    (images,), labels = Augment(names, classes)((IMAGES,), LABELS, seed)
    assert images.shape == IMAGES.shape and labels is not None
    return images


def test_flip_mirrors_some_images_left_to_right() -> None:
    flipped = apply("flip")
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, IMAGES, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True)) and any(mirrored) and any(kept)


def test_crop_shifts_every_image_and_fills_with_zeros() -> None:
    padded = torch.nn.functional.pad(IMAGES, (2, 2, 2, 2))
    places = set()
    for new, old in zip(apply("crop2"), padded, strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(new, old[:, y : y + 6, x : x + 6])]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 5


def test_crop_and_flip_go_together() -> None:
    padded = torch.nn.functional.pad(IMAGES, (1, 1, 1, 1))
    for new, old in zip(apply("crop1", "flip"), padded, strict=True):
        windows = [old[:, y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
        assert any(torch.equal(new, window) or torch.equal(new, window.flip(2)) for window in windows)


def test_cutout_blanks_one_square_of_every_image() -> None:
    for new, old in zip(apply("cutout2"), IMAGES, strict=True):
        blank = new[0] == 0
        assert 1 <= int(blank.sum()) <= 4 and torch.equal(new[:, ~blank], old[:, ~blank]) and (new[:, blank] == 0).all()


def test_mixup_blends_images_and_labels_by_the_same_share() -> None:
    (images,), labels = Augment(("mixup1.0",), 3)((IMAGES,), LABELS, 1)
    shares = torch.nn.functional.one_hot(LABELS, 3).float()
    share = float((images[0] - IMAGES[15]).mean() / (IMAGES[0] - IMAGES[15]).mean())
    assert labels is not None and 0 < share < 1
    torch.testing.assert_close(images, share * IMAGES + (1 - share) * IMAGES.flip(0))
    torch.testing.assert_close(labels, share * shares + (1 - share) * shares.flip(0))


def test_mixup_blends_float_labels_as_they_are() -> None:
    _, labels = Augment(("mixup1.0",), 0)((IMAGES,), IMAGES[:, 0, 0, :1], 1)
    assert labels is not None and labels.shape == (16, 1) and not torch.equal(labels, IMAGES[:, 0, 0, :1])


def test_changes_follow_from_the_seed_alone() -> None:
    names = ("flip", "crop2", "cutout2", "mixup0.4")
    torch.manual_seed(1)
    one = apply(*names, seed=3, classes=3)
    torch.manual_seed(2)
    assert torch.equal(one, apply(*names, seed=3, classes=3)) and not torch.equal(one, apply(*names, seed=4, classes=3))


def test_every_process_changes_its_samples_as_one_process_would() -> None:
    whole = apply("flip", "crop2", "cutout2", seed=3)
    for rank in range(2):
        (part,), _ = Augment(("flip", "crop2", "cutout2"), 0, world=2, rank=rank)((IMAGES[rank::2],), None, 3)
        assert torch.equal(part, whole[rank::2])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("rotate",), "'rotate': known are flip, crop4"),
        (("crop",), "crop needs its pixels of padding"),
        (("flip2",), "flip takes no number"),
        (("crop1.5",), "pixels are whole"),
        (("mixup0",), "mixup needs its alpha"),
        (("crop4", "crop2"), "crop twice"),
    ],
)
def test_a_wrong_name_or_number_is_told(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Augment(names, 0)
