"""Image files that are broken, heavy, of another format, or odd in a way that fuzzing has found."""

import functools
import random
import re
import struct
import zlib

import numpy as np
import pillow_heif
from PIL import Image
from scenes import WHITE, as_file, drawn, inked, mnist, network, placed

SIZE = (300, 240)  # of a picture of one digit
SIDE = 7000  # pixels of heavy images: they take just less memory than is allowed, or more
REFUSED = "not an image|damaged"
BLANK = "no digit found"
MODES = "1 L LA P RGB RGBA RGBX CMYK YCbCr LAB I;16 I F".split()  # all that TIFF stores


def clear_digit(label):
    """Return a digit that the network is sure of, the same one every time."""
    images, labels = mnist()
    some = np.flatnonzero(labels == label)[:20]
    return images[some[network()(images[some] / np.float32(255))[:, label].argmax()]]


@functools.cache
def picture_of(label):
    """Return clear_digit in black on white."""
    ink = placed(drawn(clear_digit(label), 100), SIZE, (30 + 15 * label, 40 + 10 * label))
    return inked(WHITE, ink).astype(np.uint8)


@functools.cache
def digit():
    """Return a clear 7, dark on light, as uint8 (56, 56)."""
    return 255 - np.kron(clear_digit(7), np.ones((2, 2), np.uint8))


def encoded(kind, image=None, **options):
    """Return an image file's bytes; by default, of the digit."""
    return as_file(digit() if image is None else image, kind, **options)


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
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png_with(chunks):
    """Return a seed PNG with more chunks after its header."""
    data = seeds()["png"]
    return data[:33] + chunks + data[33:]


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
    pixels = png_chunk(b"IDAT", deflated_zeros(height * (1 + width * channels * depth // 8)))
    chunks = [png_chunk(b"IHDR", header), *palette, pixels, png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def bmp_rle(width, height):
    """Return a run-length coded BMP whose rows all end early, after one pixel."""
    pixels = b"\x01\x00\x00\x00" * height + b"\x00\x01"
    sizes = 54 + 1024, 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 54 + 1024 + len(pixels), 0, 0, *sizes)
    return header + bytes(range(256)) * 4 + pixels


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
    rows = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    directory = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + rows + bytes(4)
    return jpeg_with(segment(0xE1, b"Exif\0\0" + directory), of="jpeg-progressive")


def with_tag(data, tag, row):
    """Return a little-endian TIFF with a tag replaced by a row: tag, type, count, value."""
    start = struct.unpack("<I", data[4:8])[0] + 2
    tags = [struct.unpack("<H", data[k : k + 2])[0] for k in range(start, len(data) - 1, 12)]
    at = start + 12 * tags.index(tag)
    return data[:at] + struct.pack("<HHII", *row) + data[at + 12 :]


def small_images():
    """Return {file name: (bytes, the pattern of its answer)}; None where any answer will do."""
    zeros = deflated_zeros(10**6)
    cases = {
        "empty.png": (b"", "the file is empty"),
        "text.png": (b"To be or not to be\n" * 50, REFUSED),
        "noise.png": (random.Random(0).randbytes(5000), REFUSED),
        "0x0.png": (png_bomb(0, 0), REFUSED),
        "1x1.png": (encoded("PNG", Image.new("L", (1, 1))), BLANK),
        "1x30000.png": (encoded("PNG", Image.new("L", (1, 30_000), 255)), BLANK),
        "blank.png": (encoded("PNG", Image.new("RGB", (300, 200), "white")), BLANK),
        "invisible.png": (encoded("PNG", Image.new("RGBA", (300, 200))), BLANK),
        "110 megapixels.png": (png_bomb(11_000, 10_000), "too large .110 megapixels"),
        "named.png": (seeds()["jpeg"], "7"),
        "without": (seeds()["webp"], "7"),
        "thumbnail.jpg": (jpeg_with(segment(0xE0, b"JFXX\0\x10" + seeds()["jpeg"])), "7"),
        "photoshop.jpg": (jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 99)), "7"),
        "profile.png": (png_with(png_chunk(b"iCCP", b"x\0\0" + zlib.compress(b"y" * 999))), "7"),
        "profile bomb.png": (png_with(png_chunk(b"iCCP", b"x\0\0" + deflated_zeros(10**8))), None),
        "text bombs.png": (png_with(png_chunk(b"zTXt", b"x\0\0" + zeros) * 99), None),
        "exif garbage.jpg": (jpeg_with(segment(0xE1, b"Exif\0\0" + b"garbage" * 99)), "7"),
        "exif turned 77.jpg": (exif((0x0112, 3, 1, 77)), "7"),
        "exif turned in words.jpg": (exif((0x0112, 2, 4, 0x414141)), "7"),
        "exif loop.jpg": (exif((0x8769, 4, 1, 8), (0x0112, 3, 1, 1)), "7"),
        "no directory.tif": (b"II*\0\xff\xff\xff\x7f", REFUSED),
        "strips nowhere.tif": (with_tag(seeds()["tiff-lzw"], 273, (273, 4, 1, 2**31)), REFUSED),
        "990 samples.tif": (with_tag(seeds()["tiff-lzw"], 278, (277, 3, 1, 990)), REFUSED),
        "odd fax.tif": (with_tag(seeds()["tiff-fax"], 257, (257, 3, 1, 57)), None),
        "not a number.tif": (encoded("TIFF", np.full((50, 60), np.nan, np.float32)), BLANK),
        "infinite.tif": (encoded("TIFF", np.float32([[np.inf, -np.inf, 3e38] * 20] * 50)), None),
    }
    for mode in MODES:
        cases[f"a pixel in {mode}.tif"] = (encoded("TIFF", Image.new(mode, (1, 1))), BLANK)
    for name, data in seeds().items():
        suffix = name.split("-")[0]
        cases[f"whole {name}.{suffix}"] = (data, "7")
        cases[f"truncated {name}.{suffix}"] = (data[: len(data) // 2], None)
        cases[f"beginning of {name}.{suffix}"] = (data[:20], REFUSED)
    return cases


FOREIGN = {  # formats that Pillow or pillow_heif know and the predictor does not list
    "icon.ico": lambda: encoded("ICO"),
    "grey.pgm": lambda: encoded("PPM"),
    "page.eps": lambda: encoded("EPS"),
    "layers.psd": lambda: b"8BPS" + struct.pack(">H6xHIIHH", 1, 1, 9, 9, 8, 1) + bytes(200),
    "jpeg.jp2": lambda: encoded("JPEG2000"),
    "metafile.wmf": lambda: b"\xd7\xcd\xc6\x9a" + bytes(100),
    "sequence.heifs": lambda: b"\0\0\0\x18ftypmsf9" + bytes(50),
}

DEFLATED = {"compression": "tiff_adobe_deflate"}
HEAVY = {  # images below the limit on pixels that expand as much as they can, or keep decoders busy
    "grey.png": lambda: png_bomb(SIDE, SIDE),
    "grey, 16 bits.png": lambda: png_bomb(SIDE, SIDE, depth=16),
    "palette.png": lambda: png_bomb(SIDE, SIDE, colour=3),
    "transparent grey.png": lambda: png_bomb(SIDE, SIDE, colour=4),
    "transparent.png": lambda: png_bomb(SIDE, SIDE, colour=6),
    "tall.png": lambda: png_bomb(1, SIDE**2),
    "float.tif": lambda: encoded("TIFF", Image.new("F", (SIDE, SIDE)), **DEFLATED),
    "cmyk.tif": lambda: encoded("TIFF", Image.new("CMYK", (SIDE, SIDE)), **DEFLATED),
    "flat.gif": lambda: encoded("GIF", Image.new("L", (SIDE, SIDE), 255)),
    "run lengths.bmp": lambda: bmp_rle(SIDE, SIDE),
    "progressive.jpg": large_jpeg,
    "many scans.jpg": lambda: large_jpeg(scans=300),
    "much exif.jpg": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 500),
    "many chunks.png": lambda: png_with(png_chunk(b"teSt", b"") * 1_000_000),
}
