from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mobileclip
from mobileclip.data.augment import Policy, draw, parse, replay
from mobileclip.data.operations import OPERATIONS, magnitudes
from mobileclip.errors import InputError
from mobileclip.preprocess import open_image

PHOTOS = sorted((Path(mobileclip.__file__).parent / "assets/photos").glob("*.webp"))
EXAMPLE = [[98, 42, 376, 439], [[9, -0.27], [3, -30.45317]]]  # from Apple's data card
MAGNITUDES = magnitudes(224, 31, 9)
SIGNED = [(i, sign) for i, o in enumerate(OPERATIONS) for sign in ((1, -1) if o.signed and o.strongest else (1,))]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [open_image(path) for path in PHOTOS]


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    return open_image(next(path for path in PHOTOS if path.stem == "cat"))


def by_torchvision(image: Image.Image, params: list, resolution: int, interpolation: str = "bicubic") -> np.ndarray:
    """The published layout, [crop, operations or None], with torchvision's own functions."""
    pytest.importorskip("torchvision", reason="replay is compared with torchvision, which is not installed; its digests are checked anyway")
    from torchvision.transforms import InterpolationMode, RandAugment, functional
    from torchvision.transforms.autoaugment import _apply_op

    names = list(RandAugment()._augmentation_space(31, (resolution, resolution)))
    crop, operations = params
    image = functional.resized_crop(image, *crop, [resolution, resolution], InterpolationMode(interpolation))
    for i, magnitude in operations or []:
        image = _apply_op(image, names[i], magnitude, InterpolationMode.NEAREST, None)
    return np.array(image)


def test_equal_to_torchvision_on_drawn_augmentations(photos):
    rng = np.random.default_rng(1)
    for image, resolution in product(photos, (64, 97)):
        for _ in range(3):
            params = draw(*image.size, rng, Policy(resolution=resolution))
            assert np.array_equal(replay(image, params, resolution), by_torchvision(image, params, resolution)), params


@pytest.mark.parametrize("resolution", [64, 224, 251])
def test_every_operation_and_sign_equals_torchvision(photos, resolution):
    for n, (i, sign) in enumerate(SIGNED):
        image = photos[n % len(photos)]
        params = [[0, 3, image.height, image.width - 3], [[i, sign * MAGNITUDES[i]]]]
        assert np.array_equal(replay(image, params, resolution), by_torchvision(image, params, resolution)), OPERATIONS[i].name


def test_every_magnitude_equals_torchvision(cat):
    for bin_, (i, sign) in product(range(0, 31, 5), SIGNED):
        params = [[1, 2, 200, 301], [[i, sign * magnitudes(64, 31, bin_)[i]]]]
        assert np.array_equal(replay(cat, params, 64), by_torchvision(cat, params, 64)), (OPERATIONS[i].name, bin_)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 2), (1, 700), (700, 1), (5, 331), (257, 3)])
def test_odd_sizes_equal_torchvision(cat, size):
    """The whole of a tiny or very long picture, and a single pixel of it, at sides of 1, 2, 3 and 33 pixels."""
    image = cat.resize(size)
    for resolution, (i, sign) in product((1, 2, 3, 33), SIGNED):
        for crop in ([0, 0, size[1], size[0]], [size[1] - 1, size[0] - 1, 1, 1]):
            params = [crop, [[i, sign * MAGNITUDES[i]], [9, 0.27]]]
            assert np.array_equal(replay(image, params, resolution), by_torchvision(image, params, resolution)), params


@pytest.mark.parametrize("kind", ["black", "white", "two levels", "one pixel apart", "noise"])
def test_pictures_without_contrast_equal_torchvision(kind):
    pixels = {
        "black": np.zeros((40, 40, 3)),
        "white": np.full((40, 40, 3), 255),
        "two levels": np.indices((40, 40)).sum(0)[..., None] % 2 * [3, 7, 255],
        "one pixel apart": np.eye(40)[..., None] * [0, 1, 200],
        "noise": np.random.default_rng(0).integers(0, 256, (40, 40, 3)),
    }[kind]
    image = Image.fromarray(pixels.astype(np.uint8))
    for i, sign in SIGNED:
        params = [[0, 0, 40, 40], [[i, sign * MAGNITUDES[i]]]]
        assert np.array_equal(replay(image, params, 40), by_torchvision(image, params, 40)), OPERATIONS[i].name


def test_bilinear_equals_torchvision(cat):
    params = [[5, 6, 250, 111], None]
    assert np.array_equal(replay(cat, params, 97, "bilinear"), by_torchvision(cat, params, 97, "bilinear"))
    assert not np.array_equal(replay(cat, params, 97, "bilinear"), replay(cat, params, 97))


def test_apples_example(photos):
    image = photos[0].resize((512, 512), Image.Resampling.BICUBIC)
    assert parse([EXAMPLE]) == [EXAMPLE]
    assert np.array_equal(replay(image, EXAMPLE, 224), by_torchvision(image, EXAMPLE, 224))
    black = (replay(image, EXAMPLE, 224) == 0).all(axis=(0, 2))
    assert black[-30:].all()  # moved left by int(30.45) pixels
    assert not black[:-30].any()


DIGESTS = {
    "Identity +1": "1664c9d5bfde843b",
    "ShearX +1": "ae805b21b7930a2e",
    "ShearX -1": "ab733c05b3eb1a51",
    "ShearY +1": "dec1932e3a142e1f",
    "ShearY -1": "4fe5ea55c077d6e0",
    "TranslateX +1": "046013808217d950",
    "TranslateX -1": "15bca5bc0c9a0dde",
    "TranslateY +1": "e93b93ec088a5497",
    "TranslateY -1": "018dbfeb8eaac628",
    "Rotate +1": "c6d941feab093e12",
    "Rotate -1": "05cf2d2135c61cc9",
    "Brightness +1": "56e7bd9d2d38c650",
    "Brightness -1": "49c7f5e4de8a2935",
    "Color +1": "ab82dc9d5410d3af",
    "Color -1": "ca81a091c57d80c2",
    "Contrast +1": "8d8c151f1e964a6a",
    "Contrast -1": "c1face0456ef4af2",
    "Sharpness +1": "57268c849976a51b",
    "Sharpness -1": "b0a92cd15b16f866",
    "Posterize +1": "718d186bf192dd2d",
    "Solarize +1": "ae6888c0acf5863b",
    "AutoContrast +1": "671b6c99f69fe979",
    "Equalize +1": "f3ac18a44d4d2fc0",
    "example": "35cfd41330ed873a",
    "bilinear": "3417c7fecb07ff95",
    "centre": "0604dfa30d62c942",
    "all transforms": "bf9b67bb4ab67a0d",
}


def replayed(image: Image.Image) -> dict[str, np.ndarray]:
    crop = [11, 20, 230, 307]
    found = {f"{OPERATIONS[i].name} {sign:+}": replay(image, [crop, [[i, sign * MAGNITUDES[i]]]], 128) for i, sign in SIGNED}
    found["example"] = replay(image.resize((512, 512), Image.Resampling.BICUBIC), EXAMPLE, 224)
    found["bilinear"] = replay(image, [crop, None], 64, "bilinear")
    found["centre"] = replay(image, [], 64)
    found["all transforms"] = replay(image, [300, [7, 9], True, [[5, 9.0], [13, 0]], [3, 4, 10, 20]], 128)
    return found


def test_digests(cat):
    """What this toolkit has always replayed: where torchvision and it differ one day, this tells which of them has changed."""
    assert {name: hashlib.sha256(pixels.tobytes()).hexdigest()[:16] for name, pixels in replayed(cat).items()} == DIGESTS


def test_digests_are_all_different(cat):
    found = [pixels.tobytes() for pixels in replayed(cat).values()]
    assert len(set(found)) == len(found)


def test_magnitudes_equal_torchvision():
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    for bins, resolution in product((2, 11, 31, 100), (1, 17, 64, 224, 256, 336)):
        space = transforms.RandAugment(num_magnitude_bins=bins)._augmentation_space(bins, (resolution, resolution))
        assert [o.name for o in OPERATIONS] == list(space)
        for magnitude in range(bins):
            values = [float(v[magnitude]) if v.ndim else 0.0 for v, _ in space.values()]
            assert list(magnitudes(resolution, bins, magnitude)) == values
        assert [o.signed and o.strongest is not None for o in OPERATIONS] == [signed for _, signed in space.values()]


def test_stored_magnitudes():
    """Those of the published sets (224 pixels)."""
    expected = [0, 0.09, 0.09, 30.4532, 30.4532, 9, 0.27, 0.27, 0.27, 0.27, 7, 178.5, 0, 0]
    assert magnitudes(224, 31, 9) == pytest.approx(expected, abs=5e-5)
    assert magnitudes(256, 31, 9)[3] == pytest.approx(34.80, abs=5e-3)


def test_operations_are_drawn_evenly():
    rng, n = np.random.default_rng(2), 14_000
    drawn = [op for _ in range(n) for op in draw(64, 64, rng, Policy(crop=False))[0]]
    counts = Counter(i for i, _ in drawn)
    assert sorted(counts) == list(range(14))
    expected = len(drawn) / 14
    assert sum((c - expected) ** 2 / expected for c in counts.values()) < 34.5  # chi squared, 13 degrees of freedom, p = 0.001
    for i, operation in enumerate(OPERATIONS):
        values = Counter(m for j, m in drawn if j == i)
        if operation.signed and operation.strongest is not None:
            assert set(values) == {MAGNITUDES[i], -MAGNITUDES[i]}
            assert abs(values[MAGNITUDES[i]] / counts[i] - 0.5) < 3.3 * 0.5 / math.sqrt(counts[i])
        else:
            assert set(values) == {MAGNITUDES[i]}


@pytest.mark.parametrize("size", [(640, 480), (333, 1000), (2000, 90), (3, 2)])
def test_crops_are_distributed_as_torchvisions(size):
    """Kolmogorov-Smirnov between 2,000 crops each: top, left, height, width, area and ratio."""
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    import torch
    from scipy.stats import ks_2samp

    torch.manual_seed(3)
    rng, image, n = np.random.default_rng(3), Image.new("RGB", size), 2000
    ours = np.array([draw(*size, rng, Policy(rand_augment=False))[0] for _ in range(n)])
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    for of in (*(lambda c, k=k: c[:, k] for k in range(4)), lambda c: c[:, 2] * c[:, 3], lambda c: c[:, 3] / c[:, 2]):
        assert ks_2samp(of(ours), of(theirs)).pvalue > 1e-4
    assert (ours[:, 0] + ours[:, 2] <= size[1]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[0]).all()


@pytest.mark.parametrize(("size", "expected"), [((1000, 1), [0, 499, 1, 1]), ((1, 1000), [499, 0, 1, 1]), ((30, 20000), [9980, 0, 40, 30])])
def test_central_crop_where_no_try_fits(size, expected):
    """Ten crops of nearly the whole area never fit in such a picture."""
    policy = Policy(scale=(0.9, 1.0), rand_augment=False)
    crop = draw(*size, np.random.default_rng(0), policy)[0]
    assert crop == expected
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    assert list(transforms.RandomResizedCrop.get_params(Image.new("RGB", size), [0.9, 1.0], [3 / 4, 4 / 3])) == crop


def test_drawing_is_reproducible_and_ready_for_json():
    policy = Policy(resolution=64, probability=0.5)
    first, again = ([draw(300, 200, np.random.default_rng(s), policy) for s in range(50)] for _ in range(2))
    assert first == again
    assert parse(json.dumps(first)) == parse(json.loads(json.dumps(first))) == first
    assert 10 < sum(p[1] is None for p in first) < 40
    assert json.dumps(first[2]) == json.dumps(draw(300, 200, np.random.default_rng(2), policy))


def test_policy_switches(cat):
    rng = np.random.default_rng(0)
    assert draw(64, 48, rng, Policy(crop=False, rand_augment=False)) == []
    assert [len(e) for e in draw(64, 48, rng, Policy(rand_augment=False))] == [4]
    assert [len(e) for e in draw(64, 48, rng, Policy(crop=False, operations=3))] == [3]
    for policy in (Policy(crop=False), Policy(rand_augment=False), Policy(probability=0.0), Policy(crop=False, rand_augment=False)):
        params = draw(*cat.size, rng, policy)
        assert parse([params]) == [params]
        assert replay(cat, params, 64).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "change",
    [
        {"resolution": 0},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 1.5)},
        {"ratio": (2.0, 1.0)},
        {"operations": 0},
        {"magnitude": 31},
        {"bins": 1},
        {"probability": 1.1},
        {"probability": math.nan},
    ],
)
def test_policy_out_of_range(change):
    with pytest.raises(InputError, match=f"augmentation policy: {next(iter(change))} .* is out of range"):
        Policy(**change)


def test_no_pixels():
    with pytest.raises(InputError, match="a picture of 0 x 5 has no pixels"):
        draw(0, 5, np.random.default_rng(0), Policy())


class TestPartialLayouts:
    """Every order that the published code can store, without the transforms that need a second picture."""

    def test_crop_only(self, cat):
        assert np.array_equal(replay(cat, [[5, 6, 70, 80]], 64), replay(cat, [[5, 6, 70, 80], None], 64))

    def test_rand_augment_only(self, cat):
        square = cat.crop((0, 0, 64, 64))
        assert np.array_equal(replay(square, [[[13, 0], [1, 0.09]]], 64), replay(square, [[0, 0, 64, 64], [[13, 0], [1, 0.09]]], 64))

    def test_no_parameters_is_a_centre_crop(self, cat):
        assert np.array_equal(replay(cat, [], 64), replay(cat, [64], 64))
        assert np.array_equal(replay(cat, [None], 64), replay(cat, [[64]], 64))

    def test_resize_and_random_crop(self, cat):
        resized = cat.resize((200, 150), Image.Resampling.BICUBIC)
        expected = np.array(resized.crop((9, 7, 9 + 64, 7 + 64)))
        assert np.array_equal(replay(cat, [[150, 200], [7, 9]], 64), expected)
        assert np.array_equal(replay(cat, [[150, 200], [7, 9], False], 64), expected)
        assert np.array_equal(replay(cat, [[150, 200], [7, 9], True], 64), expected[:, ::-1])

    def test_resize_before_the_random_resized_crop(self, cat):
        resized = cat.resize((int(150 * cat.width / cat.height), 150), Image.Resampling.BICUBIC)
        assert np.array_equal(replay(cat, [150, None, [1, 2, 30, 40]], 64), replay(resized, [[1, 2, 30, 40]], 64))

    def test_erased_patch(self, cat):
        whole, erased = replay(cat, [[1, 2, 100, 100]], 64), replay(cat, [[1, 2, 100, 100], [3, 4, 10, 20]], 64)
        assert not erased[3:13, 4:24].any()
        erased[3:13, 4:24] = whole[3:13, 4:24]
        assert np.array_equal(erased, whole)
        assert np.array_equal(replay(cat, [[1, 2, 100, 100], None, [-1, -1, -1, -1]], 64), whole)

    def test_mixing_that_was_skipped(self, cat):
        assert np.array_equal(replay(cat, [None, [1, 2, 100, 100], None, None], 64), replay(cat, [[1, 2, 100, 100]], 64))


@pytest.mark.parametrize(
    "params",
    [
        {},
        "[]",
        None,
        7,
        [[]],
        [[1, 2]],
        [[1, 2], True],
        [[1, 2, 3]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4.0]],
        [[True, 0, 3, 4]],
        [[0, 0, 5, 5], [[14, 0.0]]],
        [[0, 0, 5, 5], [[-1, 0.0]]],
        [[0, 0, 5, 5], [[True, 0.0]]],
        [[0, 0, 5, 5], [[1.0, 0.0]]],
        [[0, 0, 5, 5], [[1, "0.1"]]],
        [[0, 0, 5, 5], [[1, None]]],
        [[0, 0, 5, 5], [[1, math.nan]]],
        [[0, 0, 5, 5], [[1, math.inf]]],
        [[0, 0, 5, 5], [[3, 10**400]]],
        [[0, 0, 5, 5], [[10, 0]]],
        [[0, 0, 5, 5], [[10, 9]]],
        [[0, 0, 5, 5], [[11, -1]]],
        [[0, 0, 5, 5], [[0, 0]] * 17],
        [[0, 0, 5, 5], [[0, 0], [0]]],
        [[0, 0, 0, 5]],
        [[0, -1, 5, 5]],
        [[0, 0, 5, 10**400]],
        [10**6],
        [0],
        [[0, 0, 5, 5], [3, 4, 10**6, 2]],
        [[10, 10], [0, 0], [0, 0, 5, 5]],
        [[0, 0, 5, 5], [[0, 0]], True],
        [[[0, 0]], [0, 0, 5, 5], [0, 0, 5, 5]],
        [12, [[0, 0, 5, 5], [0, 0, 5, 5]], [[[0, 0]], [[0, 0]]], 0.3],
        [None, [0, 0, 5, 5], 0.3],
        [None] * 9,
    ],
)
def test_what_cannot_be_replayed_is_refused(cat, params):
    with pytest.raises(InputError, match=r"^param_aug\[1\]: "):
        parse([EXAMPLE, params])
    with pytest.raises(InputError):
        replay(cat, params, 64)


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ([[0, 0, 301, 5]], "random_resized_crop: 5 x 301 pixels at 0, 0 are not inside the picture of 451 x 300"),
        ([[0, 450, 5, 2]], "the augmentation belongs to another picture"),
        ([[30, 40], [0, 0]], "random_crop: 64 x 64 pixels"),
        ([32], "centre crop: 64 x 64 pixels"),
        ([[0, 0, 5, 5], [60, 0, 5, 5]], "random_erase: the patch is not inside 64 x 64 pixels"),
        ([[0, 0, 5, 5], [0, -1, 5, 5]], "random_erase: the patch is not inside 64 x 64 pixels"),
    ],
)
def test_boxes_outside_the_picture(photos, params, match):
    image = photos[0].resize((451, 300))
    assert parse([params]) == [params]
    with pytest.raises(InputError, match=match):
        replay(image, params, 64)


def test_resizing_does_not_explode():
    with pytest.raises(InputError, match="resize: 20000 x 1 pixels would become 81,920,000 long"):
        replay(Image.new("RGB", (20_000, 1)), [4096], 64)


@pytest.mark.parametrize(
    "value", [None, {}, 3, [], "", "[", "{}", "[]", "null", "[" * 100_000, "9" * 5000, " " * (1 << 21), [EXAMPLE] * 1001]
)
def test_param_aug_must_be_a_list(value):
    with pytest.raises(InputError, match=r"^param_aug: "):
        parse(value)


def test_param_aug_as_a_string():
    assert parse(json.dumps([EXAMPLE, [EXAMPLE[0], None]])) == [EXAMPLE, [EXAMPLE[0], None]]
    with pytest.raises(InputError, match=r"param_aug\[0\]: rand_augment: operation 1 takes a magnitude from -10 to 10"):
        parse("[[[0, 0, 5, 5], [[1, NaN]]]]")
    assert len(parse([EXAMPLE] * 1000)) == 1000
    with pytest.raises(InputError, match="a list of 1 to 1000 augmentations"):
        parse([EXAMPLE] * 1001)
