"""Measure both scripts against the usual way; run by hand, not by pytest.

    python tests/benchmark.py train --data mnist.npz     (about 10 minutes)
    python tests/benchmark.py predict                     (about 2 minutes)

train: the usual script's recipe and ours, each in a process of its own.
predict: start to answer, memory and throughput, beside the same through Keras.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PREDICTOR = ROOT / "loaded_mnist_model_digit_predictor.py"
MODEL = ROOT / "models" / "mnist_model.h5"
TARGET = 0.9903  # test accuracy that both recipes race to
sys.path.insert(0, str(ROOT))


def race(images, labels):
    """Return a Keras callback that times epochs and, off the clock, reads the test set."""
    import keras

    class Race(keras.callbacks.Callback):
        epochs, curve = [], []

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.epochs.append(time.perf_counter() - self.start)
            answers = self.model.predict(images, batch_size=1000, verbose=0)
            answers = answers.reshape(len(answers), -1, 10)[:, 0]  # ours answers several times
            self.curve.append(float((answers.argmax(axis=1) == labels).mean()))

    return Race()


def train_as_usual(data):
    """Train by the usual script's recipe, and return its race."""
    import keras
    from keras import layers
    from sklearn.model_selection import train_test_split

    with np.load(data) as d:
        x, y, x_test, y_test = d["x_train"], d["y_train"], d["x_test"], d["y_test"]
    x, x_test = [a[..., None].astype("float32") / 255 for a in (x, x_test)]
    x, x_val, y, y_val = train_test_split(x, y, test_size=0.1, random_state=42)
    model = keras.Sequential([keras.Input((28, 28, 1))])
    for filters in (32, 64):
        model.add(layers.Conv2D(filters, 3, activation="relu"))
        model.add(layers.BatchNormalization())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    for units in (256, 64):
        model.add(layers.Dense(units, activation="relu"))
        model.add(layers.Dropout(0.3))
    model.add(layers.Dense(10, activation="softmax"))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    clock = race(x_test, y_test)
    stop = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
    options = {"batch_size": 128, "epochs": 10, "verbose": 0, "callbacks": [clock, stop]}
    model.fit(x, y, validation_data=(x_val, y_val), **options)
    return clock


def train_as_ours(data):
    """Train by our script, and return its race."""
    import mnist_cnn_with_dropout as script

    keras = script.import_keras()
    with np.load(data) as d:
        clock = race(script.as_input(d["x_test"]), d["y_test"])
    fit = keras.Model.fit
    keras.Model.fit = lambda model, *args, callbacks, **options: fit(
        model, *args, callbacks=[clock, *callbacks], **options
    )
    with tempfile.TemporaryDirectory() as folder:
        script.main(["--data", str(data), "--output", f"{folder}/model.h5", "--quiet"])
    return clock


RECIPES = {"usual": train_as_usual, "ours": train_as_ours}


def figures_of(recipe, data):
    """Run a training in a process of its own and return its figures."""
    start = time.perf_counter()
    command = [sys.executable, __file__, recipe, "--data", data]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    reached = [n for n, accuracy in enumerate(figures["curve"], 1) if accuracy >= TARGET]
    figures["reached"] = sum(figures["epochs"][: reached[0]]) if reached else None
    return {**figures, "wall": time.perf_counter() - start}


def benchmark_training(data):
    """Print both recipes' figures side by side."""
    print(f"recipe    s/epoch  s to {TARGET:.2%}   wall s     MB")
    for name in RECIPES:
        f = figures_of(name, data)
        reached = "never" if f["reached"] is None else f"{f['reached']:.0f}"
        epoch, wall, memory = statistics.median(f["epochs"]), f["wall"], f["memory"]
        print(f"{name:8} {epoch:8.1f} {reached:>12} {wall:8.0f} {memory:6.0f}", flush=True)


KERAS_ANSWER = """
import sys, numpy as np
from PIL import Image
import keras
model = keras.models.load_model(sys.argv[1], compile=False)
pixels = np.asarray(Image.open(sys.argv[2]).convert("L").resize((28, 28)), "float32") / 255
print(model.predict(pixels[None, ..., None], verbose=0).argmax())
"""


def timed(times, *arguments):
    """Return (median seconds, peak MB) of Python with those arguments over several runs."""
    from runs import run_script

    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), run_script(*arguments).megabytes


def benchmark_predictor():
    """Print start to answer, memory and throughput of the predictor, and of Keras for one image."""
    from PIL import Image
    from scenes import as_file, mnist

    images, _ = mnist()
    with tempfile.TemporaryDirectory() as folder:
        small, photo, many = (Path(folder, name) for name in ("small.png", "photo.jpg", "many"))
        small.write_bytes(as_file(images[0]))
        scene = np.full((3000, 4000), 225, np.uint8)
        digit = Image.fromarray(images[0]).resize((900, 900), Image.Resampling.BICUBIC)
        scene[1000:1900, 1500:2400] -= (np.asarray(digit) * 0.8).astype(np.uint8)
        Image.fromarray(scene).convert("RGB").save(photo)
        many.mkdir()
        for index in range(0, 5000, 10):
            (many / f"{index}.png").write_bytes(as_file(images[index]))
        one, memory = timed(9, PREDICTOR, small)
        keras, keras_memory = timed(3, "-c", KERAS_ANSWER, MODEL, small)
        print(f"one 28x28 image, start to answer: {one:.2f} s, {memory:.0f} MB")
        print(f"  the same through Keras: {keras:.2f} s, {keras_memory:.0f} MB")
        print(f"  ratio: {one / keras:.3f}")
        seconds, memory = timed(5, PREDICTOR, photo)
        print(f"one 12-megapixel JPEG: {seconds:.2f} s, {memory:.0f} MB")
        seconds, memory = timed(3, PREDICTOR, many)
        print(f"500 images of 28x28: {500 / (seconds - one):.0f} a second, {memory:.0f} MB")


def main():
    """Run the benchmark that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "predict", *RECIPES))
    parser.add_argument("--data", type=Path, help="MNIST as .npz in the Keras layout, for train")
    options = parser.parse_args()
    if options.what == "predict":
        benchmark_predictor()
    elif options.data is None:
        parser.error("train needs --data")
    elif options.what == "train":
        benchmark_training(options.data.resolve())
    else:
        found = RECIPES[options.what](options.data)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"epochs": found.epochs, "curve": found.curve, "memory": memory}))


if __name__ == "__main__":
    main()
