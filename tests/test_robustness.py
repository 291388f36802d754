"""Whatever is fed to the predictor, it answers in plain lines, soon and in little memory.

The cases are tables, run through the real command line; broken images share one call with a good
one, which must still be read. Property tests and mutated files follow. Fuzzing by hand has made
many more of the latter; the cases here that look odd are what it found.
"""

import contextlib
import ctypes
import functools
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from odd_images import FOREIGN, HEAVY, REFUSED, encoded, seeds, small_images
from PIL import Image
from runs import HANG, predictor_server, run_predictor
from scenes import network

import loaded_mnist_model_digit_predictor as predictor

SECONDS, MEGABYTES = 2.0, 400  # what one answer may take, of processor time and memory
MODEL_BYTES = predictor.MODEL.read_bytes()

QUICK = {"deadline": None, "database": None, "derandomize": True}  # the same examples each time


# --- What every answer is ---------------------------------------------------


def assert_plain(text):
    """Assert that a terminal takes no harm from text, and a person no fright."""
    assert "Traceback" not in text and "Error" not in text and "Warning" not in text, text
    assert all(c.isprintable() or c == "\n" for c in text), repr(text)


def assert_quick(result):
    assert result.seconds < SECONDS, f"took {result.seconds:.1f} s of processor time"
    assert result.megabytes < MEGABYTES, f"took {result.megabytes:.0f} MB"


# --- Images -----------------------------------------------------------------


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Run all small broken images in one call; return {name: JSON answer}, the run, the cases."""
    folder = tmp_path_factory.mktemp("images")
    cases = {**small_images(), **{name: (make(), REFUSED) for name, make in FOREIGN.items()}}
    cases["good.png"] = (encoded("PNG"), "7")  # the last
    paths = []
    for name, (data, _) in cases.items():
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    result = run_predictor(folder, "--json", *paths)
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["image"] for answer in found] == [str(path) for path in paths]
    return dict(zip(cases, found, strict=True)), result, cases


def test_all_images_of_a_call_are_answered(answers):
    """One line each, whatever came before, nothing else, and in the time and memory of so many."""
    found, result, cases = answers
    assert result.status == 1
    assert result.err == ""
    assert found["good.png"]["text"] == "7"
    assert result.megabytes < MEGABYTES
    assert result.seconds < SECONDS + 0.25 * len(cases)
    for answer in found.values():
        assert ("error" in answer) != ("digits" in answer)
        assert_plain(answer.get("error", ""))
        assert len(answer.get("error", "")) < 80


def test_each_small_image_has_its_answer(answers):
    found, _, cases = answers
    wrong = {
        name: found[name].get("error", found[name].get("text"))
        for name, (_, pattern) in cases.items()
        if pattern and not re.search(pattern, found[name].get("error", found[name].get("text")))
    }
    assert wrong == {}


def test_text_answers_are_one_line_each(tmp_path):
    cases = small_images()
    names = [name for name, (_, pattern) in cases.items() if pattern and pattern != "7"]
    for name in names:
        (tmp_path / name).write_bytes(cases[name][0])
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    result = run_predictor(tmp_path, *(tmp_path / name for name in [*names, "good.png"]))
    assert_plain(result.out)
    lines = result.out.splitlines()
    assert len(lines) == len(names) + 1
    assert all(str(tmp_path / name) in line for name, line in zip(names, lines, strict=False))
    assert re.search(r"good\.png  7 ", lines[-1])
    assert (result.status, result.err) == (1, "")


@pytest.mark.parametrize("name", FOREIGN)
def test_no_other_parser_is_reached(name, monkeypatch):
    """Pillow's plugins for other formats are never asked, nor is what only looks like HEIC."""
    Image.init()
    reached = []
    for kind in set(Image.OPEN) - {*predictor.FORMATS, "HEIF"}:
        _, accepts = Image.OPEN[kind]
        spy = functools.partial(lambda kind, *_: reached.append(kind), kind)
        monkeypatch.setitem(Image.OPEN, kind, (spy, accepts))
    with pytest.raises(predictor.ImageError, match=REFUSED):
        predictor.decode(FOREIGN[name]())
    assert reached == []


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_images_take_little_time_and_memory(name, heavy):
    result = heavy[name]
    first, last = map(json.loads, result.out.splitlines())
    assert first["image"].endswith(name) and last["text"] == "7"
    assert result.err == "" and result.status in (0, 1)
    assert_quick(result)


# --- Paths ------------------------------------------------------------------


def without_privileges():
    """Make root obey the permissions of files in the program about to start (Linux)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # overriding the permissions to write, to read and search
        libc.prctl(24, capability, 0, 0, 0)


@pytest.fixture
def odd_paths(tmp_path):
    """Return {path: the pattern of its answer} of all that is in a file system but no image."""
    paths = {
        tmp_path / "missing.png": "no such file",
        tmp_path / "missing" / "folder.png": "no such file",
        tmp_path / ("long" * 100): "cannot be opened .File name too long",
        tmp_path / "file.png" / "below.png": "cannot be opened .Not a directory",
        "": "no such file",
        "/dev/null": "not a file",
        "/dev/zero": "not a file",
        "/dev/urandom": "not a file",
        "/dev/tty": "not a file",
        "/proc/self/mem": "cannot be opened|empty",
    }
    (tmp_path / "file.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    paths[tmp_path / "pipe.png"] = "not a file"
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the names of sockets are short
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)
    paths[tmp_path / "socket.png"] = "not a file"
    (tmp_path / "loop.png").symlink_to("loop.png")
    paths[tmp_path / "loop.png"] = "cannot be opened .Too many levels"
    (tmp_path / "nowhere.png").symlink_to("gone.png")
    paths[tmp_path / "nowhere.png"] = "no such file"
    (tmp_path / "empty folder").mkdir()
    paths[tmp_path / "empty folder"] = "no image in this folder"
    locked = tmp_path / "locked folder"
    locked.mkdir()
    (locked / "7.png").write_bytes(encoded("PNG"))
    locked.chmod(0)
    paths[locked] = "cannot be opened .Permission denied"
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded("PNG"))
    secret.chmod(0)
    paths[secret] = "cannot be opened .Permission denied"
    yield paths
    locked.chmod(0o700)


def test_odd_paths_are_each_answered(odd_paths, tmp_path):
    good = tmp_path / "good.png"
    good.write_bytes(encoded("PNG"))
    result = run_predictor(tmp_path, "--json", *odd_paths, good, prepare=without_privileges)
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["image"] for answer in found] == [*map(str, odd_paths), str(good)]
    for pattern, answer in zip(odd_paths.values(), found, strict=False):
        assert re.match(pattern, answer["error"]), answer
    assert found[-1]["text"] == "7"
    assert (result.status, result.err) == (1, "")
    assert_quick(result)


ODD_NAMES = [
    b"two\nlines.png",
    b"\x1b[31mred\x1b[0m.png",
    b"\x1b]0;title\x07.png",
    b"back\x08\x08\x08.png",
    b"return\rover.png",
    b"not \xff\xfe UTF-8.png",
    "right\u202eto left.png".encode(),
    "line\u2028separator \x85.png".encode(),
    "ziffer-größe-\N{DIGIT SEVEN}-七.png".encode(),
    b"$\\frac$ {0} %s <b>.png",
    b"-dashes.png",
]


@pytest.mark.parametrize("bytes_of", ["good", "bad"])
def test_odd_names_are_harmless_on_a_terminal_and_exact_in_json(bytes_of, tmp_path, served):
    data = encoded("PNG") if bytes_of == "good" else b"not an image"
    paths = [os.path.join(os.fsencode(tmp_path), name) for name in ODD_NAMES]
    for path in paths:
        with open(path, "wb") as file:
            file.write(data)
    shown = served(tmp_path, *paths)
    assert_plain(shown.out)
    assert len(shown.out.splitlines()) == len(paths)
    assert shown.err == ""
    exact = served(tmp_path, "--json", *paths)
    assert exact.out.isascii() and exact.out.replace("\n", "").isprintable()
    names = [json.loads(line)["image"] for line in exact.out.splitlines()]
    assert [os.fsencode(name) for name in names] == paths
    assert shown.status == exact.status == (bytes_of == "bad")


def test_names_that_the_output_cannot_encode_are_escaped(tmp_path):
    path = tmp_path / "größe 七.png"
    path.write_bytes(encoded("PNG"))
    result = run_predictor(tmp_path, path, environment={"PYTHONIOENCODING": "ascii"})
    assert (result.status, result.err) == (0, "")
    assert result.out.isascii() and re.search("  7 ", result.out)


def test_odd_names_do_not_break_the_picture(tmp_path, capsys):
    paths = [os.path.join(tmp_path, os.fsdecode(name)) for name in ODD_NAMES[-3:]]
    for path in paths:
        with open(path, "wb") as file:
            file.write(encoded("PNG"))
    assert predictor.main(["--plot", str(tmp_path / "plot.png"), *paths]) == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "plot.png").stat().st_size > 10_000


STANDARD_INPUT = {
    "empty": (b"", "the file is empty"),
    "text": (b"7\n", REFUSED),
    "truncated": (b"\x89PNG\r\n\x1a\n\0\0", REFUSED),
}


@pytest.mark.parametrize("name", STANDARD_INPUT)
def test_standard_input(name, tmp_path):
    data, pattern = STANDARD_INPUT[name]
    (tmp_path / "input").write_bytes(data)
    with open(tmp_path / "input", "rb") as file:
        result = run_predictor(tmp_path, "-", stdin=file)
    assert re.fullmatch(f"-  .*({pattern}).*\n", result.out)
    assert (result.status, result.err) == (1, "")


def test_endless_standard_input(tmp_path):
    with open("/dev/zero", "rb") as file:
        result = run_predictor(tmp_path, "-", stdin=file)
    assert re.fullmatch("-  larger than .* MB; reduce it first\n", result.out)
    assert (result.status, result.err) == (1, "")
    assert_quick(result)


@pytest.mark.parametrize("arguments", [["-"], []])
def test_closed_standard_input(arguments, tmp_path):
    result = run_predictor(tmp_path, *arguments, stdin=None, prepare=lambda: os.close(0))
    assert result.status == (1 if arguments else 2)
    text = result.out + result.err
    assert len(text.splitlines()) == 1
    assert_plain(text)


# --- Models -----------------------------------------------------------------


def configured(change):
    """Return a function that changes a model's description with change(config)."""

    def apply(file, folder):
        config = json.loads(file.attrs["model_config"])
        file.attrs["model_config"] = json.dumps(change(config) or config)

    return apply


def described(text):
    """Return a function that replaces a model's description."""

    def apply(file, folder):
        file.attrs["model_config"] = text

    return apply


def layer(kind, **settings):
    """Return a function that changes the settings of the first layer of a kind."""

    def change(config):
        first = next(x for x in config["config"]["layers"] if x["class_name"] == kind)
        first["config"].update(settings)

    return configured(change)


def layers_set(value):
    return configured(lambda config: config["config"].update(layers=value))


def added(*new, at=-1):
    """Return a function that adds layers, (class name, settings), to a model."""

    def change(config):
        found = [{"class_name": kind, "config": dict(settings)} for kind, settings in new]
        config["config"]["layers"][at:at] = found

    return configured(change)


def datasets(file):
    """Return {path: dataset} of a model's weights."""
    found = {}
    file.visititems(
        lambda n, item: found.update({n: item} if isinstance(item, h5py.Dataset) else {})
    )
    return found


def kernel_of(file):
    """Return the path of the largest weights."""
    found = datasets(file)
    return max(found, key=lambda path: found[path].size)


def weights(change):
    """Return a function that replaces the largest weights by change(array)."""

    def apply(file, folder):
        path = kernel_of(file)
        values = change(file[path][()])
        del file[path]
        file[path] = values

    return apply


def filled(value):
    def change(values):
        values[0, 0] = value
        return values

    return weights(change)


def replaced(make):
    """Return a function that puts make(file, path, folder) in the place of the largest weights."""

    def apply(file, folder):
        path = kernel_of(file)
        shape = file[path].shape
        del file[path]
        make(file, path, shape, folder)

    return apply


def outside(folder):
    """Return the path of a pipe: whoever opens it to read hangs, and so cannot go unnoticed."""
    path = folder / "outside"
    os.mkfifo(path)
    return path


def virtual(file, path, shape, folder):
    layout = h5py.VirtualLayout(shape, "f4")
    layout[...] = h5py.VirtualSource(str(outside(folder)), "data", shape)
    file.create_virtual_dataset(path, layout)


def external(file, path, shape, folder):
    place = [(str(outside(folder)), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(path, shape, "f4", external=place)


def with_unknown_filter(file, path, shape, folder):
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(shape)
    settings.set_filter(32_015, h5py.h5z.FLAG_OPTIONAL, (3,))  # Zstandard, not built in
    data = h5py.h5d.create(
        file[os.path.dirname(path)].id,
        os.path.basename(path).encode(),
        h5py.h5t.IEEE_F32LE,
        h5py.h5s.create_simple(shape),
        settings,
    )
    data.write_direct_chunk((0,) * len(shape), b"\0" * 100, 0)


def claimed(shape, kind="f4", **options):
    """Return a function that claims weights of a shape without storing any."""
    return replaced(lambda file, path, _, folder: file.create_dataset(path, shape, kind, **options))


def group_linked_to(make):
    """Return a function that replaces the weights' group by a link."""

    def apply(file, folder):
        del file["model_weights/dense"]
        file["model_weights/dense"] = make(folder)

    return apply


def nested_groups(file, folder):
    group = file["model_weights"]
    for _ in range(3000):
        group = group.create_group("x")


def group_loop(file, folder):
    file["model_weights/dense/loop"] = file["model_weights"]


def another_class(name, settings=()):
    def change(config):
        config["class_name"] = name
        config["config"].update(settings)

    return configured(change)


def executing(folder=None):
    """Return the settings of a Lambda layer that would leave a trace of having been executed."""
    import base64
    import marshal

    code = compile("lambda x: __import__('os').mkdir('executed') or x", "x", "eval").co_consts[0]
    text = base64.b64encode(marshal.dumps(code)).decode()
    function = {
        "class_name": "__lambda__",
        "config": {"code": text, "defaults": None, "closure": None},
    }
    return {"name": "x", "function": function, "arguments": {}}


def wide_convolutions(file, folder):
    """Make few weights ask for 26 GB: one filter a pixel, 65,000 of them."""
    layers = [
        ("Conv2D", {"name": "wide", "kernel_size": [1, 1], "filters": 65_000}),
        ("Conv2D", {"name": "narrow", "kernel_size": [1, 1], "filters": 1}),
    ]
    common = {"strides": [1, 1], "padding": "valid", "data_format": "channels_last"}
    common |= {"dilation_rate": [1, 1], "groups": 1, "activation": "relu"}
    added(*((kind, {**settings, **common}) for kind, settings in layers), at=1)(file, folder)
    for name, shape in (("wide", (1, 1, 1, 65_000)), ("narrow", (1, 1, 65_000, 1))):
        file[f"model_weights/{name}/kernel"] = np.zeros(shape, "f4")
        file[f"model_weights/{name}/bias"] = np.zeros(shape[-1:], "f4")


def shared_layers(file, folder):
    """Let 1,000 layers share the same weights, which would be read as often: 2.5 GB."""
    settings = {"name": "again", "units": 784, "activation": "relu"}
    added(("Flatten", {"name": "f"}), *[("Dense", settings)] * 1000, at=1)(file, folder)
    file["model_weights/again/kernel"] = np.zeros((784, 784), "f4")
    file["model_weights/again/bias"] = np.zeros(784, "f4")


def wide_through_keras(file, folder):
    """Ask for layers of 14 GB in a way that only Keras understands."""
    settings = {"name": "wide", "units": 60_000, "activation": "gelu"}
    added(("Dense", settings), ("Dense", {**settings, "name": "w2"}))(file, folder)


def far_padding(file, folder):
    """Have Keras pad a digit to 30,000 pixels a side, 3.6 GB, for weights that are not there."""
    settings = {"name": "pad", "padding": [[15_000, 15_000], [15_000, 15_000]]}
    added(("ZeroPadding2D", settings), at=1)(file, folder)


def large_input_for_keras(file, folder):
    layer("InputLayer", batch_shape=[None, 30_000, 30_000, 1])(file, folder)
    layer("Conv2D", padding="same")(file, folder)


def vocabulary(file, folder):
    """Name a file to be read by a preprocessing layer that stands for an activation."""
    inner = {"vocabulary": str(outside(folder)), "name": "v"}
    inner = {"module": "keras.layers", "class_name": "StringLookup", "config": inner}
    layer("Dense", activation={**inner, "registered_name": None})(file, folder)


def lambda_as_activation(file, folder):
    inner = {"module": "keras.layers", "class_name": "Lambda", "config": executing()}
    layer("Dense", activation={**inner, "registered_name": None})(file, folder)


def attribute_of(count):
    def apply(file, folder):
        del file.attrs["model_config"]
        kind = h5py.string_dtype("utf-8", count)
        file.attrs.create("model_config", np.array(b"[" * count, kind), dtype=kind)

    return apply


def endless_heap():
    """Return the model with free space of size zero among its texts: HDF5 never gets past it."""
    data = bytearray(MODEL_BYTES)
    at = data.index(b"GCOL") + 16
    while data[at] or data[at + 1]:
        at += 16 + (struct.unpack_from("<Q", data, at + 8)[0] + 7) // 8 * 8
    data[at + 8 : at + 16] = bytes(8)
    return bytes(data)


RAW_MODELS = {  # name: (bytes, or None for no file; the pattern of the answer)
    "missing": (None, "no such file"),
    "empty": (b"", "damaged or not an HDF5 file"),
    "text": (b"print('hello')\n" * 100, "damaged or not an HDF5 file"),
    "pickle": (b"\x80\x04cposix\nmkdir\nX\x08\0\0\0executed\x85R.", "damaged or not an HDF5 file"),
    "signature": (MODEL_BYTES[:8], "damaged or not an HDF5 file"),
    "truncated": (MODEL_BYTES[: len(MODEL_BYTES) // 2], "damaged or not an HDF5 file"),
    "one byte short": (MODEL_BYTES[:-1], "damaged or not an HDF5 file"),
    "endless heap": (endless_heap(), "damaged or not an HDF5 file"),
    "zeros": (bytes(100_000), "damaged or not an HDF5 file"),
    "newer than known": (MODEL_BYTES[:8] + b"\x63" + MODEL_BYTES[9:], "damaged or not an HDF5"),
}
NOT_KERAS = "description is not that of a Keras model|no Keras model"
UNSAFE = "not one that is known to be safe"
MISFIT = "do not fit"
ELSEWHERE = "links to other places|outside the file"
NOT_DIGITS = "ten digits|another shape|do not fit"
ANY = "."
EDITED_MODELS = {  # name: (function of the open file and a folder; the pattern of the answer)
    "no description": (lambda file, _: file.attrs.__delitem__("model_config"), NOT_KERAS),
    "number for a description": (described(5), NOT_KERAS),
    "numbers for a description": (described(np.arange(9)), NOT_KERAS),
    "empty description": (described(""), NOT_KERAS),
    "not JSON": (described("{'class_name': Sequential}"), NOT_KERAS),
    "half JSON": (described('{"class_name": "Sequential", "config'), NOT_KERAS),
    "null": (described("null"), NOT_KERAS),
    "list": (described("[]"), NOT_KERAS),
    "nested lists": (described("[" * 100_000), NOT_KERAS),
    "nested objects": (described('{"config":' * 100_000 + "1" + "}" * 100_000), NOT_KERAS),
    "long description": (attribute_of(20_000), NOT_KERAS),
    "huge description": (described('{"x": "' + "y" * 30_000_000 + '"}'), NOT_KERAS),
    "huge number": (layer("Dense", units=10**4000), "asks for|" + NOT_KERAS),
    "config null": (configured(lambda config: config.update(config=None)), NOT_KERAS),
    "config missing": (configured(lambda config: config.pop("config") and None), NOT_KERAS),
    "layers null": (layers_set(None), NOT_KERAS),
    "layers a number": (layers_set(7), NOT_KERAS),
    "layers an object": (layers_set({"class_name": "Dense"}), NOT_KERAS),
    "layers a string": (layers_set("Dense"), NOT_KERAS),
    "layers empty": (layers_set([]), ANY),
    "layers of numbers": (layers_set([1, 2]), NOT_KERAS),
    "layers of lists": (layers_set([[]]), NOT_KERAS),
    "layer without settings": (layers_set([{"class_name": "Dense"}]), NOT_KERAS),
    "settings of a layer null": (layers_set([{"class_name": "Dense", "config": None}]), NOT_KERAS),
    "class of a layer a list": (layers_set([{"class_name": [], "config": {}}]), NOT_KERAS),
    "many layers": (added(*[("Flatten", {"name": "x"})] * 20_000), ANY),
    "model class null": (another_class(None), ANY),
    "model class unknown": (another_class("Evil"), ANY),
    "model class Lambda": (another_class("Lambda", executing()), ANY),
    "model class wraps Lambda": (
        another_class(
            "TimeDistributed", {"layer": {"class_name": "Lambda", "config": executing()}}
        ),
        ANY,
    ),
    "Lambda layer": (added(("Lambda", executing())), UNSAFE),
    "Lambda as activation": (lambda_as_activation, ANY),
    "vocabulary from a file": (vocabulary, ANY),
    "unknown layer": (added(("Evil", {"name": "x"})), UNSAFE),
    "layer with a terminal's codes": (added(("\x1b[31m\n" * 99, {"name": "x"})), UNSAFE),
    "nested model": (added(("Sequential", {"name": "x", "layers": []})), UNSAFE),
    "saved model layer": (added(("TFSMLayer", {"filepath": "/x"})), UNSAFE),
    "foreign module": (
        configured(lambda c: c["config"]["layers"][1].update(module="os", class_name="Dense")),
        UNSAFE,
    ),
    "registered object": (
        configured(lambda c: c["config"]["layers"][1].update(registered_name="Custom>Dense")),
        UNSAFE,
    ),
    "foreign initializer": (
        layer(
            "Dense", kernel_initializer={"module": "builtins", "class_name": "eval", "config": {}}
        ),
        UNSAFE,
    ),
    "input of another shape": (layer("InputLayer", batch_shape=[None, 32, 32, 1]), NOT_DIGITS),
    "input in colour": (layer("InputLayer", batch_shape=[None, 28, 28, 3]), NOT_DIGITS),
    "input of text": (layer("InputLayer", batch_shape="28x28"), ANY),
    "input null": (layer("InputLayer", batch_shape=None), ANY),
    "no softmax": (
        configured(lambda c: c["config"]["layers"][-1]["config"].update(activation="linear")),
        "probabilities",
    ),
    "output of another shape": (
        configured(lambda c: c["config"]["layers"].pop() and None),
        "probabilities of ten digits",
    ),
    "a billion units": (layer("Dense", units=10**9), "asks for"),
    "many units": (layer("Dense", units=60_000), MISFIT),
    "minus one unit": (layer("Dense", units=-1), ANY),
    "no unit": (layer("Dense", units=0), ANY),
    "units a string": (layer("Dense", units="256"), ANY),
    "units a list": (layer("Dense", units=[256]), ANY),
    "units null": (layer("Dense", units=None), ANY),
    "units infinite": (layer("Dense", units=float("inf")), ANY),
    "units not a number": (layer("Dense", units=float("nan")), ANY),
    "unknown activation": (layer("Dense", activation="evil"), ANY),
    "activation a number": (layer("Dense", activation=3), ANY),
    "activation a list": (layer("Dense", activation=[]), ANY),
    "name null": (layer("Dense", name=None), ANY),
    "name a list": (layer("Dense", name=[]), ANY),
    "same name twice": (layer("Dense", name="conv2d"), ANY),
    "epsilon a string": (layer("BatchNormalization", epsilon="x"), ANY),
    "epsilon not a number": (layer("BatchNormalization", epsilon=float("nan")), ANY),
    "epsilon far below zero": (layer("BatchNormalization", epsilon=-1e9), ANY),
    "kernel size zero": (layer("Conv2D", kernel_size=[0, 0]), ANY),
    "kernel size negative": (layer("Conv2D", kernel_size=[-3, -3]), ANY),
    "kernel size a string": (layer("Conv2D", kernel_size="33"), ANY),
    "kernel size of three": (layer("Conv2D", kernel_size=[3, 3, 3]), ANY),
    "kernel size null": (layer("Conv2D", kernel_size=None), ANY),
    "kernel size of booleans": (layer("Conv2D", kernel_size=[True, False]), ANY),
    "pool size zero": (layer("MaxPooling2D", pool_size=[0, 0], strides=[0, 0]), ANY),
    "pool size negative": (layer("MaxPooling2D", pool_size=[-2, -2], strides=[-2, -2]), ANY),
    "pool size of fractions": (layer("MaxPooling2D", pool_size=[2.5, 2], strides=[2.5, 2]), ANY),
    "pool size a string": (layer("MaxPooling2D", pool_size="22", strides="22"), ANY),
    "pool size of one": (layer("MaxPooling2D", pool_size=[2], strides=[2]), ANY),
    "pool size null": (layer("MaxPooling2D", pool_size=None, strides=None), ANY),
    "pool size beyond the image": (
        layer("MaxPooling2D", pool_size=[99, 99], strides=[99, 99]),
        ANY,
    ),
    "unknown padding": (layer("Conv2D", padding="evil"), ANY),
    "not a number among weights": (filled(np.nan), "not finite"),
    "infinite weight": (filled(np.inf), "not finite"),
    "weights turned": (weights(lambda values: values.T.copy()), MISFIT),
    "weights of text": (weights(lambda values: np.full(values.shape, b"x")), ANY),
    "weights of fewer": (weights(lambda values: values[:-1]), MISFIT),
    "weights missing": (replaced(lambda *_: None), MISFIT),
    "weights of a layer missing": (lambda file, _: file.__delitem__("model_weights/dense"), MISFIT),
    "all weights missing": (lambda file, _: file.__delitem__("model_weights"), MISFIT),
    "10^12 weights": (claimed((10**6, 10**6)), "larger than any"),
    "10^18 weights": (claimed((10**9, 10**9), chunks=(1000, 1000)), "larger than any"),
    "10^12 packed weights": (
        claimed((10**6, 10**6), chunks=(1000, 1000), compression="gzip"),
        "larger than any",
    ),
    "weights of unlimited size": (claimed((0, 256), maxshape=(None, 256)), MISFIT),
    "unknown filter": (replaced(with_unknown_filter), ANY),
    "external link": (
        group_linked_to(lambda folder: h5py.ExternalLink(str(outside(folder)), "/")),
        ELSEWHERE,
    ),
    "external link to itself": (
        group_linked_to(lambda folder: h5py.ExternalLink("model.h5", "/model_weights")),
        ELSEWHERE,
    ),
    "soft link": (group_linked_to(lambda _: h5py.SoftLink("/model_weights/dense_1")), ELSEWHERE),
    "soft link nowhere": (group_linked_to(lambda _: h5py.SoftLink("/nowhere")), ELSEWHERE),
    "virtual weights": (replaced(virtual), ELSEWHERE),
    "externally stored weights": (replaced(external), ELSEWHERE),
    "nested groups": (nested_groups, ANY),
    "loop of groups": (group_loop, ANY),
    "wide convolutions": (wide_convolutions, ANY),
    "1,000 layers that share weights": (shared_layers, ANY),
    "wide layers for Keras": (wide_through_keras, ANY),
    "far padding for Keras": (far_padding, "larger than a digit"),
    "large input for Keras": (large_input_for_keras, "another shape"),
}


def model_file(name, folder):
    """Write the model of that name to folder and return its path."""
    path = folder / "model.h5"
    if name in RAW_MODELS:
        data, pattern = RAW_MODELS[name]
        if data is not None:
            path.write_bytes(data)
        return path, pattern
    path.write_bytes(MODEL_BYTES)
    make, pattern = EDITED_MODELS[name]
    with h5py.File(path, "r+") as file:
        make(file, folder)
    return path, pattern


def assert_refused(result, path, pattern):
    """Assert that a model was refused with status 2 and one line."""
    assert (result.status, result.out) == (2, "")
    assert_plain(result.err)
    start, reason = result.err.split(f"{path}: ")
    assert start == f"{Path(predictor.__file__).name}: "
    assert re.search(pattern, reason) and reason.count("\n") == 1 and len(reason) < 150
    assert_quick(result)


@pytest.fixture(scope="module")
def served():
    with predictor_server() as run:
        yield run


@pytest.mark.parametrize("name", [*RAW_MODELS, *EDITED_MODELS])
def test_bad_models_are_refused_in_one_line(name, tmp_path, served):
    """Status 2 and one line, soon; nothing in the file is executed and no other file opened."""
    path, pattern = model_file(name, tmp_path)
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    result = served(tmp_path, "--model", path, tmp_path / "good.png")
    path.unlink(missing_ok=True)
    assert_refused(result, path, pattern)
    assert not list(tmp_path.rglob("executed"))


@pytest.mark.parametrize("name", ["missing", "empty", "truncated", "Lambda layer", "external link"])
def test_bad_models_in_a_process_of_their_own(name, tmp_path):
    path, pattern = model_file(name, tmp_path)
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    assert_refused(run_predictor(tmp_path, "--model", path, tmp_path / "good.png"), path, pattern)


@pytest.mark.parametrize("name", ["folder", "pipe", "/dev/zero", "\x1b[31m\n.h5", "\udcff.h5"])
def test_models_at_odd_paths(name, tmp_path, served):
    path = os.path.join(tmp_path, name)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    result = served(tmp_path, "--model", path, tmp_path / "good.png")
    assert (result.status, result.out) == (2, "")
    assert_plain(result.err)
    assert result.err.count("\n") == 1
    assert_quick(result)


def test_models_at_odd_paths_that_are_good(tmp_path, served):
    path = os.path.join(os.fsencode(tmp_path), b"\xff\n7.h5")
    with open(path, "wb") as file:
        file.write(MODEL_BYTES)
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    result = served(tmp_path, "--model", path, tmp_path / "good.png")
    assert (result.status, result.err) == (0, "")


def test_memory_is_bounded_while_keras_loads_a_model():
    code = """
import numpy as np
from resource import RLIMIT_DATA, getrlimit
import loaded_mnist_model_digit_predictor as predictor
before = getrlimit(RLIMIT_DATA)
with predictor.bounded_memory():
    try:
        np.ones(predictor.MAX_KERAS_MEMORY, np.uint8)
    except MemoryError:
        print("refused")
assert getrlimit(RLIMIT_DATA) == before
"""
    folder = Path(predictor.__file__).parent
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE)
    assert (result.returncode, result.stdout) == (0, b"refused\n")


# --- Any image --------------------------------------------------------------


def assert_read(rgb, scale=1.0):
    """Assert that pixels give digits made as they should be, or an ImageError."""
    height, width = rgb.shape[:2]
    try:
        lines = predictor.read_digits(rgb, network(), scale)
    except predictor.ImageError as error:
        assert str(error)
        return
    assert lines and all(lines)
    for found in (found for line in lines for found in line):
        assert found.glyph.dtype == np.float32 and found.glyph.shape == (28, 28)
        assert found.glyph.min() >= 0 and found.glyph.max() <= 1
        assert found.probabilities.shape == (10,)
        assert found.probabilities.sum() == pytest.approx(1, abs=1e-4)
        left, top, right, bottom = found.box
        assert 0 <= left <= right <= round(scale * width) + 1
        assert 0 <= top <= bottom <= round(scale * height) + 1
    json.loads(predictor.as_json("x", lines, None, 3))


SHAPES = st.one_of(
    st.tuples(st.integers(1, 80), st.integers(1, 80)),
    st.tuples(st.integers(1, 3), st.integers(81, 1600)),
    st.tuples(st.integers(81, 1600), st.integers(1, 3)),
)
PATTERNS = {
    "noise": lambda dice, shape: dice.integers(0, 256, shape),
    "faint": lambda dice, shape: dice.integers(0, 2, shape) + 128,
    "flat": lambda dice, shape: np.full(shape, dice.integers(256)),
    "rare": lambda dice, shape: 255 * (dice.random(shape) > 0.02),
    "stripes": lambda dice, shape: np.full(shape, 255) * (np.arange(shape[1])[:, None] // 3 % 2),
    "ramp": lambda dice, shape: np.broadcast_to(np.linspace(0, 255, shape[1])[:, None], shape),
    "blots": lambda dice, shape: 255 * (np.sin(np.arange(shape[0])[:, None, None] / 5)
                                        + np.sin(np.arange(shape[1])[None, :, None] / 4)
                                        + np.zeros(shape) > 0.8),
}  # fmt: skip


def pattern(kind, shape, seed):
    return PATTERNS[kind](np.random.default_rng(seed), (*shape, 3)).astype(np.uint8)


@settings(max_examples=20, **QUICK)
@given(st.sampled_from(sorted(PATTERNS)), SHAPES, st.integers(0, 2**32))
@example("flat", (1, 1), 0)
@example("noise", (1, 1600), 0)
@example("noise", (1600, 1), 0)
def test_any_pixels_give_digits_or_the_error(kind, shape, seed):
    assert_read(pattern(kind, shape, seed))


@settings(max_examples=8, **QUICK)
@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3))))
def test_any_few_pixels_give_digits_or_the_error(rgb):
    assert_read(rgb)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]


@settings(max_examples=30, **QUICK)
@given(st.sampled_from(MODES), st.sampled_from(sorted(PATTERNS)), SHAPES, st.integers(0, 2**32))
def test_any_mode_gives_pixels_or_the_error(mode, kind, shape, seed):
    pixels = pattern(kind, shape, seed)
    if mode in ("I;16", "I", "F"):
        image = Image.fromarray(pixels[..., 0].astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode]))
    elif mode == "LAB":
        image = Image.frombytes("LAB", shape[::-1], pixels.tobytes())
    elif mode == "LA":
        image = Image.fromarray(np.ascontiguousarray(pixels[..., :2]), "LA")
    elif mode == "RGBA":
        image = Image.fromarray(np.dstack([pixels, pixels[..., :1]]))
    else:
        image = Image.fromarray(pixels).convert(mode)
    try:
        rgb, scale = predictor.decode(encoded("TIFF", image))
    except predictor.ImageError as error:
        pytest.fail(f"a sound image of mode {mode} is refused: {error}")
    assert (rgb.shape, rgb.dtype, scale) == ((*shape, 3), np.uint8, 1.0)


def mutated(data, dice):
    """Return data with a few bits, bytes or numbers changed, or a part missing, moved or twice."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4])):
        kind, at = dice.randrange(6), dice.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[at] = dice.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            at = dice.randrange(min(len(data), 128))
            number = dice.choice([0, 1, 0x7FFF, 0xFFFF, 30_000, 0x7FFFFFFF, 0xFFFFFFFF])
            data[at : at + 4] = struct.pack(dice.choice("<>") + "I", number)
        elif kind == 3:
            del data[at : at + dice.choice([1, 4, 100])]
        elif kind == 4:
            other = dice.randrange(len(data))
            data[at:at] = data[other : other + 50]
        elif kind == 5:
            data = data[: max(at, 4)]
    return bytes(data)


def assert_decoded(data):
    try:
        rgb, scale = predictor.decode(data)
    except predictor.ImageError as error:
        assert_plain(str(error))
    else:
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
        assert max(rgb.shape) <= predictor.WORK_SIDE and scale > 0
        assert_read(rgb, scale)


@settings(max_examples=60, **QUICK)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0",
       b"GIF89a", b"BM", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"RIFF\xff\0\0\0WEBPVP8 ",
       b"\0\0\0\x1cftypavif", b"\0\0\0\x18ftypheic"]))  # fmt: skip
def test_any_bytes_give_pixels_or_the_error(data, signature):
    assert_decoded(signature + data)


@pytest.mark.parametrize("name", ["png", "png-16", "png-palette", "png-alpha", "apng", "jpeg",
    "jpeg-progressive", "bmp", "gif", "webp", "webp-animated", "tiff", "tiff-lzw", "tiff-fax",
    "tiff-float", "avif", "heic"])  # fmt: skip
def test_mutated_images_give_pixels_or_the_error(name, capfd):
    """A sample of what a fuzzer has tried; nothing reaches standard error either."""
    for seed in range(6):
        assert_decoded(mutated(seeds()[name], random.Random(f"{name}-{seed}")))
    assert capfd.readouterr().err == ""


def test_mutated_models_give_a_network_or_the_error(tmp_path):
    """A sample of what a fuzzer has tried, in a process of its own: HDF5 is written in C."""
    mutants = tmp_path / "mutants"
    mutants.mkdir()
    with h5py.File(predictor.MODEL) as file:
        stored = np.ones(len(MODEL_BYTES), bool)
        for item in datasets(file).values():
            start = item.id.get_offset()
            stored[start : start + item.id.get_storage_size()] = False
    structure = np.flatnonzero(stored)
    for seed in range(100):
        dice, data = random.Random(seed), bytearray(MODEL_BYTES)
        for _ in range(dice.choice([1, 2, 8])):
            at = structure[dice.randrange(len(structure))]
            data[at] = dice.choice([data[at] ^ 1 << dice.randrange(8), 0, 255])
        if seed % 10 == 0:
            del data[dice.randrange(len(data)) :]
        (mutants / f"{seed}.h5").write_bytes(data)
    program = textwrap.dedent("""
        import os, sys
        import loaded_mnist_model_digit_predictor as predictor
        import numpy as np

        def through_keras(path):
            raise predictor.ModelError("not tried here, since it takes seconds")

        predictor.load_through_keras = through_keras
        for name in os.listdir(sys.argv[1]):
            try:
                network = predictor.load_network(os.path.join(sys.argv[1], name))
                answer = network(np.zeros((1, 28, 28), np.float32))
                assert answer.shape == (1, 10) and np.isfinite(answer).all()
                print("network")
            except predictor.ModelError:
                print("error")
    """)
    result = subprocess.run(
        [sys.executable, "-c", program, mutants],
        capture_output=True,
        text=True,
        timeout=HANG,
        cwd=Path(predictor.__file__).parent,
    )
    assert (result.returncode, result.stderr) == (0, "")
    found = result.stdout.split()
    assert len(found) == 100 and {"network", "error"} == set(found)
