"""Read the handwritten digits in photos, scans and drawings.

    python loaded_mnist_model_digit_predictor.py photo.jpg scans/

prints one line an image: its name, the digits in reading order and how sure the
network is of them. The network is models/mnist_model.h5, which the companion
script mnist_cnn_with_dropout.py trained; it is evaluated here in NumPy, so that
an answer comes 0.19 s after the start (median of 9), before TensorFlow would have
been loaded. Of 711 single digits that people drew, photographed and scanned, 708
are read right (one run, nothing in it is random).

Chapters: limits; file to pixels; pixels to ink; ink to regions; regions to 28x28;
network; choice of digits; lines; reading, where read_digits tells the whole way;
answers; files and processes; command line.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import re
import shlex
import signal
import stat
import sys
import threading
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's: images run in parallel instead

try:
    import cv2
    import numpy as np
except ImportError as error:
    sys.exit(f"{error}; pip install -r requirements.txt")

MODEL = Path(__file__).resolve().parent / "models" / "mnist_model.h5"
MAX_WORKERS = 8  # processes that read at once; each may take the memory of a large image
WORTH_A_WORKER = 8  # images; for fewer, a process more takes as long as it saves
PLOTTED = 20  # images in one picture; more rows are too many to look at

# Limits on files, which may be damaged or made to harm
MAX_BYTES = 200_000_000  # of one file
MAX_MEGAPIXELS = 100  # of one image; where no system bounds memory, nothing else would
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
UNDECODABLE = f"damaged, or too large for {MAX_MEMORY // 1_000_000} MB; save it anew, or smaller"
WORK_SIDE = 1600  # pixels; longer sides are reduced first: a page of 100 digits still reads
QUICK_SIDE = 600  # pixels; images are read at this size first, which is faster and less noisy,
LARGE_DIGIT = 20  # and that is the end of it if their digits are so many of those pixels long
SMALL_SIDE = 256  # pixels; smaller images are enlarged, since regions end at whole pixels,
TINY_SIDE = 64  # and these without blurring them: at MNIST's size each pixel is a sample

# From pixels to ink
BACKGROUND_SIDE = 160  # pixels; the background is estimated at this size
PEN_LIMIT = 27  # of those pixels; what is wider is a shadow or a desk, not a stroke
FLAT = 5  # grey levels; a background this even, as in drawings, needs no estimate
COLOURED = 16  # levels of chroma: how far the strongest 2% are from the background, at least
RULING = 0.25  # of the longer side: straight ink of that length is a ruling,
BOX_SIDE = 1.4  # of a digit's length: so is this, where digits have been read in frames,
RULING_SLOPE = 6  # degrees from the level or the upright, at most
STROKE_GAP = 0.04  # of the longer side: gaps within a stroke of dots, dashes or hatching

# From ink to regions
LEVELS = (0.15, 0.4)  # of the strongest ink: where the component tree is cut
SPECK = 0.008  # of the longer side; shorter regions are left out
MAX_REGIONS = 300  # a level, the largest; a page of digits has 200, a photo of gravel any number

# From regions to the network's 28x28, made like MNIST's (LeCun et al., 1998)
GLYPH_SIDE = 80  # pixels, the longer side at which stroke width is set, 4 to one of MNIST's
PEN_WIDTHS = (8.0, 17.0)  # of those pixels; thinner and thicker pens are brought to these
HOLE_SIDE = 40  # pixels, the longer side at which holes of two pixels and more are counted,
MAX_HOLES = 4  # and how many a digit has at most: an 8 has two, and a rough edge may add some
VIEWS = (0, 8, -8)  # degrees by which what is read is turned for test-time augmentation
BATCH = 16  # glyphs evaluated at once; what is made of more does not fit a core's cache

# The score: a region read as a digit explains so much of its mass, the contrast it holds:
# likeness * exp(-costs) - CHANCE. Fitted on the development images, as all below is.
SPREAD = 1.7  # nats, the log-probabilities' standard deviation at which likeness is a half,
STEEPNESS = 3.0  # and how steeply it rises there: a logistic function's factor, for each nat
CHANCE = 0.03
BORDER_COST = 3.0  # of lying along the image's border with all its length, squared
EDGE_COST = 2.0  # of a background that varies around it as much as ink differs from it, squared
CUT_COST = 0.3  # of cutting through ink, half at either end
JOIN_COST = 0.15  # of joining regions in one digit

# The search
HEAVY = 20  # regions that the network sees first; the others only if they are like its digits
CUTS = (  # width of the pieces, of a region's height; what they must explain, of its mass:
    (0.2, 0.2),  # coarse ones, at which most of what is no number ends, for a third of the work,
    (0.12, 0.7),  # and fine ones, which must explain most, or it is a sign such as #
)
MAX_CROSSED = 0.7  # of the height: the ink that a cut crosses, at most
SLANTS = (0.0, 0.2, -0.2, 0.4)  # of a cut: columns to the left for each row down, as people lean
MAX_CUT = 2  # regions cut in a map, the largest
MAX_GAP = 0.25  # of the longer's length: how far apart pieces of one digit lie, at most
UPRIGHT = 1.2  # times the rank of what is not turned: most images are, and 6666 may be 9999
MAX_TILT = 7  # degrees; lines tilted by more are read level, too, since VIEWS reach no further
KEEP = 0.35  # certainty * similarity of a digit that is kept; certainty of an image that is turned
BANDWIDTH = 0.48  # nats of length, of contrast, of pen: the kernel by which digits are similar,
COLOUR_BANDWIDTH = 25.0  # and levels of their ink's chroma, in which lightness does not count;
ANOTHER_PEN = 0.5  # of the similarity is left to digits of other colours or pens, at least
BAR_WEIGHT = 0.25  # of a 1's gain counts in the choice between readings
LINE_SHARE = 0.1  # of the best line's gain: a line below is dropped
STOP = 0.65  # of the image's contrast: a reading that explains so much ends the search
CLEARANCE = 0.1  # of a digit's length: what lies all around it, no nearer, is a frame
FRAMED_HEIGHT = 0.4  # of a region's height: a digit so tall in it explains it, and it is not cut

# Doubt
CERTAIN = 0.53  # share explained * how sure of it in the mean; less, and it may be no number
CERTAIN_IN_NUMBER = 0.75  # confidence in each of a number's digits; less, and it is marked


class ImageError(Exception):
    """An image that cannot be read; its text is for the user."""


class ModelError(Exception):
    """A model that cannot be used; its text is for the user."""


class Unsupported(Exception):
    """A layer that only Keras can evaluate."""


# --- Limits ----------------------------------------------------------------


def limit_seconds(seconds):
    """Limit a sandbox's call, from now on, to that processor time and a longer wait; 0 is none."""
    if Sandbox.inside:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds and 10 * seconds + 30)  # for a disk


class Sandbox:
    """A child process that calls functions, within limits of memory and processor time if given.

    What decodes images and reads HDF5 is written in C: only the system stops it where it
    never comes back, and only a process of its own may crash. One child serves all calls,
    since starting one takes as long as reading a small image. A pool of concurrent.futures
    takes 20 ms longer to start and cannot tell a timeout from a crash. Where there is no
    fork, on Windows, functions are called in this process.
    """

    inside = False  # true in a child with limits
    forking = threading.RLock()  # a child that inherits another's pipes would hide that one's end

    def __init__(self, memory=None, seconds=None, function=None):
        self.memory, self.seconds, self.function, self.pid = memory, seconds, function, None

    def call(self, function, *arguments):
        """Return what a function, or else the sandbox's own, returns, or raise what it raises.

        What is passed is pickled; its own function was inherited by the fork. Raises
        TimeoutError where it takes too long, ChildProcessError where it crashes.
        """
        if self.pid is None and not self.start():
            return (function or self.function)(*arguments)
        try:
            pickle.dump((function, arguments), self.calls, protocol=5)
            self.calls.flush()
            answer = pickle.load(self.answers)
        except BaseException as error:  # after Ctrl-C, the next answer would be that of this call
            ended = self.end()
            if not isinstance(error, (EOFError, BrokenPipeError, pickle.UnpicklingError)):
                raise
            late = ended in (-signal.SIGPROF, -signal.SIGALRM)
            raise (TimeoutError if late else ChildProcessError) from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def start(self):
        """Start the child and tell whether there is one."""
        if not hasattr(os, "fork"):
            return False
        modes = ("rb", "wb", "rb", "wb")
        with Sandbox.forking:
            calls, self.calls, self.answers, answers = map(open, (*os.pipe(), *os.pipe()), modes)
            self.pid = os.fork()
            if not self.pid:
                try:
                    self.calls.close()
                    self.answers.close()
                    self.serve(calls, answers)
                finally:
                    os._exit(1)
            calls.close()
            answers.close()
        return True

    def serve(self, calls, answers):
        """Answer calls, in the child, until there are no more."""
        import resource

        sandbox.pid = None  # that one is the parent's
        Sandbox.inside = self.seconds is not None
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that prints
        for name in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(name, signal.SIG_DFL)
        for stream in (1, 2):  # what libraries in C print is not for the user
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        if Sandbox.inside:
            # macOS has no /proc, and a system may allow less than is wanted.
            with contextlib.suppress(OSError, ValueError):
                _, hard = resource.getrlimit(resource.RLIMIT_DATA)
                used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_DATA, (used + self.memory, hard))
        while True:
            function, arguments = pickle.load(calls)
            limit_seconds(self.seconds)
            try:
                answer = (function or self.function)(*arguments)
            except Exception as error:
                answer = error
            limit_seconds(0)
            function = arguments = None  # so that their memory is free before the next
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
            answer = None

    def end(self):
        """Kill the child, unless it has ended by itself, and return its exit code."""
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
        raise ImageError(UNDECODABLE) from None


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
                if megapixels > MAX_MEGAPIXELS:
                    limit = f"{megapixels:.0f} megapixels, at most {MAX_MEGAPIXELS}"
                    raise ImageError(f"too large ({limit}); reduce it first")
                longer = (megapixels * SECONDS_A_MEGAPIXEL, size / 1e6 * SECONDS_A_MEGABYTE)
                limit_seconds(MAX_SECONDS + min(longer))
                return reduce_upright(image)
    except ImageError:
        raise
    except ImportError:
        raise ImageError("HEIC needs one more package: pip install pillow-heif") from None
    except UnidentifiedImageError:
        raise ImageError("not an image in a format read here") from None
    except Exception:  # decoders fail in every way there is
        raise ImageError(UNDECODABLE) from None


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
        levels = np.interp(levels, (levels.min(), levels.max()), (0, 255))
        image = Image.fromarray(levels.astype(np.uint8))
    if transparent:  # on white or black, whichever contrasts with what is visible
        grey, opacity = np.asarray(image.convert("LA"), np.float32).reshape(-1, 2).T
        dark = grey @ opacity <= 128 * opacity.sum()
        paper = Image.new("RGB", image.size, "white" if dark else "black")
        paper.paste(image, mask=image)
        image = paper
    return np.asarray(image.convert("RGB")), scale


# --- From pixels to ink ----------------------------------------------------


def resized(image, factor, method=cv2.INTER_AREA):
    """Return image resized by a factor, to at least one pixel a side."""
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=method)


def at_background_side(rgb):
    """Return rgb with its longer side at BACKGROUND_SIDE."""
    return resized(rgb, BACKGROUND_SIDE / max(rgb.shape[:2]))


def ink_is_dark(rgb):
    """Tell whether the ink is probably darker than its background, from local contrast's skew."""
    grey = cv2.cvtColor(at_background_side(rgb), cv2.COLOR_RGB2GRAY)
    framed = cv2.copyMakeBorder(grey, *[25] * 4, cv2.BORDER_REFLECT)
    background = cv2.medianBlur(framed, 51)[25:-25, 25:-25]
    contrast = (grey.astype(np.float32) - background).ravel()
    return float(np.square(contrast) @ contrast) <= 0


def estimate_background(rgb, dark):
    """Return the background's colour at every pixel: shadows and uneven light, but no strokes.

    A grey-level closing fills dark marks narrower than PEN_LIMIT and leaves
    shadows and their edges as they are; for light ink, an opening likewise.
    """
    pen = PEN_LIMIT
    small = cv2.medianBlur(at_background_side(rgb), 3)
    framed = cv2.copyMakeBorder(small, *[pen] * 4, cv2.BORDER_REPLICATE)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (pen, pen))
    background = cv2.morphologyEx(framed, cv2.MORPH_CLOSE if dark else cv2.MORPH_OPEN, disc)
    inwards = cv2.erode if dark else cv2.dilate  # or a sheet's own edge would leave a line of ink
    background = inwards(background, np.ones((3, 3), np.uint8))[pen:-pen, pen:-pen]
    return cv2.resize(background, rgb.shape[1::-1]).astype(np.float32)


def flat_background(rgb):
    """Return the one colour (3,) behind a drawing or a clean scan, or None if there is none."""
    small = at_background_side(rgb)
    colour = np.median(small, axis=(0, 1)).astype(np.float32)
    near = cv2.inRange(small, np.ceil(colour - FLAT), colour + FLAT) > 0
    edge = np.concatenate([near[0], near[-1], near[:, 0], near[:, -1]])
    return colour if near.mean() > 0.5 and edge.mean() > 0.85 else None


def principal_axis(colours):
    """Return the unit vector (3,) along which colours (count, 3) spread most from zero.

    Its sum is not negative. A red or a pale blue pen counts as much along it as a black one.
    """
    axis = np.linalg.eigh(colours.T @ colours)[1][:, -1].astype(np.float32)
    return axis if axis.sum() >= 0 else -axis


def ink_on_background(rgb, background, dark):
    """Return how far each pixel is from its background, along the ink's own colour.

    background is float32: one colour (3,), or one for each pixel.
    """
    if dark:  # relative, since shadow dims ink and paper alike
        deviation = (background - rgb) / (background + 16)
    else:  # absolute, since relative noise is large on a dark board
        deviation = (rgb - background) / np.float32(255)
    sample = np.maximum(at_background_side(deviation).reshape(-1, 3), 0)
    size = sample @ np.ones(3, np.float32)
    rank = 1 + len(size) // 100
    axis = principal_axis(sample[size >= 0.999 * np.partition(size, -rank)[-rank]])
    return cv2.transform(deviation, axis[None])


def ink_as_brightness(rgb, dark):
    """Return the pixels along the axis on which their colours spread most, from one end on."""
    sample = at_background_side(rgb).reshape(-1, 3).astype(np.float32)
    axis = principal_axis(sample - sample.mean(axis=0)) / (-255 if dark else 255)
    ink = cv2.transform(rgb.astype(np.float32), axis[None])
    return ink - ink.min()


def ink_as_chroma(rgb):
    """Return how far each pixel's colour is from the usual one, whatever its lightness.

    The distance is that in the plane of Cr and Cb. CIELAB's tables take 0.14 s to make.
    """
    colours = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., 1:].astype(np.float32)
    usual = np.median(at_background_side(colours), axis=(0, 1))
    return np.linalg.norm(colours - usual, axis=2)


def remove_rulings(ink, length):
    """Return a map of ink without straight lines of that length in pixels, or None without any.

    A grey-level opening by long segments leaves what is inked all along one. A stroke
    that crosses a ruling is darker there, and keeps what it has beyond the ruling.
    """
    strongest = max(float(ink.max()), 1e-6)
    small = np.clip(ink * (255 / strongest), 0, 255).astype(np.uint8)
    thick = cv2.dilate(small, np.ones((3, 3), np.uint8))  # so that jagged lines hold a segment
    length = max(15, int(length))
    rulings = np.zeros_like(small)
    for degrees in range(-RULING_SLOPE, RULING_SLOPE + 1, 2):
        rise = round(length * np.tan(np.radians(degrees)))
        segment = np.zeros((abs(rise) + 1, length), np.uint8)
        cv2.line(segment, (0, max(0, rise)), (length - 1, max(0, -rise)), 1)
        for kernel in (segment, segment.T.copy()):
            rulings = cv2.max(rulings, cv2.morphologyEx(thick, cv2.MORPH_OPEN, kernel))
    rulings = cv2.min(rulings, small)
    if (rulings > 25).mean() < 0.001:
        return None
    rest = ink - rulings * (strongest / 255)
    return cv2.morphologyEx(rest, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))


def close_gaps(ink, width):
    """Return a map of ink with gaps filled up to that width in pixels: a grey-level closing.

    A small disc, time after time, grows to an octagon, in a tenth of a large one's time.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    return cv2.morphologyEx(ink, cv2.MORPH_CLOSE, disc, iterations=round(width / 4))


def rotate(images, degrees):
    """Return images, what read_ink takes, turned by degrees to the left, and the way back.

    That is an affine map, float64 (2, 3), of the edges of pixels. In what is new, there is no ink
    and no energy, and the border's colours, or a digit there would lie on two backgrounds.
    """
    height, width = images[0].shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    size = np.rint(abs(turn[:, :2]) @ (width, height)).astype(int)
    turn[:, 2] += (size - (width, height)) / 2
    of_centres = turn.copy()  # pixels' centres lie half a pixel further than their edges
    of_centres[:, 2] += turn[:, :2] @ (0.5, 0.5) - 0.5
    borders = cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT
    rotated = tuple(
        cv2.warpAffine(image, of_centres, size.tolist(), borderMode=border)
        for image, border in zip(images, borders, strict=True)
    )
    return rotated, cv2.invertAffineTransform(turn)


def interpretations(rgb):
    """Yield maps of ink, each made when it is asked for.

    A map is float32 (height, width), positive on what may be ink. The likeliest come first:
    the distance from a flat background, or from an estimated one; the same for ink of the
    other polarity; that ink's bare brightness, which knows nothing of paper; and the colour
    alone, which knows nothing of light.
    """
    flat, dark = flat_background(rgb), ink_is_dark(rgb)
    if flat is not None:
        yield ink_on_background(rgb, flat, dark)
    smooth = cv2.GaussianBlur(rgb, (3, 3), 0) if max(rgb.shape) > 300 else rgb
    for polarity in (dark, not dark):
        yield ink_on_background(smooth, estimate_background(smooth, polarity), polarity)
    yield ink_as_brightness(rgb, not dark)
    chroma = ink_as_chroma(smooth)
    if quantile(chroma.ravel(), 0.98) > COLOURED:
        yield chroma


def edge_energy(rgb):
    """Return the squared gradient beyond the usual, float32 (height, width) in [0, 1].

    It is the measure of what there is to explain, the same for all interpretations.
    """
    gradient = cv2.morphologyEx(rgb, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    gradient = functools.reduce(cv2.max, cv2.split(gradient))
    usual = float(np.median(gradient[::4, ::4]))
    return np.square(cv2.subtract(gradient, usual).astype(np.float32) / 255)


# --- From ink to regions ---------------------------------------------------


@dataclass(eq=False)
class Region:
    """Connected ink with all that lies in its box: a candidate for a digit, or one that was read.

    The box is in pixels, right and bottom exclusive; mask is bool (height, width).
    """

    left: int
    top: int
    right: int
    bottom: int
    mask: np.ndarray
    paper: float = 0.0  # the ink's map around it,
    contrast: float = 0.0  # and how far the ink is above that
    colour: tuple = (0.0, 0.0, 0.0)  # the ink's mean, RGB
    mass: float = 1e-6  # sum of the edge energy on it
    cutoff: float = 0.0  # ink on one of the image's borders, as a share of its length
    surroundings: tuple = ()  # what background_variance takes; none of what is cut from another
    cost: float = 0.0  # what speaks against it as a digit, besides the network
    glyph: np.ndarray | None = None  # float32 (28, 28) in [0, 1], what the network sees,
    pen: float = 1.0  # and the width of its strokes in the region's pixels
    probabilities: np.ndarray | None = None  # float32 (10,), its answer
    uncertain: bool = False

    @property
    def box(self):
        return self.left, self.top, self.right, self.bottom

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

    @property
    def digit(self):
        return int(self.probabilities.argmax())

    @property
    def confidence(self):
        return float(self.probabilities.max())

    @property
    def likeness(self):
        """How like a digit it is, in [0, 1], by the spread of the ten log-probabilities.

        Outlier exposure has taught the network to give what is no digit ten that lie close
        together: the other nine still do where it looks like one digit.
        """
        logs = [math.log(max(p, 1e-9)) for p in self.probabilities.tolist()]
        mean = sum(logs) / 10  # NumPy takes three times as long for ten numbers
        spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / 10)
        return 1 / (1 + math.exp(STEEPNESS * (SPREAD - spread)))

    @property
    def certainty(self):
        """The confidence less the costs, in [0, 1]."""
        return self.confidence * math.exp(-self.cost)

    @property
    def gain(self):
        """What reading it as a digit explains, in units of mass; negative if junk does better."""
        return self.mass * (self.likeness * math.exp(-self.cost) - CHANCE)

    @property
    def evidence(self):
        """The gain as far as it speaks for a reading: anything straight explains itself as a 1."""
        return max(0.0, self.gain) * (BAR_WEIGHT if self.digit == 1 else 1.0)


def quantile(values, share):
    """Return about the value that so much of values lies below; NumPy's is ten times slower."""
    some = values[:: 1 + len(values) // 4000]
    rank = int(share * len(some))
    return float(np.partition(some, rank)[rank])


def component_tree(ink, scene):
    """Return the connected components of ink above LEVELS of the strongest, each box once.

    They form a tree by their boxes, since what is connected at one level is connected at all
    lower ones: the extremal regions of Neumann and Matas (2012), at a few levels. scene is what
    all maps of ink have in common: the pixels and their edge_energy.
    """
    size = [max(1, side // 4) for side in ink.shape[::-1]]
    small = cv2.resize(ink, size, interpolation=cv2.INTER_AREA)
    rank = min(12, small.size)  # the twelfth largest, so that one speck sets no standard
    strongest = np.partition(small.ravel(), -rank)[-rank]
    speck = max(4, SPECK * max(ink.shape))
    known, regions = np.zeros((0, 4), int), []
    for level in LEVELS:
        mask = (ink > level * strongest).view(np.uint8)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        large = (stats[:, 4] >= 6) & (stats[:, 2:4].max(axis=1) >= speck)
        large = 1 + np.flatnonzero(large[1:])  # 0 is what is no ink
        large = large[np.argsort(-stats[large, 4], kind="stable")[:MAX_REGIONS]]
        boxes = stats[large, :4] + np.pad(stats[large, :2], ((0, 0), (2, 0)))
        tolerance = 1 + 0.03 * stats[large, 2:4].max(axis=1)
        new = (abs(boxes[:, None] - known).max(axis=2) > tolerance[:, None]).all(axis=1)
        for box in boxes[new]:
            left, top, right, bottom = box.tolist()
            inside = np.zeros(len(stats), bool)
            inside[large] = ((boxes - box) * [1, 1, -1, -1] >= 0).all(axis=1)
            own = inside[labels[top:bottom, left:right]]
            regions.append(measure(Region(left, top, right, bottom, own), ink, scene))
        known = np.concatenate([known, boxes])
    return [region for region in regions if region.contrast > 1e-3]


def background_variance(rgb, mask, ring):
    """Return the variance of the background in a ring around ink, over the contrast squared.

    It is local, within a third of the longer side, in the channel in which ink and background
    differ most, and the median: along the edge of a sheet, the background has other colours on
    either side; a stroke has the same, and shadows and neighbours meet a digit in few places.
    """
    background = ring > 0
    if not background.any():
        return 0.0
    channel = np.abs(np.subtract(cv2.mean(rgb, mask), cv2.mean(rgb, ring))).argmax()
    pixels, window = rgb[..., channel].astype(np.float32), (max(mask.shape) // 3 | 1,) * 2
    moments = (cv2.blur(ring * pixels**power, window)[background] for power in range(3))
    share, mean, square = moments
    variance = quantile(np.maximum(square / share - np.square(mean / share), 0), 0.5)
    middle = quantile(pixels[background], 0.5)
    contrast = max(1.0, quantile(abs(pixels[mask > 0] - middle), 0.75))
    return variance / contrast**2


def measure(region, ink, scene):
    """Fill in what a region's pixels tell, from paper to cost, and return it."""
    (rgb, energy), (height, width), reach = scene, ink.shape, 2 + region.length // 12
    rooms = region.top, height - region.bottom, region.left, width - region.right
    margins = [min(reach, room) for room in rooms]
    mask = cv2.copyMakeBorder(region.mask.view(np.uint8), *margins, cv2.BORDER_CONSTANT)
    top, left = region.top - margins[0], region.left - margins[2]
    around = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
    near = cv2.dilate(mask, np.ones((5, 5), np.uint8))
    ring = cv2.dilate(near, np.ones((2 * reach - 1,) * 2, np.uint8)) - near
    inked, paper = ink[around][mask > 0], ink[around][ring > 0]
    region.paper = quantile(paper, 0.5) if len(paper) else 0.0
    # What is joined may stand out by none.
    region.contrast = max(1e-6, quantile(inked, 0.75) - region.paper)
    region.colour = cv2.mean(rgb[around], mask)[:3]
    region.mass = 1e-6 + float(energy[around][near > 0].sum())
    sides = region.mask[0], region.mask[-1], region.mask[:, 0], region.mask[:, -1]
    cut = [int(side.sum()) for side, room in zip(sides, rooms, strict=True) if not room]
    region.cutoff = max(cut, default=0) / region.length
    region.surroundings = rgb[around], mask, ring
    region.cost = BORDER_COST * region.cutoff**2
    return region


def join(a, b, ink, scene):
    """Return one Region that holds the ink and the mass of two, at the cost of joining them."""
    left, top = min(a.left, b.left), min(a.top, b.top)
    right, bottom = max(a.right, b.right), max(a.bottom, b.bottom)
    mask = np.zeros((bottom - top, right - left), bool)
    for r in (a, b):
        mask[r.top - top : r.bottom - top, r.left - left : r.right - left] |= r.mask
    whole = measure(Region(left, top, right, bottom, mask), ink, scene)
    whole.mass = a.mass + b.mass
    whole.cost += JOIN_COST
    return whole


# --- From regions to the network's input -----------------------------------


def normalize_digit(region, ink):
    """Return (glyph, pen): a region as the network wants it, and its strokes' width in pixels.

    A glyph is float32 (28, 28) in [0, 1], white on black. The pen is brought to MNIST's width,
    the longer side to 20 pixels, the centre of mass to the middle.
    """
    pixels = ink[region.top : region.bottom, region.left : region.right]
    rim = cv2.dilate(region.mask.view(np.uint8), None)  # anti-aliased
    above = np.maximum(pixels - region.paper, 0)
    pixels = cv2.convertScaleAbs(above, alpha=255 / region.contrast) * rim
    factor = GLYPH_SIDE / region.length
    if factor < 1:  # keep hairlines from fading when they are shrunk
        pixels = cv2.dilate(pixels, np.ones([math.ceil(1 / factor)] * 2, np.uint8))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    pixels = resized(pixels, factor, method)
    pen = stroke_width(pixels)
    pixels = set_stroke_width(pixels, pen)
    left, top, width, height = cv2.boundingRect((pixels > 76).view(np.uint8))
    if width:
        pixels = pixels[top : top + height, left : left + width]
    pixels = resized(pixels, 20 / max(pixels.shape))
    (height, width), moments = pixels.shape, cv2.moments(pixels)
    mass = max(moments["m00"], 1e-6)
    top = min(max(0, round(13.5 - moments["m01"] / mass)), 28 - height)
    left = min(max(0, round(13.5 - moments["m10"] / mass)), 28 - width)
    glyph = np.zeros((28, 28), np.float32)
    glyph[top : top + height, left : left + width] = pixels
    return glyph / 255, pen / factor


def stroke_width(pixels):
    """Return the mean width of strokes, uint8, in pixels, at least 1.

    A stripe's pixels lie a quarter of its width from its edge on average, so
    four times the mean of the distance transform is the width.
    """
    inked = cv2.copyMakeBorder((pixels > 127).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    distance = cv2.distanceTransform(inked, cv2.DIST_L2, 5)
    return max(1.0, 4 * cv2.mean(distance, inked)[0] - 1)


def set_stroke_width(pixels, pen):
    """Thicken or thin strokes, uint8, of that width, until it lies within PEN_WIDTHS."""
    missing, excess = round(PEN_WIDTHS[0] - pen), round(min(pen - PEN_WIDTHS[1], 0.4 * pen))
    change = max(missing, excess, 0)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (change + 1, change + 1))
    framed = cv2.copyMakeBorder(pixels, *[change] * 4, cv2.BORDER_CONSTANT)
    return (cv2.dilate if missing > 0 else cv2.erode)(framed, disc)


def count_holes(mask):
    """Return how many holes a mask, bool (height, width), has; none so small as grain in a stroke.

    Neumann and Matas (2012) tell characters from texture by them, too. The network cannot: at
    its size, a paragraph, a stamp or gravel is a smudge in the shape of some digit.
    """
    ink = resized(mask * np.uint8(255), min(1, HOLE_SIDE / max(mask.shape))) > 127
    paper = cv2.copyMakeBorder((~ink).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1)
    areas = cv2.connectedComponentsWithStats(paper, connectivity=4)[2][1:, 4]
    return int((areas >= 2).sum()) - 1  # what is outside


def rotated_views(glyph):
    """Return a glyph turned by VIEWS: float32 (views, 28, 28) in [0, 1]."""
    turns = [cv2.getRotationMatrix2D((13.5, 13.5), degrees, 1.0) for degrees in VIEWS]
    return np.stack([cv2.warpAffine(glyph, turn, (28, 28)) for turn in turns])


# --- Network ---------------------------------------------------------------


def convolve(x, kernel):
    """Return a valid convolution of x (n, h, w, c) with a kernel (kh, kw, c, filters)."""
    rows, columns, _, filters = kernel.shape
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifts = [x[:, r : r + height, c : c + width] for r, c in np.ndindex(rows, columns)]
    return np.tensordot(np.concatenate(shifts, axis=3), kernel.reshape(-1, filters), 1)


def max_pool(x, size):
    """Return the maxima of x (n, h, w, c) over tiles of size (rows, columns)."""
    for axis, step in zip((1, 2), size, strict=True):
        x = np.moveaxis(x, axis, 0)
        parts = [x[i : len(x) // step * step : step] for i in range(min(step, len(x)))]
        x = np.moveaxis(functools.reduce(np.maximum, parts), 0, axis)
    return x


def softmax(logits):
    """Return probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


ACTIVATIONS = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0, out=x),  # in place: a layer has just made it
    "softmax": softmax,
}


def build_layer(kind, config, weights):
    """Return a layer as a function from array to array.

    kind is its Keras class, config its settings, weights its arrays by name. Raises Unsupported
    for what is not known here, and KeyError, TypeError and the like for what no layer can be.
    """
    usual = {
        "activation": [*ACTIVATIONS],
        "axis": [-1, 3, [3]],
        "center": [True],
        "data_format": ["channels_last"],
        "dilation_rate": [[1, 1]],
        "groups": [1],
        "padding": ["valid"],
        "scale": [True],
        "strides": [config.get("pool_size", [1, 1])],
    }
    if any(config.get(setting, values[0]) not in values for setting, values in usual.items()):
        raise Unsupported
    activation = ACTIVATIONS[config.get("activation", "linear")]
    if kind == "InputLayer" and config["batch_shape"][1:] != [28, 28, 1]:
        raise ValueError("not the shape of a digit")
    if kind in ("InputLayer", "Dropout"):
        return lambda x: x
    if kind == "Flatten":
        return lambda x: x.reshape(len(x), -1)
    if kind == "MaxPooling2D":
        return lambda x: max_pool(x, config["pool_size"])
    if kind == "BatchNormalization":
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        gamma, beta, mean, variance = (weights[name] for name in names)
        scale = gamma / np.sqrt(np.maximum(variance, 0) + np.float32(config["epsilon"]))
        return lambda x: x * scale + (beta - mean * scale)
    if kind not in ("Dense", "Conv2D"):
        raise Unsupported
    kernel, bias = weights["kernel"], weights["bias"] if config["use_bias"] else np.float32(0)
    if kind == "Dense":
        apply, shape = np.matmul, [len(kernel), config["units"]]
    else:
        apply, shape = convolve, [*config["kernel_size"], kernel.shape[2], config["filters"]]
    if [*kernel.shape] != shape:
        raise ValueError("not the shape of its weights")
    return lambda x: activation(apply(x, kernel) + bias)


def build_network(layers, weights):
    """Return read_model's layers and weights as one function: glyphs to probabilities."""
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
    glyphs = np.random.default_rng(0).random((BATCH + 1, 28, 28), np.float32)  # two batches
    answers = network(glyphs)
    if answers.shape != (len(glyphs), 10) or not np.allclose(answers.sum(axis=1), 1, atol=1e-3):
        raise ModelError("it does not make the probabilities of ten digits of 28x28 pixels")


def weights_in(file):
    """Return {layer: {name: float32 array}} of an open HDF5 file; raise ModelError.

    Links to other files, virtual and externally stored datasets would open files that the
    user never named: no limit on memory or time prevents that. Links are looked at, not followed.
    """
    import h5py

    links, weights = {}, {}
    file.visititems_links(links.__setitem__)
    for path, link in links.items():
        item = file[path] if type(link) is h5py.HardLink else None
        if isinstance(item, h5py.Group):
            continue
        if not item or item.is_virtual or item.external or item.dtype.kind not in "fiu":
            raise ModelError("it links to other places; train it again")
        group, *inner, name = path.split("/")
        if group == "model_weights" and inner:
            weights.setdefault(inner[0], {})[name.split(":")[0]] = item[()].astype(np.float32)
    return weights


def read_model(path):
    """Return a Keras HDF5 file's layers and weights, tried out; raise ModelError or Unsupported.

    layers is a list of (class, settings), weights {layer: {name: float32 array}}.
    """
    os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # HDF5 filters are code; load none
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text, weights = file.attrs["model_config"], weights_in(file)
        model = json.loads(text)
        described = model["config"]["layers"]
        layers = [(layer["class_name"], layer["config"]) for layer in described]
        own = all(layer.get("module", "keras.layers") == "keras.layers" for layer in described)
        if model["class_name"] != "Sequential" or not own:  # another's Dense may be anything
            raise Unsupported
        try_out(build_network(layers, weights))
        return layers, weights
    except (ModelError, Unsupported, MemoryError):
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
        try:
            return build_network(*sandbox.call(read_model, path))
        except Unsupported:
            network = functools.partial(keras_sandbox.call, keras_answers, path)
            try_out(network)
            return network
    except (MemoryError, TimeoutError, ChildProcessError):
        raise ModelError("it takes too much memory or time; train it again") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        advice = "train it with mnist_cnn_with_dropout.py or give --model"
        raise ModelError(f"it cannot be opened ({reason}); {advice}") from None


def keras_answers(path, glyphs):
    """Return a model's answers, evaluated by Keras in this process."""
    try:
        return np.asarray(keras_model(path)(np.asarray(glyphs, np.float32)[..., None]))
    except ImportError:
        raise ModelError("it needs TensorFlow and Keras 3.15.1 or newer; install them") from None
    except Exception:  # Keras raises whatever a bad file leads it into
        raise ModelError("Keras cannot load it; train it again") from None


@functools.cache
def keras_model(path):
    """Return a model loaded by Keras, which refuses what would run code or open other files.

    Raises ImportError for one from before 3.15.1, which does not.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras

    if [int(number) for number in keras.__version__.split(".")[:3]] < [3, 15, 1]:
        raise ImportError
    return keras.models.load_model(path, compile=False, safe_mode=True)


# --- The choice of digits --------------------------------------------------


def classify(regions, ink, network):
    """Set the glyph and the probabilities of each region, once, and add what speaks against those.

    It may be the edge of something, and what has too many holes is no digit.
    """
    if regions:
        glyphs, pens = zip(*(normalize_digit(region, ink) for region in regions), strict=True)
        answers = network(np.stack(glyphs))
        for region, *seen in zip(regions, glyphs, pens, answers, strict=True):
            region.glyph, region.pen, region.probabilities = seen
            if region.gain > 0:
                if region.surroundings:
                    region.cost += EDGE_COST * background_variance(*region.surroundings)
                if count_holes(region.mask) > MAX_HOLES:
                    region.cost = math.inf


def containment(outer, inner, clearance=0.0):
    """Return whether the box of each of outer holds that of each of inner: bool (outer, inner).

    clearance is how far inside it has to lie, as a share of inner's length.
    """
    boxes = [np.reshape([r.box for r in regions], (-1, 4)) for regions in (outer, inner)]
    big, small = (box * [1, 1, -1, -1] for box in boxes)
    distance = clearance * np.array([r.length for r in inner])
    return (big[:, None] <= small - distance[:, None]).all(axis=2)


def outermost(regions, holds, frames=()):
    """Return those of regions that lie in no other but frames, nor along the image's border.

    holds is which of regions holds which, as containment returns it.
    """
    others = np.array([r not in frames for r in regions])
    in_none = others & (holds[others].sum(axis=0) == 1)
    return [r for r in itertools.compress(regions, in_none) if r.cutoff < 0.5]


def similarity(regions):
    """Return how alike regions are in length, contrast and pen: float (n, n) in [0, 1].

    It is a Gaussian kernel of each. A pen is its width and colour: small digits are as thick as
    the others, small print is not; but some numbers are written with several. Lightness, which
    a shadow changes, is left to the contrast.
    """
    logs = np.log([(r.length, r.contrast, r.pen) for r in regions]) / BANDWIDTH
    colours = cv2.cvtColor(np.uint8([[r.colour for r in regions]]), cv2.COLOR_RGB2YCrCb)
    features = logs[:, :2], np.column_stack([logs[:, 2], colours[0, :, 1:] / COLOUR_BANDWIDTH])
    sizes, pens = (np.exp(-np.square(x[:, None] - x).sum(axis=2) / 2) for x in features)
    return sizes * np.maximum(pens, ANOTHER_PEN)


def find_standard(regions):
    """Return that of regions to which most are similar, by their evidence."""
    return regions[(similarity(regions) @ [r.evidence for r in regions]).argmax()]


def best_cover(regions, cuts):
    """Return the digits of the best choice of regions, none within another.

    Dynamic programming over the tree of boxes: each region is one digit, or several by cuts,
    which segment_touching returns, or what is inside. regions come from small to large. A frame
    around digits, such as a circle, needs no other reason: they explain its mass with theirs.
    """
    holds = np.triu(containment(regions, regions).T, 1)
    parents = np.where(holds.any(axis=1), holds.argmax(axis=1), len(regions)).tolist()
    inside = [(0.0, [])] * (len(regions) + 1)
    for index, (region, parent) in enumerate(zip(regions, parents, strict=True)):
        gain, digits = inside[index]
        if digits and containment([region], digits, CLEARANCE).all():
            gain *= region.mass / sum(d.mass for d in digits)
        ways = (gain, digits), (region.gain, [region]), cuts.get(region, (0.0, []))
        gain, digits = max(ways, key=lambda way: way[0])
        if gain > 0:
            inside[parent] = inside[parent][0] + gain, inside[parent][1] + digits
    return inside[-1][1]


def cut_touching(mask, count):
    """Return (cuts, crossed): up to count - 1 straight cuts, evenly spread, through little ink.

    mask is bool (height, width). A cut is a column for each row, float (cuts, height), at the
    best of SLANTS; the ink that each crosses is a share of the height, at most MAX_CROSSED.
    """
    height, width = mask.shape
    ink, down, step = mask.astype(np.float32), np.arange(height) - height / 2, width / count
    shears = [np.float32([[1, slant, -slant * height / 2], [0, 1, 0]]) for slant in SLANTS]
    upright = [cv2.warpAffine(ink, m, (width, height), flags=cv2.INTER_NEAREST) for m in shears]
    profiles, cuts, crossed = np.mean(upright, axis=1), [], []
    for centre in step * np.arange(1, count):
        low, high = int(centre - 0.45 * step), int(centre + 0.45 * step) + 1
        window = profiles[:, low:high]
        best, column = np.unravel_index(window.argmin(), window.shape)
        if window[best, column] < MAX_CROSSED:
            crossed.append(window[best, column])
            cuts.append(np.clip(np.round(low + column - SLANTS[best] * down), 0, width))
    return np.maximum.accumulate(np.reshape(cuts, (-1, height)), axis=0), crossed


def segmentation_lattice(region, piece_width):
    """Return all ways to take consecutive pieces of a region as a digit, and the pieces' number.

    Each is an edge: (first piece, piece after the last, Region). piece_width is a share of the
    region's height.
    """
    pieces = max(2, round(region.width / (piece_width * region.height)))
    cuts, crossed = cut_touching(region.mask, pieces)
    labels = (np.arange(region.width) >= cuts[..., None]).sum(axis=0, dtype=np.uint8)
    labels[~region.mask] = 255  # in no piece
    cuts = np.vstack([np.zeros(region.height), cuts, np.full(region.height, region.width)])
    count, area, edges = len(cuts) - 1, int(region.mask.sum()), []
    costs = [0.0, *(CUT_COST if ink else 0.0 for ink in crossed), 0.0]
    leftmost, rightmost, widest = cuts.min(axis=1), cuts.max(axis=1), 1.1 * region.height
    for first, last in itertools.combinations(range(count + 1), 2):
        # Of a long region, most ways are too wide: told before their pixels are touched.
        if last - first == count or leftmost[last] - rightmost[first] - 1 > widest:
            continue
        mask = cv2.inRange(labels, first, last - 1)
        left, top, width, height = cv2.boundingRect(mask)
        if height < 0.4 * region.height or width - 1 > widest:
            continue
        mask = mask[top : top + height, left : left + width] > 0
        left, top = region.left + left, region.top + top
        right, bottom = left + width, top + height
        inherited = region.paper, region.contrast, region.colour
        part = Region(left, top, right, bottom, mask, *inherited)
        part.mass = region.mass * int(mask.sum()) / area
        part.cost = (costs[first] + costs[last]) / 2
        edges.append((first, last, part))
    return edges, count


def viterbi(edges, count):
    """Return (gain, regions) of the best way through a lattice; a piece in none is junk."""
    best = [(0.0, [])]
    for last in range(1, count + 1):
        ways = [(best[i][0] + part.gain, [*best[i][1], part]) for i, j, part in edges if j == last]
        best.append(max([best[-1], *ways], key=lambda way: way[0]))
    return best[-1]


def segment_touching(regions, digits, ink, network):
    """Return (gain, digits) by region for those of regions that may be digits grown together.

    digits is what best_cover has read without that. The largest regions are tried that are wide
    enough, of the digits' size, and no mere frame of a sure digit; what is cut from one counts
    only if it explains most of it. A sure digit is tried itself only beside others.
    """
    size = find_standard(digits).height if digits else 0
    sure, several = [d for d in digits if d.certainty > 0.7], len(digits) > 1
    most = math.exp(-CUT_COST / 2) - CHANCE  # of a region's mass: what pieces of it explain at most
    chosen = [
        region
        for region, inside in zip(regions[::-1], containment(regions, sure)[::-1], strict=True)
        if 0.8 * region.height < region.width < 14 * region.height
        and (not size or 0.5 < region.height / size < 2.5)
        and region.gain < most * region.mass
        and all(
            d.height <= FRAMED_HEIGHT * region.height or (several and d is region)
            for d in itertools.compress(sure, inside)
        )
    ]
    chosen = chosen[:MAX_CUT]
    for piece_width, least in CUTS:
        lattices = [segmentation_lattice(region, piece_width) for region in chosen]
        classify([part for edges, _ in lattices for _, _, part in edges], ink, network)
        ways = {region: viterbi(*lattice) for region, lattice in zip(chosen, lattices, strict=True)}
        chosen = [region for region in chosen if ways[region][0] > least * region.mass]
    return {region: ways[region] for region in chosen}


def join_broken(digits, loose, ink, scene, network):
    """Return digits with those joined that read better as one: a 5 and its bar, a broken 8.

    loose are regions in which nothing was read. Single-linkage clustering merges the nearest
    first; of each merge the whole is kept if it explains more than its digits and is surer than
    each: a sure digit beside a mark is no piece of another. A bar that looks like a 1 may be one.
    What is unlike the standard counts less: a half of a broken 1.
    """
    pieces, merges = [*digits, *loose], []
    boxes, lengths = np.reshape([r.box for r in pieces], (-1, 4)), [r.length for r in pieces]
    starts = np.maximum(boxes[:, None, :2], boxes[:, :2])
    ends = np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    gaps = (starts - ends).max(axis=2) / np.maximum.outer(lengths, lengths)
    near = np.argwhere(np.triu(gaps < MAX_GAP, 1)).tolist()
    clusters = dict(zip(pieces, pieces, strict=True))
    for i, j in sorted(near, key=lambda pair: gaps[*pair]):
        a, b = clusters[pieces[i]], clusters[pieces[j]]
        if a is not b:
            whole = join(a, b, ink, scene)
            merges.append((whole, a, b))
            clusters.update({r: whole for r, c in clusters.items() if c in (a, b)})
    classify([whole for whole, _, _ in merges], ink, network)
    best = {r: [r] for r in digits} | {r: [] for r in loose}
    standard = find_standard(digits) if digits else None
    for whole, a, b in merges:
        parts = best[a] + best[b]
        surest = max((d.certainty for d in parts if d.digit != 1), default=0.0)
        gains = np.array([d.gain for d in (whole, *parts)])
        if standard and standard not in parts:
            gains *= similarity([standard, whole, *parts])[0, 1:]
        better = gains[0] > gains[1:].sum() and whole.confidence > surest
        best[whole] = [whole] if better else parts
    return [d for whole in dict.fromkeys(clusters.values()) for d in best[whole]]


def in_context(digits):
    """Return the digits that are similar to the standard, or to others that are: single linkage.

    The less similar, the surer the network must be. What is neither is print beside a number,
    a dash, a ruling, the edge of a sheet.
    """
    if not digits:
        return []
    alike, standard = similarity(digits), find_standard(digits)
    certainty = np.array([digit.certainty for digit in digits])
    kept, count = np.array([digit is standard for digit in digits]), 0
    while count < kept.sum():
        count = kept.sum()
        kept |= certainty * alike[:, kept].max(axis=1) > KEEP
    kept &= certainty > KEEP  # so must the standard be
    return list(itertools.compress(digits, kept))


# --- Lines -----------------------------------------------------------------


def tilt_of_lines(regions):
    """Return the degrees, at most 42, by which regions' lines fall to the right; two may be one."""
    height = np.median([r.height for r in regions])
    (x, y), degrees = np.transpose([r.centre for r in regions]), np.arange(42, -43, -2)
    angles = np.radians(degrees)
    rows = np.sort(np.outer(np.cos(angles), y) - np.outer(np.sin(angles), x))
    spread = np.minimum(np.diff(rows) / height, 1).sum(axis=1) + 0.02 * abs(degrees)
    return int(degrees[spread.argmin()])


def group_lines(regions):
    """Return regions as lists, one a line from top to bottom, each from left to right.

    Lines that explain little beside the best one are left out: marks, and no numbers.
    """
    height = float(np.median([r.height for r in regions]))
    angle = math.radians(tilt_of_lines(regions))
    cos, sin = math.cos(angle), math.sin(angle)
    centres = np.array([r.centre for r in regions]) @ [[cos, -sin], [sin, cos]]
    level = dict(zip(regions, centres, strict=True))
    lines = []
    for region in sorted(regions, key=lambda r: level[r][0]):
        (x, y), away = level[region], []
        for line in lines:  # a line is followed by its last digits, wherever it bends
            last = line[-4:]
            xs, ys = np.array([level[r] for r in last]).T
            slant = np.clip((ys[-1] - ys[0]) / max(xs[-1] - xs[0], height), -0.2, 0.2)
            off = y - ys[-3:].mean()
            off = min(abs(off), abs(off - slant * (x - xs[-3:].mean())))
            away.append(off / max(np.median([r.height for r in last]), 0.6 * region.height))
        if min(away, default=1) < 0.62:
            lines[np.argmin(away)].append(region)
        else:
            lines.append([region])
    gains = np.array([sum(r.gain for r in line) for line in lines])
    lines = itertools.compress(lines, gains >= LINE_SHARE * gains.max())
    return sorted(lines, key=lambda line: np.mean([level[r][1] for r in line]))


# --- Reading ---------------------------------------------------------------


def total(digits, key):
    """Return the sum of key(digit); of 1s, each counts half as much as the one before.

    Anything straight explains itself as a 1, and stripes, a fence or a barcode are many.
    """
    bars = sorted((key(d) for d in digits if d.digit == 1), reverse=True)
    others = sum(key(d) for d in digits if d.digit != 1)
    return others + sum(bar / 2**rank for rank, bar in enumerate(bars))


@dataclass
class Reading:
    """What was read in one interpretation of an image."""

    images: tuple = ()  # what read_ink takes
    to_original: np.ndarray = field(default_factory=lambda: np.eye(2, 3))  # affine, of their pixels
    digits: list = field(default_factory=list)  # Regions
    mass: float = 1.0  # what there was to explain,
    framed: float = 1.0  # and that over what is left of it without the digits' own frames
    seen: list = field(default_factory=list)  # Regions that the network has seen whole

    @property
    def evidence(self):
        """The gain as far as it speaks for the reading."""
        return total(self.digits, lambda digit: digit.evidence) * self.framed

    @property
    def gain(self):
        """What the digits explain, their frames with them, in units of mass."""
        return total(self.digits, lambda digit: digit.gain) * self.framed

    @property
    def quality(self):
        """The share of what there was to explain in this interpretation, in [0, 1]."""
        return self.gain / self.mass

    @property
    def rank(self):
        """What decides between interpretations.

        The evidence counts twice, or the half of a number that lies in the light would win:
        what is in the dark belongs, in that map, to nothing that there is to explain.
        """
        return self.evidence**2 * self.quality

    @property
    def certainty(self):
        """The share explained, times how sure the network is in the mean, in [0, 1].

        A letter, a face or a pattern leaves the network unsure, or much unexplained.
        """
        if len(self.digits) == 1:
            return self.quality * self.digits[0].confidence
        sure = float(np.mean([digit.certainty for digit in self.digits]))
        return self.evidence / self.mass * sure  # 1s may be anything straight

    def box(self, region, size):
        """Return a region's box (left, top, right, bottom) in pixels of the original, within it.

        Where the picture was turned to be read, it is the upright box around the region's own.
        """
        left, top, right, bottom = region.box
        corners = np.array([[(left, top), (right, top), (left, bottom), (right, bottom)]], float)
        (corners,) = cv2.transform(corners, self.to_original)
        edges = np.rint([corners.min(axis=0), corners.max(axis=0)])
        return tuple(np.clip(edges, 0, size).astype(int).ravel().tolist())


def mass_without_frames(regions, holds, digits, share=1.0):
    """Return the mass of the outermost of regions, without those that frame one of digits.

    A box, a circle, a sheet or a desk lies all around a digit and needs no other reason.
    With share, only those count as frames of whose height a digit takes no more than that.
    """
    largest = share * np.array([[r.height] for r in regions])
    framing = containment(regions, digits, CLEARANCE) & ([d.height for d in digits] <= largest)
    frames = set(itertools.compress(regions, framing.any(axis=1))).difference(digits)
    rest = outermost(regions, holds, frames)
    return max(sum(r.mass for r in rest), sum(d.mass for d in digits))


def read_ink(images, network, one):
    """Return the Reading of one map of ink; images are that, the pixels and their edge energy."""
    ink, *scene = images
    reading = Reading(images)
    regions = sorted(component_tree(ink, scene), key=lambda r: -r.mass)
    if not regions:
        return reading
    everything, holds = regions, containment(regions, regions)
    roots = outermost(regions, holds)
    mass = sum(r.mass for r in roots)

    regions, light = regions[:HEAVY], regions[HEAVY:]
    classify(regions, ink, network)
    sure = [r for r in regions if r.gain > 0]
    if light and sure:
        standard = find_standard(sure)
        size, contrast = standard.length, standard.contrast
        light = [r for r in light if 0.4 < r.length / size < 2.5 and r.contrast > 0.4 * contrast]
        classify(light, ink, network)
        regions = regions + light
    regions.sort(key=lambda r: (r.width * r.height, -r.mass))
    reading.seen = regions

    digits = best_cover(regions, {})
    if not one and (cuts := segment_touching(regions, digits, ink, network)):
        digits = best_cover(regions, cuts)
    loose = [r for r in roots if r.mass > 0.02 * mass]
    apart = ~(containment(loose, digits) | containment(digits, loose).T).any(axis=1)
    loose = list(itertools.compress(loose, apart))
    digits = join_broken(digits, loose, ink, scene, network)
    digits = [max(digits, key=lambda d: d.gain)] if one and digits else in_context(digits)
    if digits:
        bare = mass_without_frames(everything, holds, digits)
        reading.mass = max(bare, mass_without_frames(everything, holds, digits, FRAMED_HEIGHT))
        reading.digits, reading.framed = digits, reading.mass / bare
    return reading


def likeliest_turn(regions, network):
    """Return by how many degrees to the left to turn regions for them to be most like digits.

    It is a multiple of 90. A glyph is centred by its mass, so that it turns without its region.
    """
    evidence = {0: sum(region.evidence for region in regions)}
    for quarters in (1, 2, 3):
        answers = network(np.stack([np.rot90(region.glyph, quarters) for region in regions]))
        turned = (replace(r, probabilities=p) for r, p in zip(regions, answers, strict=True))
        evidence[90 * quarters] = sum(region.evidence for region in turned)
    return max(evidence, key=evidence.get)


def read_rotated(reading, degrees, network):
    """Return the Reading of the same map of ink, turned by degrees to the left."""
    images, back = rotate(reading.images, degrees)
    rotated = read_ink(images, network, False)
    rotated.to_original = reading.to_original @ np.vstack([back, [0, 0, 1]])
    return rotated


def read_pixels(rgb, network, one):
    """Return the best Reading of an image among its interpretations.

    The search ends with a reading that explains most of the image. Where none does, the likeliest
    map is read without rulings; where digits have frames, in any case, without lines longer than
    digits, since one that touches its box is hidden in that. Where doubt is left, its gaps are
    closed, which counts only if that explains most. If its regions are more like digits so, the
    map is read the other way up, too, and so without its rulings: at least three digits besides
    1s, into which lines turn, so that no 6 becomes a 9, and with some certainty, since printed
    text is full of digits when it lies on its side. Lines that are tilted are read level, too.
    """
    energy, best, first = edge_energy(rgb), Reading(), None
    enough = STOP * float(energy.sum())
    if not enough:  # blank
        return best
    for ink in interpretations(rgb):
        reading = read_ink((ink, rgb, energy), network, one)
        first = first or reading
        best = max(best, reading, key=lambda r: r.rank)
        if best.gain > enough:
            break
    unruled, framed = None, best.framed > 1
    if framed or best.gain <= enough:
        length = RULING * max(rgb.shape)
        if framed:
            length = BOX_SIDE * np.median([d.length for d in best.digits])
        if (without := remove_rulings(first.images[0], length)) is not None:
            unruled = read_ink((without, rgb, energy), network, one)
            # Without rulings, no frame is left to be explained.
            best = max(best, unruled, key=lambda r: r.gain / r.framed if framed else r.rank)
    if best.gain <= enough or best.certainty < CERTAIN:
        closed = close_gaps((unruled or first).images[0], STROKE_GAP * max(rgb.shape))
        reading = read_ink((closed, rgb, energy), network, one)
        if reading.gain > enough and (best.gain <= enough or reading.certainty > best.certainty):
            best = reading
    if one:
        return best
    upright = best
    for reading in filter(None, (first, unruled)):
        if len(reading.seen) > 2 and (degrees := likeliest_turn(reading.seen, network)):
            rotated = read_rotated(reading, degrees, network)
            if sum(d.digit != 1 for d in rotated.digits) > 2 and rotated.certainty > KEEP:
                best = max(best, rotated, key=lambda r: r.rank * (UPRIGHT if r is upright else 1))
    if best.digits and abs(tilt := tilt_of_lines(best.digits)) > MAX_TILT:
        best = max(best, read_rotated(best, tilt, network), key=lambda r: r.rank)
    return best


def read_mnist_format(rgb, network):
    """Return the Reading of an image made as MNIST's were, which is its own glyph, or None.

    Such an image is 28x28, its ink 20 pixels long, its centre of mass in the middle pixel.
    """
    if rgb.shape[:2] != (28, 28):
        return None
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    ink = cv2.absdiff(grey, np.full_like(grey, np.median(grey)))
    (left, top, width, height), moments = cv2.boundingRect(ink), cv2.moments(ink)
    off_centre = [abs(moments[axis] - 14 * moments["m00"]) for axis in ("m10", "m01")]
    if max(width, height) != 20 or max(off_centre) > 0.51 * moments["m00"]:
        return None
    right, bottom = left + width, top + height
    digit = Region(left, top, right, bottom, ink[top:bottom, left:right] > 0, mass=1.0)
    digit.glyph = ink / np.float32(ink.max())
    digit.probabilities = network(digit.glyph[None])[0]
    return Reading(digits=[digit]) if digit.gain > 0 else None


def read_in_size(rgb, network, one):
    """Return the best Reading of an image: reduced if its digits are large."""
    height, width = rgb.shape[:2]
    longer, quick = max(height, width), Reading()
    shrink = math.ceil(longer / QUICK_SIDE)
    if shrink > 1:
        rows, columns = max(1, height // shrink) * shrink, max(1, width // shrink) * shrink
        small = resized(rgb[:rows, :columns], 1 / shrink)
        quick = read_pixels(small, network, one)
        quick.to_original *= shrink
        if quick.digits and np.median([d.length for d in quick.digits]) >= LARGE_DIGIT:
            return quick
    factor = math.ceil(SMALL_SIDE / longer)
    method = cv2.INTER_LINEAR if longer > TINY_SIDE else cv2.INTER_NEAREST
    reading = read_pixels(resized(rgb, factor, method), network, one)
    reading.to_original /= factor
    return reading if reading.digits else quick


def read_digits(rgb, network, scale=1.0, one=False):
    """Return the digits in an upright image as lists of Regions, one a line, in reading order.

    rgb is uint8 (height, width, 3), network what load_network returns, scale the
    factor from these pixels to the original's. With one, there is exactly one
    digit. Raises ImageError when there is none.

    Several maps of ink are made of the pixels; each is taken apart into regions; the network
    says of each region, of its pieces and of unions what digit it is; and that choice of
    regions, in that map, is read which explains most of the image's contrast.
    """
    reading = read_mnist_format(rgb, network) or read_in_size(rgb, network, one)
    if not reading.digits:
        raise ImageError("no digit found")
    reading.to_original *= scale
    lines = group_lines(reading.digits)
    reading.digits = digits = list(itertools.chain(*lines))
    views = np.concatenate([rotated_views(digit.glyph) for digit in digits])
    for digit, answers in zip(digits, np.split(network(views), len(digits)), strict=True):
        digit.probabilities = answers.mean(axis=0)  # test-time augmentation
    foreign = reading.certainty < CERTAIN  # it may be no number: all digits are marked
    least = CERTAIN_IN_NUMBER if len(digits) > 1 else 0.0  # a cut leaves doubt which there are
    size = np.rint(np.multiply(rgb.shape[1::-1], scale))
    for digit in digits:
        digit.uncertain = foreign or digit.confidence < least
        digit.left, digit.top, digit.right, digit.bottom = reading.box(digit, size)
        digit.mask, digit.surroundings = None, ()  # they have served
    return lines


# --- Answers ---------------------------------------------------------------


def text_of(lines):
    """Return what a person reads: the digits of each line joined, lines separated by newlines."""
    return "\n".join("".join(str(digit.digit) for digit in line) for line in lines)


def as_json(answer, top=None):
    """Return an Answer as one line of JSON."""
    if answer.error:
        return json.dumps({"image": answer.name, "error": answer.error})
    digits = []
    for digit in itertools.chain(*answer.lines):
        probabilities = [round(float(p), 6) for p in digit.probabilities]
        told = {
            "digit": digit.digit,
            "confidence": round(digit.confidence, 6),
            "uncertain": digit.uncertain,
            "box": digit.box,
            "probabilities": probabilities,
        }
        if top:
            told["top"] = [[d, probabilities[d]] for d in ranking(digit)[:top]]
        digits.append(told)
    return json.dumps({"image": answer.name, "text": text_of(answer.lines), "digits": digits})


def ranking(digit):
    """Return the ten digits, the likeliest first."""
    return np.argsort(-digit.probabilities, kind="stable").tolist()


def as_text(answer, top=None, width=0):
    """Return an Answer as lines for a terminal, its name padded to width."""
    name = printable(answer.name).ljust(width)
    if answer.error:
        return f"{name}  {answer.error}"
    digits = list(itertools.chain(*answer.lines))
    lowest = min(digits, key=lambda digit: digit.confidence)
    sure = f"{lowest.confidence:6.1%}" if len(digits) == 1 else f"  lowest {lowest.confidence:.1%}"
    if lowest.uncertain:
        sure += "  not sure: {} or {}".format(*ranking(lowest))
    first, *rest = text_of(answer.lines).split("\n")
    for digit in digits if top else ():
        rest.append("  ".join(f"{d} {digit.probabilities[d]:.1%}" for d in ranking(digit)[:top]))
    return ("\n" + " " * len(name + "  ")).join([f"{name}  {first} {sure}", *rest])


def printable(name):
    """Return a file's name with control characters escaped, harmless on a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def draw_answers(figure, answers):
    """Draw each Answer as a row: the image with its boxes, what the network saw, how sure it is."""
    figure.set(size_inches=(10, 2.9 * len(answers)), layout_engine="constrained")
    rows = figure.subplots(len(answers), 3, squeeze=False, width_ratios=(3, 2, 3))
    for (picture, seen, bars), answer in zip(rows, answers, strict=True):
        digits = list(itertools.chain(*answer.lines))
        colours = ["tab:orange" if digit.uncertain else "tab:green" for digit in digits]
        title = printable(os.path.basename(answer.name) or answer.name)
        if len(answer.lines) == 1:
            title = f"{title}: {text_of(answer.lines)}"
        picture.set_title(title, fontsize=10, parse_math=False)
        for axes in (picture, seen):
            axes.set_axis_off()
        if answer.rgb is not None:
            picture.imshow(answer.rgb)
        if answer.error:
            seen.text(0.5, 0.5, answer.error, ha="center", va="center", wrap=True)
            bars.set_axis_off()
            continue
        for digit, colour in zip(digits, colours, strict=True):
            left, top, right, bottom = (edge / answer.scale for edge in digit.box)
            xs, ys = (left, right, right, left, left), (top, top, bottom, bottom, top)
            picture.plot(xs, ys, color=colour, linewidth=1.5)
            if len(digits) > 1:
                style = {"color": colour, "ha": "center", "va": "bottom", "fontsize": 8}
                style["bbox"] = {"facecolor": "white", "alpha": 0.8, "pad": 0.5, "linewidth": 0}
                picture.text((left + right) / 2, top, digit.digit, **style)
        strips = [np.hstack([digit.glyph for digit in line]) for line in answer.lines]
        longest = max(strip.shape[1] for strip in strips)
        strips = [np.pad(strip, ((0, 0), (0, longest - strip.shape[1]))) for strip in strips]
        seen.imshow(np.vstack(strips), cmap="gray", vmin=0, vmax=1)
        seen.set_title("what the network saw", fontsize=10)
        heights, labels = [digit.confidence for digit in digits], [digit.digit for digit in digits]
        title = "how sure of each digit"
        if len(digits) == 1:
            title = f"{labels[0]}, {heights[0]:.1%} sure"
            heights, labels, colours = digits[0].probabilities, range(10), "tab:blue"
            bars.set_xlabel("digit")
        bars.bar(range(len(heights)), heights, color=colours)
        step = math.ceil(len(heights) / 25)
        bars.set(ylim=(0, 1), xticks=range(0, len(heights), step), xticklabels=labels[::step])
        bars.set_title(title, fontsize=10)
        bars.yaxis.set_major_formatter("{x:.0%}")


def save_plot(path, answers):
    """Write the picture of draw_answers to path, whole or not at all; raise OSError."""
    import tempfile

    from matplotlib.figure import Figure

    figure = Figure()  # needs no display
    draw_answers(figure, answers)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        figure.savefig(temporary, dpi=100)
        os.replace(temporary, path)


def show_plot(answers):
    """Open the picture in a window; where there is no display, say so."""
    try:
        from matplotlib import pyplot

        if pyplot.get_backend().lower() == "agg":
            raise ImportError
        draw_answers(pyplot.figure(), answers)
        pyplot.show()
    except Exception:  # every windowing toolkit fails in its own way
        warn("--show needs a display, and there is none; use --plot FILE")


# --- Files and processes ----------------------------------------------------


@dataclass
class Answer:
    """What was read in one image, and its pixels where they are to be drawn."""

    name: str
    lines: tuple | list = ()
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
        rgb, answer.scale = decode(image_source(name))
        answer.rgb = rgb if drawn else None
        answer.lines = read_digits(rgb, network, answer.scale, one)
    except ImageError as error:
        answer.error = str(error)
    except MemoryError:
        answer.error = "too large for this machine's memory; reduce it first"
    except (ModelError, ImportError):  # are every image's
        raise
    except Exception:  # one image's failure is its own
        answer.error = "cannot be read, by a fault of this script; report it with the image"
    return answer


def predict_in_pool(names, workers, predict):
    """Yield what predict returns for each name, an Answer, in their order, by so many processes.

    The threads only wait: at work, they would wait for each other at every step in Python.
    Where a process ends while it reads, the image is read again: if that ends too, it is to blame.
    """
    from concurrent.futures import ThreadPoolExecutor

    cv2.setNumThreads(1)  # images run in parallel instead
    children = [Sandbox(function=predict) for _ in range(workers)]

    def predict_in_child(name):
        child = children.pop()
        try:
            for _ in range(2):
                with contextlib.suppress(ChildProcessError):
                    return child.call(None, name)
            return Answer(name, error="stopped while it was read; it may need more memory")
        finally:
            children.append(child)

    for child in children:
        child.start()  # while no other thread runs, which a fork would lack
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(predict_in_child, names)  # children end with their pipes


def predict_files(names, network, options):
    """Return predict_file's Answers, in the order of names, by several processes if many."""
    drawn = bool(options.plot or options.show)
    predict = functools.partial(predict_file, network=network, one=options.one, drawn=drawn)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores, MAX_WORKERS, len(names) // WORTH_A_WORKER) if options.images else 1
    if workers < 2 or "-" in names or keras_sandbox.pid:
        return map(predict, names)
    return predict_in_pool(names, workers, predict)


# --- Command line ----------------------------------------------------------


def warn(text):
    """Print one line on standard error."""
    print(f"{Path(__file__).name}: {text}", file=sys.stderr)


def asked_for():
    """Yield the paths that a person types or drops at the prompt, until an empty line."""
    while True:
        print("Image (empty line to stop): ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline().strip()):
            return
        paths = [line]
        if not os.path.exists(line):  # terminals quote or escape what is dropped on them
            with contextlib.suppress(ValueError):  # an apostrophe
                words = shlex.split(line)
                paths = words if any(map(os.path.exists, words)) else [" ".join(words)]
        yield from expand(paths)


def with_progress(answers, total):
    """Yield answers, with a bar on a terminal from the third second on."""
    bar = None
    if total > 1 and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            bar = answers = tqdm(answers, total=total, delay=2, leave=False, unit="image")
    for answer in answers:
        if bar:
            bar.clear()  # it comes back below what is printed
        yield answer


def parse_arguments(argv=None):
    """Return the parsed command line; exit with status 2 if it is wrong."""
    description = "Read the handwritten digits in photos, scans and drawings."
    parser = argparse.ArgumentParser(description=description)
    parser.error = lambda text: parser.exit(2, f"{parser.prog}: {text}; see --help\n")
    add, images = parser.add_argument, "image, folder of images, or - for standard input"
    add("images", nargs="*", metavar="IMAGE", help=images)
    add("--model", default=str(MODEL), help="Keras HDF5 file (default: %(default)s)")
    add("--one", action="store_true", help="each image holds exactly one digit")
    likeliest = "also print the K likeliest digits, 1 to 10 (default: none)"
    add("--top", type=int, choices=range(1, 11), metavar="K", help=likeliest)
    add("--json", action="store_true", help="print one JSON object an image (default: text)")
    add("--plot", type=Path, metavar="FILE", help="save a picture of what was read (default: none)")
    add("--show", action="store_true", help="open that picture in a window")
    options = parser.parse_args(argv)
    plot, kinds, isdir = options.plot, (".png", ".jpg", ".pdf", ".svg"), os.path.isdir
    # Path.is_dir would raise for a name that is too long.
    if plot and (plot.suffix.lower() not in kinds or isdir(plot) or not isdir(plot.parent)):
        parser.error(f"argument --plot: {plot} is no {', '.join(kinds)} in a folder that exists")
    if (plot or options.show) and not importlib.util.find_spec("matplotlib"):
        parser.error("--plot and --show need one more package: pip install matplotlib")
    if not options.images and not (sys.stdin and sys.stdin.isatty()):
        parser.error("give an image, a folder of images, or - for standard input")
    return options


def run(options):
    """Read every image, print each answer at once, and return the exit status."""
    network = load_network(options.model)
    names = expand(options.images)
    total, width = len(names), max((len(printable(name)) for name in names), default=0)
    answers = predict_files(names or asked_for(), network, options)
    as_lines = as_json if options.json else functools.partial(as_text, width=min(40, width))
    status, count, pictured = 0, 0, []
    for count, answer in enumerate(with_progress(answers, total), 1):
        print(as_lines(answer, options.top), flush=True)
        status = 1 if answer.error else status
        if (options.plot or options.show) and count <= PLOTTED:
            pictured.append(answer)
    if count > PLOTTED and pictured:
        warn(f"the picture shows the first {PLOTTED} of {count} images")
    if options.plot and pictured:
        try:
            save_plot(options.plot, pictured)
        except OSError as error:
            warn(f"{options.plot}: {error.strerror or error}; give another --plot")
            status = 1
    if options.show and pictured:
        show_plot(pictured)
    return status


def main(argv=None):
    """Run the command line; return 0 if all was read, 1 if some was not, 2 for wrong usage."""
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # or a pipe would take a closed stream's place
    os.close(spare)
    sys.stderr = sys.stderr or io.StringIO()
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if hasattr(stream, "reconfigure"):  # a name may hold what the terminal has no letters for
            stream.reconfigure(errors=errors)
    warnings.filterwarnings("ignore")  # of libraries; what a user can mend is an error here
    options = parse_arguments(argv)
    try:
        return run(options)
    except ModelError as error:
        warn(f"{printable(options.model)}: {error}")
        return 2
    except ImportError as error:
        warn(f"{error}; pip install -r requirements.txt")
        return 2
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # a reader, such as head, has seen enough
            warn(f"standard output: {error.strerror or error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
