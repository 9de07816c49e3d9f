from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from torchvision import transforms

from mobileclip import preprocess as module
from mobileclip.errors import InputError
from mobileclip.preprocess import open_image, preprocess, preprocess_batch, resize_crop, to_rgb
from mobileclip.specs import PreprocessSpec

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GOLDEN = np.load(Path(__file__).parent / "data/golden/preprocess.npz")
PHOTOS = {
    "landscape": (700, 375, 500),
    "portrait": (701, 641, 333),
    "square": (702, 256, 256),
    "tiny": (703, 40, 61),
    "wide": (704, 97, 640),
}
PIPELINES = {
    "bilinear256_unit": PreprocessSpec(256),
    "bilinear224_unit": PreprocessSpec(224),
    "bilinear256_clip": PreprocessSpec(256, CLIP_MEAN, CLIP_STD),
    "bicubic224_clip": PreprocessSpec(224, CLIP_MEAN, CLIP_STD, "bicubic"),
}
TORCHVISION = {"bilinear": transforms.InterpolationMode.BILINEAR, "bicubic": transforms.InterpolationMode.BICUBIC}
MODES = [
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
    "I;16L",
    "I;16N",
]


def photo(seed: int, h: int, w: int) -> Image.Image:
    """Blocks of colour with some noise, RGB."""
    rs = np.random.RandomState(seed)
    c, f = rs.randint(0, 256, size=(12, 16, 3)), rs.randint(-24, 25, size=(h, w, 3))
    yi, xi = (np.arange(h) * 12) // h, (np.arange(w) * 16) // w
    return Image.fromarray(np.clip(c[yi][:, xi] + f, 0, 255).astype(np.uint8))


def in_mode(mode: str, seed: int, h: int, w: int) -> Image.Image:
    """A photo in any Pillow mode, with an uneven alpha where the mode has one."""
    image = photo(seed, h, w)
    alpha = Image.fromarray(np.linspace(1, 255, h * w).reshape(h, w).astype(np.uint8))
    gray = np.asarray(image.convert("L"))
    if mode.startswith("I;16"):
        size = {"data": (gray.astype(np.uint16) * 257).astype(">u2" if mode == "I;16B" else "=u2").tobytes()}
        return Image.frombytes(mode, (w, h), size["data"])
    if mode == "F":
        return Image.fromarray(gray.astype(np.float32) / 255)
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    if mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        base = image.convert({"L": "L", "P": "P"}.get(mode[0], "RGB"))
        base.putalpha(alpha)
        return base.convert(mode)
    return image.convert("L").convert("I") if mode == "I" else image.convert(mode)


def torchvision_tensor(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
    size = spec.resolution if spec.resize == "shortest" else (spec.resolution, spec.resolution)
    pipeline = transforms.Compose(
        [
            transforms.Resize(size, TORCHVISION[spec.interpolation], antialias=True),
            transforms.CenterCrop(spec.resolution),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    return pipeline(image).numpy()


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("name", "pipeline"), product(PHOTOS, PIPELINES))
def test_golden_tensors(name: str, pipeline: str) -> None:
    tensor = preprocess(photo(*PHOTOS[name]), PIPELINES[pipeline])
    assert tensor.dtype == np.float32
    corners = np.stack([tensor[:, y, x] for y in (0, -1) for x in (0, -1)])
    mean_std = np.array([tensor.mean(), tensor.std(ddof=1)])
    for key, value in {"sub": tensor[:, ::16, ::16], "corners": corners, "mean_std": mean_std}.items():
        np.testing.assert_allclose(value, GOLDEN[f"{name}/{pipeline}/{key}"], rtol=0, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", MODES)
def test_equal_to_torchvision_for_every_size_and_mode(mode: str, interpolation: str) -> None:
    """20 modes x 2 filters x 12 sizes x 2 resizes = 960 combinations, all exact."""
    sizes = [(1, 1), (1, 2), (3, 1), (7, 5), (31, 64), (64, 64), (65, 64), (67, 66), (200, 63), (97, 641), (480, 333), (2, 90)]
    for (h, w), resize in product(sizes, ("shortest", "squash")):
        spec = PreprocessSpec(64, CLIP_MEAN, CLIP_STD, interpolation, resize)  # type: ignore[arg-type]
        image = in_mode(mode, h * 1000 + w, h, w)
        assert image.mode == mode
        got, expected = preprocess(image, spec), torchvision_tensor(to_rgb(image), spec)
        assert got.shape == (3, 64, 64)
        assert got.flags["C_CONTIGUOUS"]
        assert np.abs(got - expected).max() == 0, (h, w, resize)


@pytest.mark.parametrize("mode", [m for m in MODES if not m.startswith(("I", "F", "La", "RGBa"))])
def test_rgb_is_pillows_own_where_pillow_is_right(mode: str) -> None:
    image = in_mode(mode, 5, 20, 30)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"])
def test_gray_modes_keep_their_gray(mode: str) -> None:
    gray = np.asarray(photo(3, 24, 32).convert("L"))
    gray = np.asarray(photo(3, 24, 32).convert("1").convert("L")) if mode == "1" else gray
    assert np.array_equal(np.asarray(to_rgb(in_mode(mode, 3, 24, 32))), gray[..., None].repeat(3, axis=2))


def test_alpha_is_dropped_and_premultiplied_colour_restored() -> None:
    pixel = Image.new("RGBA", (1, 1), (200, 100, 50, 64))
    assert to_rgb(pixel).getpixel((0, 0)) == (200, 100, 50)
    assert to_rgb(Image.new("RGBA", (1, 1), (9, 8, 7, 0))).getpixel((0, 0)) == (9, 8, 7)
    assert np.abs(np.array(to_rgb(pixel.convert("RGBa")).getpixel((0, 0))) - (200, 100, 50)).max() <= 4
    la = Image.merge("LA", [Image.new("L", (1, 1), 200), Image.new("L", (1, 1), 64)])
    assert abs(to_rgb(la.convert("La")).getpixel((0, 0))[0] - 200) <= 4


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 128, 129, 32768, 65535], np.uint16, [0, 0, 1, 128, 255]),
        ([-5, 0, 100, 200, 255], np.int32, [0, 0, 100, 200, 255]),
        ([-5, 0, 257, 32768, 65535], np.int32, [0, 0, 1, 128, 255]),
        ([-1, 0, 65536, 2**30, 2**31 - 1], np.int32, [0, 0, 0, 128, 255]),
        ([-0.5, 0.0, 0.25, 0.5, 1.0], np.float32, [0, 0, 64, 128, 255]),
        ([0.0, 1.0, 100.4, 100.6, 255.0], np.float32, [0, 1, 100, 101, 255]),
        ([0.0, 257.0, 514.0, 1000.0, 65535.0], np.float32, [0, 1, 2, 4, 255]),
        ([np.nan, np.inf, -np.inf, 0.5, 1.0], np.float32, [0, 255, 0, 128, 255]),
        ([np.nan, np.nan, np.inf, np.inf, -np.inf], np.float32, [0, 0, 255, 255, 0]),
    ],
)
def test_deep_pictures_are_scaled(values: list[float], dtype: type, expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=dtype))
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == expected


def test_sixteen_bit_png_and_tiff() -> None:
    deep = Image.fromarray(np.array([[0, 25700, 65535]], dtype=np.uint16))
    for fmt in ("PNG", "TIFF"):
        assert np.asarray(open_image(encoded(deep, fmt)))[0, :, 0].tolist() == [0, 100, 255]


def test_palette_with_transparency_gives_its_colours_without_a_warning() -> None:
    palette = photo(1, 16, 16).quantize(8)
    data = encoded(palette, "PNG", transparency=bytes(range(0, 80, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = Image.open(io.BytesIO(data))
        assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(fmt: str, orientation: int) -> None:
    """Stored so that it shows upright: undoing each orientation gives the same picture."""
    upright = np.kron(np.arange(6).reshape(2, 3) * 40 + 20, np.ones((16, 16))).astype(np.uint8)
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: upright.T[::-1], 7: upright.T[::-1, ::-1], 8: upright.T[:, ::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)).convert("RGB"), fmt, exif=exif)
    got = np.asarray(open_image(data))
    assert got.shape == (32, 48, 3)
    assert np.abs(got[..., 0].astype(int) - upright).max() <= 8


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02", b""]
)
def test_unreadable_exif_leaves_the_picture_as_stored(exif: bytes) -> None:
    data = encoded(photo(1, 20, 30), "JPEG", exif=exif)
    assert open_image(data).size == (30, 20)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert open_image(encoded(photo(1, 20, 30), "PNG", exif=exif)).size == (30, 20)


@pytest.mark.parametrize("fmt", ["GIF", "TIFF", "WEBP", "PNG"])
def test_first_of_several_frames(fmt: str) -> None:
    frames = [Image.new("RGB", (8, 6), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    options = {"lossless": True} if fmt == "WEBP" else {}
    image = open_image(encoded(frames[0], fmt, save_all=True, append_images=frames[1:], **options))
    assert image.size == (8, 6)
    assert image.getpixel((4, 3)) == (250, 0, 0)


def picture_files() -> dict[str, bytes]:
    image = photo(9, 70, 90)
    files = {f: encoded(image, f) for f in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "JPEG2000")}
    files["progressive"] = encoded(image, "JPEG", progressive=True)
    files["CMYK"] = encoded(image.convert("CMYK"), "JPEG")
    files["deflated TIFF"] = encoded(image, "TIFF", compression="tiff_adobe_deflate")
    return files


@pytest.mark.parametrize(("name", "data"), picture_files().items(), ids=picture_files().keys())
def test_truncated_at_each_sixteenth(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / "cut.img"
    path.write_bytes(data)
    assert open_image(path).mode == "RGB"
    for part in range(16):
        path.write_bytes(data[: len(data) * part // 16])
        with pytest.raises(InputError) as error:
            open_image(path)
        assert str(error.value).startswith(str(path)), part
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "data"), picture_files().items(), ids=picture_files().keys())
def test_changed_bytes_never_give_another_error(name: str, data: bytes) -> None:
    rs = np.random.RandomState(11)
    refused = 0
    for _ in range(120):
        damaged = bytearray(data)
        for _ in range(rs.randint(1, 6)):
            damaged[rs.randint(min(len(damaged), int(rs.choice([48, 600, 10**6]))))] = rs.randint(256)
        try:
            message = open_image(bytes(damaged)).mode
        except InputError as e:
            message = str(e)
            refused += 1
        assert "\n" not in message
    assert refused > 5


@pytest.mark.parametrize("data", [b"", b"not a picture", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", bytes(4096)])
def test_not_a_picture(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.jpg: not a picture; formats: JPEG"):
        open_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        open_image(tmp_path)


@pytest.mark.parametrize("side", [9_500, 20_000, 60_000])
def test_decompression_bomb(side: int) -> None:
    """A header may claim any size; the limit is an error before a pixel is decoded. 9,500 squared is only a warning in Pillow."""
    bomb = bytearray(encoded(Image.new("1", (16, 16)), "PNG"))

    bomb[16:24] = struct.pack(">II", side, side)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"over the limit of 89,478,485 pixels \(PIL.Image.MAX_IMAGE_PIXELS\)"):
            open_image(bytes(bomb))


def test_sources(tmp_path: Path) -> None:
    data = encoded(photo(2, 30, 40), "PNG")
    path = tmp_path / "p.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        images = [open_image(path), open_image(data), open_image(io.BytesIO(data)), open_image(file)]
        assert not file.closed
    assert len({i.tobytes() for i in images}) == 1


def test_no_pixels_is_refused() -> None:
    with pytest.raises(InputError, match="0 x 5 has no pixels"):
        to_rgb(Image.new("RGB", (0, 5)))


def test_the_given_picture_is_left_alone() -> None:
    image = photo(4, 50, 70)
    before = image.tobytes()
    resize_crop(image, PreprocessSpec(32))[:] = 0
    assert image.tobytes() == before


@pytest.mark.parametrize(("interpolation", "max_levels"), [("bilinear", 1), ("bicubic", 16)])
def test_extreme_path_equals_the_ordinary_one(monkeypatch: pytest.MonkeyPatch, interpolation: str, max_levels: int) -> None:
    """Forced on ordinary shapes and on noise, the path for very long pictures is torchvision's to within rounding."""
    monkeypatch.setattr(module, "_EXTREME_RATIO", 0)
    monkeypatch.setattr(module, "_WINDOW_PX", 0)
    spec = PreprocessSpec(64, interpolation=interpolation)  # type: ignore[arg-type]
    sizes = [(64, 64), (30, 31), (97, 640), (640, 97), (333, 480), (1000, 1500), (64, 129), (2000, 3), (5, 2001)]
    for h, w in [*sizes, (1, 700), (700, 1), (20, 1900), (1900, 20), (200, 9000), (9000, 200)]:
        image = photo(h + w, h, w)
        levels = np.abs(preprocess(image, spec) - torchvision_tensor(image, spec)) * 255
        assert levels.max() <= max_levels + 1e-3, (h, w)
        assert levels.mean() <= 0.5, (h, w)


@pytest.mark.parametrize(("w", "h"), [(20_000, 1), (1, 20_000), (20_000, 3), (20_000, 300), (300, 20_000), (1, 1), (80_000_000, 1)])
def test_long_pictures_need_little_memory(w: int, h: int) -> None:
    """In a process of its own: at most 200 MB beside the picture itself, where the plain way takes up to 5 GB."""
    code = f"""
import resource
from PIL import Image
from mobileclip.preprocess import preprocess
from mobileclip.specs import PreprocessSpec
image = Image.new("RGB", ({w}, {h}), (10, 20, 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = preprocess(image, PreprocessSpec(256))
assert out.shape == (3, 256, 256) and abs(out[2] - 30 / 255).max() < 1e-6
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200 * 1024  # KiB


def test_batch() -> None:
    images = [photo(1, 30, 40), in_mode("CMYK", 2, 50, 20), in_mode("I;16", 3, 8, 8)]
    spec = PIPELINES["bicubic224_clip"]
    batch = preprocess_batch(images, spec)
    assert batch.shape == (3, 3, 224, 224)
    assert batch.dtype == np.float32
    for one, image in zip(batch, images, strict=True):
        assert np.array_equal(one, preprocess(image, spec))
    assert preprocess_batch([], spec).shape == (0, 3, 224, 224)


def test_needs_neither_torch_nor_torchvision() -> None:
    code = "import sys, mobileclip.preprocess; sys.exit(any(m in sys.modules for m in ('torch', 'torchvision')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
