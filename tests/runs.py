"""Runs of the two scripts as processes of their own: those that take long, or are measured."""

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import scenes
from odd_images import HEAVY, encoded
from odd_models import KERAS_MODELS, write_model

import loaded_mnist_model_digit_predictor as predictor
import mnist_cnn_with_dropout as script

SCRIPT, PREDICTOR = Path(script.__file__), Path(predictor.__file__)
PIPE = subprocess.PIPE
OUTPUTS = (
    "mnist_model.h5 training_curves.png confusion_matrix.png mistakes.png metrics.json".split()
)


def start(*command, **options):
    """Start a command that Ctrl-C ends, its output on a pipe."""
    # A shell's background jobs, CI's included, ignore Ctrl-C and hand that down.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, stdout=PIPE, **options)


# --- The training script, as on a fresh machine without network ---------------


def old_files(folder):
    """Fill folder with the files of an earlier run; return their contents by name."""
    folder.mkdir(exist_ok=True)
    contents = {name: f"the old {name}".encode() for name in OUTPUTS}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return contents


def contents(folder):
    """Return the content of every file in folder, hidden ones too, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_network():
    """Return the command that cuts a process off from the network, if this machine has one."""
    for command in (["unshare", "-n"], ["unshare", "-rn"]):  # of root, of ordinary users
        with contextlib.suppress(OSError):
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return command
    return []  # the dead proxy has to do


def start_on_a_fresh_machine(arguments, folder):
    """Start the script in folder, with an empty home and no way out."""
    (folder / "home").mkdir()
    ours = re.compile("KERAS|MPL|XDG|TF_|.*PROXY", re.IGNORECASE)
    environment = {name: os.environ[name] for name in os.environ if not ours.match(name)}
    dead_end = "http://127.0.0.1:9"  # nothing listens on the discard port
    environment |= {"http_proxy": dead_end, "https_proxy": dead_end, "HOME": str(folder / "home")}
    environment["TF_NUM_INTRAOP_THREADS"] = "1"  # the other core is for the tests
    streams = {"stdin": subprocess.DEVNULL, "stderr": PIPE, "text": True}
    command = [*without_network(), sys.executable, *arguments]
    return start(*command, cwd=folder, env=environment, **streams)


Trained = namedtuple("Trained", "folder stdout stderr metrics")


def train_on_a_fresh_machine(folder):
    """Run the script with no argument at all; return what it said and left."""
    process = start_on_a_fresh_machine([SCRIPT], folder)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    models = folder / "models" / "embedded"  # never over a better model
    metrics = json.loads((models / "metrics.json").read_text())
    return Trained(models, stdout, stderr, metrics)


Small = namedtuple("Small", "weights metrics history val_loss epochs")


def train_twice(folder, data):
    """Train two networks with one seed, on wrong validation labels so that both stop early."""
    found = []
    real_split, real_train = script.split_data, script.train

    def wrong_split(*arguments):
        x_train, y_train, x_validation, y_validation = real_split(*arguments)
        return x_train, y_train, x_validation, (y_validation + 1) % 10

    def watched_train(model, split, options):
        history = real_train(model, split, options)
        answers = model.predict(script.as_input(split[2]), verbose=0)[:, None]
        losses = script.smoothed_loss(np.eye(10, dtype=np.float32)[split[3]], answers)
        found.append([history, np.mean(losses), options.epochs])
        return history

    def keep(path, model, pictures, metrics):
        history, *rest = found.pop()
        found.append(Small(model.get_weights(), metrics, history, *rest))

    script.split_data, script.train, script.save_run = wrong_split, watched_train, keep
    options = ["--data", str(data), "--quiet", "--epochs", "8", "--patience", "2"]
    options += ["--batch-size", "64", "--seed", "5", "--output", str(folder / "model.h5")]
    for _ in range(2):
        assert script.main(options) == 0
    return found


def in_a_process(function, *arguments):
    """Return what a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# The whole script but for the training, on disks of several sizes; then with it, until Ctrl-C.
FAILING = """
import resource, sys
root, data, limits = sys.argv[1], sys.argv[2], map(int, sys.argv[3:])
sys.path.insert(0, root)
import mnist_cnn_with_dropout as script

history = {key: [0.5, 0.6] for key in ("accuracy", "loss", "val_accuracy", "val_loss", "seconds")}
train, save_run = script.train, script.save_run
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

def save_run_on_a_small_disk(*arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save_run(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

script.train = lambda model, split, options: {**history, "kept_epoch": 2}
script.save_run = save_run_on_a_small_disk
for limit in limits:
    print(script.main(["--data", data]), flush=True)
script.train, script.save_run = train, save_run
sys.exit(script.main(["--data", data, "--epochs=1000", "--patience=1000", "--no-augment"]))
"""
SMALL_DISKS = ["100", "1_700_000"]  # bytes a file may have; the model needs 1.8 MB


def fill_disks_and_interrupt(folder, data):
    """Run FAILING over old files, and press Ctrl-C in the second epoch; return all about it."""
    models = folder / "models"
    old = old_files(models)
    arguments = ["-c", FAILING, SCRIPT.parent, data, *SMALL_DISKS]
    process = start_on_a_fresh_machine(arguments, folder)
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("Epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        stdout, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, stdout, [*lines, *rest.splitlines(keepends=True)], models, old


def save_for_ever(model, size):
    """Write files of one letter, another one each time, as the script saves its own."""
    script.PLOTS, script.save_model = {}, lambda letter, path: path.write_bytes(letter * size)
    for number in itertools.count(os.urandom(1)[0]):
        script.save_run(model, bytes([number % 256]), {}, {})


def kill_writers(folder, times, size):
    """Kill save_for_ever so often; return whether each model was whole, its letter, and rubbish."""
    import matplotlib.figure  # noqa: F401 - once, not in each child

    model, found = folder / "mnist_model.h5", []
    model.write_bytes(bytes(size))
    for _ in range(times):
        child = os.fork()
        if not child:
            try:
                save_for_ever(model, size)
            finally:
                os._exit(1)
        time.sleep(random.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content, rubbish = model.read_bytes(), list(folder.glob(".*"))
        whole = len(content) == size == content.count(content[:1])
        found.append((whole, content[:1], len(rubbish)))
        for path in rubbish:
            shutil.rmtree(path)
    return found


# --- Either script, measured ------------------------------------------------------

# How it ended, and what it took: processor time on all cores, memory of the largest process.
Run = namedtuple("Run", "status out err seconds megabytes", defaults=(None, None))

# Linux counts the memory of whoever starts a program as the program's; this starter has little,
# and inherits the children that outlive the program, so that it can tell what they took.
STARTER = """
import contextlib, ctypes, json, os, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
ended, seconds, most = {}, 0, 0
with contextlib.suppress(ChildProcessError):
    while True:
        child, status, used = os.wait4(-1, 0)
        ended[child] = status
        seconds += used.ru_utime + used.ru_stime
        most = max(most, used.ru_maxrss)
sys.stderr.write(json.dumps([os.waitstatus_to_exitcode(ended[pid]), seconds, most / 1024]))
"""


def run_script(script, *arguments, flags=(), stdin=b"", prepare=None, **options):
    """Run a script as a person would, to its end; stdin is bytes or a file."""
    options |= {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    options |= {"preexec_fn": prepare, "timeout": 60}  # seconds of a busy machine
    starter = [sys.executable, "-I", "-S", "-c", STARTER]
    command = [*starter, sys.executable, *flags, script, *arguments]
    done = subprocess.run(command, capture_output=True, **options)
    err, _, used = done.stderr.decode().rpartition("[")
    status, seconds, megabytes = json.loads("[" + used)
    return Run(status, done.stdout.decode(), err, seconds, megabytes)


run_predictor = functools.partial(run_script, PREDICTOR)


def imported(result):
    """Return the top-level packages that python -X importtime has seen."""
    return {line.split("|")[-1].strip().split(".")[0] for line in result.err.splitlines()}


# --- The predictor ----------------------------------------------------------------


def read_heavy_images(folder):
    """Return {name: the Run that read a heavy image, and after it a good one}."""
    good = folder / "good.png"
    good.write_bytes(encoded("PNG"))
    results = {}
    for name, make in HEAVY.items():
        (folder / name).write_bytes(make())
        results[name] = run_predictor("--json", folder / name, good)
        (folder / name).unlink()
    return results


def load_through_keras(folder):
    """Return {name: the ModelError} of KERAS_MODELS, and how far "good" is from the network."""
    found, glyphs = {}, np.random.default_rng(1).random((20, 28, 28), np.float32)
    for name in (*KERAS_MODELS, "good"):
        path = write_model(name, folder)
        try:
            with contextlib.chdir(folder):
                network = predictor.load_network(str(path))
            found[name] = np.abs(network(glyphs) - scenes.network()(glyphs)).max()
        except predictor.ModelError as error:
            found[name] = str(error)
    assert sorted(os.listdir(folder)) == ["model.h5", "outside"]  # nothing was executed
    return found


def read_many_pictures():
    """Return what the slowest tests of test_reading.py read."""
    import test_reading

    found = {n: test_reading.texts_without_a_digit(n) for n in ("stripes", "blank sheets")}
    return {**found, "placed digits": test_reading.texts_of_placed_digits()}


# What runs beside the tests, in this order.
LONG_RUNS = {  # name of the fixture: (what to run in a new folder, the fixtures it takes besides)
    "readings": (lambda folder: in_a_process(read_many_pictures),),
    "heavy": (read_heavy_images,),
    "keras_models": (functools.partial(in_a_process, load_through_keras),),
    "trained": (train_on_a_fresh_machine,),
    "small_runs": (functools.partial(in_a_process, train_twice), "small_npz"),
    "failures": (fill_disks_and_interrupt, "small_npz"),
}
