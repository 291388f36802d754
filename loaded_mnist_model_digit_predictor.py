"""Read the handwritten digits in photos, scans and drawings.

    python loaded_mnist_model_digit_predictor.py photo.jpg scans/

prints one line an image: its name, the digits in reading order and how sure the
network is of them. The network is models/mnist_model.h5, which the companion
script mnist_cnn_with_dropout.py trained; it is evaluated here in NumPy, so
that an answer comes before TensorFlow would have been loaded.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import pickle
import re
import signal
import stat
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's: images run in parallel instead
import cv2
import numpy as np

MODEL = Path(__file__).resolve().parent / "models" / "mnist_model.h5"
MAX_WORKERS = 8  # processes that read at once; each may take the memory of a large image
WORTH_A_WORKER = 8  # images, in which time a process has started
PLOTTED = 20  # images in one picture; more rows are too many to look at

# Limits on files, which may be damaged or made to harm
MAX_BYTES = 200_000_000  # of one file
MAX_PIXELS = 100_000_000  # of one image; where no system bounds memory, nothing else would
MAX_MEMORY = 385_000_000  # bytes for a file, its pixels and all else that decoding takes
MAX_SECONDS = 1.0  # of processor time for headers, or for a model; a phone's photo takes 0.1 in all
SECONDS_A_MEGAPIXEL = 0.1  # more to decode pixels: large HEIC photos take half of that,
SECONDS_A_MEGABYTE = 1.0  # but no more than this, for a small file may claim any size
KERAS_MEMORY = 4_000_000_000  # bytes that Keras may take for a model; TensorFlow itself 0.7
KERAS_SECONDS = 60  # of processor time for each of its answers; TensorFlow takes 5 to start

# Decoding
FORMATS = {  # Pillow's name: what such files are called in a folder
    "PNG": ".png",
    "JPEG": ".jpg .jpeg .jpe .jfif",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "WEBP": ".webp",
    "TIFF": ".tif .tiff",
    "AVIF": ".avif",
    "HEIF": ".heic .heif",  # by a package of its own
}
WORK_SIDE = 1600  # pixels; longer sides are reduced first: a page of 100 digits still reads
QUICK_SIDE = 600  # pixels; images are read at this size first, which is faster and less noisy,
LARGE = 50  # and that is the end of it if their digits are so many of those pixels tall
SMALL_SIDE = 256  # pixels; smaller images are enlarged, since shapes are cut out in whole pixels

# Ink and paper
PAPER_SIDE = 160  # pixels; the paper's brightness is estimated at this size
PEN_LIMIT = 27  # of those pixels; anything dark that is wider is a shadow, not a stroke
FLAT = 5  # grey levels; a background this even, as in drawings, needs no estimate
NOISE_FACTOR = 5.0  # ink stands out by so many standard deviations of the paper's noise
FAINTEST = 0.25  # of the strongest ink's contrast: fainter marks are not ink
NEARBY = 0.45  # of the strongest contrast within an eighth of the image, likewise

SPECK = 0.012  # of the longer side: the size of marks that are dropped at once
EDGE = 0.05  # of the shorter side: ink no further from the image's edges is none of a digit's
MAX_PARTS = 400  # the largest ones; a page of digits has 200, a photo of gravel any number

# Between one way to cut a line into digits and another the network's confidence
# decides. These are costs to its logarithm, fitted on the development images.
DIGIT_COST = 0.3  # of each digit read, so that a tie goes to fewer of them
CUT_COST = (0.35, 1.2)  # of cutting through ink at all, and through ink as tall as the digit
JOIN_COST = 0.25  # of joining two separate pieces,
GAP_COST = 2.0  # and more for a gap between them as wide as the digit is tall
ONE_DIGIT_PARTS = 12  # with more parts than that, an image is not asked whether it is one digit
ONE_DIGIT_COST = 0.1  # what the logarithm of the whole's confidence may be lower by
SMALLEST = 28  # pixels; so small an image is one digit, if that is as sure as several are
SCRAP = 0.5  # of the surest line's confidence: a line under it is no number
STACKED = 1.4  # a taller whole, by its width, may as well be two numbers one above the other
SHAPE_COST = 1.0  # of being much lower, taller or wider than the line's digits
LEGS_COST = 0.7  # of standing on two legs, as an A, an H or two digits in one do
LEGS_SHARE = 0.25  # of the height, from below: what those legs reach through

SEAM_ROWS = 64  # rows at which ways between touching digits are looked for
DRIFT = 0.15  # of a row's ink: what a step aside costs such a way

# From ink to the network's 28x28, made like MNIST's (LeCun et al., 1998)
GLYPH_SIDE = 80  # pixels, the longer side at which stroke width is set, 4 to one of MNIST's
PEN_WIDTHS = (8.0, 17.0)  # of those pixels; thinner and thicker pens are brought to these

# What is read is looked at once more, turned by so many degrees: where these views disagree,
# the reading is less sure.
VIEWS = (0, 8, -8)

# The lattice, the network and the answer
MAX_PIECES = 14  # a digit is made of at most so many pieces of a cut-up part,
WIDEST = 1.1  # of its height wide
# A reading is marked as uncertain below these, fitted on the development images.
CERTAIN = 0.68  # confidence in one digit
CERTAIN_NUMBER = 0.87  # mean confidence in the digits of a number, less their costs
EXPLAINED = 0.5  # share of the ink that was read
DOUBTFUL = 0.6  # mean confidence under which the other polarity of ink is tried, too
BATCH = 16  # glyphs evaluated at once; what is made of more does not fit a core's cache
KNOWN_CLASSES = frozenset(  # of Keras: what neither runs code nor opens a file
    "Sequential Functional Model DTypePolicy InputLayer Conv2D DepthwiseConv2D SeparableConv2D "
    "MaxPooling2D AveragePooling2D GlobalMaxPooling2D GlobalAveragePooling2D BatchNormalization "
    "LayerNormalization Flatten Reshape Dense Dropout SpatialDropout2D Activation ReLU LeakyReLU "
    "Softmax ZeroPadding2D Rescaling Add Concatenate".split()
)
KNOWN_MODULES = ("keras.initializers", "keras.regularizers", "keras.constraints")  # likewise


class ImageError(Exception):
    """An image that cannot be read; its text is for the user."""


class ModelError(Exception):
    """A model that cannot be used; its text is for the user."""


class Unsupported(Exception):
    """A layer that only Keras can evaluate."""


# --- Limits ----------------------------------------------------------------


def limit_memory(size):
    """Let this process take size bytes more than it has, where the system can bound that."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[5])
    except (ImportError, OSError):  # Windows, macOS
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_DATA, (min(limit, hard) if hard >= 0 else limit, hard))


class Sandbox:
    """A child process that calls functions within limits of memory and processor time.

    What decodes images and reads HDF5 is written in C: only the system stops it where it
    never comes back, and only a process of its own may crash. One child serves all calls,
    since starting one takes as long as reading a small image. Where there is no fork, on
    Windows, functions are called in this process.
    """

    inside = False  # true in the child

    def __init__(self, memory, seconds):
        self.memory, self.seconds, self.pid = memory, seconds, None

    def call(self, function, *arguments):
        """Return what the function returns, or raise what it raises, both of which are pickled.

        Raises TimeoutError where that takes too long, ChildProcessError where it crashes.
        """
        if not hasattr(os, "fork"):
            return function(*arguments)
        if self.pid is None:
            self.start()
        try:
            pickle.dump((function, arguments), self.calls, protocol=5)
            self.calls.flush()
            answer = pickle.load(self.answers)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            ended = self.end(kill=False)  # it ends by itself, and the signal tells why
            if ended in (-signal.SIGPROF, -signal.SIGALRM):
                raise TimeoutError from None
            raise ChildProcessError from None
        except BaseException:  # Ctrl-C: the next answer would be that of this call
            self.end()
            raise
        if isinstance(answer, Exception):
            raise answer
        return answer

    def start(self):
        (calls, to_child), (from_child, answers) = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other threads are OpenCV's, which is not called there
            self.pid = os.fork()
        if self.pid:
            os.close(calls)
            os.close(answers)
            self.calls, self.answers = os.fdopen(to_child, "wb"), os.fdopen(from_child, "rb")
            return
        try:
            os.close(to_child)
            os.close(from_child)
            self.serve(os.fdopen(calls, "rb"), os.fdopen(answers, "wb"))
        finally:
            os._exit(1)

    def serve(self, calls, answers):
        """Answer calls, in the child, until there are no more."""
        Sandbox.inside = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that prints
        for name in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(name, signal.SIG_DFL)
        for stream in (1, 2):  # what libraries in C print is not for the user
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        limit_memory(self.memory)
        while True:
            function, arguments = pickle.load(calls)
            signal.setitimer(signal.ITIMER_REAL, 10 * self.seconds + 30)  # lest it waits for ever
            self.allow(self.seconds)
            try:
                answer = function(*arguments)
            except Exception as error:
                answer = error
            self.allow(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            function = arguments = None  # so that their memory is free before the next
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
            answer = None

    @staticmethod
    def allow(seconds):
        """Give what is called so much processor time from now on; 0 is any."""
        if Sandbox.inside:
            signal.setitimer(signal.ITIMER_PROF, seconds)

    def end(self, kill=True):
        """Wait for the child, killed or not, and return its exit code."""
        if kill:
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        with contextlib.suppress(BrokenPipeError):
            self.calls.close()
        self.answers.close()
        return os.waitstatus_to_exitcode(status)


sandbox = Sandbox(MAX_MEMORY, MAX_SECONDS)
keras_sandbox = Sandbox(KERAS_MEMORY, KERAS_SECONDS)


# --- From file to pixels ---------------------------------------------------


def image_source(path):
    """Return what decode takes: path itself, or what comes from standard input for "-".

    Raises ImageError for what is no readable file.
    """
    try:
        if path == "-":
            source = sys.stdin.buffer.read(MAX_BYTES + 1) if sys.stdin else b""
            size = len(source)
        else:
            source, status = os.path.abspath(path), os.stat(path)
            if stat.S_ISDIR(status.st_mode):
                os.listdir(path)  # raises if that is not allowed
                raise ImageError("no image in this folder")
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("not a file; give an image or a folder of images")
            with open(path, "rb"):
                size = status.st_size
    except FileNotFoundError:
        raise ImageError("no such file; check the path") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"cannot be opened ({reason})") from None
    if size > MAX_BYTES:
        raise ImageError(f"larger than {MAX_BYTES // 1_000_000} MB; reduce it first")
    if not size:
        raise ImageError("the file is empty")
    return source


def decode(source):
    """Return (rgb, scale): upright uint8 pixels (height, width, 3) and how far they were reduced.

    source is an image file's bytes or its path. The longer side is at most WORK_SIDE; scale
    times the size is the original's. Only FORMATS are ever parsed. Raises ImageError.
    """
    try:
        return sandbox.call(decode_here, source)
    except TimeoutError:
        raise ImageError("takes too long to decode; save it anew, or smaller") from None
    except ChildProcessError:
        raise ImageError("damaged, or too large to decode") from None


def decode_here(source):
    """Return what decode does, from this process."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # our own limit is below, before any pixel is decoded
    formats = list(FORMATS)
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            head, size = file.read(12), file.seek(0, os.SEEK_END)
            file.seek(0)
            if head[4:8] == b"ftyp" and head[8:11] != b"avi":
                import pillow_heif

                pillow_heif.register_heif_opener()
            else:
                formats.remove("HEIF")
            with Image.open(file, formats=formats) as image:
                megapixels = image.width * image.height / 1e6
                if megapixels > MAX_PIXELS / 1e6:
                    limit = MAX_PIXELS // 1_000_000
                    raise ImageError(f"too large ({megapixels:.0f} megapixels, at most {limit})")
                longer = (megapixels * SECONDS_A_MEGAPIXEL, size / 1e6 * SECONDS_A_MEGABYTE)
                sandbox.allow(MAX_SECONDS + min(longer))
                return reduce_upright(image)
    except ImageError:
        raise
    except ImportError:
        raise ImageError("HEIC needs one more package: pip install pillow-heif") from None
    except MemoryError:
        text = f"too large to decode in {MAX_MEMORY // 1_000_000} MB; reduce it first"
        raise ImageError(text) from None
    except UnidentifiedImageError:
        raise ImageError("not an image in a format read here") from None
    except Exception:  # decoders fail in every way there is
        raise ImageError("damaged, or too large to decode") from None


def reduce_upright(image):
    """Return decode's answer for an open Pillow image."""
    from PIL import Image, ImageOps

    longer = max(image.size)
    image.draft(None, (WORK_SIDE, WORK_SIDE))  # JPEG: decode at 1/2, 1/4 or 1/8 at once
    image.load()
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    transparent = not deep and image.has_transparency_data
    mode = "F" if deep else "RGBA" if transparent else "L" if image.mode in ("1", "L") else "RGB"
    if image.mode != mode:
        converted = image.convert(mode)
        image.close()  # whoever opened it would keep its pixels, which may be 100 MB
        image = converted
    image.thumbnail((WORK_SIDE, WORK_SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    scale = longer / max(image.size)
    with contextlib.suppress(Exception):  # absurd EXIF is no reason to lose the picture
        ImageOps.exif_transpose(image, in_place=True)
    if deep:  # in whatever range
        levels = np.nan_to_num(np.asarray(image), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = levels.min(), levels.max()
        levels = (levels - low) * (255.0 / max(float(high - low), 1e-9))
        image = Image.fromarray(levels.astype(np.uint8))
    if transparent:
        image = lay_on_paper(image)
    return np.asarray(image.convert("RGB")), scale


def lay_on_paper(image):
    """Return an RGBA Pillow image on white or black, whichever contrasts with what is visible."""
    from PIL import Image

    opacity = image.getchannel("A")
    grey, weight = (np.asarray(band, np.float32).ravel() for band in (image.convert("L"), opacity))
    dark = grey @ weight <= 128 * weight.sum()
    paper = Image.new("RGB", image.size, "white" if dark else "black")
    paper.paste(image.convert("RGB"), mask=opacity)
    return paper


# --- From pixels to ink ----------------------------------------------------


def resized(image, height, width, method=cv2.INTER_AREA):
    """Return image resized to at least one pixel a side."""
    return cv2.resize(image, (max(1, round(width)), max(1, round(height))), interpolation=method)


def at_paper_side(rgb):
    """Return rgb at the size at which its paper is looked at, PAPER_SIDE pixels long."""
    height, width = rgb.shape[:2]
    factor = PAPER_SIDE / max(height, width)
    return resized(rgb, height * factor, width * factor)


def ink_is_dark(rgb):
    """Tell whether the ink is darker than the paper around it, from the skew of local contrast."""
    height, width = rgb.shape[:2]
    factor = min(1.0, 480 / max(height, width))
    pixels = resized(rgb, height * factor, width * factor)
    window = 51
    framed = cv2.copyMakeBorder(at_paper_side(rgb), *[window] * 4, cv2.BORDER_REFLECT)
    paper = cv2.medianBlur(framed, window)[window:-window, window:-window]
    paper = resized(paper, *pixels.shape[:2], cv2.INTER_LINEAR)
    contrast = (pixels.astype(np.float32) - paper).ravel()
    return float(np.square(contrast) @ contrast) <= 0


def paper_of(rgb, dark):
    """Return the paper's colour at every pixel: shadows and uneven light, but no strokes.

    A grey-level closing fills dark marks narrower than PEN_LIMIT and leaves
    shadows and their edges as they are; for light ink, an opening likewise.
    """
    pen = PEN_LIMIT
    small = cv2.medianBlur(at_paper_side(rgb), 3)
    framed = cv2.copyMakeBorder(small, *[pen] * 4, cv2.BORDER_REPLICATE)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pen, pen))
    kind = cv2.MORPH_CLOSE if dark else cv2.MORPH_OPEN
    paper = cv2.morphologyEx(framed, kind, disc)
    inwards = cv2.erode if dark else cv2.dilate  # or a sheet's own edge would leave a line of ink
    paper = inwards(paper, np.ones((3, 3), np.uint8))[pen:-pen, pen:-pen]
    return resized(paper, *rgb.shape[:2], cv2.INTER_LINEAR)


def flat_paper(rgb):
    """Return the one colour behind a drawing or a clean scan, or None if there is none."""
    small = at_paper_side(rgb)
    paper = np.array([np.median(band) for band in cv2.split(small)], np.float32)
    near = cv2.inRange(small, np.ceil(paper - FLAT), paper + FLAT) > 0
    edge = np.concatenate([near[0], near[-1], near[:, 0], near[:, -1]])
    return paper if near.mean() > 0.5 and edge.mean() > 0.85 else None


def ink_on_flat(rgb, paper):
    """Return how much each pixel differs from paper, one colour (3,), in the ink's own colour.

    rgb is uint8 (height, width, 3); the result float32 (height, width), about 0
    on paper and positive on ink, whichever is darker; negative for the other way.
    """
    sample = every_few(rgb) - paper
    size = np.abs(sample) @ np.ones(3, np.float32)
    strong = sample[size >= 0.4995 * size.max()]
    axis = principal_axis(strong)
    if ((strong @ axis) ** 3).sum() < 0:
        axis = -axis
    deviation = cv2.subtract(rgb, (*paper.tolist(), 0), dtype=cv2.CV_32F)
    return cv2.transform(deviation, axis[None] / 255)


def ink_on_uneven(rgb, dark):
    """Return ink_on_flat's map for a photo or scan, whose paper's colour varies.

    dark says whether the ink is darker than the paper.
    """
    if max(rgb.shape) > 300:
        rgb = cv2.GaussianBlur(rgb, (3, 3), 0)
    paper = paper_of(rgb, dark)
    if dark:  # relative, since shadow dims ink and paper alike
        paper = paper.astype(np.float32)
        deviation = (paper - rgb) / (paper + 16)
    else:  # absolute, since relative noise is large on a dark board
        deviation = cv2.subtract(rgb, paper, dtype=cv2.CV_32F) / np.float32(255)
    sample = np.maximum(every_few(deviation), 0)
    size = sample @ np.ones(3, np.float32)
    rank = 1 + len(size) // 100
    axis = principal_axis(sample[size >= 0.999 * np.partition(size, -rank)[-rank]])
    return cv2.transform(deviation, (axis if axis.sum() >= 0 else -axis)[None])


def every_few(pixels):
    """Return every third, fifth or seventh of pixels (height, width, 3) as rows of 3.

    A stride prime to the width meets every row and column, and so every line of one pixel.
    """
    stride = next((step for step in (3, 5, 7) if pixels.shape[1] % step), 1)
    return pixels.reshape(-1, 3)[::stride]


def principal_axis(colours):
    """Return the unit vector (3,) along which colours (count, 3) spread most from zero.

    A red or a pale blue pen counts as much along it as a black one.
    """
    return np.linalg.eigh(colours.T @ colours)[1][:, -1].astype(np.float32)


def masks_of(ink):
    """Return two boolean masks of ink: a strict one and a lenient one that holds all of it.

    The strict one asks for a share of the strongest contrast nearby, which
    parts a stroke from fainter rulings that touch it.
    """
    height, width = ink.shape
    sample = ink[::3, ::3]
    noise = 1.4826 * np.median(np.abs(sample - np.median(sample))) + 1e-3
    small = resized(ink, height // 4, width // 4)
    rank = min(12, small.size)  # the twelfth largest, so that one speck sets no standard
    strongest = np.partition(small.ravel(), -rank)[-rank]
    reach = max(3, max(small.shape) // 8 | 1)
    nearby = cv2.dilate(small, np.ones((reach, reach), np.uint8))
    nearby = resized(nearby, height, width, cv2.INTER_LINEAR)
    floor = max(NOISE_FACTOR * noise, FAINTEST * strongest)
    return (ink > np.maximum(floor, NEARBY * nearby)), ink > floor


# --- Rulings ---------------------------------------------------------------


def may_hold_rulings(mask):
    """Tell at once whether thin ink reaches through a third of a mask, uint8, across or down.

    A ruling spans half the image and is 35 times as long as it is wide.
    """
    height, width = mask.shape
    coarse = (resized(mask * 255, height / 4, width / 4) > 30).astype(np.uint8)
    widest = 2 + round(np.hypot(*coarse.shape) / 35)
    thick = cv2.morphologyEx(coarse, cv2.MORPH_OPEN, np.ones((widest, widest), np.uint8))
    thin = coarse > thick
    return max(thin.any(axis=0).mean(), thin.any(axis=1).mean()) > 0.33


def straight_lines(mask):
    """Return long straight lines in mask as rows x0, y0, x1, y1, from a Hough transform."""
    factor = min(1.0, 640 / max(mask.shape))
    height, width = mask.shape
    small = resized(mask.astype(np.uint8) * 255, height * factor, width * factor)
    small = (small > 60).astype(np.uint8)
    length = int(0.4 * min(small.shape))
    if length < 10 or not may_hold_rulings(small):
        return np.zeros((0, 4))
    cv2.setRNGSeed(0)  # the transform samples pixels; the same image shall read the same
    found = cv2.HoughLinesP(
        small,
        1,
        np.pi / 180,
        int(0.7 * length),
        minLineLength=length,
        maxLineGap=max(3, max(small.shape) // 40),
    )
    return np.zeros((0, 4)) if found is None else found.reshape(-1, 4) / factor


def rulings_of(found, distance, ink):
    """Return the rulings, grid and table lines among what straight_lines found.

    distance is that from each pixel of ink to its nearest paper. Each ruling is
    (line, width, contrast). A ruling is long and thin, and either runs
    from border to border or has at least two more in parallel.
    """
    height, width = ink.shape
    side = max(ink.shape)
    candidates = []
    for line in found:
        x0, y0, x1, y1 = line
        if max(abs(x1 - x0) / width, abs(y1 - y0) / height) <= 0.5:
            continue
        steps = int(max(abs(x1 - x0), abs(y1 - y0))) + 1
        xs = np.clip(np.linspace(x0, x1, steps).round().astype(int), 0, width - 1)
        ys = np.clip(np.linspace(y0, y1, steps).round().astype(int), 0, height - 1)
        depth = distance[ys, xs]
        inked = depth > 0
        if not inked.any():
            continue
        thickness = 2 * np.sort(depth[inked])
        middle, thickest = thickness[len(thickness) // 2], thickness[3 * len(thickness) // 4]
        if max(35 * middle, 30 * thickest) < np.hypot(x1 - x0, y1 - y0):
            candidates.append((line, middle, np.median(ink[ys, xs][inked])))
    if not candidates:
        return []
    lines = np.array([line for line, _, _ in candidates])
    angles = np.degrees(np.arctan2(lines[:, 3] - lines[:, 1], lines[:, 2] - lines[:, 0])) % 180
    margin = 0.04 * side + 2
    ends = lines.reshape(-1, 2, 2)
    at_border = (ends < margin) | (ends > np.array([width, height]) - 1 - margin)
    across = at_border.any(axis=2).all(axis=1)
    rulings = []
    for angle, crosses, candidate in zip(angles, across, candidates, strict=True):
        turn = np.abs(angles - angle)
        normal = np.array([-np.sin(np.radians(angle)), np.cos(np.radians(angle))])
        offsets = np.sort(ends[np.minimum(turn, 180 - turn) < 6].mean(axis=1) @ normal)
        if crosses or (np.diff(offsets) > 0.025 * side).sum() >= 2:
            rulings.append(candidate)
    return rulings


def without_rulings(strict, lenient, ink):
    """Return the strict mask without rulings; strokes that cross one stay whole."""
    found = straight_lines(lenient)
    if not len(found):
        return strict
    distance = cv2.distanceTransform(lenient.astype(np.uint8), cv2.DIST_L2, 3)
    rulings = rulings_of(found, distance, ink)
    if not rulings:
        return strict
    side = max(strict.shape)
    line_mask = np.zeros(strict.shape, np.uint8)
    darker, thicker = np.zeros(strict.shape, np.float32), np.zeros(strict.shape, np.float32)
    for line, pen, contrast in rulings:
        start, end = line.reshape(2, 2)
        beyond = (end - start) / np.hypot(*(end - start)) * 0.08 * side
        ends = [tuple(int(v) for v in point) for point in (start - beyond, end + beyond)]
        thickness = round(pen + 2) + max(1, side // 500)
        cv2.line(line_mask, *ends, 1, thickness)
        cv2.line(darker, *ends, float(1.6 * contrast), thickness)
        cv2.line(thicker, *ends, float(0.85 * pen + 1.5), thickness)
    # On a line, what is much darker or thicker than the line itself is a stroke.
    stroke = ((distance > thicker) & (line_mask > 0)).astype(np.uint8)
    stroke = cv2.dilate(stroke, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    on_line = (line_mask > 0) & (ink <= darker) & (stroke == 0)
    rest = strict & ~on_line
    gap = max(3, side // 160 | 1) + 2
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (gap, gap))
    bridged = cv2.morphologyEx(rest.astype(np.uint8), cv2.MORPH_CLOSE, disc).astype(bool)
    return rest | (bridged & strict & on_line)


# --- Parts: what may be a digit, or a piece of one --------------------------


@dataclass(eq=False)
class Part:
    """Some ink: its box in pixels (right and bottom exclusive) and its mask within the box."""

    left: int
    top: int
    right: int
    bottom: int
    mask: np.ndarray  # bool (height, width)
    contrast: float = 0.0
    cut_before: float = 0.0  # ink cut through on the left, as a share of the height
    cut_after: float = 0.0

    @property
    def width(self):
        return self.right - self.left

    @property
    def height(self):
        return self.bottom - self.top

    @property
    def length(self):
        return max(self.width, self.height)

    @property
    def centre(self):
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def overlap(self, other):
        """Return the shared extent across and down in pixels; negative values are gaps."""
        across = min(self.right, other.right) - max(self.left, other.left)
        return across, min(self.bottom, other.bottom) - max(self.top, other.top)

    def contains(self, other):
        """Tell whether other's box lies within this one's."""
        across, down = self.overlap(other)
        return self is not other and across == other.width and down == other.height


def union(parts):
    """Return one Part that holds the ink of all."""
    if len(parts) == 1:
        return parts[0]
    left, top = min(p.left for p in parts), min(p.top for p in parts)
    right, bottom = max(p.right for p in parts), max(p.bottom for p in parts)
    mask = np.zeros((bottom - top, right - left), bool)
    for p in parts:
        mask[p.top - top : p.bottom - top, p.left - left : p.right - left] |= p.mask
    contrast = max(p.contrast for p in parts)
    cuts = parts[0].cut_before, parts[-1].cut_after
    return Part(left, top, right, bottom, mask, contrast, *cuts)


def upper_quartile(values):
    """Return the value that a quarter of values exceeds; np.percentile is ten times slower."""
    rank = (3 * len(values)) // 4
    return float(np.partition(values, rank)[rank])


def parts_of(mask, ink):
    """Return the connected pieces of mask that are larger than a speck."""
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    speck = max(4, SPECK * max(mask.shape))
    found = [
        (area, label, x, y, width, height)
        for label, (x, y, width, height, area) in enumerate(boxes[1:].tolist(), 1)
        if area >= 6 and max(width, height) >= speck
    ]
    parts = []
    for _, label, x, y, width, height in sorted(found, key=lambda box: -box[0])[:MAX_PARTS]:
        own = labels[y : y + height, x : x + width] == label
        contrast = upper_quartile(ink[y : y + height, x : x + width][own])
        parts.append(Part(x, y, x + width, y + height, own, contrast))
    return parts


def without_edges(parts, shape):
    """Drop what lies wholly along the image's edges, as the outline of a canvas does."""
    height, width = shape
    edge = round(EDGE * min(shape))

    def reaches_inside(p):
        inner = p.mask[max(0, edge - p.top) : max(0, height - edge - p.top)]
        return inner[:, max(0, edge - p.left) : max(0, width - edge - p.left)].any()

    return [p for p in parts if reaches_inside(p)]


def without_borders(parts, shape):
    """Drop the edges of pages and tables: long or marginal pieces at the image's border."""
    height, width = shape
    margin, edge = 0.035 * max(shape), max(1, 0.008 * max(shape))

    def at_border(p):
        near = margin if p.mask.mean() < 0.1 else edge
        touched = (p.left <= near) + (p.top <= near)
        touched += (p.right >= width - near) + (p.bottom >= height - near)
        marginal = (
            p.right < margin or p.bottom < margin
            or p.left > width - margin or p.top > height - margin
        )  # fmt: skip
        long = p.width > 0.45 * width or p.height > 0.45 * height
        thin = min(p.width, p.height) < 0.12 * p.length
        return marginal or touched >= 3 or (touched and long and (thin or touched >= 2))

    return [p for p in parts if not at_border(p)] or parts


def without_frames(parts, shape):
    """Drop thin outlines that enclose other parts, as a box drawn around a number does."""

    def encloses(p):
        if p.width * p.height < 0.08 * shape[0] * shape[1] or p.mask.mean() > 0.1:
            return False
        inner = [q for q in parts if p.contains(q) and q.contrast > 0.4 * p.contrast]
        lengths = [q.length / p.length for q in inner]
        return bool(lengths) and 0.2 < max(lengths) < 0.8

    return [p for p in parts if not encloses(p)] or parts


def likely_parts(parts, shape):
    """Return the parts that may belong to digits, and the typical digit's height in pixels."""
    parts = without_frames(without_borders(parts, shape), shape)
    parts = [p for p in parts if p.width < 8 * p.height] or parts  # leftovers of rulings
    contrast, length = np.array([(p.contrast, p.length) for p in parts]).T
    weight = (contrast**2 * length) ** 2
    typical_contrast = (contrast * weight).sum() / weight.sum()
    longest = (length * np.minimum(1, contrast / typical_contrast)).max()
    parts = [
        p
        for p in parts
        if p.contrast > 0.4 * typical_contrast and p.length > 0.12 * longest
    ]  # fmt: skip
    height = float(np.median([p.length for p in parts if p.length > 0.3 * longest]))
    return [p for p in parts if p.length > 0.22 * height], height


def joined(parts, height):
    """Join pieces that lie above each other and fit one digit: a 5 and its bar, a broken 8."""

    def belong(a, b):
        across, down = a.overlap(b)
        tall = max(a.bottom, b.bottom) - min(a.top, b.top)
        if across <= 0.5 * min(a.width, b.width):
            return False
        if tall >= 1.45 * max(height, 0.9 * max(a.height, b.height)):
            return False
        small = min(a.height, b.height) < 0.62 * max(a.height, b.height)
        small = small or min(a.length, b.length) < 0.5 * height
        if down > 0.7 * min(a.height, b.height):
            return small or across > 0.9 * min(a.width, b.width)
        return -down < 0.25 * height and (small or tall < 1.15 * height)

    whole = []
    rest = sorted(parts, key=lambda p: -p.length)
    while rest:
        part, size = rest.pop(0), 0
        while size != len(rest):
            size = len(rest)
            for other in [q for q in rest if q.left < part.right and part.left < q.right]:
                if belong(part, other):
                    part = union([part, other])
                    rest.remove(other)
        whole.append(part)
    parts = whole
    return [p for p in parts if p.length > 0.33 * height and not is_dash(p, height)] or parts


def is_dash(part, height):
    """Tell whether a part is a lone horizontal stroke, which no digit is."""
    return part.width > 2.2 * part.height and part.height < 0.45 * height


# --- Lines -----------------------------------------------------------------


def slope_of(parts, height):
    """Return the angle in radians, up to 42 degrees, at which parts best fall into lines."""
    if len(parts) < 4:
        return 0.0
    x, y = np.array([p.centre for p in parts]).T
    best = (-np.inf, 0.0)
    for degrees in range(-42, 43, 2):
        angle = np.radians(degrees)
        rows = np.sort(np.cos(angle) * y - np.sin(angle) * x)
        score = -np.minimum(np.diff(rows) / height, 1).sum() - 0.02 * abs(degrees)
        best = max(best, (score, angle))
    return best[1]


def lines_of(parts, height):
    """Return parts as lists, one a line from top to bottom, each from left to right."""
    angle = slope_of(parts, height)

    def turned(part):
        x, y = part.centre
        return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x

    lines = []
    for part in sorted(parts, key=lambda p: turned(p)[0]):
        x, y = turned(part)
        nearest = []
        for line in lines:  # a line is followed by its last parts, wherever it bends
            last = line[-4:]
            xs, ys = np.array([turned(p) for p in last]).T
            level = ys[-3:].mean()
            away = abs(y - level)
            if len(last) > 1:
                slant = np.clip((ys[-1] - ys[0]) / max(xs[-1] - xs[0], height), -0.2, 0.2)
                away = min(away, abs(y - level - slant * (x - xs[-3:].mean())))
            away /= max(np.median([p.height for p in last]), 0.6 * part.height)
            beside = last[-1].overlap(part)
            if beside[1] > 0.6 * min(part.height, last[-1].height) and beside[0] > -height:
                away = min(away, 0.5)
            if away < 0.62:
                nearest.append((away, len(nearest), line))
        if nearest:
            min(nearest)[2].append(part)
        else:
            lines.append([part])
    return sorted(lines, key=lambda line: np.mean([turned(p)[1] for p in line]))


# --- From ink to the network's input ----------------------------------------


def glyph_of(part, ink):
    """Return a part as the network wants it: float32 (28, 28) in [0, 1], white on black.

    The pen is brought to MNIST's width, the longer side to 20 pixels, the
    centre of mass to the middle.
    """
    pixels = ink[part.top : part.bottom, part.left : part.right]
    full = max(part.contrast, 1e-6)
    fringe = 2 * max(1, round(0.015 * part.length)) + 1  # the anti-aliased rim around the mask
    own = cv2.dilate(part.mask.astype(np.uint8), np.ones((fringe, fringe), np.uint8))
    pixels = np.clip(pixels / full, 0, 1) * own
    factor = GLYPH_SIDE / part.length
    if factor < 1:  # keep hairlines from fading when they are shrunk
        pixels = cv2.dilate(pixels, np.ones([int(np.ceil(1 / factor))] * 2, np.uint8))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    pixels = with_pen_width(resized(pixels, part.height * factor, part.width * factor, method))
    rows, columns = np.flatnonzero((pixels > 0.3).any(1)), np.flatnonzero((pixels > 0.3).any(0))
    if len(rows):
        pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = 20 / max(pixels.shape)
    pixels = resized(pixels, pixels.shape[0] * factor, pixels.shape[1] * factor)
    height, width = pixels.shape
    mass = max(float(pixels.sum()), 1e-6)
    down = (pixels.sum(axis=1) @ (np.arange(height) + 0.5)) / mass
    across = (pixels.sum(axis=0) @ (np.arange(width) + 0.5)) / mass
    top = int(np.clip(round(14 - down), 0, 28 - height))
    left = int(np.clip(round(14 - across), 0, 28 - width))
    glyph = np.zeros((28, 28), np.float32)
    glyph[top : top + height, left : left + width] = np.clip(pixels, 0, 1)
    return glyph


def with_pen_width(pixels):
    """Thicken or thin strokes until their mean width lies within PEN_WIDTHS.

    A stripe's pixels lie a quarter of its width from its edge on average, so
    four times the mean of the distance transform is the width.
    """
    inked = cv2.copyMakeBorder((pixels > 0.5).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distance = cv2.distanceTransform(inked, cv2.DIST_L2, 5)
    pen = 4 * float(distance[inked > 0].mean()) - 1 if inked.any() else 0.0
    thinnest, thickest = PEN_WIDTHS
    if pen < thinnest:
        missing = round(thinnest - pen)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (missing + 1, missing + 1))
        framed = cv2.copyMakeBorder(pixels, *[missing] * 4, cv2.BORDER_CONSTANT)
        return cv2.dilate(framed, disc)
    if pen > thickest:
        excess = round(min(pen - thickest, 0.4 * pen))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (excess + 1, excess + 1))
        return cv2.erode(cv2.copyMakeBorder(pixels, 1, 1, 1, 1, cv2.BORDER_CONSTANT), disc)
    return pixels


def views_of(glyph):
    """Return a glyph turned by VIEWS: float32 (views, 28, 28) in [0, 1]."""
    turns = [cv2.getRotationMatrix2D((13.5, 13.5), degrees, 1.0) for degrees in VIEWS]
    return np.stack([cv2.warpAffine(glyph, turn, (28, 28)) for turn in turns])


# --- Network ---------------------------------------------------------------


def convolve(x, kernel, bias):
    """Return a valid convolution of x (n, h, w, c) with a kernel (kh, kw, c, filters)."""
    kh, kw, _, filters = kernel.shape
    windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), axis=(1, 2))
    n, height, width = windows.shape[:3]
    rows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(n * height * width, -1)
    return (rows @ kernel.reshape(-1, filters) + bias).reshape(n, height, width, filters)


def max_pool(x, size):
    """Return the maxima of x (n, h, w, c) over tiles of size (rows, columns)."""
    rows, columns = size
    bottom, right = x.shape[1] // rows * rows, x.shape[2] // columns * columns
    corners = itertools.product(range(rows), range(columns))
    return functools.reduce(
        np.maximum, (x[:, top:bottom:rows, left:right:columns] for top, left in corners)
    )


def softmax(logits):
    """Return probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "softmax": softmax,
}


def build_layer(kind, config, weights):
    """Return a layer as a function from array to array.

    kind is its Keras class, config its settings, weights its arrays by name. Raises Unsupported
    for what is not known here, and KeyError, TypeError and the like for what no layer can be.
    """
    if config.get("activation", "linear") not in ACTIVATIONS:
        raise Unsupported
    activation = ACTIVATIONS[config.get("activation", "linear")]
    if kind in ("InputLayer", "Dropout"):
        if kind == "InputLayer" and config["batch_shape"][1:] != [28, 28, 1]:
            raise ValueError("not the shape of a digit")
        return lambda x: x
    if kind == "Flatten":
        return lambda x: x.reshape(len(x), -1)
    if kind == "BatchNormalization":
        if config["axis"] not in (-1, 3, [3]):
            raise Unsupported
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (weights[name] for name in names)
        scale = gamma / np.sqrt(np.maximum(variance, 0) + np.float32(config["epsilon"]))
        return lambda x: x * scale + (beta - mean * scale)
    if kind in ("Dense", "Conv2D"):
        kernel, outputs = weights["kernel"], config["units" if kind == "Dense" else "filters"]
        bias = weights["bias"] if config["use_bias"] else np.zeros(outputs, np.float32)
        if kernel.shape[-1] != outputs or bias.shape != (outputs,):
            raise ValueError("not as many weights as it has outputs")
    if kind == "Dense":
        return lambda x: activation(x @ kernel + bias)
    if kind not in ("Conv2D", "MaxPooling2D"):
        raise Unsupported
    if config["padding"] != "valid" or config["data_format"] != "channels_last":
        raise Unsupported
    if kind == "MaxPooling2D":
        if config["strides"] != config["pool_size"]:
            raise Unsupported
        return lambda x: max_pool(x, config["pool_size"])
    if config["groups"] != 1 or {*config["strides"], *config["dilation_rate"]} != {1}:
        raise Unsupported
    if [*kernel.shape[:2]] != config["kernel_size"]:
        raise ValueError("not the size of its weights")
    return lambda x: activation(convolve(x, kernel, bias))


def build_network(layers, weights):
    """Return load_network's function for read_model's layers and weights."""
    steps = [build_layer(kind, config, weights.get(config["name"], {})) for kind, config in layers]

    def network(glyphs):
        batches = []
        for start in range(0, len(glyphs), BATCH):
            x = np.asarray(glyphs[start : start + BATCH], np.float32)[..., None]
            with np.errstate(all="ignore"):
                for step in steps:
                    x = step(x)
            if not np.isfinite(x).all():
                raise ModelError("its answers are not probabilities; train it again")
            batches.append(x)
        return np.concatenate(batches)

    return network


def try_out(network):
    """Raise ModelError unless the network makes ten probabilities of any 28x28 pixels."""
    glyphs = np.random.default_rng(0).random((BATCH, 28, 28), np.float32)
    answers = network(glyphs)
    if answers.shape != (BATCH, 10) or not np.allclose(answers.sum(axis=1), 1, atol=1e-3):
        raise ModelError("it does not make the probabilities of ten digits of 28x28 pixels")


def datasets_of(group, depth=0):
    """Yield all datasets in an HDF5 group; raise ModelError for what points elsewhere.

    Links to other files, virtual and externally stored datasets would open files that the
    user never named: no limit on memory or time prevents that. Links are looked at, not followed.
    """
    import h5py

    for name in group:
        if type(group.get(name, getlink=True)) is not h5py.HardLink or depth > 8:
            raise ModelError("it links to other places; train it again")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from datasets_of(item, depth + 1)
        elif item.is_virtual or item.external or item.dtype.kind not in "fiu":
            raise ModelError("it stores its weights outside the file; train it again")
        else:
            yield item


def check_class(item):
    """Return an object of a model's description; raise ModelError if its class is not harmless."""
    kind, module = item.get("class_name"), item.get("module") or "keras"
    known = kind in KNOWN_CLASSES and module in ("keras", "keras.layers")
    known = (known or module in KNOWN_MODULES) and item.get("registered_name") in (None, kind)
    if "class_name" in item and not known:
        raise ModelError(f"its {str(kind)[:40]!r} is not a layer that is known to be safe")
    return item


def read_model(path):
    """Return a Keras HDF5 file's layers and weights, tried out, or None if only Keras can do that.

    layers is a list of (class, settings), weights {layer: {name: float32 array}}.
    """
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # HDF5 filters are code; load none
    import h5py

    try:
        weights = {}
        with h5py.File(path, "r") as file:
            text = file.attrs["model_config"]
            for item in datasets_of(file):
                _, group, *inner, name = item.name.split("/")
                if group == "model_weights" and inner:
                    values = item[()].astype(np.float32)
                    if not np.isfinite(values).all():
                        raise ModelError("its weights are not finite; train it again")
                    weights.setdefault(inner[0], {})[name.split(":")[0]] = values
        model = json.loads(text, object_hook=check_class)
        layers = [(layer["class_name"], layer["config"]) for layer in model["config"]["layers"]]
        if model["class_name"] != "Sequential":
            raise Unsupported
        try_out(build_network(layers, weights))
        return layers, weights
    except Unsupported:
        return None
    except (ModelError, MemoryError):
        raise
    except (OSError, RuntimeError):
        raise ModelError("it is damaged or not an HDF5 file; train it again") from None
    except Exception:  # a description may be anything
        text = "it is no Keras model, or its weights do not fit its layers; train it again"
        raise ModelError(text) from None


def load_network(path):
    """Return a function from glyphs (n, 28, 28) to probabilities (n, 10), both float32.

    path is a Keras HDF5 file. Its layers are evaluated in NumPy; a model with
    layers that build_layer does not know goes through Keras. Nothing in the file
    is executed, and no other file is opened. Raises ModelError.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ModelError("it is not a file; give a Keras HDF5 file")
        path = os.path.abspath(path)
        model = sandbox.call(read_model, path)
        if model:
            return build_network(*model)
        network = functools.partial(keras_sandbox.call, keras_network, path)
        try_out(network)
        return network
    except FileNotFoundError:
        text = "no such file; train it with mnist_cnn_with_dropout.py or give --model"
        raise ModelError(text) from None
    except (MemoryError, TimeoutError, ChildProcessError):
        raise ModelError("it takes too much memory or time; train it again") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"it cannot be opened ({reason})") from None


def keras_network(path, glyphs):
    """Return a model's answers, evaluated by Keras in this process."""
    try:
        return np.asarray(keras_model(path)(np.asarray(glyphs, np.float32)[..., None]))
    except ImportError:
        raise ModelError("it needs Keras and TensorFlow: pip install tensorflow keras") from None
    except Exception:  # Keras raises whatever a bad file leads it into
        raise ModelError("Keras cannot load it; train it again") from None


@functools.cache
def keras_model(path):
    """Return a model loaded by Keras, which refuses what would run code."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras

    return keras.models.load_model(path, compile=False, safe_mode=True)


# --- Reading ---------------------------------------------------------------


@dataclass
class Digit:
    """One digit read: its box in pixels of the upright original, and what the network said."""

    box: tuple
    glyph: np.ndarray
    probabilities: np.ndarray
    cost: float = 0.0  # of cutting, joining and shape: what else speaks against the reading
    uncertain: bool = False

    @property
    def digit(self):
        return int(self.probabilities.argmax())

    @property
    def confidence(self):
        return float(self.probabilities.max())


def digits_of(lines):
    """Return the digits of all lines in one list."""
    return [digit for line in lines for digit in line]


def cheapest_ways(rows):
    """Return the least ink on a way down through rows to each column, and the ways' steps.

    rows is float (height, width), the result (width,) and a list of (width,) for
    each row but the first: -1, 0 or 1 column to where the way came from. This is
    the dynamic programming of seam carving (Avidan and Shamir, 2007).
    """
    least, steps = rows[0], []
    beside = np.full((3, len(least)), np.inf, np.float32)
    for row in rows[1:]:
        beside[0, 1:], beside[1], beside[2, :-1] = least[:-1] + DRIFT, least, least[1:] + DRIFT
        steps.append(beside.argmin(axis=0) - 1)
        least = row + beside.min(axis=0)
    return least, steps


def seams_of(mask, count):
    """Return count - 1 cuts from top to bottom that cross little ink, evenly spread.

    mask is bool (height, width); the cuts are whole columns (count - 1, height),
    and the ink that each crosses is a share of the height.
    """
    height, width = mask.shape
    ink = resized(mask.astype(np.float32), SEAM_ROWS, width * SEAM_ROWS / height)
    middle = SEAM_ROWS // 2
    above, up = cheapest_ways(ink[: middle + 1])
    below, down = cheapest_ways(ink[: middle - 1 : -1])
    cost, step = above + below - ink[middle], len(above) / count
    columns = []
    for cut in range(1, count):
        low, high = int((cut - 0.45) * step), int((cut + 0.45) * step) + 1
        off_centre = np.abs(np.arange(low, high) - cut * step)
        columns.append(low + int(np.argmin(cost[low:high] + 1e-3 * off_centre)))
    columns = np.array(columns)
    ways = [[columns], [columns]]
    for way, steps in zip(ways, (up, down), strict=True):
        for came_from in reversed(steps):
            way.append(way[-1] + came_from[way[-1]])
    seams = np.stack([*ways[0][::-1], *ways[1][1:]], axis=1)
    at = (np.arange(height) + 0.5) * SEAM_ROWS / height - 0.5
    seams = [np.interp(at, range(SEAM_ROWS), seam) * width / len(above) for seam in seams]
    return np.maximum.accumulate(np.round(seams), axis=0), cost[columns] / SEAM_ROWS


def pieces_of(part, height):
    """Cut a part that is wide for one digit where it is thinnest; return it whole otherwise."""
    if part.width <= 0.85 * part.height or part.width <= 0.75 * height:
        return [part]
    count = max(2, round(part.width / (0.15 * max(part.height, height))))
    seams, ink = seams_of(part.mask, count)
    seams = np.vstack([np.zeros(part.height), seams, np.full(part.height, part.width)])
    ink = [0.0, *ink, 0.0]
    column, pieces = np.arange(part.width), []
    for k in range(count):
        mask = part.mask & (column >= seams[k][:, None]) & (column < seams[k + 1][:, None])
        if not mask.any():
            continue
        (top, bottom), (left, right) = (
            np.flatnonzero(mask.any(axis=axis))[[0, -1]] + (0, 1) for axis in (1, 0)
        )
        box = (part.left + left, part.top + top, part.left + right, part.top + bottom)
        box = [int(edge) for edge in box]
        mask = mask[top:bottom, left:right]
        pieces.append(Part(*box, mask, part.contrast, ink[k], ink[k + 1]))
    return pieces


def candidates_of(line, sure):
    """Return all ways to take consecutive pieces of a line as a digit, and the pieces' number.

    Each is (first piece, piece after the last, Part, cost). sure(part) is the
    logarithm of the confidence in a part; it is cut only if that could read better.
    """
    heights = [part.height for part in line]
    height = max(float(np.median(heights)), 0.6 * max(heights))
    pieces, owner, count = [], [], []
    line = sorted(line, key=lambda p: p.centre[0])
    for index, part in enumerate(line):
        legible = sure(part) - shape_cost(part, height) > -DIGIT_COST - CUT_COST[0]
        cut = [part] if legible else pieces_of(part, height)
        pieces, owner = pieces + cut, owner + [index] * len(cut)
        count.append(len(cut))
    candidates = []
    for first in range(len(pieces)):
        for last in range(first, min(len(pieces), first + MAX_PIECES)):
            whole = owner[first] == owner[last] and last - first + 1 == count[owner[first]]
            run = pieces[first : last + 1]
            assembled = first < last and not whole  # a single piece always stays a candidate
            tall = max(height, *(p.height for p in run))
            if assembled and union_width(run) > WIDEST * tall:
                break
            part = line[owner[first]] if whole else union(run)
            if assembled and part.height > 1.7 * height:
                continue
            cost = DIGIT_COST + shape_cost(part, height)
            cost += (cut_cost(part.cut_before) + cut_cost(part.cut_after)) / 2
            if not whole and count[owner[first]] > 1:
                cost += max(0.0, 0.3 - part.width / part.height)
            gaps = [
                max(0, b.left - a.right) / height
                for k, (a, b) in enumerate(itertools.pairwise(run), first)
                if owner[k] != owner[k + 1]
            ]
            if gaps and max(gaps) > 0.2:
                continue
            cost += sum(JOIN_COST + GAP_COST * gap for gap in gaps)
            candidates.append((first, last + 1, part, cost))
    return candidates, len(pieces)


def cut_cost(ink):
    """Return what it costs to cut through that much ink, as a share of the digit's height."""
    return CUT_COST[0] + CUT_COST[1] * ink if ink else 0.0


def union_width(parts):
    """Return the width of the box around parts."""
    return max(p.right for p in parts) - min(p.left for p in parts)


def shape_cost(part, height):
    """Return what it costs that a part's shape is unlike a digit of that height."""
    wide = max(0.0, part.width / max(part.height, 0.7 * height) - 1.15)
    low = max(0.0, 0.75 - part.height / height)
    tall = max(0.0, part.height / height - 1.4)
    return SHAPE_COST * (0.5 * wide + low + tall)


def best_path(candidates, count, sure):
    """Return the (Part, cost) that read a line best (Viterbi's algorithm).

    candidates and count are what candidates_of returns, sure what it wants; the
    cost is without that of being a digit at all.
    """
    best = {0: (0.0, [])}
    for first, after, part, cost in sorted(candidates, key=lambda candidate: candidate[1]):
        if first in best:
            score, path = best[first]
            score += sure(part) - cost
            if after not in best or score > best[after][0]:
                best[after] = (score, [*path, (part, cost - DIGIT_COST)])
    return best[count][1]


def on_two_legs(glyph, digit):
    """Tell whether a glyph stands on two separate strokes, as no digit but a looped 2 does.

    glyph is float32 (28, 28), digit what it is read as.
    """
    inked = (glyph > 0.4).astype(np.uint8)
    rows = np.flatnonzero(inked.any(axis=1))
    if digit == 2 or len(rows) < 8:
        return False
    reach = round(LEGS_SHARE * len(rows))
    lowest = inked[rows[-1] + 1 - reach : rows[-1] + 1]
    _, _, boxes, _ = cv2.connectedComponentsWithStats(lowest, connectivity=8)
    top, height = boxes[1:, cv2.CC_STAT_TOP], boxes[1:, cv2.CC_STAT_HEIGHT]
    return int(((top == 0) & (height >= 0.6 * reach)).sum()) > 1


def without_scraps(lines, sure):
    """Drop the lines that are much less sure than the surest: leftovers and marks, no numbers.

    lines holds what best_path returns, sure is what it wants.
    """
    scores = [np.mean([sure(part) - cost for part, cost in line]) for line in lines]
    return [
        line
        for line, score in zip(lines, scores, strict=True)
        if score > max(scores) + np.log(SCRAP)
    ]


def read_digits(rgb, network, scale=1.0, one=False):
    """Return the digits in an upright image as lists, one a line, in reading order.

    rgb is uint8 (height, width, 3), network what load_network returns, scale the
    factor from these pixels to the original's. With one, there is exactly one
    digit. Raises ImageError when there is none.
    """
    lines, explained = read_in_size(rgb, network, scale, one)
    if not lines:
        raise ImageError("no digit found")
    look_again(lines, network)
    mark_uncertain(lines, explained)
    return lines


def read_in_size(rgb, network, scale, one):
    """Return read_ink's answer for an image that is reduced if its digits are large enough."""
    height, width = rgb.shape[:2]
    longer = max(height, width)
    shrink = -(-longer // QUICK_SIDE)
    if shrink > 1:
        rows, columns = max(1, height // shrink), max(1, width // shrink)
        small = resized(rgb[: rows * shrink, : columns * shrink], rows, columns)
        lines, explained = read_pixels(small, network, scale * shrink, one)
        lengths = [max(d.box[2] - d.box[0], d.box[3] - d.box[1]) for d in digits_of(lines)]
        if lines and np.median(lengths) / (scale * shrink) >= LARGE and explained >= EXPLAINED:
            return lines, explained
    factor = max(1, -(-SMALL_SIDE // longer))
    if factor > 1:
        rgb = resized(rgb, height * factor, width * factor, cv2.INTER_CUBIC)
    return read_pixels(rgb, network, scale / factor, one)


def read_pixels(rgb, network, scale, one):
    """Return read_ink's answer for an image, with its ink darker or lighter than its paper."""
    paper = flat_paper(rgb)
    if paper is not None:
        return read_ink(ink_on_flat(rgb, paper), network, scale, one)
    dark = ink_is_dark(rgb)
    lines, explained = read_ink(ink_on_uneven(rgb, dark), network, scale, one)
    if sureness(lines) < DOUBTFUL and len(digits_of(lines)) < 50:
        other = read_ink(ink_on_uneven(rgb, not dark), network, scale, one)
        lines, explained = max((lines, explained), other, key=lambda read: sureness(read[0]))
    return lines, explained


def look_again(lines, network):
    """Let each digit's probabilities be the mean over its views."""
    digits = digits_of(lines)
    if digits:
        views = np.concatenate([views_of(digit.glyph) for digit in digits])
        means = network(views).reshape(len(digits), len(VIEWS), 10).mean(axis=1)
        for digit, probabilities in zip(digits, means, strict=True):
            digit.probabilities = probabilities


def mark_uncertain(lines, explained):
    """Mark the digits that may be something else; all of them where the image is no number.

    explained is the share of the image's ink that was read. A letter, a face or
    a pattern leaves the network unsure, or falls apart into too much besides.
    """
    digits = digits_of(lines)
    enough = CERTAIN if len(digits) == 1 else CERTAIN_NUMBER
    foreign = sureness(lines) < enough or explained < EXPLAINED
    for digit in digits:
        digit.uncertain = foreign or digit.confidence < CERTAIN


def sureness(lines):
    """Return the geometric mean of all digits' confidences less their costs, 0 for no digits."""
    sure = [np.log(digit.confidence) - digit.cost for digit in digits_of(lines)]
    return float(np.exp(np.mean(sure))) if sure else 0.0


def read_ink(ink, network, scale, one):
    """Return read_digits' answer for a map of ink and the share of the ink that it explains."""
    strict, lenient = masks_of(ink)
    mask = without_rulings(strict, lenient, ink)
    parts = without_edges(parts_of(mask, ink), ink.shape)
    if not parts:
        return [], 0.0
    likely, height = likely_parts(parts, ink.shape)
    parts = joined(likely, height)
    whole, seen = union(likely), {}

    def look_at(some):
        """Keep in seen what the network sees of parts, what it says of them and what that costs."""
        some = [part for part in dict.fromkeys(some) if part not in seen]
        if some:
            glyphs = np.stack([glyph_of(part, ink) for part in some])
            for part, glyph, probabilities in zip(some, glyphs, network(glyphs), strict=True):
                doubtful = probabilities.max() > 0.5 and on_two_legs(glyph, probabilities.argmax())
                seen[part] = glyph, probabilities, LEGS_COST * doubtful

    def confidence(part):
        return float(np.log(seen[part][1].max()))

    def sure(part):
        return confidence(part) - seen[part][2]

    look_at([*parts, whole])
    lines = [candidates_of(line, sure) for line in lines_of(parts, height)]
    look_at([part for candidates, _ in lines for _, _, part, _ in candidates])
    read = without_scraps([best_path(candidates, count, sure) for candidates, count in lines], sure)
    chosen = np.mean([sure(part) for line in read for part, _ in line])
    several = 1 < len(likely) <= ONE_DIGIT_PARTS
    tallest = sorted(part.height for part in parts)[-2:]
    stacked = len(read) > 1 and tallest[0] > 0.75 * tallest[-1] and chosen > np.log(0.7)
    stacked = stacked and whole.height > STACKED * whole.width
    # A 0 that is open above and below may stand on two legs, so these do not count here.
    one = one or (several and not stacked and confidence(whole) > chosen - ONE_DIGIT_COST)
    smallest = round(max(ink.shape) * scale) <= SMALLEST
    if one or (smallest and confidence(whole) > chosen):
        read = [[(whole, 0.0)]]

    def digit(part, cost):
        box = (part.left, part.top, part.right, part.bottom)
        box = tuple(round(float(edge) * scale) for edge in box)
        glyph, probabilities, own_cost = seen[part]
        return Digit(box, glyph, probabilities, cost + own_cost)

    explained = sum(part.mask.sum() for line in read for part, _ in line) / mask.sum()
    return [[digit(*found) for found in line] for line in read], float(explained)


# --- Answers ---------------------------------------------------------------


def text_of(lines):
    """Return what a person reads: the digits of each line joined, lines separated by newlines."""
    return "\n".join("".join(str(digit.digit) for digit in line) for line in lines)


def as_json(answer, top=None):
    """Return an Answer as one line of JSON."""
    if answer.error:
        return json.dumps({"image": answer.name, "error": answer.error})
    digits = []
    for digit in digits_of(answer.lines):
        probabilities = [round(float(p), 6) for p in digit.probabilities]
        digits.append(
            {
                "digit": digit.digit,
                "confidence": round(digit.confidence, 6),
                "uncertain": digit.uncertain,
                "box": list(digit.box),
                "probabilities": probabilities,
            }
        )
        if top:
            digits[-1]["top"] = [[d, probabilities[d]] for d in ranking(digit)[:top]]
    return json.dumps({"image": answer.name, "text": text_of(answer.lines), "digits": digits})


def ranking(digit):
    """Return the ten digits, the likeliest first."""
    return [int(d) for d in np.argsort(-digit.probabilities, kind="stable")]


def as_text(answer, top=None, width=0):
    """Return an Answer as lines for a terminal, its name padded to width."""
    shown = printable(answer.name).ljust(width)
    indent = " " * (len(shown) + 2)
    if answer.error:
        return f"{shown}  {answer.error}"
    lines = answer.lines
    digits = digits_of(lines)
    lowest = min(digits, key=lambda digit: digit.confidence)
    doubt = ""
    if lowest.uncertain:
        first, second = ranking(lowest)[:2]
        doubt = f"  not sure: {first} or {second}"
    first, *rest = text_of(lines).split("\n")
    sure = f"{lowest.confidence:6.1%}" if len(digits) == 1 else f"  lowest {lowest.confidence:.1%}"
    text = [f"{shown}  {first} {sure}{doubt}", *(indent + line for line in rest)]
    if top:
        for digit in digits:
            likeliest = (f"{d} {digit.probabilities[d]:.1%}" for d in ranking(digit)[:top])
            text.append(indent + "  ".join(likeliest))
    return "\n".join(text)


def printable(name):
    """Return a file's name with control characters escaped, harmless on a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def draw_answers(figure, answers):
    """Draw each Answer as a row: the image with its boxes, what the network saw, how sure it is."""
    rows = figure.subplots(len(answers), 3, squeeze=False, width_ratios=(3, 2, 3))
    for (picture, seen, bars), answer in zip(rows, answers, strict=True):
        lines, scale = answer.lines, answer.scale
        for axes in (picture, seen):
            axes.set_axis_off()
        title = printable(os.path.basename(answer.name) or answer.name)
        if len(lines) == 1:
            title = f"{title}: {text_of(lines)}"
        picture.set_title(title, fontsize=10, parse_math=False)
        if answer.rgb is not None:
            picture.imshow(answer.rgb)
        if answer.error:
            seen.text(0.5, 0.5, answer.error, ha="center", va="center", wrap=True)
            bars.set_axis_off()
            continue
        digits = digits_of(lines)
        for digit in digits:
            left, top, right, bottom = (edge / scale for edge in digit.box)
            colour = "tab:orange" if digit.uncertain else "tab:green"
            xs, ys = (left, right, right, left, left), (top, top, bottom, bottom, top)
            picture.plot(xs, ys, color=colour, linewidth=1.5)
            if len(digits) > 1:
                style = {"color": colour, "ha": "center", "va": "bottom", "fontsize": 8}
                style["bbox"] = {"facecolor": "white", "alpha": 0.8, "pad": 0.5, "linewidth": 0}
                picture.text((left + right) / 2, top, digit.digit, **style)
        longest = max(len(line) for line in lines)
        mosaic = np.zeros((28 * len(lines), 28 * longest), np.float32)
        for row, line in enumerate(lines):
            for column, digit in enumerate(line):
                mosaic[28 * row :, 28 * column :][:28, :28] = digit.glyph
        seen.imshow(mosaic, cmap="gray", vmin=0, vmax=1)
        seen.set_title("what the network saw", fontsize=10)
        if len(digits) == 1:
            bars.bar(range(10), digits[0].probabilities, color="tab:blue")
            bars.set(xticks=range(10), ylim=(0, 1), xlabel="digit")
            bars.set_title(f"{digits[0].digit}, {digits[0].confidence:.1%} sure", fontsize=10)
        else:
            colours = ["tab:orange" if digit.uncertain else "tab:green" for digit in digits]
            bars.bar(range(len(digits)), [digit.confidence for digit in digits], color=colours)
            some = range(0, len(digits), -(-len(digits) // 25))
            bars.set(ylim=(0, 1), xticks=some, xticklabels=[digits[i].digit for i in some])
            bars.set_title("how sure of each digit", fontsize=10)
        bars.yaxis.set_major_formatter("{x:.0%}")


def save_plot(path, answers):
    """Write the picture of draw_answers to path, whole or not at all; raise OSError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.9 * len(answers)), layout="constrained")  # needs no display
    draw_answers(figure, answers)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=100)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def show_plot(answers):
    """Open the picture in a window; where there is no display, say so."""
    try:
        from matplotlib import pyplot

        if pyplot.get_backend().lower() == "agg":
            raise ImportError
        draw_answers(pyplot.figure(figsize=(10, 2.9 * len(answers)), layout="constrained"), answers)
        pyplot.show()
    except Exception:  # every windowing toolkit fails in its own way
        warn("--show needs a display, and there is none; use --plot FILE")


# --- Files and processes ----------------------------------------------------


@dataclass
class Answer:
    """What was read in one image, and its pixels where they are to be drawn."""

    name: str
    lines: list = ()
    error: str | None = None
    rgb: np.ndarray | None = None
    scale: float = 1.0


def natural(name):
    """Return a sort key that puts scan2 before scan10."""
    return [int(p) if p.isdecimal() else p.lower() for p in re.split(r"(\d+)", name)]


def expand(paths):
    """Return paths with each folder replaced by the images in it, if there are any."""
    suffixes, found = " ".join(FORMATS.values()).split(), []
    for path in paths:
        names = []
        if path != "-" and os.path.isdir(path):
            with contextlib.suppress(OSError):
                names = sorted(os.listdir(path), key=natural)
        images = [n for n in names if Path(n).suffix.lower() in suffixes and n[0] != "."]
        found += [os.path.join(path, name) for name in images] or [path]
    return found


def predict_file(name, network, one=False, drawn=False):
    """Return the Answer for one image file; drawn says whether it needs its pixels."""
    answer = Answer(name)
    try:
        answer.rgb, answer.scale = decode(image_source(name))
        answer.lines = read_digits(answer.rgb, network, answer.scale, one)
    except ImageError as error:
        answer.error = str(error)
    except MemoryError:
        answer.error = "too large for this machine's memory; reduce it first"
    except ModelError:  # is every image's
        raise
    except Exception:  # one image's failure is its own
        answer.error = "cannot be read, by a fault of this script; report it with the image"
    if not drawn:
        answer.rgb = None
        for digit in digits_of(answer.lines):
            digit.glyph = None
    return answer


def start_worker():
    """Make a process of the pool end with the one that started it, killed or not."""
    import threading
    from multiprocessing import parent_process

    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
    cv2.setNumThreads(1)


load_network_once = functools.cache(load_network)


def predict_in_worker(name, model, one, drawn):
    """Return predict_file's Answer in a process of the pool."""
    return predict_file(name, load_network_once(model), one, drawn)


def predict_in_pool(names, workers, *options):
    """Yield predict_in_worker's Answer for each image, in their order.

    Threads would wait for each other at every step in Python. Where a process ends while it
    reads, the first image without an answer is read alone: if that ends too, it is to blame.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")  # a fork may inherit locks that are held
    left, alone = list(names), False
    while left:
        some = left[:1] if alone else left[:]
        pool = ProcessPoolExecutor(1 if alone else workers, context, start_worker)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the processes inherit
        futures = [pool.submit(predict_in_worker, name, *options) for name in some]
        signal.signal(signal.SIGINT, before)
        try:
            for future in futures:
                answer = future.result()
                del left[0]
                yield answer
            alone = False
        except BrokenProcessPool:
            if alone:
                text = "stopped while it was read; it may need more memory"
                yield Answer(left.pop(0), error=text)
            alone = not alone
        finally:
            pool.shutdown(cancel_futures=True)


def predict_files(names, network, options):
    """Yield predict_file's Answer for each image, in their order, by several processes if many."""
    drawn = bool(options.plot or options.show)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores, MAX_WORKERS, len(names) // WORTH_A_WORKER) if options.images else 1
    if workers < 2 or "-" in names or keras_sandbox.pid:
        for name in names:
            yield predict_file(name, network, options.one, drawn)
    else:
        yield from predict_in_pool(names, workers, options.model, options.one, drawn)


# --- Command line ----------------------------------------------------------


def warn(text):
    """Print one line on standard error."""
    print(f"{Path(__file__).name}: {text}", file=sys.stderr)


def asked_for():
    """Yield the paths that a person types or drops at the prompt, until an empty line."""
    while True:
        print("Image (empty line to stop): ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
            line = line[1:-1]  # terminals quote what is dropped on them
        yield from expand([line])


def progress_bar(total):
    """Return a bar for a terminal, which shows itself after two seconds; None elsewhere."""
    if total > 1 and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            return tqdm(total=total, delay=2, leave=False, unit="image")
    return None


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message):
        warn(f"{message}; see --help")
        sys.exit(2)


def parse_arguments(argv=None):
    """Return the parsed command line; exit with status 2 if it is wrong."""
    parser = Parser(description="Read the handwritten digits in photos, scans and drawings.")
    add = parser.add_argument
    add(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image, folder of images, or - for standard input",
    )
    add("--model", default=str(MODEL), help="Keras HDF5 file (default: %(default)s)")
    add("--one", action="store_true", help="each image holds exactly one digit")
    add("--top", type=int, metavar="K", help="also print the K likeliest digits (default: none)")
    add("--json", action="store_true", help="print one JSON object an image (default: text)")
    add("--plot", type=Path, metavar="FILE", help="save a picture of what was read (default: none)")
    add("--show", action="store_true", help="open that picture in a window")
    options = parser.parse_args(argv)
    if options.top is not None and not 1 <= options.top <= 10:
        parser.error(f"argument --top: {options.top} is not from 1 to 10")
    if options.plot and options.plot.suffix.lower() not in (".png", ".jpg", ".pdf", ".svg"):
        parser.error(f"argument --plot: {options.plot} does not end in .png, .jpg, .pdf or .svg")
    if options.plot and not (options.plot.parent.is_dir() and not options.plot.is_dir()):
        parser.error(f"argument --plot: {options.plot} is in no folder, or is one")
    if not options.images and not (sys.stdin and sys.stdin.isatty()):
        parser.error("give an image, a folder of images, or - for standard input")
    return options


def run(options):
    """Read every image, print each answer at once, and return the exit status."""
    network = load_network(options.model)
    names = expand(options.images) if options.images else asked_for()
    total = len(names) if options.images else 1
    width = max(len(printable(name)) for name in names) if options.images else 0
    bar, status, drawn = progress_bar(total), 0, []
    for answer in predict_files(names, network, options):
        if bar:
            bar.clear()
        if options.json:
            print(as_json(answer, options.top), flush=True)
        else:
            print(as_text(answer, options.top, min(40, width)), flush=True)
        if bar:
            bar.update()
        status = 1 if answer.error else status
        if (options.plot or options.show) and len(drawn) < PLOTTED:
            drawn.append(answer)
    if bar:
        bar.close()
    if total > PLOTTED and drawn:
        warn(f"the picture shows the first {PLOTTED} of {total} images")
    if options.plot and drawn:
        save_plot(options.plot, drawn)
    if options.show and drawn:
        show_plot(drawn)
    return status


def main(argv=None):
    """Run the command line; return 0 if all was read, 1 if some was not, 2 for wrong usage."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name may hold what the terminal has no letters for
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore")  # of libraries; what a user can mend is an error here
    options = parse_arguments(argv)
    try:
        return run(options)
    except ModelError as error:
        warn(f"{printable(options.model)}: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        warn(f"{options.plot}: {error.strerror or error}; give another --plot")
        return 1


if __name__ == "__main__":
    sys.exit(main())
