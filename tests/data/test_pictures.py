"""Pictures of every kind that Pillow opens, beside what their formats say of them."""
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from sdjax.data.images import decode_image
from sdjax.data.pictures import BrokenItem, open_picture
from sdjax.errors import SdjaxError
from tests.data.files import ADOBE_XYZ, SRGB_XYZ, matrix_profile, png


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def saved(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def shown(data, mode="RGB"):
    return np.asarray(open_picture(data, "a picture", mode))


def srgb(linear):
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def assert_near(found, wanted, by=1):
    assert np.abs(np.asarray(found, float) - wanted).max() <= by, (found, wanted)


RAMP = np.arange(256, dtype=np.uint8)[None]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_the_files_own_value(depth):
    largest = (1 << depth) - 1
    values = np.array([[0, largest // 3, largest // 2 + 1, largest]])
    levels = np.floor(values * (255 / largest) if depth < 16 else values / 256)
    named = int(values[0, 2])
    found = shown(png(values, depth, tRNS=struct.pack(">H", named)), "RGBA")
    assert_near(found[..., 0], levels, 0)
    assert found[0, :, 3].tolist() == [0 if v == named else 255 for v in values[0]]
    flat = shown(png(values, depth, tRNS=struct.pack(">H", named)))
    assert flat[0, 2].tolist() == [255] * 3 and flat[0, 0].tolist() == [0] * 3
    if depth > 1:  # a value that no pixel has, and one beyond the depth
        lacking = png(values, depth, tRNS=struct.pack(">H", 1 if depth == 2 else 2))
        keeps = 255 if depth > 2 else [0 if v == 1 else 255 for v in values[0]]
        assert_near(shown(lacking, "RGBA")[0, :, 3], keeps, 0)
    if depth == 16:
        assert shown(png([[0x8000]], 16, tRNS=b"\0\1"))[0, 0].tolist() == [128] * 3


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_the_files_own_value(depth):
    high = 0x8000 if depth == 16 else 0x80
    pixels = np.array([[[high, 0, 5], [high + 1, 0, 5], [0, 0, 0]]])
    data = png(pixels, depth, "rgb", tRNS=struct.pack(">3H", high, 0, 5))
    found = shown(data, "RGBA")
    assert found[0, :, 3].tolist() == [0, 255, 255]
    assert_near(found[0, 0, :3], [128, 0, 0 if depth == 16 else 5], 0)
    if depth == 16:
        with pytest.raises(BrokenItem, match="give its path"):
            open_picture(loaded(data), "b")


def loaded(data):
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_a_transparent_palette_entry_and_other_alphas():
    palette = png([[0, 1, 2]], 2, "palette", PLTE=bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]),
                  tRNS=bytes([255, 0, 128]))
    assert shown(palette, "RGBA")[0].tolist() == [
        [255, 0, 0, 255], [0, 255, 0, 0], [0, 0, 255, 128]]
    assert shown(palette)[0, 1].tolist() == [255] * 3
    deep = png([[[0x8000, 0x4000]]], 16, "grey alpha")
    assert shown(deep, "RGBA")[0, 0].tolist() == [128, 128, 128, 64]
    deep = png([[[0x8000, 0, 0xffff, 0x4000]]], 16, "rgb alpha")
    assert shown(deep, "RGBA")[0, 0].tolist() == [128, 0, 255, 64]
    gif = Image.new("P", (2, 1), 0)
    gif.putpalette([9, 9, 9, 200, 0, 0])
    gif.putpixel((1, 0), 1)
    assert shown(saved(gif, "GIF", transparency=1), "RGBA")[0].tolist()[1][3] == 0


@pytest.mark.parametrize("mode, colour, wanted", [
    ("1", 1, (255, 255, 255)), ("L", 7, (7, 7, 7)), ("LA", (7, 0), (255, 255, 255)),
    ("La", (0, 0), (255, 255, 255)), ("RGB", (1, 2, 3), (1, 2, 3)),
    ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
    ("RGBA", (0, 0, 0, 51), (204, 204, 204)), ("RGBa", (0, 0, 0, 51), (204, 204, 204)),
    ("CMYK", (0, 255, 255, 0), (255, 0, 0)), ("CMYK", (0, 0, 0, 155), (100, 100, 100)),
    ("YCbCr", (100, 128, 128), (100, 100, 100)), ("HSV", (0, 0, 90), (90, 90, 90)),
    ("I;16", 0x8000, (128, 128, 128)), ("I;16L", 0x8000, (128, 128, 128)),
    ("I;16B", 0x8000, (128, 128, 128)), ("I;16N", 0x8000, (128, 128, 128)),
    ("F", 0.5, (128, 128, 128)), ("LAB", (136, 128, 128), (127, 127, 127))])
def test_every_mode_of_pillow(mode, colour, wanted):
    found = shown(Image.new(mode, (2, 2), colour))
    assert found.shape == (2, 2, 3) and found.dtype == np.uint8
    assert_near(found[0, 0], wanted)


def test_palettes_with_alpha():
    image = Image.new("RGB", (2, 2), "red").quantize(2).convert("PA")
    assert shown(image)[0, 0].tolist() == [255, 0, 0]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([255, 0, 0, 0], "RGBA")
    assert shown(palette)[0, 0].tolist() == [255] * 3


def tiff(values, photometric=1, bits=None, sample=None):
    """A TIFF of one strip of grey values, of any type NumPy has."""
    values = np.asarray(values)
    data = values.tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits or 8 * values.itemsize), (259, 1),
            (262, photometric), (273, 8), (277, 1), (278, height), (279, len(data)),
            (339, sample or {"u": 1, "i": 2, "f": 3}[values.dtype.kind])]
    data += bytes(len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags))
            + entries + bytes(4))


HALVES = [[0.0, 0.25, 0.5, 1.0]]


@pytest.mark.parametrize("dtype, white", [
    (np.uint8, 255), (np.uint16, 65535), (np.uint32, 2**32 - 1), (np.int32, 2**31 - 1),
    (np.int16, 2**15 - 1), (np.float32, 1)])
def test_greys_of_all_types_in_a_tiff(dtype, white):
    values = (np.array(HALVES) * white).astype(dtype)
    assert_near(shown(tiff(values))[..., 1], np.array(HALVES) * 255)
    if dtype in (np.uint8, np.uint16, np.float32):
        assert_near(shown(tiff(values, photometric=0))[..., 1], 255 - np.array(HALVES) * 255)


def test_twelve_bits_and_other_maxima():
    packed = np.frombuffer(bytes([0x80, 0x0f, 0xff, 0x40, 0x00, 0x00]), np.uint8)[None]
    data = tiff(packed, bits=12)
    data = data.replace(struct.pack("<HHII", 256, 4, 1, 6), struct.pack("<HHII", 256, 4, 1, 4))
    assert shown(data)[0, :, 0].tolist() == [128, 255, 64, 0]
    assert_near(shown(b"P5 3 1 1023\n" + np.array([0, 512, 1023], ">u2").tobytes())[0, :, 0],
                [0, 128, 255])
    assert_near(shown(b"P5 2 1 65535\n\x80\x00\xff\xff")[0, :, 0], [128, 255])
    assert_near(shown(b"Pf 2 1 -1.0\n" + np.array([0.5, 1], "<f4").tobytes())[0, :, 0], [128, 255])


@pytest.mark.parametrize("data, reason", [
    (tiff(np.array([[0, 255]], np.float32)), "floats are 0 to 255"),
    (tiff(np.array([[0, np.nan]], np.float32)), "floats are nan"),
    (tiff(np.array([[-0.5, 1]], np.float32)), "floats are -0.5 to 1"),
    (tiff(np.array([[0, 65535]], np.uint32)), "32 bits reach 65535 only"),
    (tiff(np.array([[0, 65535]], np.int32)), "31 bits reach 65535 only"),
    (tiff(np.array([[-9, 9999]], np.int16)), "negative"),
    (tiff(np.array([[-9, 9]], np.int8)), "signed"),
    (Image.new("I", (2, 2), 99), "no range"),
    (b"", "not a readable picture"), (b"\x89PNG\r\n\x1a\n", "not a readable picture"),
    (png(RAMP)[:-30], "not a readable picture")])
def test_what_has_no_plain_meaning_is_refused_by_name(data, reason):
    with pytest.raises(SdjaxError, match=f"^odd.tif: .*{reason}") as caught:
        open_picture(data, "odd.tif")
    assert caught.value.name == "odd.tif"


def test_a_profile_is_converted_to_srgb():
    random = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    to_xyz, to_srgb = np.array(ADOBE_XYZ).T, np.linalg.inv(np.array(SRGB_XYZ).T)
    gamma = 563 / 256
    wanted = srgb((random / 255) ** gamma @ (to_srgb @ to_xyz).T)
    adobe = matrix_profile(gamma, *ADOBE_XYZ)
    for format in ("PNG", "TIFF"):
        data = saved(Image.fromarray(random), format, icc_profile=adobe)
        assert_near(shown(data), wanted, 2)
    peer = ImageCms.profileToProfile(Image.fromarray(random), io.BytesIO(adobe),
                                     ImageCms.createProfile("sRGB"))
    np.testing.assert_array_equal(shown(data), peer)
    for format in ("JPEG", "WEBP"):
        data = saved(Image.new("RGB", (16, 16), (0, 200, 0)), format, quality=100,
                     icc_profile=adobe)
        assert_near(shown(data)[0, 0], [0, 200, 0], 8)
        assert shown(data)[0, 0].tolist() != loaded(data).getpixel((0, 0))
    clear = Image.fromarray(random)
    clear.putalpha(60)
    found = shown(saved(clear, icc_profile=adobe), "RGBA")
    assert_near(found[..., :3], wanted, 2)
    assert (found[..., 3] == 60).all()
    indexed = Image.fromarray(random).quantize(8)
    indexed.info["icc_profile"] = adobe
    assert_near(shown(saved(indexed)),
                srgb((np.asarray(indexed.convert("RGB")) / 255) ** gamma @ (to_srgb @ to_xyz).T), 2)


def test_a_linear_profile_and_greys():
    linear = matrix_profile(1, *SRGB_XYZ)
    wanted = srgb(RAMP / 255)
    assert_near(shown(saved(Image.fromarray(RAMP).convert("RGB"), icc_profile=linear))[..., 0],
                wanted)
    # A grey picture with a profile of colours, and with one of greys; with an alpha, and deep.
    grey = matrix_profile(1, *SRGB_XYZ, space=b"GRAY")
    for profile in (linear, grey):
        assert_near(shown(saved(Image.fromarray(RAMP), icc_profile=profile))[..., 2], wanted)
        both = Image.merge("LA", [Image.fromarray(RAMP), Image.new("L", (256, 1), 255)])
        assert_near(shown(saved(both, icc_profile=profile))[..., 0], wanted)
        compressed = b"p\0\0" + zlib.compress(profile)
        assert_near(shown(png(RAMP.astype(int) * 257, 16, iCCP=compressed))[..., 0], wanted)


def test_srgb_itself_is_left_alone():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    random = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(
        shown(saved(Image.fromarray(random), icc_profile=profile)), random)


def test_a_profile_that_cannot_be_used_is_told():
    image = Image.new("RGB", (2, 2), (10, 20, 30))
    grey = matrix_profile(1, *SRGB_XYZ, space=b"GRAY")
    for profile, reason in ((b"junk", "cannot be used"), (grey, "describes GRAY")):
        with pytest.warns(UserWarning, match=f"a picture: its colour profile.*{reason}.*as sRGB"):
            assert shown(saved(image, icc_profile=profile))[0, 0].tolist() == [10, 20, 30]
    with pytest.warns(UserWarning, match="profile is broken"):
        assert shown(png([[5]], iCCP=b"p\0\0junk"))[0, 0].tolist() == [5, 5, 5]


def test_cmyk_and_lab():
    # As Adobe's programs write them, a JPEG's inks are turned round: 255 is none.
    ink = Image.new("CMYK", (16, 16), (0, 200, 40, 10))
    assert_near(shown(saved(ink, "JPEG", quality=100))[8, 8],
                [245, 255 - (200 + 10 - 200 * 10 / 255), 255 - (40 + 10 - 40 * 10 / 255)], 3)
    lab = Image.new("LAB", (2, 2), (136, 128 + 30, 128 - 40))
    # CIELAB with D50 by its formula, then Bradford to sRGB, which the matrix above holds.
    light, a, b = 136 / 2.55, 30, -40
    y = (light + 16) / 116
    part = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(part > 6 / 29, part**3, 3 * (6 / 29) ** 2 * (part - 4 / 29))
    wanted = srgb(np.linalg.inv(np.array(SRGB_XYZ).T) @ (xyz * (0.9642, 1, 0.8249)))
    assert_near(shown(lab)[0, 0], wanted, 2)
    assert_near(shown(saved(lab, "TIFF"))[0, 0], wanted, 2)


def chromaticities(*points):
    return struct.pack(">8I", *(round(100_000 * v) for point in points for v in point))


WHITE, RED, GREEN, BLUE = (0.3127, 0.3290), (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)


def test_gamma_and_primaries_of_a_png_count_together():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    own = chromaticities(WHITE, RED, GREEN, BLUE)
    usual, none = struct.pack(">I", 45455), struct.pack(">I", 100_000)
    np.testing.assert_array_equal(shown(png(pixels, 8, "rgb", gAMA=usual, cHRM=own)), pixels)
    np.testing.assert_array_equal(shown(png(pixels, 8, "rgb", gAMA=none)), pixels)
    np.testing.assert_array_equal(
        shown(png(pixels, 8, "rgb", sRGB=b"\0", gAMA=none, cHRM=own)), pixels)
    assert_near(shown(png(pixels, 8, "rgb", gAMA=none, cHRM=own)), srgb(pixels / 255))
    adobe = chromaticities(WHITE, RED, (0.21, 0.71), BLUE)
    gamma = struct.pack(">I", round(100_000 / 1.8))
    wanted = srgb((pixels / 255) ** 1.8 @ (
        np.linalg.inv(np.array(SRGB_XYZ).T) @ np.array(ADOBE_XYZ).T).T)
    assert_near(shown(png(pixels, 8, "rgb", gAMA=gamma, cHRM=adobe)), wanted, 2)
    # A white of its own stays white.
    warm = chromaticities((0.3457, 0.3585), RED, GREEN, BLUE)
    assert_near(shown(png([[[255, 255, 255]]], 8, "rgb", gAMA=usual, cHRM=warm)), 255)
    for gamma, primaries in ((bytes(4), own), (none, bytes(32))):
        with pytest.warns(UserWarning, match="gAMA and cHRM chunks cannot be used"):
            np.testing.assert_array_equal(
                shown(png(pixels, 8, "rgb", gAMA=gamma, cHRM=primaries)), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation):
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40)
    exif = Image.Exif()
    exif[0x0112] = orientation
    wanted = np.asarray(image)
    wanted = {1: wanted, 2: wanted[:, ::-1], 3: wanted[::-1, ::-1], 4: wanted[::-1],
              5: wanted.T, 6: wanted[::-1].T, 7: wanted[::-1, ::-1].T, 8: wanted.T[::-1]}
    for format in ("PNG", "TIFF"):
        np.testing.assert_array_equal(
            shown(saved(image, format, exif=exif), "L"), wanted[orientation])


def test_a_broken_exif_block_does_not_hide_the_picture():
    data = png(RAMP, eXIf=b"junk")
    with pytest.warns(UserWarning, match="a picture: its EXIF block is broken"):
        np.testing.assert_array_equal(shown(data, "L"), RAMP)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_counts(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], format, save_all=True, append_images=frames[1:])
    assert_near(shown(data)[0, 0], [255, 0, 0], 2)


def test_paths_files_bytes_and_pictures_are_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(data := png(RAMP, tRNS=b"\0\7"))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, io.BytesIO(data),
                   Image.open(tmp_path / "a.png")):
        np.testing.assert_array_equal(shown(source, "RGBA"), shown(data, "RGBA"))
    assert decode_image(data, "a").shape == (1, 256, 3)
    assert open_picture(data, "a", "L").mode == "L"


def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 7\n")
    with pytest.raises(BrokenItem, match="a git-lfs pointer, not the picture itself"):
        open_picture(path, "a.png")
