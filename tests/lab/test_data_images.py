# SPDX-License-Identifier: MIT
"""Batches of images: shuffled, augmented and normalised as a function of seed and step."""

import numpy as np
import pytest
import torch

from examples.lab.data import DataError
from examples.lab.data.images import AUGMENTATIONS, from_arrays


def numbered(count=20, tests=7, classes=10, size=(2, 3)):
    """Images whose pixels are all the number of the image, and labels its last digit."""
    sides = [np.arange(k) for k in (count, tests)]
    images = [np.broadcast_to(k[:, None, None, None], (len(k), 1, *size)) for k in sides]
    return from_arrays("numbered", classes, *zip(images, [k % classes for k in sides], strict=True))


def numbers(data, batch):
    """Which images are in a batch."""
    mean, deviation = data.statistics
    return (batch[0] * deviation + mean)[:, 0, 0, 0].round().int().tolist()


def test_an_epoch_has_each_image_once_and_leaves_out_the_rest():
    data = numbered()
    feed = data.batches(6, 0)
    epochs = [[numbers(data, feed(3 * epoch + k)) for k in range(3)] for epoch in range(2)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [6, 6, 6]
        assert len({number for batch in epoch for number in batch}) == 18
    assert epochs[0] != epochs[1]
    assert epochs[0] != [list(range(k, k + 6)) for k in (0, 6, 12)]


def test_labels_go_with_their_images():
    data = numbered()
    for step in range(3):
        images, labels = data.batches(6, 0)(step)
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert labels.tolist() == [number % 10 for number in numbers(data, (images, labels))]


def test_a_batch_depends_on_seed_and_step_alone():
    data = numbered(size=(6, 5))
    feed = data.batches(6, 3, augment=["flip", "crop"])
    first = [feed(step) for step in range(8)]
    again = data.batches(6, 3, augment=["flip", "crop"])
    for step in (7, 2, 0, 5):
        assert all(map(torch.equal, again(step), first[step]))
    other = data.batches(6, 4)
    assert numbers(data, other(0)) != numbers(data, data.batches(6, 3)(0))


def test_images_are_normalised_by_what_is_trained_on():
    draw = np.random.default_rng(0)
    # two channels, of other ranges
    images = draw.integers(0, [[[100]], [[256]]], size=(50, 2, 4, 4))
    tests = np.full((3, 2, 4, 4), 255)
    data = from_arrays("random", 10, (images, np.zeros(50)), (tests, np.zeros(3)))
    assert (data.shape, data.classes) == ((2, 4, 4), 10)
    taken, _ = data.batches(50, 0)(0)
    assert taken.mean((0, 2, 3)).tolist() == pytest.approx([0, 0], abs=1e-5)
    assert taken.std((0, 2, 3), correction=0).tolist() == pytest.approx([1, 1], abs=1e-5)
    held_out, _ = data.validation_batches(None, 3)[0]
    expected = [(255 - images[:, c].mean()) / images[:, c].std() for c in range(2)]
    assert held_out[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


def test_images_without_contrast_stay_finite():
    data = from_arrays("black", 2, *[(np.zeros((4, 1, 2, 2)), np.zeros(4))] * 2)
    assert data.batches(4, 0)(0)[0].abs().max() == 0


@pytest.mark.parametrize(
    ("count", "batch", "expected"),
    [
        (None, 3, [[0, 1, 2], [3, 4, 5], [6]]),
        (2, 3, [[0, 1, 2], [3, 4, 5]]),
        (None, 9, [[*range(7)]]),
    ],
)
def test_test_images_come_in_their_order(count, batch, expected):
    data = numbered()
    batches = data.validation_batches(count, batch)
    assert [numbers(data, each) for each in batches] == expected
    assert [labels.tolist() for _, labels in batches] == expected


def test_flip_mirrors_about_half_of_the_images():
    images = torch.arange(12).view(1, 2, 2, 3).repeat(400, 1, 1, 1)
    flipped = AUGMENTATIONS["flip"](images, np.random.default_rng(0))
    mirrored = [torch.equal(image, images[0].flip(-1)) for image in flipped]
    kept = [torch.equal(image, images[0]) for image in flipped]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 160 < sum(mirrored) < 240


def test_crop_moves_images_by_at_most_four_pixels():
    image = torch.arange(1, 3 * 5 * 6 + 1).view(3, 5, 6)
    cropped = AUGMENTATIONS["crop"](image.repeat(500, 1, 1, 1), np.random.default_rng(0))
    assert cropped.shape == (500, 3, 5, 6)
    padded = torch.nn.functional.pad(image, [4, 4, 4, 4])
    places = {
        (down, right): padded[:, down : down + 5, right : right + 6]
        for down in range(9)
        for right in range(9)
    }
    found = [
        next(place for place, part in places.items() if torch.equal(part, each)) for each in cropped
    ]
    assert len(set(found)) == 81


def test_augmentation_is_drawn_anew_at_each_step():
    # all images are equal, so that order does not matter
    images = np.broadcast_to(np.arange(64).reshape(1, 1, 8, 8), (6, 1, 8, 8))
    data = from_arrays("equal", 2, *[(images, np.zeros(6))] * 2)
    plain = data.batches(6, 0)
    assert torch.equal(plain(0)[0], plain(1)[0])
    for name in AUGMENTATIONS:
        feed = data.batches(6, 0, augment=[name])
        assert not torch.equal(feed(0)[0], feed(1)[0])
        assert not torch.equal(feed(0)[0], data.batches(6, 1, augment=[name])(0)[0])


def test_digest_is_of_images_and_labels():
    digests = {
        numbered().digest,
        numbered(count=19).digest,
        numbered(classes=9).digest,
        numbered(size=(3, 2)).digest,
    }
    assert len(digests) == 4
    assert numbered().digest in digests


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda d: d.batches(0, 0), ["batch", "0", "at least 1"]),
        (lambda d: d.batches(21, 0), ["batch is 21", "has 20", "fewer"]),
        (lambda d: d.batches(2, 1.0), ["seed", "1.0", "whole number"]),
        (lambda d: d.batches(2, 0, augment=["turn"]), ["augment", "'turn'", "'flip', 'crop'"]),
        (lambda d: d.batches(2, 0, augment="flip"), ["augment", "a list", "['flip']"]),
        (lambda d: d.validation_batches(2, 4), ["2 batches of 4", "7 test images", "count=None"]),
        (lambda d: d.validation_batches(0, 4), ["count", "0", "at least 1"]),
    ],
)
def test_bad_batches_are_named(call, words):
    with pytest.raises(DataError) as caught:
        call(numbered())
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (((4, 1, 2, 2), 3), ((4, 1, 2, 2), 4), ["4 train images and 3 labels"]),
        (((4, 1, 2, 2), 4), ((0, 1, 2, 2), 0), ["0 test images"]),
        (((4, 1, 2, 2), 4), ((4, 1, 2, 3), 4), ["test images of another size"]),
    ],
)
def test_sets_that_do_not_fit_together_are_named(train, test, words):
    sides = [(np.zeros(shape), np.zeros(count)) for shape, count in (train, test)]
    with pytest.raises(DataError) as caught:
        from_arrays("odd", 10, *sides)
    for word in ["odd", *words]:
        assert word in str(caught.value)


def test_a_label_beyond_the_classes_is_named():
    with pytest.raises(DataError, match="test label 10; classes are 10"):
        from_arrays("odd", 10, (np.zeros((1, 1, 2, 2)), [9]), (np.zeros((1, 1, 2, 2)), [10]))
