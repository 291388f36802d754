"""Model files that are damaged, absurd or made to harm, for the tests of the predictor."""

import base64
import json
import marshal
import os
import struct

import h5py
import numpy as np

import loaded_mnist_model_digit_predictor as predictor

MODEL_BYTES = predictor.MODEL.read_bytes()


def configured(change):
    """Return a function that changes a model's description with change(config)."""

    def apply(file, folder):
        config = json.loads(file.attrs["model_config"])
        changed = change(config)
        file.attrs["model_config"] = json.dumps(config if changed is None else changed)

    return apply


def described(text):
    """Return a function that replaces a model's description."""
    return lambda file, _: file.attrs.__setitem__("model_config", text)


def layer(kind, which=0, **settings):
    """Return a function that changes the settings of a layer of a kind, by default the first."""

    def change(config):
        alike = [x for x in config["config"]["layers"] if x["class_name"] == kind]
        alike[which]["config"].update(settings)

    return configured(change)


def edited(index, **changes):
    """Return a function that changes the description of the layer of that number."""
    return configured(lambda config: config["config"]["layers"][index].update(changes))


def added(kind, settings, at=-1):
    """Return a function that adds a layer to a model."""
    new = {"class_name": kind, "config": settings}
    return configured(lambda config: config["config"]["layers"].insert(at, new))


def datasets(file):
    """Return {path: dataset} of a model's weights."""
    paths = []
    file.visit(paths.append)
    return {path: file[path] for path in paths if isinstance(file[path], h5py.Dataset)}


def replaced(make):
    """Return a function that has make(file, path, values, folder) replace the largest weights."""

    def apply(file, folder):
        found = datasets(file)
        path = max(found, key=lambda path: found[path].size)
        values = found[path][()]
        del file[path]
        make(file, path, values, folder)

    return apply


def weights(change):
    """Return a function that replaces the largest weights by change(array)."""
    return replaced(lambda file, path, values, _: file.create_dataset(path, data=change(values)))


def linked(make):
    """Return a function that replaces the largest weights by the link that make(folder) returns."""
    return replaced(lambda file, path, _, folder: file.__setitem__(path, make(folder)))


def outside(folder):
    """Return the path of a pipe: whoever opens it to read hangs, and so cannot go unnoticed."""
    path = str(folder / "outside")
    os.mkfifo(path)
    return path


def virtual(file, path, values, folder):
    layout = h5py.VirtualLayout(values.shape, "f4")
    layout[...] = h5py.VirtualSource(outside(folder), "data", values.shape)
    file.create_virtual_dataset(path, layout)


def external(file, path, values, folder):
    place = [(outside(folder), 0, h5py.h5f.UNLIMITED)]
    file.create_dataset(path, values.shape, "f4", external=place)


def executing():
    """Return the settings of a Lambda layer that would leave a trace of having been executed."""
    code = compile("lambda x: __import__('os').mkdir('executed') or x", "x", "eval").co_consts[0]
    text = base64.b64encode(marshal.dumps(code)).decode()
    config = {"code": text, "defaults": None, "closure": None}
    function = {"class_name": "__lambda__", "config": config}
    return {"name": "x", "function": function, "arguments": {}}


def function(module, name):
    """Return a function as models describe them."""
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def reading_words(file, folder):
    """Add a layer that would read its words from a file."""
    added("StringLookup", {"name": "x", "vocabulary": outside(folder)})(file, folder)


def endless_heap():
    """Return the model with free space of size zero among its texts: HDF5 never gets past it."""
    data = bytearray(MODEL_BYTES)
    at = data.index(b"GCOL") + 16
    while data[at] or data[at + 1]:
        at += 16 + (struct.unpack_from("<Q", data, at + 8)[0] + 7) // 8 * 8
    data[at + 8 : at + 16] = bytes(8)
    return bytes(data)


LAMBDA = {"class_name": "Lambda", "config": executing()}
MISFIT = "no Keras model, or its weights do not fit"
ELSEWHERE = "links to other places"
NOT_DIGITS = "ten digits|do not fit"
HUGE = "too much memory or time"
DAMAGED = "damaged or not an HDF5 file"
ANY = "."
RAW_MODELS = {  # name: (bytes, or None for no file; the pattern of the answer)
    "missing": (None, "No such file"),
    "empty": (b"", DAMAGED),
    "pickle": (b"\x80\x04cposix\nmkdir\nX\x08\0\0\0executed\x85R.", DAMAGED),
    "truncated": (MODEL_BYTES[: len(MODEL_BYTES) // 2], DAMAGED),
    "one byte short": (MODEL_BYTES[:-1], DAMAGED),
    "endless heap": (endless_heap(), HUGE),
    "newer than known": (MODEL_BYTES[:8] + b"\x63" + MODEL_BYTES[9:], DAMAGED),
}
EDITED_MODELS = {  # name: (function of the open file and a folder; the pattern of the answer)
    "no description": (lambda file, _: file.attrs.__delitem__("model_config"), MISFIT),
    "numbers for a description": (described(np.arange(9)), MISFIT),
    "not JSON": (described("{'class_name': Sequential}"), MISFIT),
    "nested objects": (described('{"config":' * 100_000 + "1" + "}" * 100_000), ANY),
    "huge description": (described('{"x": "' + "y" * 30_000_000 + '"}'), MISFIT),
    "layers empty": (configured(lambda config: config["config"].update(layers=[])), ANY),
    "model class Lambda": (configured(lambda _: LAMBDA), MISFIT),
    "input of another shape": (layer("InputLayer", batch_shape=[None, 32, 32, 1]), NOT_DIGITS),
    "no softmax": (layer("Dense", which=-1, activation="linear"), "probabilities"),
    "output of another shape": (edited(-1, class_name="Dropout"), NOT_DIGITS),
    "a billion units": (layer("Dense", units=10**9), MISFIT),
    "same name twice": (layer("Dense", name="conv2d"), ANY),
    "epsilon not a number": (layer("BatchNormalization", epsilon=float("nan")), ANY),
    "weights not finite": (weights(lambda values: values + np.inf), "probabilities"),
    "weights turned": (weights(lambda values: values.T.copy()), MISFIT),
    "weights of text": (weights(lambda values: np.full(values.shape, b"x")), ANY),
    "weights missing": (replaced(lambda *_: None), MISFIT),
    "10^12 weights": (
        replaced(lambda file, path, *_: file.create_dataset(path, (10**6, 10**6), "f4")),
        HUGE,
    ),
    "external link": (linked(lambda folder: h5py.ExternalLink(outside(folder), "/")), ELSEWHERE),
    "soft link": (linked(lambda _: h5py.SoftLink("/model_weights/dense_1")), ELSEWHERE),
    "virtual weights": (replaced(virtual), ELSEWHERE),
    "externally stored weights": (replaced(external), ELSEWHERE),
}
KERAS_MODELS = {  # what only Keras, within its limits, can tell is bad
    "Lambda layer": added("Lambda", executing()),
    "Lambda as activation": layer("Dense", activation={"module": "keras.layers", **LAMBDA}),
    "function as activation": layer("Dense", activation=function("os", "mkdir")),
    "download as activation": layer("Dense", activation=function("keras.utils", "get_file")),
    "layer with a terminal's codes": added("\x1b[31m\n" * 99, {"name": "x"}),
    "saved model layer": added("TFSMLayer", {"name": "x", "filepath": "/x"}),
    "words in another file": reading_words,
    "foreign module": edited(1, module="os", class_name="Dense"),
    "registered object": edited(1, module="custom", registered_name="Custom>Conv2D"),
    "nested model": added("Sequential", {"name": "x", "layers": []}),
    "unknown activation": layer("Dense", activation="evil"),
    # a digit padded to 30,000 pixels a side, 3.6 GB, for weights that are not there
    "far padding": added("ZeroPadding2D", {"name": "x", "padding": [[15_000] * 2] * 2}, at=1),
}
ODD_MODELS = {
    **RAW_MODELS,
    **EDITED_MODELS,
    **{name: (make, ANY) for name, make in KERAS_MODELS.items()},
    "good": (added("Activation", {"name": "x", "activation": "linear"}), ANY),  # for Keras alone
}

ODD_VALUES = (
    *(None, "x", "", [], [1, 2], [[]], {}, {"class_name": []}, True, 0, -1, 2.5, 28),
    *(10**9, 10**4000, float("inf"), float("nan")),
)


def places_in(item):
    """Return [(container, key)] of everything in a model's description."""
    pairs = {dict: dict.items, list: enumerate}.get(type(item), lambda _: ())(item)
    return [place for key, value in pairs for place in [(item, key), *places_in(value)]]


def with_odd_value(number, value):
    """Return a function that puts a value into the description's place of that number."""

    def change(config):
        whole = [config]
        places = places_in(whole)
        container, key = places[number % len(places)]
        container[key] = value
        return whole[0]

    return configured(change)


def write_model(make, folder):
    """Write a model to folder and return its path; make is its name in ODD_MODELS, or a change."""
    make = ODD_MODELS[make][0] if isinstance(make, str) else make
    path = folder / "model.h5"
    if make is not None:
        path.write_bytes(make if isinstance(make, bytes) else MODEL_BYTES)
    if callable(make):
        with h5py.File(path, "r+") as file:
            make(file, folder)
    return path
