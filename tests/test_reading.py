"""Tests of loaded_mnist_model_digit_predictor.py: images of one digit, and of none."""

import itertools
from functools import partial
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
import scenes
import scipy.ndimage
from odd_images import SIZE, clear_digit, picture_of
from PIL import Image, ImageDraw, ImageFont
from scenes import BLACK, WHITE, drawn, inked, lines_in, photographed, placed, ruled, thickened

import loaded_mnist_model_digit_predictor as predictor

# --- Digits in scenes ---------------------------------------------------------

EACH = 30  # digits a scene, as many of each kind


def scene(*colours, heights=(100, 101), size=SIZE, pen=None, marks=None, light=None):
    """Return a scene, a function of random and a digit: the digit anywhere on paper.

    colours are pairs of paper and ink, to choose from; pen changes the strokes, marks adds some
    in the same ink, light changes the pixels. Paper may be a function of random.
    """

    def draw(random, digit):
        paper, colour = colours[random.integers(len(colours))]
        ink = drawn(digit, random.integers(*heights))
        ink = placed(pen(ink) if pen else ink, size, random=random)
        if marks:
            marks(ink, random)
        pixels = inked(paper(random) if callable(paper) else paper, ink, colour)
        return photographed(light(pixels, random) if light else pixels, random)

    return draw


def in_a_corner(random, digit):
    ink = drawn(digit, 60)
    room = np.array(SIZE) - ink.shape[::-1]
    corner = [int(random.choice([0.04 * side, 0.96 * side])) for side in room]
    return photographed(inked(WHITE, placed(ink, SIZE, corner)), random)


def specks(ink, random):
    for x, y in random.integers(SIZE, size=(40, 2)):
        ink[y : y + 2, x : x + 2] = 1


def box_around(ink, random):
    left, top, right, bottom, pen = frame_of(ink, random)
    cv2.rectangle(ink, (left, top), (right, bottom), 1.0, pen)


def circle_around(ink, random):
    left, top, right, bottom, pen = frame_of(ink, random)
    axes = (right - left) // 2, (bottom - top) // 2
    cv2.ellipse(ink, ((left + right) // 2, (top + bottom) // 2), axes, 0, 0, 360, 1.0, pen)


def lines_below(ink, random):
    left, _, right, bottom, pen = frame_of(ink, random)
    for y in (bottom - 13, bottom):
        cv2.line(ink, (left, y), (right, y - 3), 1.0, pen)


def arrow_to(ink, random):
    left, top, right, bottom, pen = frame_of(ink, random)
    tip, away = (left, -90) if left > ink.shape[1] - right else (right, 90)
    height = (top + bottom) // 2
    cv2.arrowedLine(ink, (tip + away, height), (tip, height), 1.0, pen, tipLength=0.25)


def typeset(text, height, random, **options):
    """Return a drawing, of SIZE, of text in one of Matplotlib's fonts, at that height."""
    name = random.choice(["DejaVuSans", "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral"])
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    sheet, font = Image.new("L", SIZE), ImageFont.truetype(path, height)
    ImageDraw.Draw(sheet).text((SIZE[0] / 2, SIZE[1] / 2), text, 255, font, "mm", **options)
    return np.asarray(sheet, np.float32) / 255


def print_around(ink, random):
    """Leave, of a page of print, what lies above and below a digit."""
    _, top, _, bottom, _ = frame_of(ink, random)
    words = random.choice("please write the answer in this box and send form back".split(), (25, 9))
    page = typeset("\n".join(map(" ".join, words)), random.integers(9, 16), random)
    page[max(top, 0) : bottom] = 0
    np.maximum(ink, page, out=ink)


def squares(random):
    """Return a drawing of squares at random, such as a QR code."""
    return np.kron(random.integers(2, size=(21, 21)), np.ones((5, 5)))


def code_beside(ink, random):
    """Draw squares on the emptier side of a digit."""
    left, _, right, _, _ = frame_of(ink, random)
    room, code = max(left, SIZE[0] - right), squares(random)
    start, width = (0 if room == left else right), min(room, code.shape[1])
    ink[-len(code) :, start : start + width] = code[:, :width]


def frame_of(ink, random):
    """Return the box of a drawing, 20 to 31 pixels larger to all sides, and the pen for it."""
    rows, columns = (np.flatnonzero((ink > 0.5).any(axis=axis)) for axis in (1, 0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]])
    gap = random.integers(20, 32) * np.array([-1, -1, 1, 1])
    return *(box + gap).tolist(), int(random.integers(2, 5))


def through_a_blind(pixels, random):
    """Return pixels in stripes of light and shadow."""
    shadow = np.arange(len(pixels)) // random.integers(14, 30) % 2
    return pixels * (1 - random.uniform(0.3, 0.6) * shadow[:, None, None])


def on_a_desk(random, digit):
    """A sheet of paper whose edges and the dark desk around it are in the picture."""
    left, top = random.integers(8, 20, 2)
    desk = np.full((240, 300, 3), (90, 65, 45), np.float32)
    ink = placed(drawn(digit, 90), (260, 205), random=random)
    desk[top : top + 205, left : left + 260] = inked((238, 236, 230), ink, (40, 40, 60))
    return photographed(desk, random)


def on_a_disc(random, digit):
    """A light digit on a dark disc, as on a button."""
    ink = placed(drawn(digit, 70), SIZE, (150, 90))
    left, top, right, bottom, _ = frame_of(ink, random)
    centre, radius = ((left + right) // 2, (top + bottom) // 2), (bottom - top) // 2
    disc = cv2.circle(np.zeros_like(ink), centre, radius, 1.0, -1)
    dark = inked(WHITE, disc, random.uniform(0, 150, 3))
    return photographed(inked(dark, ink, WHITE), random)


def transparent(random, digit, colour):
    """A digit in a colour on nothing at all, as drawing programs save it."""
    opacity = placed(drawn(digit, 100), SIZE, random=random) * 255
    pixels = np.dstack([np.full((*opacity.shape, 3), colour), opacity])
    return scenes.as_file(pixels.astype(np.uint8))


def cropped(random, digit):
    """Cut a picture close around a digit."""
    ink, margin = drawn(digit, random.integers(60, 280)), int(random.integers(2, 6))
    return photographed(inked(WHITE, np.pad(ink, margin)), random)


def askew(random, digit, table, margin):
    """A sheet that lies askew on a table, which is a function of random."""
    ground = table(random).astype(np.float32)
    sheet = inked((236, 234, 230), np.pad(drawn(digit, 70), margin)).astype(np.float32)
    size, room = np.array(sheet.shape[1::-1]), ground.shape[1::-1]
    place = cv2.getRotationMatrix2D((size / 2).tolist(), random.uniform(-9, 9), 1)
    place[:, 2] += (room - size) / 2
    cv2.warpAffine(sheet, place, room, ground, borderMode=cv2.BORDER_TRANSPARENT)
    return photographed(ground, random)


def dark_table(random):
    return np.full((280, 280, 3), (92, 70, 55))


def striped_cloth(random):
    """Return stripes, each of which looks like a 1."""
    stripes = np.arange(400) // random.integers(8, 24) % 2 == 1
    return np.where(stripes[None, :, None], (70, 90, 125), (210, 205, 200)).repeat(300, axis=0)


BLACK_ON_WHITE, BLUE_ON_CREAM = (WHITE, BLACK), ((235, 230, 220), (45, 45, 60))
PENS = [(200, 40, 40), (30, 60, 190), (20, 130, 60), (230, 130, 30), (150, 190, 240)]
YELLOW_AND_BLUE = [((250, 235, 120), (190, 30, 60)), ((30, 60, 120), (250, 220, 80))]
SCENES = {  # and the share of digits to be read, at least
    "dark on light": (0.93, scene(((235, 233, 228), (40, 40, 45)), heights=(60, 140))),
    "light on dark": (0.93, scene(((38, 52, 44), (225, 225, 220)), heights=(60, 140))),
    "pencil on grey": (0.93, scene(((180, 178, 170), (120, 120, 120)), heights=(110, 111))),
    "in a corner": (0.93, in_a_corner),
    "tiny": (0.93, scene(BLACK_ON_WHITE, heights=(22, 23), size=(400, 300))),
    "huge": (0.93, scene(BLACK_ON_WHITE, heights=(276, 277), size=(400, 300))),
    "thin": (0.85, scene(BLACK_ON_WHITE, heights=(80, 160), pen=scenes.thinned)),
    "thick": (0.93, scene(BLACK_ON_WHITE, heights=(80, 160), pen=partial(thickened, more=7))),
    "soft shadow": (0.93, scene(BLUE_ON_CREAM, light=partial(scenes.shadowed, hard=False))),
    "hard shadow": (0.93, scene(BLUE_ON_CREAM, light=partial(scenes.shadowed, hard=True))),
    "on rulings": (0.93, scene((lambda random: ruled(SIZE, random, 40), (35, 35, 80)))),
    "on a grid": (0.9, scene((lambda random: ruled(SIZE, random, 30, grid=True), (35, 35, 80)))),
    "coloured": (0.93, scene(*[(WHITE, pen) for pen in PENS])),
    "coloured on colour": (0.93, scene(*YELLOW_AND_BLUE)),
    "specked": (0.93, scene(BLACK_ON_WHITE, marks=specks)),
    "on a desk": (0.93, on_a_desk),
    "in a box": (0.93, scene(BLACK_ON_WHITE, heights=(80, 81), marks=box_around)),
    "cropped": (0.93, cropped),
    "on a turned sheet": (0.93, partial(askew, table=dark_table, margin=45)),
    "transparent, black": (0.93, partial(transparent, colour=BLACK)),
    "transparent, white": (0.93, partial(transparent, colour=WHITE)),
    "circled": (0.9, scene(BLACK_ON_WHITE, heights=(80, 81), marks=circle_around)),
    "underlined twice": (0.85, scene(BLACK_ON_WHITE, heights=(80, 81), marks=lines_below)),
    "on a disc": (0.85, on_a_disc),
    "pointed at": (0.9, scene(BLACK_ON_WHITE, heights=(80, 81), marks=arrow_to)),
    "on a striped cloth": (0.75, partial(askew, table=striped_cloth, margin=30)),
    "among print": (0.85, scene(BLACK_ON_WHITE, heights=(80, 81), marks=print_around)),
    "in stripes of light": (0.8, scene(*[(WHITE, pen) for pen in PENS], light=through_a_blind)),
    "beside a code": (0.6, scene(BLACK_ON_WHITE, heights=(80, 81), marks=code_beside)),
}


@pytest.mark.parametrize("name", SCENES)
def test_digits_in_scenes_are_read(name):
    least, draw = SCENES[name]
    random = np.random.default_rng(list(SCENES).index(name))
    digits = [scenes.some_digit(random, label=number % 10) for number in range(EACH)]
    share, wrong = scenes.share_read([(draw(random, digit), str(label)) for digit, label in digits])
    assert share >= least, wrong


def test_holes_are_those_that_a_fill_closes():
    for digit in scenes.mnist()[0][::100]:
        mask = drawn(digit, 40) > 0.5
        holes, _ = scipy.ndimage.label(scipy.ndimage.binary_fill_holes(mask) & ~mask)
        number = (np.bincount(holes.ravel())[1:] >= 2).sum()
        assert predictor.count_holes(mask) == number <= 2
    assert predictor.count_holes(squares(np.random.default_rng(0)) > 0.5) > predictor.MAX_HOLES
    grainy = clear_digit(0).repeat(20, axis=0).repeat(20, axis=1) > 0
    grainy[::5, ::5] = False
    assert predictor.count_holes(grainy) == 1


def texts_of_placed_digits():
    """Return what is read in 300 pictures of one digit, of any size and anywhere in it."""
    random, size = np.random.default_rng(30), (256, 256)
    digits = [scenes.some_digit(random)[0] for _ in range(300)]
    inks = [drawn(digit, random.integers(30, 120)) for digit in digits]
    pictures = (inked(WHITE, placed(ink, size, random=random)).astype(np.uint8) for ink in inks)
    return [scenes.text_in(picture) for picture in pictures]


def test_background_is_the_same_around_a_stroke_and_another_beyond_an_edge():
    """Nor do a neighbour's ink and a shadow that crosses a stroke make an edge of it."""
    strip, ring, pixels = np.zeros((3, 80, 60), np.uint8)
    strip[20:60, 28:32], ring[10:70, 18:42] = 1, 1
    ring -= cv2.dilate(strip, np.ones((5, 5), np.uint8))
    left, top = np.s_[:, :30], np.s_[:40]
    for side, here, there, ink, least, most in (
        (left, 200, 200, 60, 0, 0.06),  # a stroke, dark or light
        (left, 60, 60, 200, 0, 0.06),
        (left, 200, 40, 90, 0.35, 1),  # the edge of a sheet
        (left, 200, 150, 20, 0, 0.06),  # a stroke along the edge of a shadow, or across it
        (top, 200, 150, 20, 0, 0.06),
    ):
        pixels[:] = there
        pixels[side] = here
        pixels[:, 40:] = 90  # a neighbour's ink
        pixels[strip > 0] = ink
        rgb = cv2.merge([np.full_like(pixels, 120), pixels, pixels // 2])
        assert least <= predictor.background_variance(rgb, strip, ring) <= most, (side, here, ink)


def test_single_digit_stays_single_wherever_it_is(readings):
    several = [text for text in readings["placed digits"] if len(text) != 1]
    assert len(several) <= 3, several


@pytest.mark.parametrize("shift, lost", [(0, 0.001), (2, 0.002)], ids=["as they are", "shifted"])
def test_mnist_files_lose_little_on_their_way_to_the_network(shift, lost):
    images, labels = (array[::20] for array in scenes.mnist())
    directly = scenes.network()(images / np.float32(255)).argmax(axis=1) == labels
    images = np.roll(images, (shift, -shift), axis=(1, 2))  # not centred as MNIST's are
    pictures, texts = map(scenes.as_file, images), map(str, labels)
    share, wrong = scenes.share_read(list(zip(pictures, texts, strict=True)))
    assert share >= directly.mean() - lost, wrong


@pytest.mark.parametrize("sides", [(0,), (1, 2), (0, 1, 2, 3)], ids=str)
def test_outline_of_an_empty_canvas_is_no_digit(sides):
    for width, height in ((320, 240), (240, 320), (120, 90)):
        canvas = np.zeros((height, width), np.float32)
        for side in sides:
            np.rot90(canvas, side)[0] = 1
        for paper, ink in ((WHITE, (150, 150, 150)), (WHITE, BLACK), (BLACK, (90, 90, 90))):
            lines = lines_in(inked(paper, canvas, ink).astype(np.uint8))
            assert all_uncertain(lines), (width, paper, ink)


def test_blank_paper_holds_no_digit():
    random = np.random.default_rng(0)
    blank = np.zeros(SIZE[::-1], np.float32)
    for paper in (WHITE, BLACK, (120, 130, 90)):
        assert lines_in(inked(paper, blank).astype(np.uint8)) == []
    assert all_uncertain(lines_in(photographed(ruled(SIZE, random, 30), random)))


# --- What is no digit ----------------------------------------------------------

LETTERS = "AEFHKMNRTWXYaehkmnrtwxπ&@#?%"  # none that somebody may write a digit like


def letter(character, random):
    """Return a letter, drawn large on noisy paper."""
    ink = typeset(character, random.integers(90, 150), random, stroke_width=random.integers(3))
    return photographed(inked(WHITE, ink), random)


def scribble(random):
    """Return a doodle: a pen that wanders about in six straight strokes."""
    sheet = np.zeros((240, 240), np.uint8)
    cv2.polylines(sheet, [random.integers(40, 200, (7, 2), np.int32)], False, 255, 6, cv2.LINE_AA)
    return photographed(inked(WHITE, sheet / np.float32(255)), random)


def stripes(random):
    """Return a pattern of waves, such as a curtain or a fence makes."""
    y, x = np.mgrid[:240, :240]
    angle, length = random.uniform(0, np.pi), random.uniform(8, 40)
    waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length) / 2 + 0.5
    return photographed(inked(WHITE, np.float32(waves)), random)


def blank(random):
    """Return a sheet of paper, lit from one side."""
    return photographed(scenes.shadowed(np.full((240, 240, 3), 235.0), random, hard=False), random)


NOT_DIGITS = {  # how many are drawn, and how many of them may be read without a warning
    "letters": (24, 6, lambda random: letter(random.choice(list(LETTERS)), random)),
    "scribbles": (24, 7, scribble),
    "stripes": (20, 3, stripes),
    "blank sheets": (12, 0, blank),
}


def texts_without_a_digit(name):
    """Return what is read, without a warning, in pictures of a kind of NOT_DIGITS."""
    number, _, draw = NOT_DIGITS[name]
    random = np.random.default_rng(list(NOT_DIGITS).index(name))
    answers = [lines_in(draw(random)) for _ in range(number)]
    return [predictor.text_of(lines) for lines in answers if not all_uncertain(lines)]


@pytest.mark.parametrize("name", NOT_DIGITS)
def test_what_is_no_digit_is_not_taken_for_one(name, readings):
    texts = readings[name] if name in readings else texts_without_a_digit(name)
    assert len(texts) <= NOT_DIGITS[name][1], texts


def test_digits_are_seldom_called_uncertain():
    random = np.random.default_rng(5)
    draw = scene(BLACK_ON_WHITE, heights=(60, 160), size=(240, 240))
    digits = [scenes.some_digit(random) for _ in range(200)]
    answers = [lines_in(draw(random, digit)) for digit, _ in digits]
    pairs = zip(answers, digits, strict=True)
    right = [lines for lines, (_, label) in pairs if predictor.text_of(lines) == str(label)]
    assert len(right) >= 194
    assert sum(map(all_uncertain, right)) <= 0.015 * len(right)


def all_uncertain(lines):
    """Tell whether every digit that was read carries the warning, as when there is none."""
    return all(digit.uncertain for digit in itertools.chain(*lines))


def test_probabilities_are_the_mean_over_views():
    glyph = clear_digit(4) / np.float32(255)
    views = predictor.rotated_views(glyph)
    assert np.array_equal(views[0], glyph)
    for degrees, view in zip(predictor.VIEWS, views, strict=True):
        turned = scipy.ndimage.rotate(glyph, degrees, reshape=False, order=1)
        assert np.abs(turned - view).mean() < 0.01, degrees
    [[digit]] = lines_in(picture_of(4))
    expected = scenes.network()(predictor.rotated_views(digit.glyph)).mean(axis=0)
    assert digit.probabilities == pytest.approx(expected, abs=1e-6)


def test_smallest_images_mostly_hold_one_digit_but_may_hold_two():
    for index in (104, 456, 484):  # squashed 0s, which cut in two read as 17 or 13
        assert scenes.text_in(scenes.as_file(scenes.mnist()[0][index])) == "0"
    pair = np.concatenate([clear_digit(1)[:, 8:20], clear_digit(0)[:, 4:24]], axis=1)
    pair = cv2.resize(pair, (28, 22), interpolation=cv2.INTER_AREA)
    pair = cv2.copyMakeBorder(pair, 3, 3, 0, 0, cv2.BORDER_CONSTANT)
    assert scenes.text_in(scenes.as_file(pair)) == "10"
