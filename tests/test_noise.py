"""Random numbers as a function of (key, index): the twin in Python's integers, independence, statistics."""

import hashlib
import math

import pytest
import torch

from gacd import noise

KEY = noise.key(0, "test", 3)
WORD = 2**32


def mix_slowly(h):
    h ^= h >> 16
    h = h * 0x21F0AAAD % WORD
    h ^= h >> 15
    h = h * 0xD35A2D97 % WORD
    return h ^ h >> 15


def correlation(a, b):
    a, b = a.flatten().double() - a.double().mean(), b.flatten().double() - b.double().mean()
    return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt())


def chi_square(u, bins):
    """In standard deviations from what a uniform u gives."""
    count = (u.flatten().double() * bins).long().bincount(minlength=bins).double()
    assert len(count) == bins
    expected = u.numel() / bins
    return (float(((count - expected) ** 2).sum() / expected) - (bins - 1)) / math.sqrt(2 * (bins - 1))


@pytest.mark.parametrize("key", [KEY, 0, -1, 2**31 - 1, -(2**31)])
def test_bits_equal_the_twin_in_exact_integers(key):
    index = torch.tensor([0, 1, 7, 49_999, 2**31 - 1])
    expected = [
        [mix_slowly((mix_slowly(mix_slowly(i) ^ key % WORD) + j * 0x9E3779B9) % WORD) for j in range(5)]
        for i in index.tolist()
    ]
    assert (noise.bits(key, index, 5).long() % WORD).tolist() == expected


def test_keys_tell_apart_seed_purpose_and_epoch():
    parts = [(0, "a", 1), (1, "a", 0), (0, "a1"), (0, "a", "1"), ("0", "a", 1), (0, "a", 11), (0, "a"), (0, 1, "a")]
    keys = [noise.key(*p) for p in parts]
    assert len(set(keys)) == len(keys)
    assert all(-(2**31) <= k < 2**31 for k in keys)
    digest = hashlib.sha256(b"(0, 'a', 1)").digest()  # not Python's hash, which differs between processes
    assert keys[0] % WORD == int.from_bytes(digest[:4], "little")


@pytest.mark.parametrize("draw", [noise.uniform, noise.normal])
def test_an_image_s_numbers_depend_on_its_own_index_alone(draw):
    index = torch.tensor([5, 900, 3, 41])
    z = draw(KEY, index, (3, 5, 5))
    assert z.shape == (4, 3, 5, 5)
    assert z.dtype == torch.float32
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(draw(KEY, index[order], (3, 5, 5)), z[order])
    assert torch.equal(draw(KEY, torch.tensor([77, 3, 3]), (3, 5, 5))[1:], z[[2, 2]])
    assert torch.equal(draw(KEY, index.int(), (3, 5, 5)), z)
    assert not torch.equal(draw(KEY + 1, index, (3, 5, 5)), z)
    assert draw(KEY, index).shape == (4,)
    assert draw(KEY, index[:0], (3, 2)).shape == (0, 3, 2)


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    before, z = torch.get_rng_state(), noise.normal(KEY, torch.arange(3), (7,))
    noise.permutation(KEY, 10)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(noise.normal(KEY, torch.arange(3), (7,)), z)


@pytest.mark.parametrize("shape", [(1, 400_000), (400_000, 1), (500, 800)])
def test_uniform_is_uniform(shape):
    u = noise.uniform(KEY, torch.arange(shape[0]), shape[1:])
    assert 0 <= float(u.min()) < 1e-4
    assert 1 - 1e-4 < float(u.max()) < 1
    n = u.numel()
    assert abs(float(u.double().mean()) - 1 / 2) < 4 * math.sqrt(1 / 12 / n)
    assert abs(float(u.double().var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
    assert abs(chi_square(u, 256)) < 4
    low = u * 2**16 % 1  # the low bits are as good as the high ones
    assert abs(chi_square(low, 256)) < 4
    assert torch.equal(u * 2**24, (u * 2**24).round())


def test_neighbouring_images_places_and_keys_are_unrelated():
    n = 400
    u = noise.uniform(KEY, torch.arange(n), (n,))
    limit = 4 / n
    for lag in (1, 2, 3, 32):
        assert abs(correlation(u[lag:], u[:-lag])) < limit * 1.1
        assert abs(correlation(u[:, lag:], u[:, :-lag])) < limit * 1.1
    assert abs(correlation(u[1:, 1:], u[:-1, :-1])) < limit * 1.1
    for other in (KEY + 1, KEY ^ 1, KEY ^ 2**30, ~KEY, 0):
        assert abs(correlation(u, noise.uniform(other, torch.arange(n), (n,)))) < limit
    pairs = (u[:, ::2] * 16).long() * 16 + (u[:, 1::2] * 16).long()  # two-dimensional, for Box and Muller
    assert abs(chi_square(pairs / 256, 256)) < 4
    assert abs(correlation(noise.uniform(0, torch.arange(n), (n,)), noise.uniform(1, torch.arange(n), (n,)))) < limit


@pytest.mark.parametrize("shape", [(1, 400_001), (800, 500)])
def test_normal_is_normal(shape):
    z = noise.normal(KEY, torch.arange(shape[0]), shape[1:]).double()
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 4 * math.sqrt(variance / n)
    assert abs(chi_square(torch.special.ndtr(z), 256)) < 4
    for tail in (2.0, 3.0, 4.0):
        p = math.erfc(tail / math.sqrt(2))
        assert abs(float((z.abs() > tail).double().sum()) - n * p) < 4 * math.sqrt(n * p)
    assert 4 < float(z.abs().max()) < 5.8  # sqrt(-2 log 2^-24)
    half = (shape[1] + 1) // 2
    assert abs(correlation(z[:, : shape[1] - half], z[:, half:])) < 4 / math.sqrt(n / 2)  # the pairs' two members
    assert abs(correlation(z[:, : shape[1] - half].abs(), z[:, half:].abs())) < 4 / math.sqrt(n / 2)


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_is_one(n):
    order = noise.permutation(KEY, n)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))


def test_permutation_sends_every_place_everywhere():
    orders = torch.stack([noise.permutation(noise.key("permutation", i), 8) for i in range(1000)])
    assert len(torch.unique(orders, dim=0)) > 950  # of 40320
    for place in range(8):
        assert abs(chi_square(orders[:, place] / 8, 8)) < 4
    assert abs(correlation(orders[:, 0].float(), orders[:, 1].float()) + 1 / 7) < 4 / math.sqrt(1000)


def test_fingerprint_is_a_function_of_the_pixels_alone():
    x = noise.uniform(KEY, torch.arange(6), (3, 4, 4))
    f = noise.fingerprint(x)
    assert f.shape == (6,)
    assert len(set(f.tolist())) == 6
    assert torch.equal(noise.fingerprint(x.contiguous(memory_format=torch.channels_last)), f)
    assert torch.equal(noise.fingerprint(x.flip(0)), f.flip(0))
    assert torch.equal(noise.fingerprint(x.clone().requires_grad_()), f)


def test_fingerprint_sees_one_bit_and_the_order_of_pixels():
    x = noise.uniform(KEY, torch.arange(1), (3, 4, 4))
    seen = {int(noise.fingerprint(x))}
    for place in range(48):
        changed = x.flatten().clone()
        changed[place] = torch.nextafter(changed[place], torch.tensor(2.0))
        swapped = x.flatten().clone()
        swapped[[place, (place + 1) % 48]] = swapped[[(place + 1) % 48, place]]
        seen |= {int(noise.fingerprint(z.view_as(x))) for z in (changed, swapped)}
    assert len(seen) == 1 + 2 * 48
    flat = torch.stack([torch.full((3, 4, 4), level / 255) for level in range(256)])
    assert len(set(noise.fingerprint(flat).tolist())) == 256
