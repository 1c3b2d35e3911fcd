import os

import numpy as np
import pytest
import torch

from gacd import noise
from gacd.data import Loader, crop, hold_out, load, resize, resolve, statistics
from gacd.errors import InputError, UsageError
from gacd.readers import Split

REAL = pytest.mark.skipif("GACD_DATA" not in os.environ, reason="GACD_DATA does not say where CIFAR lies")


def random_split(n=70, size=16, channels=3, classes=5):
    rng = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=rng)
    return Split(images, torch.randint(0, classes, (n,), generator=rng))


def test_digits():
    data, other = load("digits"), load("digits", seed=1, val_size=50)
    assert (data.num_classes, data.size, data.channels, data.augment) == (10, 8, 1, "crop")
    assert (len(data.train), len(data.val), len(data.test)) == (1295, 143, 359)
    assert data.train.images.max() == 255
    assert data.train.images.dtype == torch.uint8
    assert torch.equal(data.test.images, other.test.images)  # else another seed's run trains on it
    assert not torch.equal(data.val.images[:50], other.val.images)
    assert len(data.notes) == 2
    assert load("digits", size=16, val_size=0).train.images.shape == (1438, 1, 16, 16)


def test_resize_keeps_flat_images_and_what_has_the_size():
    flat = torch.arange(0, 256, 5, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 96, 96)
    assert torch.equal(resize(flat, 32), flat[..., :32, :32])
    assert resize(flat, 96) is flat


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cifar", {}, "unknown data set: cifar .*cifar10"),
        ("./nowhere", {}, "no such folder"),
        ("digits", {"size": 0}, "size must be positive"),
        ("digits", {"val_size": -1}, "val_size not negative"),
    ],
)
def test_load_errors(name, options, message):
    with pytest.raises(InputError, match=message):
        load(name, **options)


def test_hold_out_is_disjoint_stratified_and_seeded():
    labels = torch.tensor([0] * 500 + [1] * 300 + [2] * 199 + [3])[torch.randperm(1000)]
    split = Split(torch.arange(1000)[:, None, None, None], labels)  # an image is its own position
    rest, held = hold_out(split, 100, noise.key(0, "validation"))
    assert sorted(torch.cat([rest.images, held.images]).flatten().tolist()) == list(range(1000))
    assert (rest.images.flatten().diff() > 0).all()
    assert torch.equal(labels[held.images.flatten()], held.labels)
    assert (held.labels.bincount(minlength=4) - torch.tensor([50, 30, 20, 0])).abs().max() <= 1
    assert torch.equal(hold_out(split, 100, noise.key(0, "validation"))[1].images, held.images)
    other = hold_out(split, 100, noise.key(1, "validation"))[1]
    assert len(set(other.images.flatten().tolist()) & set(held.images.flatten().tolist())) < 30


def test_statistics_of_a_flat_channel_can_be_divided_by():
    assert statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8)) == ((0.0,), (1 / 255,))


def batches(loader, epoch=0, start=0):
    return [torch.cat(column) for column in zip(*loader.epoch(epoch, start), strict=True)]


def by_image(loader, epoch):
    x, _, index = batches(loader, epoch)
    return dict(zip(index.tolist(), x, strict=True))


def test_loader_epochs_are_different_permutations():
    split = random_split(70)
    loader = Loader(split, batch_size=16, seed=3)
    (x, y, index), (_, _, later) = batches(loader, 0), batches(loader, 1)
    assert len(loader) == 4
    assert len(set(index.tolist())) == 64
    assert not torch.equal(index, later)
    assert torch.equal(y, split.labels[index])
    assert np.array_equal(x.numpy(), split.images[index].numpy() / np.float32(255))
    assert x.dtype == torch.float32
    assert next(loader.epoch(0))[0].is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(index, batches(Loader(split, batch_size=16, seed=4))[2])
    assert sorted(batches(Loader(split, batch_size=100))[2].tolist()) == list(range(70))


def test_loader_goes_on_from_any_batch():
    loader = Loader(random_split(), batch_size=10, augment="crop-flip")
    for whole, rest in zip(batches(loader, 2), batches(loader, 2, start=3), strict=True):
        assert torch.equal(whole[30:], rest)


def test_two_ranks_make_the_batches_of_one():
    split = random_split()
    one = Loader(split, batch_size=12, augment="crop-flip").epoch(1)
    ranks = [Loader(split, batch_size=12, augment="crop-flip", rank=r, world_size=2).epoch(1) for r in range(2)]
    for whole, left, right in zip(one, *ranks, strict=True):
        assert all(torch.equal(a, torch.cat([b, c])) for a, b, c in zip(whole, left, right, strict=True))


def test_augmentation_belongs_to_the_image_and_the_epoch():
    split = random_split(64)
    small, large = (by_image(Loader(split, batch_size=b, augment="crop-flip"), 5) for b in (4, 64))
    assert all(torch.equal(small[i], large[i]) for i in range(64))
    other = by_image(Loader(split, batch_size=64, augment="crop-flip"), 6)
    assert sum(torch.equal(other[i], large[i]) for i in range(64)) < 10


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_equals_its_slow_twin(channels):
    images = random_split(200, size=16, channels=channels).images
    u = noise.uniform(noise.key("crop"), torch.arange(200), (2,))
    fast = crop(images.permute(0, 2, 3, 1), u).permute(0, 3, 1, 2)
    corners = set()
    for image, (down, right), result in zip(images, u.tolist(), fast, strict=True):
        padded = torch.zeros(channels, 20, 20, dtype=torch.uint8)
        padded[:, 2:18, 2:18] = image
        i, j = int(down * 5), int(right * 5)
        corners.add((i, j))
        assert torch.equal(result, padded[:, i : i + 16, j : j + 16])
    assert len(corners) == 25


def test_flip_mirrors_about_half_of_the_images():
    split = random_split(200)
    flipped = 0
    for i, x in by_image(Loader(split, batch_size=200, augment="flip"), 0).items():
        image = split.images[i] / 255
        assert torch.equal(x, image) or torch.equal(x, image.flip(2))
        flipped += not torch.equal(x, image)
    assert 70 < flipped < 130


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (0, {"batch_size": 8}, "batches of 0"),
        (20, {"batch_size": 9, "world_size": 2}, "batches of 9 for 2"),
        (20, {"batch_size": 8, "augment": "cutout"}, "unknown augmentation: cutout"),
    ],
)
def test_loader_errors(n, options, message):
    with pytest.raises(InputError, match=message):
        Loader(random_split(n), **options)


@REAL
@pytest.mark.parametrize(
    ("name", "classes", "first", "test_counts"),
    [("cifar10", 10, "airplane", 1000), ("cifar100", 100, "apple", 100)],
)
def test_real_cifar(name, classes, first, test_counts):
    data = load(name)
    assert data.train.images.shape == (49_000, 3, 32, 32)
    assert data.test.images.shape == (10_000, 3, 32, 32)
    assert (data.num_classes, data.classes[0]) == (classes, first)
    assert set(data.val.labels.bincount().tolist()) == {1000 // classes}
    assert set(data.test.labels.bincount().tolist()) == {test_counts}
    whole = torch.cat([data.train.images, data.val.images])
    for computed, published in zip(statistics(whole), (data.mean, data.std), strict=True):
        assert computed == pytest.approx(published, abs=6e-5)


def test_a_run_s_size_is_a_folder_s_too_however_it_is_named():
    record = dict(data="photos", size=24)
    assert resolve(None, None, record) == ("photos", 24)
    for name, asked, size in (("/home/me/photos", None, 24), ("held", 32, 32), ("cifar10", None, None)):
        assert resolve(name, asked, record) == (name, size)
    assert resolve("held", None, dict(data="cifar10", size=32)) == ("held", None)
    with pytest.raises(UsageError, match="--data"):
        resolve(None, None, {})
