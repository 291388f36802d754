"""Whatever is fed to the predictor, it answers in plain lines, soon and in little memory."""

import contextlib
import ctypes
import functools
import itertools
import json
import os
import random
import re
import signal
import socket
import struct

import h5py
import numpy as np
import odd_models
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from odd_images import FOREIGN, HEAVY, REFUSED, encoded, seeds, small_images
from odd_models import MODEL_BYTES, RAW_MODELS, write_model
from PIL import Image
from runs import run_predictor
from scenes import network

import loaded_mnist_model_digit_predictor as predictor

SECONDS, MEGABYTES = 2.0, 400  # what one answer may take, of processor time and memory


def assert_plain(text):
    """Assert that a terminal takes no harm from a line, and a person no fright."""
    assert "Traceback" not in text and "Error" not in text and "Warning" not in text, text
    assert text.isprintable(), repr(text)


def assert_quick(result, seconds=SECONDS):
    assert result.seconds < seconds, f"took {result.seconds:.1f} s of processor time"
    assert result.megabytes < MEGABYTES, f"took {result.megabytes:.0f} MB"


def assert_answers(result, patterns):
    """Assert that a call told of each image, in one plain line, what its pattern says."""
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [answer["image"] for answer in found] == list(patterns)
    assert (result.status, result.err) == (1, "")
    for answer, pattern in zip(found, patterns.values(), strict=True):
        assert ("error" in answer) != ("digits" in answer)
        error = answer.get("error", "")
        assert_plain(error)
        assert len(error) < 80
        assert pattern is None or re.search(pattern, error or answer["text"]), answer


# --- Images, and the sandbox they are decoded in ----------------------------


def test_all_small_images_of_a_call_are_answered(tmp_path):
    """One line each, whatever came before, nothing else, and in the time and memory of so many."""
    cases = {**small_images(), **{name: (make(), REFUSED) for name, make in FOREIGN.items()}}
    cases["good.png"] = (encoded("PNG"), "7")  # the last
    for name, (data, _) in cases.items():
        (tmp_path / name).write_bytes(data)
    result = run_predictor("--json", *cases, cwd=tmp_path)
    assert_answers(result, {name: pattern for name, (_, pattern) in cases.items()})
    assert_quick(result, SECONDS + 0.25 * len(cases))


@pytest.mark.parametrize("name", FOREIGN)
def test_no_other_parser_is_reached(name, monkeypatch):
    """Pillow's plugins for other formats are never asked, nor is what only looks like HEIC."""
    Image.init()
    reached = []
    for kind in set(Image.OPEN) - set(predictor.FORMATS):
        spy = functools.partial(lambda kind, *_: reached.append(kind), kind)
        monkeypatch.setitem(Image.OPEN, kind, (spy, Image.OPEN[kind][1]))
    with pytest.raises(predictor.ImageError, match=REFUSED):
        predictor.decode_here(FOREIGN[name]())
    assert reached == []


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_images_take_little_time_and_memory(name, heavy):
    result = heavy[name]
    first, last = map(json.loads, result.out.splitlines())
    assert first["image"].endswith(name) and last["text"] == "7"
    assert result.err == "" and result.status in (0, 1)
    assert_quick(result)


def length_of_zeros(size):
    return len(bytearray(size))


@pytest.mark.parametrize(
    "error, function, arguments",
    [
        (TimeoutError, re.match, ("(a+)+$", "a" * 50 + "b")),  # goes on in C for ever
        (ChildProcessError, signal.raise_signal, (signal.SIGKILL,)),
        (MemoryError, length_of_zeros, (2 * predictor.MAX_MEMORY,)),
        (ValueError, int, ("seven",)),
    ],
)
def test_sandbox_ends_what_goes_wrong_and_goes_on(error, function, arguments):
    sandbox, half = predictor.Sandbox(predictor.MAX_MEMORY, 1.0), predictor.MAX_MEMORY // 2
    with pytest.raises(error):
        sandbox.call(function, *arguments)
    assert sandbox.call(length_of_zeros, half) == half
    child = sandbox.pid
    sandbox.end()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


# --- Paths ------------------------------------------------------------------


def without_privileges():
    """Make root obey the permissions of files in the program about to start (Linux)."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # overriding the permissions to write, to read and search
        libc.prctl(24, capability, 0, 0, 0)


def test_odd_paths_are_each_answered(tmp_path):
    """All that is in a file system but no image."""
    (tmp_path / "file.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(tmp_path):
        server.bind("socket.png")  # the names of sockets are short
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "empty folder").mkdir()
    locked, secret = tmp_path / "locked folder", tmp_path / "secret.png"
    locked.mkdir()
    for path in (locked / "7.png", secret, tmp_path / "good.png"):
        path.write_bytes(encoded("PNG"))
    for path in (locked, secret):
        path.chmod(0)
    paths = {  # and the pattern of the answer
        "missing.png": "no such file",
        "": "no such file",
        "long" * 100: "cannot be opened .File name too long",
        "file.png/below.png": "cannot be opened .Not a directory",
        "/dev/null": "not a file",
        "/dev/zero": "not a file",
        "/proc/self/mem": "cannot be opened|the file is empty",
        "pipe.png": "not a file",
        "socket.png": "not a file",
        "loop.png": "cannot be opened .Too many levels",
        "empty folder": "no image in this folder",
        "locked folder": "cannot be opened .Permission denied",
        "secret.png": "cannot be opened .Permission denied",
        "good.png": "7",
    }
    result = run_predictor("--json", *paths, cwd=tmp_path, prepare=without_privileges)
    locked.chmod(0o700)
    assert_answers(result, paths)
    assert_quick(result)


ODD_NAMES = [  # twice as many are as many as there are in one plot
    b"two\nlines.png",
    b"\x1b[31mred\x1b[0m.png",
    b"\x1b]0;title\x07.png",
    b"return\rover.png",
    b"not \xff\xfe UTF-8.png",
    "right\u202eto left.png".encode(),
    "line\u2028separator \x85.png".encode(),
    "ziffer-größe-\N{DIGIT SEVEN}-七.png".encode(),
    b"$\\frac$ {0} %s <b>.png",
    b"-dashes.png",
]


def test_odd_names_are_harmless_on_a_terminal_exact_in_json_and_drawn(tmp_path):
    paths = []
    for folder, data in (("good", encoded("PNG")), ("bad", b"not an image")):
        (tmp_path / folder).mkdir()
        for name in ODD_NAMES:
            paths.append(tmp_path / folder / os.fsdecode(name))
            paths[-1].write_bytes(data)
    plot = tmp_path / "plot.png"
    shown = run_predictor("--plot", plot, *paths, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    lines = shown.out.splitlines()
    assert len(lines) == len(paths) and shown.out.isascii()
    assert ["not an image" in line for line in lines] == ["/bad/" in str(path) for path in paths]
    for line in lines:
        assert_plain(line)
    assert plot.stat().st_size > 10_000
    model = tmp_path / "\udcff\n7.h5"  # the byte 255, a line's end
    model.write_bytes(MODEL_BYTES)
    exact = run_predictor("--json", "--model", model, *paths)
    assert exact.out.isascii() and exact.out.replace("\n", "").isprintable()
    names = [json.loads(line)["image"] for line in exact.out.splitlines()]
    assert names == [str(path) for path in paths]
    assert (shown.status, shown.err) == (exact.status, exact.err) == (1, "")


@pytest.mark.parametrize(
    "source, arguments, status, said",
    [
        ("/dev/null", ["-"], 1, "-  the file is empty"),
        ("/dev/zero", ["-"], 1, "-  larger than .* MB; reduce it first"),
        (None, ["-"], 1, "-  the file is empty"),  # closed
        (None, [], 2, "loaded_mnist_model_digit_predictor.py: .*"),
    ],
)
def test_odd_standard_input_is_told_in_one_line(source, arguments, status, said):
    with open(source or os.devnull, "rb") as file:
        prepare = None if source else lambda: os.close(0)
        result = run_predictor(*arguments, stdin=file, prepare=prepare)
    text = result.out + result.err
    assert re.fullmatch(said + "\n", text)
    assert_plain(text.rstrip("\n"))
    assert result.status == status and (result.err == "") == (status == 1)
    assert_quick(result)


# --- Models -----------------------------------------------------------------


@pytest.mark.parametrize("name", [*RAW_MODELS, *odd_models.EDITED_MODELS])
def test_bad_models_are_refused(name, tmp_path, monkeypatch):
    """Nothing in the file is executed and no other file opened: that would hang."""
    _, pattern = odd_models.ODD_MODELS[name]
    path = write_model(name, tmp_path)
    monkeypatch.setattr(predictor, "keras_sandbox", None)
    with pytest.raises(predictor.ModelError, match=pattern) as refused:
        predictor.load_network(str(path))
    assert_plain(str(refused.value))
    assert len(str(refused.value)) < 120
    assert not list(tmp_path.rglob("executed")) and not os.path.exists("executed")


def test_keras_refuses_bad_models_and_gives_the_probabilities_of_a_good_one(keras_models):
    assert keras_models.pop("good") <= 1e-5
    refusal = "Keras cannot load it; train it again"
    assert keras_models == dict.fromkeys(odd_models.KERAS_MODELS, refusal)


def assert_network_or_error(path):
    """Assert that a model gives probabilities or a ModelError; return which."""
    try:
        answer = predictor.load_network(str(path))(np.zeros((1, 28, 28), np.float32))
    except predictor.ModelError as error:
        assert_plain(str(error))
        return "error"
    assert np.isfinite(answer).all() and answer.shape[1] == 10
    return "network"


@pytest.fixture
def without_keras(monkeypatch):
    """Let whatever is left to Keras, which takes seconds, give the same probabilities."""
    monkeypatch.setattr(predictor.keras_sandbox, "call", lambda *call: call[2][:, 0, :10] * 0 + 0.1)


def test_any_value_anywhere_in_the_description(tmp_path, without_keras):
    dice, found = random.Random(0), []
    for value in odd_models.ODD_VALUES * 15:
        path = write_model(odd_models.with_odd_value(dice.randrange(10_000), value), tmp_path)
        found.append(assert_network_or_error(path))
    assert 30 < found.count("error") < len(found)


@pytest.mark.parametrize(
    "name", ["missing", "folder", "pipe", "\x1b[31m\n\udcff.h5", "truncated", "endless heap"]
)
def test_bad_models_are_refused_in_one_line(name, tmp_path):
    path = write_model(name, tmp_path) if name in RAW_MODELS else tmp_path / name
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    result = run_predictor("--model", path, "7.png")
    assert (result.status, result.out) == (2, "")
    start, reason = result.err.split(f"{predictor.printable(str(path))}: ")
    assert start == "loaded_mnist_model_digit_predictor.py: "
    assert reason.endswith("\n") and len(reason) < 120
    assert_plain(result.err.rstrip("\n"))
    assert_quick(result)


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
    for found in itertools.chain(*lines):
        assert found.glyph.dtype == np.float32 and found.glyph.shape == (28, 28)
        assert found.glyph.min() >= 0 and found.glyph.max() <= 1
        assert found.probabilities.shape == (10,)
        assert found.probabilities.sum() == pytest.approx(1, abs=1e-4)
        left, top, right, bottom = found.box
        assert 0 <= left <= right <= round(scale * width) + 1
        assert 0 <= top <= bottom <= round(scale * height) + 1
    json.loads(predictor.as_json(predictor.Answer("x", lines), 3))


SIDES, THIN, LONG = st.integers(1, 80), st.integers(1, 3), st.integers(81, 1600)
SHAPES = st.one_of(st.tuples(SIDES, SIDES), st.tuples(THIN, LONG), st.tuples(LONG, THIN))
PATTERNS = {
    "noise": lambda dice, shape: dice.integers(0, 256, shape),
    "flat": lambda dice, shape: np.full(shape, dice.integers(256)),
    "rare": lambda dice, shape: 255 * (dice.random(shape) > 0.02),
    "stripes": lambda dice, shape: np.full(shape, 255) * (np.arange(shape[1])[:, None] // 3 % 2),
    "blots": lambda dice, shape: 255 * (np.sin(np.arange(shape[0])[:, None, None] / 5)
                                        + np.sin(np.arange(shape[1])[None, :, None] / 4)
                                        + np.zeros(shape) > 0.8),
}  # fmt: skip


@settings(max_examples=20, deadline=None, database=None, derandomize=True)
@given(st.sampled_from(sorted(PATTERNS)), SHAPES, st.integers(0, 2**32))
@example("flat", (1, 1), 0)
@example("noise", (1, 1600), 0)
@example("noise", (1600, 1), 0)
def test_any_pixels_give_digits_or_the_error(kind, shape, seed):
    pixels = PATTERNS[kind](np.random.default_rng(seed), (*shape, 3))
    assert_read(pixels.astype(np.uint8))


def mutated(data, dice):
    """Return data with a few bits, bytes or numbers changed, or a part missing, moved or twice."""
    data = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4])):
        at, other = dice.randrange(len(data)), dice.randrange(len(data))
        number = dice.choice([0, 1, 0x7FFF, 0xFFFF, 30_000, 0x7FFFFFFF, 0xFFFFFFFF])
        changes = [
            (at, at + 1, bytes([data[at] ^ 1 << dice.randrange(8)])),
            (at, at + 1, bytes([dice.choice([0, 1, 127, 128, 255])])),
            (at % 128, at % 128 + 4, struct.pack(dice.choice("<>") + "I", number)),
            (at, at + dice.choice([1, 4, 100]), b""),
            (at, at, data[other : other + 50]),
            (max(at, 4), len(data), b""),
        ]
        start, end, new = dice.choice(changes)
        data[start:end] = new
    return bytes(data)


def test_mutated_images_give_pixels_or_the_error(capfd):
    """A sample of what a fuzzer has tried; nothing reaches standard error either."""
    for (name, data), seed in itertools.product(seeds().items(), range(6)):
        try:
            rgb, scale = predictor.decode(mutated(data, random.Random(f"{name}-{seed}")))
        except predictor.ImageError as error:
            assert_plain(str(error))
        else:
            assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
            assert max(rgb.shape) <= predictor.WORK_SIDE and scale > 0
            assert_read(rgb, scale)
        assert capfd.readouterr().err == "", name


def mutated_model(seed):
    """Return the model with a few bytes changed, none of them a weight, or a part missing."""
    with h5py.File(predictor.MODEL) as file:
        stored = np.ones(len(MODEL_BYTES), bool)
        for item in odd_models.datasets(file).values():
            start = item.id.get_offset()
            stored[start : start + item.id.get_storage_size()] = False
    structure = np.flatnonzero(stored)
    dice, data = random.Random(seed), bytearray(MODEL_BYTES)
    for _ in range(dice.choice([1, 2, 8])):
        at = structure[dice.randrange(len(structure))]
        data[at] = dice.choice([data[at] ^ 1 << dice.randrange(8), 0, 255])
    if seed % 10 == 0:
        del data[dice.randrange(len(data)) :]
    return bytes(data)


def test_mutated_models_give_a_network_or_the_error(tmp_path, without_keras):
    """A sample of what a fuzzer has tried."""
    path, found = tmp_path / "model.h5", set()
    for seed in range(100):
        path.write_bytes(mutated_model(seed))
        found.add(assert_network_or_error(path))
    assert found == {"network", "error"}
