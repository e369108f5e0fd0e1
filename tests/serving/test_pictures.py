"""Pictures that callers send: what is read, how, and what is refused before it takes memory; and those kept to be fetched."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import struct
import tracemalloc
import zlib
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from nereid.diffusion.settings import Limits
from nereid.serving.gateway.errors import ApiError
from nereid.serving.gateway.image_models import ImageModel
from nereid.serving.gateway.picture_store import PictureStore
from nereid.serving.gateway.pictures import Encoding, Fit, decoded, fitted, from_base64, on_white, texts_of

from own_time import own_seconds

MOST = 10_000


def file(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def read(data: bytes, most_pixels: int = MOST) -> Image.Image:
    return decoded(data, "image", most_pixels)


def refusal(data: bytes, most_pixels: int = MOST) -> str:
    with pytest.raises(ApiError) as caught:
        read(data, most_pixels)
    assert (caught.value.status, caught.value.param) == (400, "image")
    return caught.value.message


RED = Image.new("RGB", (16, 8), (255, 0, 0))


FILES = [
    *(("PNG", mode) for mode in ("RGB", "L", "P", "1")),
    *(("JPEG", mode) for mode in ("RGB", "L", "1", "CMYK")),
    ("WEBP", "RGB"),
]


@pytest.mark.parametrize(("form", "mode"), FILES)
def test_formats_and_colours_become_rgb(form: str, mode: str) -> None:
    made = read(file(RED.convert(mode), form))
    assert (made.mode, made.size) == ("RGB", (16, 8))


def test_greys_of_16_bits_keep_their_brightness() -> None:
    grey = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    assert abs(np.asarray(read(file(grey))).astype(int) - 128).max() <= 1


def test_a_picture_is_turned_as_its_exif_says() -> None:
    picture = RED.copy()
    picture.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: a quarter turn clockwise
    made = read(file(picture, exif=exif))
    assert made.size == (8, 16)
    assert made.getpixel((7, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    "entries",
    [
        # https://github.com/python-pillow/Pillow/issues/7839, /8348, /5528, AUTOMATIC1111/stable-diffusion-webui #9078
        struct.pack("<HHII", 0x8769, 5, 1, 8),
        struct.pack("<HHII", 0x8769, 2, 2, 8),
        struct.pack("<HHII", 0x14A, 12, 1, 8),
        struct.pack("<HHII", 0x927C, 99, 2**31, 2**32 - 1),
    ],
    ids=["rational", "text", "double", "far"],
)
def test_what_else_stands_in_exif_keeps_no_picture_from_being_read(entries: bytes) -> None:
    orientation = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + orientation + entries + b"\0" * 40
    sent = file(RED, "JPEG")
    made = read(sent[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + sent[2:])
    assert made.size == (8, 16)


def test_exif_that_is_none_is_as_absent() -> None:
    sent = file(RED)
    assert read(sent[:33] + chunk(b"eXIf", b"Exif\0\0junk") + sent[33:]).size == (16, 8)


def test_of_a_photograph_with_previews_behind_it_the_first_picture_is_read() -> None:
    """https://github.com/open-webui/open-webui/issues/26249"""
    photograph = file(RED.resize((64, 32)), "MPO", save_all=True, append_images=[Image.new("RGB", (16, 8))])
    made = read(photograph)
    assert made.size == (64, 32)
    assert made.getpixel((5, 5))[0] > 200  # type: ignore[index]


def test_a_clear_grey_of_16_bits_is_transparent() -> None:
    rows = b"".join(b"\0" + struct.pack(">2H", 65535, 300) for _ in range(2))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", 65535))
    made = read(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    assert (made.mode, made.getpixel((0, 0)), made.getpixel((1, 1))) == ("RGBA", (255, 255, 255, 0), (1, 1, 1, 255))


def test_a_small_file_of_greys_of_16_bits_becomes_no_large_memory() -> None:
    data = file(Image.fromarray(np.zeros((1024, 1024), np.uint16)), transparency=0)
    assert len(data) < 10_000
    tracemalloc.start()
    try:
        assert read(data, 2**20).mode == "RGBA"
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20  # of numpy's arrays; Pillow's own are not counted
    finally:
        tracemalloc.stop()


def test_transparency_is_kept_only_where_there_is_some() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    assert read(file(clear)).mode == "RGB"
    clear.putpixel((3, 3), (0, 0, 0, 0))
    made = read(file(clear))
    assert made.mode == "RGBA"
    assert on_white(made).getpixel((3, 3)) == (255, 255, 255)
    assert on_white(made).getpixel((0, 0)) == (255, 0, 0)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_size_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    for side, words in (
        (10_000, "10000 x 10000 is not allowed; it must be a picture of"),
        (20_000, "its size is not allowed; it must be a picture of"),
    ):
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
        assert words in refusal(bomb)


def test_a_small_file_of_very_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each goes over the whole picture (https://github.com/libjpeg-turbo/libjpeg-turbo/issues/284,
    https://github.com/NVIDIA/DALI/pull/5316).
    """
    whole = file(Image.new("RGB", (64, 48), (9, 9, 9)), "JPEG", progressive=True)
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    behind = b"\xff\xda" * 5000  # a phone's film behind its photograph
    held = b"\xff\xe5" + (60_000).to_bytes(2) + behind + bytes(50_000 - 2)  # a part that another program has written
    for data in (whole[:-2] + 80 * scan + whole[-2:] + behind, whole[:2] + held + whole[2:]):
        assert read(data).getpixel((0, 0)) == (9, 9, 9)
    monkeypatch.setattr(JpegImageFile, "load", lambda self: 1 / 0)
    assert refusal(whole[:-2] + 200 * scan + whole[-2:]).endswith("so many scans is not allowed; it must be one of 100 at most")


@pytest.mark.parametrize(
    ("form", "at", "part"),
    [("JPEG", 2, b"\xff\xfe\0\2"), ("PNG", 33, b"\0\0\0\0aaAa" + struct.pack(">I", zlib.crc32(b"aaAa")))],
)
def test_a_file_of_very_many_parts_is_refused_before_it_is_looked_at(form: str, at: int, part: bytes) -> None:
    """Each takes its time, and some are kept."""
    whole = file(RED, form)
    few, many = (whole[:at] + times * part + whole[at:] for times in (1000, 400_000))
    assert own_seconds(lambda: read(few)) < 0.5
    assert read(few).size == RED.size
    assert own_seconds(lambda: refused_by_both(many)) < 0.5


def refused_by_both(data: bytes) -> None:
    assert refusal(data) == "image: a file of so many parts is not allowed; it must be one of 50000 at most"
    with pytest.raises(ApiError, match="so many parts"):
        texts_of(data, "image")


@pytest.mark.parametrize(
    "coded",
    [b"\xff\0", b"\xff", b"\xff" * 2**20 + b"\0", b"\xff\xd0", b"\xff\xfe\0\0", b"\xff\xd8", b"\xff\x01"],
    ids=["stuffed", "filled", "filled and stuffed", "restarts", "parts", "beginnings", "alone"],
)
def test_whatever_stands_in_a_jpeg_its_scans_are_counted_at_once(coded: bytes) -> None:
    whole = file(Image.new("RGB", (64, 48)), "JPEG")
    data = whole[:-2] + coded * (4 * 2**20 // len(coded)) + whole[-2:]

    def look() -> None:
        with contextlib.suppress(ApiError):
            read(data)

    assert own_seconds(look) < 2


def test_a_picture_may_have_so_many_pixels_and_no_more() -> None:
    assert read(file(RED), 128).size == (16, 8)
    assert "16 x 8 is not allowed; it must be a picture of 127 pixels at most" in refusal(file(RED), 127)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file is not allowed; it must be a picture in PNG, JPEG or WebP"),
        (b"hello", "its 5 bytes are no picture that can be read; it must be a picture in PNG, JPEG or WebP"),
        (file(RED, "BMP"), "no picture that can be read; it must be a picture in PNG, JPEG or WebP"),
        (file(Image.effect_noise((64, 64), 90))[:-2000], "the picture cannot be read"),
        (file(Image.new("RGB", (65, 1))), "65 x 1 is not allowed; it must be no more than 64 times as long as it is wide"),
        (file(RED, "WEBP", save_all=True, append_images=[Image.new("RGB", (16, 8))]), "moving pictures are not allowed"),
    ],
    ids=["empty", "text", "bmp", "cut", "thin", "moving"],
)
def test_what_is_no_picture_is_refused_in_one_sentence(data: bytes, words: str) -> None:
    message = refusal(data)
    assert message.startswith("image: ")
    assert words in message


def test_a_picture_without_its_palette_is_read() -> None:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0))
    sent = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\1\2" * 2)) + chunk(b"IEND", b"")
    assert read(sent).size == (2, 2)


def with_sums(sent: bytes) -> bytes:
    """A PNG's chunks with the check sums of what is in them."""
    made, at = sent[:8], 8
    while at + 12 <= len(sent) and at + 12 + (size := int.from_bytes(sent[at : at + 4])) <= len(sent):
        made += chunk(sent[at + 4 : at + 8], sent[at + 8 : at + 8 + size])
        at += 12 + size
    return made + sent[at:]


@pytest.mark.parametrize(("form", "mode"), [*FILES, ("PNG", "LA"), ("MPO", "RGB")])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_wrong_anywhere_is_a_picture_or_a_refusal(form: str, mode: str) -> None:
    chance = random.Random(form + mode)
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)).convert(mode)
    sent = file(noise, form)
    for _ in range(150):
        broken = bytearray(sent)
        for _ in range(chance.randrange(1, 6)):
            broken[chance.randrange(len(sent) if chance.random() < 0.5 else 80)] = chance.choice(
                [0, 1, 255, chance.randrange(256)]
            )
        data = with_sums(bytes(broken)) if form == "PNG" else bytes(broken)
        with contextlib.suppress(ApiError):
            read(data)
        with contextlib.suppress(ApiError):
            texts_of(data, "image")


def test_pictures_come_in_base64_and_as_data_urls() -> None:
    data = file(RED)
    text = base64.b64encode(data).decode()
    for sent in (text, f"data:image/png;base64,{text}", f"{text[:20]}\n{text[20:]}"):
        assert from_base64(sent, "mask") == data
    # https://github.com/antirez/ds4/pull/950, https://github.com/matatonic/openedai-vision/issues/4, and what browsers make of
    # files whose type they do not know
    data = file(RED.resize((17, 9))) + b"\xfb\xff?"
    text = base64.b64encode(data).decode()
    for_urls = base64.urlsafe_b64encode(data).decode()
    assert text != for_urls
    heads = ("DATA:Image/PNG;BASE64,", "data:image/png;charset=utf-8;base64,", "data:image/png; base64,", " data:;base64,")
    for head in ("", *heads, "data:application/octet-stream;base64,"):
        for sent in (text, text.rstrip("="), for_urls, for_urls.rstrip("=")):
            assert from_base64(head + sent, "mask") == data
    assert from_base64(f"data:image/png;base64,{quote(text, safe='')}", "mask") == data
    for wrong in (
        "https://example.org/a.png",
        "data:text/html;base64,YQ==",
        "not base64!",
        "abcde",
        "data:base64,YQ==",
        "file:///etc/passwd,YQ==",
    ):
        with pytest.raises(ApiError) as caught:
            from_base64(wrong, "mask")
        assert caught.value.param == "mask"


def test_a_url_of_nothing_but_escapes_takes_little_memory() -> None:
    sent = "data:image/png;base64," + "%41" * 400_000
    tracemalloc.start()
    try:
        assert from_base64(sent, "image") == bytes(300_000)
        assert tracemalloc.get_traced_memory()[1] < 10 * len(sent)
    finally:
        tracemalloc.stop()


def test_other_proportions_are_stretched_or_cut() -> None:
    halves = Image.new("RGB", (32, 16), (255, 0, 0))
    halves.paste((0, 0, 255), (16, 0, 32, 16))
    stretched, cut = (np.asarray(fitted(halves, (16, 16), fit)) for fit in (Fit.STRETCHED, Fit.CUT))
    assert stretched[8, 1].tolist() == cut[8, 1].tolist() == [255, 0, 0]
    assert stretched[8, 14].tolist() == cut[8, 14].tolist() == [0, 0, 255]
    narrow = Image.new("RGB", (32, 16), (255, 0, 0))
    narrow.paste((0, 0, 255), (0, 0, 8, 16))  # the left quarter: cut away
    assert np.asarray(fitted(narrow, (16, 16), Fit.CUT))[8, 0].tolist() == [255, 0, 0]
    assert np.asarray(fitted(narrow, (16, 16), Fit.STRETCHED))[8, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_other_proportions_are_padded_with_the_edges(mode: str) -> None:
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    wide.paste((0, 0, 255), (0, 8, 64, 32))  # all but the upper quarter
    sent = wide.convert(mode)
    padded = fitted(sent, (32, 35), Fit.PADDED)
    assert (padded.mode, padded.size) == (mode, (32, 35))
    above, below = (sent.convert("RGB").getpixel((0, row)) for row in (0, 31))
    pixels = np.asarray(padded.convert("RGB"))
    assert (pixels[:10] == above).all()  # 9 rows of the edge, then the picture's own
    assert (pixels[17:] == below).all()
    high = np.asarray(fitted(sent.transpose(Image.Transpose.ROTATE_90), (35, 32), Fit.PADDED).convert("RGB"))
    assert (high[:, :10] == above).all()
    assert (high[:, 17:] == below).all()


def test_the_longest_picture_is_padded_too() -> None:
    line = Image.new("RGB", (640, 10), (255, 0, 0))
    assert (np.asarray(fitted(line, (16, 16), Fit.PADDED)) == [255, 0, 0]).all()
    assert fitted(line, (8, 8), Fit.PADDED).size == (8, 8)


def test_a_pipelines_own_solver_is_the_one_that_its_export_chose() -> None:
    config = {"_class_name": "DPMSolverSDEScheduler"}
    for facts, solver in (
        ({"scheduler": config}, "dpmpp_sde"),
        ({"scheduler": config, "default_scheduler": "dpmpp_2m"}, "dpmpp_2m"),
        ({}, None),
    ):
        assert ImageModel.of(facts, Limits()).scheduler == solver


def test_a_flow_is_known_by_either_class_of_diffusers_flows() -> None:
    for name in ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler"):
        assert ImageModel.of({"scheduler": {"_class_name": name}}, Limits()).is_flow
    assert not ImageModel.of({"scheduler": {"_class_name": "LCMScheduler"}}, Limits()).is_flow


@pytest.mark.parametrize(
    ("size", "fitting"),
    [
        ((64, 64), (64, 64)),
        ((63, 70), (64, 72)),
        ((3, 3), (8, 8)),
        ((640, 320), (96, 48)),
        ((76, 60), (72, 64)),
        ((1, 60), (8, 64)),
        ((64, 1), (64, 8)),
    ],
)
def test_a_size_is_the_nearest_that_the_model_draws(size: tuple[int, int], fitting: tuple[int, int]) -> None:
    model = ImageModel(size_multiple=8, most_pixels=4608)
    assert model.fitting(*size) == fitting
    assert fitting[0] * fitting[1] <= 4608


def test_a_preview_is_enlarged_and_a_text_goes_along() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    made = Image.open(io.BytesIO(Encoding().encoded(pixels, enlarge=8, text="Steps: 3, Sampler: Eüler")))
    assert made.size == (48, 32)
    assert made.info["parameters"] == "Steps: 3, Sampler: Eüler"


# --- pictures that are fetched ---


def test_a_kept_picture_is_found_until_its_time_is_over() -> None:
    now = [0.0]
    store = PictureStore(10.0, 1000, 5000, clock=lambda: now[0])
    name = store.keep("alice", b"x" * 100, "image/png")
    assert name.endswith(".png")
    assert len(name) > 32
    now[0] = 9.9
    found = store.find(name)
    assert found is not None
    assert (found.data, found.media_type) == (b"x" * 100, "image/png")
    now[0] = 10.0
    assert store.find(name) is None
    assert (len(store), store.held_bytes) == (0, 0)


def test_a_keys_oldest_pictures_make_room_for_its_new_ones_and_for_nobody_elses() -> None:
    store = PictureStore(10.0, 1000, 5000)
    of_bob = store.keep("bob", b"b" * 900, "image/png")
    names = [store.keep("alice", b"a" * 400, "image/png") for _ in range(3)]
    kept = [store.find(name) is not None for name in (of_bob, *names)]
    assert kept == [True, False, True, True]
    assert store.held_bytes == 900 + 800
    assert store.find(store.keep("alice", b"a" * 1001, "image/png")) is None
    assert (len(store), store.held_bytes) == (1, 900)


def test_all_keys_together_have_a_bound_and_who_has_most_makes_room() -> None:
    store = PictureStore(10.0, 1000, 1500)
    of_bob = [store.keep("bob", b"b" * 300, "image/png") for _ in range(3)]
    of_alice = [store.keep("alice", b"a" * 300, "image/png") for _ in range(2)]
    of_carol = [store.keep("carol", b"c" * 300, "image/png") for _ in range(2)]
    kept = [[store.find(name) is not None for name in names] for names in (of_bob, of_alice, of_carol)]
    assert kept == [[False, False, True], [True, True], [True, True]]
    assert store.held_bytes == 1500
    assert (store.largest, PictureStore(1.0, 1000, 500).largest) == (1000, 500)


def test_no_picture_of_an_answer_makes_room_for_another_one_of_it() -> None:
    """Else addresses would be told under which nothing is."""
    store = PictureStore(10.0, 1000, 1500)
    of_others = [store.keep(f"key {number}", b"x" * 300, "image/png") for number in range(4)]
    names: list[str] = []
    for _ in range(3):
        names.append(store.keep("alice", b"a" * 200, "image/png", beside=names))
    assert all(store.find(name) for name in names)
    assert [store.find(name) is not None for name in of_others] == [False, True, True, True]
    again = [store.keep("alice", b"a" * 300, "image/png")]
    again.append(store.keep("alice", b"a" * 300, "image/png", beside=again))
    assert all(store.find(name) for name in again)
    assert [store.find(name) is not None for name in of_others] == [False, True, True, True]  # her own older ones went
