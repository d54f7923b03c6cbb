from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps, TiffImagePlugin

from landmarks.dataset import images
from landmarks.dataset.formats import is_heif
from landmarks.dataset.images import ImageError, decode, encode, holds_several, prepare, resize, shrink, size_of
from landmarks.support.errors import UsageError


def scene(width: int = 120, height: int = 80) -> Image.Image:
    """A smooth image without any symmetry, so that every turn shows."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    colours = np.stack([255 * x, 255 * y, 255 * x * (1 - y)], axis=2)
    return Image.fromarray(colours.astype(np.uint8))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_is_turned_upright_as_pillow_does(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(scene(), kind, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert difference(decode(data), np.asarray(upright)) <= 2
    assert size_of(data) == upright.size


def test_a_jpeg_decodes_as_pillow_decodes_it() -> None:
    data = saved(scene(), "JPEG", quality=90)
    assert difference(decode(data), np.asarray(Image.open(io.BytesIO(data)))) <= 2


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_printers_jpegs_become_rgb(mode: str) -> None:
    data = saved(scene().convert(mode), "JPEG", quality=95)
    image = decode(data)
    assert image.shape == (80, 120, 3)
    assert difference(image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) <= 2


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_progressive_and_subsampled_jpegs_decode(subsampling: str, progressive: bool) -> None:
    data = saved(scene(), "JPEG", subsampling=subsampling, progressive=progressive, quality=95)
    assert difference(decode(data), np.asarray(scene())) <= 16


def test_a_rarely_subsampled_jpeg_decodes_with_pillow() -> None:
    data = bytearray(saved(scene(), "JPEG", subsampling="4:2:0"))
    frame = data.index(b"\xff\xc0")
    data[frame + 11] = 0x31  # three luminance samples beside each other: no name for it in TurboJPEG
    assert size_of(bytes(data)) == (120, 80)


def test_transparent_pixels_are_shown_on_white() -> None:
    image = scene().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert (decode(saved(image, "PNG")) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_other_formats_decode(kind: str) -> None:
    image = decode(saved(scene(), kind))
    assert image.shape == (80, 120, 3)
    assert np.abs(image.astype(int) - np.asarray(scene())).mean() < 12


def test_sixteen_bit_greys_are_scaled_and_not_clipped() -> None:
    greys = (np.arange(100 * 100).reshape(100, 100) * 6).astype(np.uint16)
    image = decode(saved(Image.fromarray(greys), "PNG"))
    assert (image[..., 0] == greys >> 8).all()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_truncated_jpeg_is_refused_even_with_a_proper_end(keep: float, end: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), "JPEG")
    with pytest.raises(ImageError):
        decode(data[: int(keep * len(data))] + end)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_that_lacks_the_mark_of_its_end_alone_has_all_its_pixels(lost: int, progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), "JPEG", progressive=progressive)
    assert (decode(data[:-lost]) == decode(data)).all()
    stored, _ = prepare(data[:-lost], 512)
    assert stored.endswith(b"\xff\xd9")
    with pytest.raises(ImageError, match="damaged or truncated JPEG"):
        decode(data[: -lost - 2])


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "TIFF"])
def test_other_truncated_images_are_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 120, 3), dtype=np.uint8))
    data = saved(noise, kind)
    with pytest.raises(ImageError):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_claim_of_sixty_thousand_pixels_a_side_is_refused_before_allocation(kind: str) -> None:
    data = bytearray(saved(scene(), kind))
    if kind == "JPEG":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = (60_000).to_bytes(2, "big") * 2
    else:
        import zlib

        data[16:24] = (60_000).to_bytes(4, "big") * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    for function in (decode, size_of, lambda data: prepare(data, 512)):
        with pytest.raises(ImageError, match="too large"):
            function(bytes(data))


@pytest.mark.parametrize(("progressive", "side"), [(False, 23_000), (True, 14_000)])
def test_what_not_even_a_reduced_scale_makes_safe_is_refused_with_a_way_out(progressive: bool, side: int) -> None:
    data = bytearray(saved(scene(), "JPEG", progressive=progressive))
    place = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    data[place : place + 4] = side.to_bytes(2, "big") * 2
    for function in (decode, size_of, lambda data: prepare(data, 512)):
        with pytest.raises(ImageError, match=f"{side} × {side}.*resize it"):
            function(bytes(data))


def test_a_jpeg_of_more_pixels_than_the_limit_is_decoded_at_a_scale_that_keeps_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = saved(scene(1200, 900), "JPEG", quality=90)
    monkeypatch.setattr(images, "MAX_PIXELS", 300_000)
    assert size_of(data) == (1200, 900)
    assert decode(data).shape == (450, 600, 3)  # four eighths; five would be 422,000 pixels
    assert decode(data, min_side=200).shape == (225, 300, 3)
    assert decode(data, min_side=800).shape == (450, 600, 3)
    kept, image = prepare(data, 100)
    assert size_of(kept) == (100, 75)
    assert difference(image, np.asarray(scene(1200, 900).resize((100, 75), Image.Resampling.LANCZOS))) <= 8
    assert size_of(prepare(data, None)[0]) == (600, 450)
    with pytest.raises(ImageError, match=r"too large.*resize"):
        decode(saved(scene(1200, 900), "PNG"))


def test_no_side_of_what_is_stored_is_longer_than_a_jpegs_can_be() -> None:
    for max_side in (None, 70_000):
        kept, image = prepare(saved(Image.new("RGB", (66_000, 20), "teal"), "PNG"), max_side)
        assert image.shape == (20, 65_500, 3)
        assert size_of(kept) == (65_500, 20)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_image_or_one_clear_error(data: bytes) -> None:
    for function in (decode, size_of):
        with pytest.raises(ImageError):
            function(data)


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_a_jpeg_with_some_bytes_falsified_gives_a_image_or_one_clear_error(at: int, patch: bytes) -> None:
    data = bytearray(JPEG)
    at %= len(data)
    data[at : at + len(patch)] = patch
    try:
        assert decode(bytes(data)).shape[2] == 3
        size_of(bytes(data))
    except ImageError:
        pass


JPEG = saved(scene(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")


def test_bytes_between_markers_and_behind_the_end_do_no_harm() -> None:
    data = saved(scene(), "JPEG")
    for odd in (data + b"appended by some program", data[:-2] + b"abc" + data[-2:]):
        assert difference(decode(odd), decode(data)) == 0


@given(st.integers(1, 400))
def test_the_reduced_scale_keeps_the_shorter_side_at_least_as_long_as_asked(min_side: int) -> None:
    data = saved(scene(320, 200), "JPEG")
    height, width, _ = decode(data, min_side=min_side).shape
    scales = [eighths for eighths in range(1, 9) if -(-200 * eighths // 8) >= min_side]
    smallest = min(scales, default=8)
    assert (height, width) == (-(-200 * smallest // 8), -(-320 * smallest // 8))


def test_shrinking_keeps_proportions_and_leaves_small_images_alone() -> None:
    image = np.asarray(scene(300, 100))
    assert shrink(image, 60).shape == (20, 60, 3)
    assert shrink(image, 300) is image
    assert shrink(np.zeros((1, 1000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_resize_crops_and_scales_in_one_step_as_pillow_does() -> None:
    image, box = np.asarray(scene()), (10.5, 5, 100, 70.25)
    expected = scene().resize((33, 44), Image.Resampling.BICUBIC, box=box)
    assert (resize(image, 33, 44, box) == np.asarray(expected)).all()
    with pytest.raises(UsageError, match='did you mean "bilinear"'):
        resize(image, 3, 4, interpolation="bilinaer")


def test_encoding_is_deterministic_and_close() -> None:
    image = np.asarray(scene())
    assert encode(image) == encode(image.copy())
    assert np.abs(decode(encode(image)).astype(int) - image).mean() < 2


def test_a_small_upright_jpeg_is_kept_byte_for_byte() -> None:
    data = saved(scene(), "JPEG")
    kept, image = prepare(data, 120)
    assert kept is data
    assert image.shape == (80, 120, 3)


def test_what_is_turned_large_or_no_jpeg_is_encoded_anew() -> None:
    for data, sides in (
        (JPEG, (120, 80)),
        (saved(scene(), "PNG"), (80, 120)),
        (saved(scene(1200, 800), "JPEG"), (80, 120)),
    ):
        kept, image = prepare(data, 120)
        assert image.shape[:2] == sides
        assert size_of(kept) == (sides[1], sides[0])
        assert kept != data


def test_the_decoder_names_its_version() -> None:
    assert "simplejpeg 1." in images.DECODER
    assert "pillow" in images.DECODER


def test_what_is_stored_has_the_form_that_its_number_says() -> None:
    """A fetch that goes on after an upgrade adds to what lies there: give anything else a new `STORED_FORM`."""
    small = saved(scene(), "JPEG", quality=70, subsampling="4:4:4")
    assert prepare(small, 512)[0] == small  # byte for byte
    shrunk, image = prepare(saved(scene(1200, 800), "PNG"), 512)
    stored = Image.open(io.BytesIO(shrunk))
    ours = Image.open(io.BytesIO(saved(Image.fromarray(image), "JPEG", quality=92, subsampling="4:2:0")))
    assert (images.STORED_FORM, stored.format, stored.size) == (3, "JPEG", (512, 341))
    assert stored.quantization == ours.quantization
    assert [one[1:3] for one in stored.layer] == [(2, 2), (1, 1), (1, 1)]
    wanted = scene(1200, 800).resize((512, 341), Image.Resampling.LANCZOS)
    assert difference(image, np.asarray(wanted)) <= 1


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        (b"8BPS" + bytes(40), "Photoshop"),
        (b"%PDF-1.7" + bytes(40), "PDF"),
        (b"", "an empty file"),
        (bytes(5000), "nothing but zeros"),
        (b"\r\n <!DOCTYPE HTML><html>", "web page"),
        (b"\0\0\0\x20ftypisom" + bytes(40), "video"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "AppleDouble"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"PK\3\4" + bytes(40), "ZIP"),
        (b"404 Not Found\n", r'text \("404 Not Found"\)'),
        (b'{"error":\n "gone"}', r'text \("{"error": "gone"}"\)'),
        (b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x18ftypcrx " + bytes(40), "a camera's raw file"),
        (b"IIU\0" + bytes(40), "a camera's raw file"),
        (b"\0\0\0\x20ftypavif" + bytes(40), "damaged AVIF"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"\0\0\1\0\1\0" + bytes(40), "an icon"),
        (b"a.jpg".ljust(257, b"\0") + b"ustar\0", "a TAR archive"),
        (bytes(128) + b"DICM" + bytes(40), "DICOM"),
        (b"\x1b]0;title\x07", "^not an image; expected"),
        (b"caf\xe9", "^not an image; expected"),
    ],
)
def test_what_is_no_image_is_named_by_what_it_is(data: bytes, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "heif_is_read", lambda: False)
    with pytest.raises(ImageError, match=named):
        decode(data)


def test_heic_is_read_where_the_extra_is_installed() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    pillow_heif.from_pillow(scene()).save(file, quality=95, exif=exif.tobytes())
    data = file.getvalue()
    assert is_heif(data)
    assert size_of(data) == (80, 120)  # libheif turns by itself, and not twice
    assert difference(decode(data), np.asarray(scene().transpose(Image.Transpose.ROTATE_270))) <= 40
    assert np.abs(decode(data).astype(int) - np.asarray(scene().transpose(Image.Transpose.ROTATE_270))).mean() < 4


@pytest.mark.parametrize("suffix", [b"", b"packed"])
def test_a_text_of_megabytes_in_a_png_harms_nothing(suffix: bytes) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("prompt", "a very long one, " * 200_000, zip=bool(suffix))
    texts.add_itxt("workflow", "{}" * 2_000_000, zip=True)
    texts.add_text("Title", "kept")
    data = saved(scene(), "PNG", pnginfo=texts)
    assert difference(decode(data), np.asarray(scene())) == 0
    assert size_of(data) == (120, 80)


def test_a_profile_of_megabytes_in_a_png_is_read() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(3_000_000)
    data = saved(scene(), "PNG", icc_profile=profile)
    assert difference(decode(data), np.asarray(scene())) == 0
    assert images._open_with_pillow(data).info["icc_profile"] == profile
    assert size_of(data) == (120, 80)


@pytest.mark.parametrize("kind", ["P5", "P6", "P2"])
def test_the_plain_formats_of_old_datasets_decode(kind: str) -> None:
    data = saved(scene().convert("L" if kind != "P6" else "RGB"), "PPM")
    if kind == "P2":
        data = b"P2 2 2 255 0 85 170 255"
    assert decode(data).shape == ((2, 2, 3) if kind == "P2" else (80, 120, 3))


def test_what_pillow_says_about_odd_files_is_not_printed() -> None:
    program = (
        "from landmarks.dataset.images import ImageError, decode\n"
        "try:\n    decode(b'II*\\0\\x10\\0\\0\\0CR\\2\\0')\nexcept ImageError:\n    print('rejected')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("rejected\n", "")


def two(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    scene(40, 30).save(file, kind, save_all=True, append_images=[scene(40, 30).rotate(90)], **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_files_of_several_images_are_known(kind: str) -> None:
    data, single = two(kind), io.BytesIO()
    scene(40, 30).save(single, kind)
    assert holds_several(data) and not holds_several(single.getvalue())
    for length in range(0, len(data), 7):
        holds_several(data[:length])


def test_the_pages_of_a_tiff_are_not_counted_to_know_whether_there_is_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = property(lambda self: pytest.fail("all pages are read for that"))
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "n_frames", counted)
    assert holds_several(two("TIFF"))


def test_previews_and_smaller_copies_are_no_further_images() -> None:
    assert not holds_several(two("MPO"))
    smaller = two("TIFF", tiffinfo={254: 1})  # a pyramid, but for its first page
    assert not holds_several(smaller)
