"""Tests of loaded_mnist_model_digit_predictor.py: files, the network, and the command line."""

import contextlib
import functools
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
import pillow_heif
import pytest
from odd_images import clear_digit, picture_of
from PIL import Image
from runs import PIPE, PREDICTOR, SCRIPT, imported, run_predictor, run_script, start
from scenes import WHITE, as_file, drawn, inked, lines_in, mnist, network, placed, text_in

import loaded_mnist_model_digit_predictor as predictor

start_predictor = functools.partial(start, sys.executable, PREDICTOR)

# --- Files --------------------------------------------------------------------

TO_STORED = {  # EXIF orientation: how a picture is stored that shall be shown upright
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def turned_file(upright, orientation, kind="PNG"):
    """Return a file whose pixels lie as a turned camera stores them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return as_file(TO_STORED[orientation](upright), kind, exif=exif)


@pytest.mark.parametrize("orientation", TO_STORED)
def test_pictures_are_turned_upright(orientation):
    upright = picture_of(7)
    for kind in ("PNG", "TIFF"):
        pixels, scale = predictor.decode(turned_file(upright, orientation, kind))
        assert scale == 1 and np.array_equal(pixels, upright)


@pytest.mark.parametrize("size", [(300, 240), (1000, 4000), (2400, 1800)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_boxes_are_in_pixels_of_the_upright_original(size, orientation):
    ink = drawn(clear_digit(3), 0.3 * min(size))
    left, top = round(0.6 * size[0]), round(0.2 * size[1])
    upright = inked(WHITE, placed(ink, size, (left, top))).astype(np.uint8)
    [[digit]] = lines_in(turned_file(upright, orientation, "JPEG"))
    rows, columns = (np.flatnonzero((upright < 128).any(axis=axis)) for axis in ((1, 2), (0, 2)))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert digit.digit == 3
    assert np.abs(np.subtract(digit.box, box)).max() <= 3 + 0.005 * max(size)


def see_through(image, mode):
    """Return dark ink on nothing in a mode that knows transparency."""
    image = image.copy()
    image.putalpha(image.convert("L").point(lambda level: 255 - level))
    return image.convert(mode)


def palette_with_transparency(image):
    image = image.convert("L").point(lambda level: 255 * (level > 128)).convert("P")
    image.info["transparency"] = image.getpixel((0, 0))
    return image


CONVERTED = ("L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
MODES = {
    **{mode: functools.partial(Image.Image.convert, mode=mode) for mode in CONVERTED},
    "1": lambda image: image.convert("1", dither=Image.Dither.NONE),
    "LA": lambda image: see_through(image, "LA"),
    "P with transparency": palette_with_transparency,
    "PA": lambda image: see_through(image, "LA").convert("PA"),
    "RGBA": lambda image: see_through(image, "RGBA"),
    "LAB": lambda image: Image.merge("LAB", [image, *[Image.new("L", image.size, 128)] * 2]),
    "I;16": lambda image: Image.fromarray(np.asarray(image, np.uint16) * np.uint16(257)),
    "I": lambda image: Image.fromarray(np.asarray(image, np.int32) * 100),
    "F": lambda image: Image.fromarray(np.asarray(image, np.float32) / 1000),
}
TIFF_MODES = ("RGBX", "CMYK", "YCbCr", "LAB", "I", "F")  # what PNG has no room for


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_reads_the_same(mode):
    for label in range(10):
        image = MODES[mode](Image.fromarray(picture_of(label)).convert("L"))
        assert image.mode == mode.split()[0]
        if mode == "PA":  # no format here stores it
            picture, _ = predictor.reduce_upright(image)
        else:
            picture = as_file(image, "TIFF" if mode in TIFF_MODES else "PNG")
        assert text_in(picture) == str(label)


@pytest.mark.parametrize("kind", predictor.FORMATS)
def test_every_format_reads_the_same(kind, tmp_path):
    pillow_heif.register_heif_opener()
    for label in (2, 5, 7):
        path = tmp_path / f"{label}{predictor.FORMATS[kind].split()[-1]}"
        path.write_bytes(as_file(picture_of(label), kind))
        [[digit]], [[same]] = lines_in(path.read_bytes()), lines_in(picture_of(label))
        assert digit.digit == same.digit == label
        assert np.abs(np.subtract(digit.box, same.box)).max() <= 2
        assert digit.confidence == pytest.approx(same.confidence, abs=0.05)
    read = [predictor.predict_file(name, network()) for name in predictor.expand([str(tmp_path)])]
    assert [answer.lines[0][0].digit for answer in read] == [2, 5, 7]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_as_large_as_phones_take_them_are_read(kind, tmp_path):
    picture = Image.fromarray(picture_of(7)).resize((9280, 6920), Image.Resampling.NEAREST)
    (tmp_path / "large").write_bytes(as_file(picture, kind, compress_level=1))  # PNG's
    result = run_predictor(tmp_path / "large")
    assert result.out.split()[1:2] == ["7"]
    assert result.megabytes < 400


# --- The network ---------------------------------------------------------------


def test_numpy_gives_the_probabilities_of_keras(keras):
    glyphs, labels = mnist()[0][::10] / np.float32(255), mnist()[1][::10]
    model = keras.models.load_model(predictor.MODEL, compile=False)
    expected = model.predict(glyphs[..., None], verbose=0, batch_size=250)
    assert np.abs(network()(glyphs) - expected).max() <= 1e-5
    assert (expected.argmax(axis=1) == labels).mean() > 0.98  # they are digits, seen as digits


OTHER_LAYERS = {
    "plain": lambda layers: [
        layers.Conv2D(3, (3, 5), activation="relu"),
        layers.MaxPooling2D((2, 3)),
        layers.BatchNormalization(),
        layers.Dropout(0.5),
    ],
    "not scaled": lambda layers: [layers.BatchNormalization(scale=False, center=False)],
    "no bias": lambda layers: [layers.Conv2D(3, 3, use_bias=False)],
    "padded": lambda layers: [layers.Conv2D(3, 3, padding="same")],
    "strided": lambda layers: [layers.Conv2D(3, 3, strides=2)],
    "averaged": lambda layers: [layers.Conv2D(8, 3), layers.GlobalAveragePooling2D()],
    "sigmoid": lambda layers: [layers.Flatten(), layers.Dense(9, activation="sigmoid")],
}


@pytest.mark.parametrize("kind", OTHER_LAYERS)
def test_other_models_give_the_probabilities_of_keras(keras, kind, tmp_path, monkeypatch):
    """NumPy's where it can; through Keras here, since TensorFlow does not bear a fork."""
    path, through_keras, layers = str(tmp_path / "model.h5"), [], keras.layers
    ending = [layers.Flatten(), layers.Dense(10, activation="softmax")]
    model = keras.Sequential([keras.Input((28, 28, 1)), *OTHER_LAYERS[kind](layers), *ending])
    random = np.random.default_rng(0)
    for weight in model.weights:
        lowest = 0.1 if "variance" in weight.path else -0.2
        weight.assign(random.uniform(lowest, 0.2, weight.shape))
    model.save(path)

    def call(function, *arguments):
        through_keras.append(function)
        return function(*arguments)

    monkeypatch.setattr(predictor.keras_sandbox, "call", call)
    glyphs = mnist()[0][::100] / np.float32(255)
    probabilities = predictor.load_network(path)(glyphs)
    assert np.abs(probabilities - model.predict(glyphs[..., None], verbose=0)).max() <= 1e-5
    assert bool(through_keras) == (kind not in ("plain", "no bias"))
    assert np.ptp(probabilities, axis=0).max() > 1e-3  # the digits made a difference


# --- The command line -----------------------------------------------------------


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """A folder of pictures: two digits, an empty one, and one in a folder with what is none."""
    folder = tmp_path_factory.mktemp("album")
    (folder / "scans").mkdir()
    for name, label in (("7.png", 7), ("scans/scan10.png", 1), ("scans/scan2.JPG", 4)):
        kind = "JPEG" if name.endswith("JPG") else "PNG"
        (folder / name).write_bytes(as_file(picture_of(label), kind))
    (folder / "blank.png").write_bytes(as_file(np.full((60, 60, 3), 255, np.uint8)))
    (folder / "scans" / "notes.txt").write_text("no picture\n")
    (folder / "scans" / ".hidden.png").write_text("no picture\n")
    return folder


def test_answers_are_lines_in_natural_order_and_only_on_stdout(album, tmp_path):
    """What cannot be read is told in its place, and the others are answered."""
    images = ("7.png", "scans", "gone.png", "blank.png", tmp_path, "scans/notes.txt", "-")
    result = run_predictor(*images, cwd=album, stdin=as_file(picture_of(2), "JPEG"))
    assert (result.status, result.err) == (1, "")
    lines = result.out.splitlines()
    names = [line.split("  ")[0] for line in lines]
    assert len(lines) == 8 and names[:3] == ["7.png", "scans/scan2.JPG", "scans/scan10.png"]
    answers = [line.split() for line in lines if "%" in line]
    assert [answer[1] for answer in answers] == ["7", "4", "1", "2"]
    assert all(50 < float(answer[2].removesuffix("%")) <= 100 for answer in answers)
    told = ("no such file", "no digit found", "no image in this folder", "not an image")
    assert all(text in line for text, line in zip(told, lines[3:7], strict=True))


def test_json_is_one_object_an_image(album):
    result = run_predictor("7.png", "blank.png", "--json", cwd=album)
    assert (result.status, result.err) == (1, "")
    seven, blank = (json.loads(line) for line in result.out.splitlines())
    assert blank == {"image": "blank.png", "error": "no digit found"}
    assert list(seven) == ["image", "text", "digits"]
    assert (seven["image"], seven["text"]) == ("7.png", "7")
    [digit] = seven["digits"]
    assert list(digit) == ["digit", "confidence", "uncertain", "box", "probabilities"]
    assert (digit["digit"], digit["uncertain"]) == (7, False)
    assert len(digit["probabilities"]) == 10
    assert sum(digit["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert digit["confidence"] == max(digit["probabilities"]) == digit["probabilities"][7]


def test_top_lists_the_likeliest_digits(album, call):
    seven, likeliest = call(album, "7.png", "--top", "3").out.splitlines()
    assert seven.startswith("7.png  7 ")
    digits, shares = likeliest.split()[::2], likeliest.split()[1::2]
    shares = [float(share.removesuffix("%")) for share in shares]
    assert digits[0] == "7" and len(set(digits)) == 3
    assert shares == sorted(shares, reverse=True) and len(shares) == 3
    [digit] = json.loads(call(album, "7.png", "--top", "2", "--json").out)["digits"]
    expected = sorted(enumerate(digit["probabilities"]), key=lambda pair: -pair[1])[:2]
    assert digit["top"] == [list(pair) for pair in expected]


def test_uncertain_reading_says_so(album, call, monkeypatch):
    shares = np.float32([0.02] * 4 + [0.44] + [0.02] * 4 + [0.4])
    monkeypatch.setattr(
        predictor, "load_network", lambda path: lambda glyphs: np.tile(shares, (len(glyphs), 1))
    )
    assert "not sure: 4 or 9" in call(album, "7.png").out
    assert json.loads(call(album, "7.png", "--json").out)["digits"][0]["uncertain"] is True


@pytest.mark.parametrize("fault", [ValueError("min() arg is an empty sequence"), MemoryError()])
def test_fault_in_one_image_is_its_own(fault, album, call, monkeypatch):
    read_digits = predictor.read_digits

    def faulty(rgb, *arguments):
        if rgb.shape[0] == 60:
            raise fault
        return read_digits(rgb, *arguments)

    monkeypatch.setattr(predictor, "read_digits", faulty)
    result = call(album, "blank.png", "7.png")
    blank, seven = result.out.splitlines()
    assert blank.startswith("blank.png  ") and seven.split()[1] == "7"
    assert (result.status, result.err) == (1, "")
    assert blank.endswith(("report it with the image", "reduce it first"))


WRONG = ["", "--top 0", "--top 11", "--top many", "--nonsense"]
WRONG += [f"--plot {path}" for path in ("a.txt", "gone/a.png", "long" * 100 + "/a.png")]


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_usage_is_refused_in_one_line(arguments, album, call, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    result = call(album, *["7.png"] * bool(arguments), *arguments.split())
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert "--help" in result.err


@pytest.mark.parametrize("option", [["--plot", "a.png"], ["--show"]], ids=" ".join)
def test_picture_without_matplotlib_is_refused_before_reading(option, album, call, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    result = call(album, "7.png", *option)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
    assert "pip install matplotlib" in result.err


def test_help_is_instant_and_loads_nothing():
    result = run_predictor("--help", flags=["-X", "importtime"])
    assert result.status == 0 and result.seconds < 2
    for option in ("--json", "--top", "--one", "--plot", "--show", "--model"):
        assert option in result.out
    heavy = {"tensorflow", "keras", "matplotlib", "h5py", "PIL", "multiprocessing", "tqdm"}
    assert imported(result) & heavy == set() and "cv2" in imported(result)


def test_standard_model_is_read_without_tensorflow(album):
    result = run_predictor("7.png", "--plot", "seen.pdf", flags=["-X", "importtime"], cwd=album)
    assert result.out.split()[:2] == ["7.png", "7"]
    assert imported(result) & {"tensorflow", "keras", "pillow_heif", "tqdm"} == set()


@pytest.mark.parametrize("package", ["cv2", "h5py", "PIL", "numpy", "sklearn", "keras"])
def test_missing_package_is_named_in_one_line(package, album, small_npz, tmp_path):
    (tmp_path / f"{package}.py").write_text(f"raise ImportError('No module named {package}')")
    reading, training = (PREDICTOR, "7.png"), (SCRIPT, "--data", small_npz, "--epochs", "1")
    script, *arguments = reading if package in ("cv2", "h5py", "PIL") else training
    paths = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = run_script(script, *arguments, cwd=album, env=paths)
    at_start = package in ("cv2", "numpy")
    assert (result.status, result.out) == (1 if at_start else 2, "")
    said = f"No module named {package}; pip install -r requirements.txt\n"
    assert result.err.removeprefix(f"{script.name}: ") == said


def test_plot_is_a_picture_of_all_images(album, tmp_path, call):
    sizes = []
    for images in (["7.png"], ["7.png", "blank.png", "gone.png", "scans"]):
        result = call(album, *images, "--plot", tmp_path / "seen.png")
        assert result.out.split()[:2] == ["7.png", "7"] and result.err == ""
        with Image.open(tmp_path / "seen.png") as picture:
            assert picture.format == "PNG"
            assert np.asarray(picture.convert("L")).std() > 10
            sizes.append(picture.size)
    assert sizes[1][0] == sizes[0][0] and sizes[1][1] == 5 * sizes[0][1]
    assert os.listdir(tmp_path) == ["seen.png"]


def test_plot_that_fails_leaves_the_old_picture(album, tmp_path):
    (tmp_path / "seen.png").write_text("the old picture")
    arguments = ("7.png", "--plot", tmp_path / "seen.png")
    full_disk = (resource.RLIMIT_FSIZE, (2000, 2000))
    result = run_predictor(*arguments, cwd=album, prepare=lambda: resource.setrlimit(*full_disk))
    assert result.status == 1
    assert result.out.split()[:2] == ["7.png", "7"]
    assert "seen.png: " in result.err.splitlines()[-1]
    assert run_predictor(*arguments, "--model", tmp_path / "gone.h5", cwd=album).status == 2
    assert (tmp_path / "seen.png").read_text() == "the old picture"
    assert os.listdir(tmp_path) == ["seen.png"]


@pytest.mark.parametrize(
    "streams, status, told",
    [("2>&-", 0, b""), (">&-", 0, b""), (">/dev/full", 1, b"standard output: No space left")],
)
def test_closed_streams_are_borne_and_full_ones_told(streams, status, told, album):
    command = ["sh", "-c", f'exec "$0" "$@" {streams}', sys.executable, PREDICTOR]
    done = subprocess.run([*command, "7.png", "7.png"], cwd=album, capture_output=True)
    assert done.returncode == status
    assert told in done.stderr and done.stderr.count(b"\n") == bool(told)
    assert done.stdout.split()[:2] == [b"7.png", b"7"] * (streams == "2>&-")


def test_show_without_a_display_warns_on_stderr(album, call):
    matplotlib.use("agg")
    result = call(album, "7.png", "--show")
    assert result.status == 0 and result.out.split()[:2] == ["7.png", "7"]
    assert result.err.count("\n") == 1 and "--plot" in result.err


# --- At a terminal --------------------------------------------------------------


def start_at_terminal(*arguments, cwd, stdin=None):
    """Start the predictor with its errors, and stdin unless given, on a terminal of ours."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = start_predictor(*arguments, stdin=stdin or theirs, stderr=theirs, cwd=cwd)
    os.close(theirs)
    return process, ours


def shown_on(terminal, until=b"never"):
    """Return what comes to a terminal up to a text, or to its end."""
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that nobody is at the other end
        while until not in shown:
            shown += os.read(terminal, 1000)
    return shown


def test_prompt_asks_until_an_empty_line(album):
    process, terminal = start_at_terminal(cwd=album)
    with process:
        for line in b"7.png|l'\xe9t\xe9.png|'7.png' ./7.pn\\g|no such.png|scans|".split(b"|"):
            assert b"Image" in shown_on(terminal, until=b"stop): ")
            os.write(terminal, line + b"\n")
        answers = process.stdout.read().decode().splitlines()
        shown_on(terminal)
    os.close(terminal)
    expected = r"7.png 7, l'\udce9t\udce9.png no, 7.png 7, ./7.png 7, no such.png"
    expected += ", scans/scan2.JPG 4, scans/scan10.png 1"
    assert [" ".join(line.split()[:2]) for line in answers] == expected.split(", ")
    assert process.returncode == 1


def test_answers_come_at_once_and_progress_on_a_terminal_after_two_seconds(album):
    arguments = "7.png", "-", "scans"
    buffered = {name: os.environ[name] for name in os.environ if name != "PYTHONUNBUFFERED"}
    process, terminal = start_at_terminal(*arguments, cwd=album, stdin=PIPE)
    piped = start_predictor(*arguments, stdin=PIPE, stderr=PIPE, cwd=album, env=buffered)
    with process, piped:
        ready, _, _ = select.select([piped.stdout], [], [], 20)
        if not ready:
            piped.kill()
        first = piped.stdout.readline()
        assert first.split()[:2] == [b"7.png", b"7"]  # "-" is not there yet
        assert process.stdout.readline() == first
        time.sleep(2.1)  # both wait for their second image
        answers, _ = process.communicate(as_file(picture_of(2)))
        same_answers, nothing = piped.communicate(as_file(picture_of(2)))
        shown = shown_on(terminal)
    os.close(terminal)
    assert b"2/4" in shown and shown.endswith(b"\r")
    assert answers == same_answers and answers.count(b"\n") == 3
    assert nothing == b""


# --- Many files -----------------------------------------------------------------


def test_call_on_many_images_answers_as_calls_on_each(album, call):
    names = ("7.png", "gone.png", "blank.png", "scans/scan2.JPG", "scans/notes.txt")
    together = run_predictor(*names * 7, "--json", cwd=album)
    each = [call(album, name, "--json") for name in names]
    assert [result.status for result in each] == [0, 1, 1, 0, 1]
    assert together.out == "".join(result.out for result in each) * 7
    assert (together.status, together.err) == (1, "")


def processes():
    """Yield (id, state, parent, group) of all processes, by Linux's /proc."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            yield int(folder.name), state, int(parent), int(group)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core, one process")
def test_killed_processes_lose_no_image(album):
    with start_predictor(*["7.png"] * 100, cwd=album) as process:
        answers = [process.stdout.readline()]
        for worker, _, parent, _ in processes():
            if parent == process.pid:
                os.kill(worker, signal.SIGKILL)
        answers += process.stdout.readlines()
    assert (len(answers), process.returncode) == (100, 0)
    assert all(answer.split()[:2] == [b"7.png", b"7"] for answer in answers)


def test_children_started_at_once_hide_no_end(monkeypatch):
    """One that inherited another's pipes would keep them open, and the parent waiting."""
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: time.sleep(0.1) or fork())
    children = [predictor.Sandbox(function=os.getpid) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        pids = list(pool.map(lambda child: child.call(None), children))
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits for ever"))
    signal.alarm(20)
    try:
        for child, pid in zip(children, pids, strict=True):
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ChildProcessError):
                child.call(None)
    finally:
        signal.alarm(0)


def kill_own_process(name):
    """Stand for predict_file, where reading one image ends its process."""
    if name == "deadly.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return predictor.Answer(name, [name])


def test_image_that_ends_its_process_is_told_and_the_others_are_answered():
    names = ["1.png", "deadly.png", "2.png"]
    answers = list(predictor.predict_in_pool(names, 2, kill_own_process))
    assert [answer.name for answer in answers] == names
    assert [answer.name for answer in answers if answer.error] == ["deadly.png"]
    assert "memory" in answers[1].error


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_no_process_stays_behind(sent, album):
    options = {"stderr": PIPE, "cwd": album, "start_new_session": True}
    with start_predictor(*["7.png"] * 2000, **options) as process:
        assert process.stdout.readline().split()[:2] == [b"7.png", b"7"]
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.kill()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == (130 if sent == signal.SIGINT else -sent)
    assert errors == b""
    until = time.monotonic() + 20
    while left := [p for p in processes() if p[3] == process.pid and p[1] != "Z"]:
        assert time.monotonic() < until, left
        time.sleep(0.05)
