"""Model files that are damaged, absurd or made to harm, for the tests of the predictor."""

import json
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

    def apply(file, folder):
        file.attrs["model_config"] = text

    return apply


def layer(kind, **settings):
    """Return a function that changes the settings of the first layer of a kind."""

    def change(config):
        first = next(x for x in config["config"]["layers"] if x["class_name"] == kind)
        first["config"].update(settings)

    return configured(change)


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
    common |= {"dilation_rate": [1, 1], "groups": 1, "activation": "relu", "use_bias": True}
    added(*((kind, {**settings, **common}) for kind, settings in layers), at=1)(file, folder)
    for name, shape in (("wide", (1, 1, 1, 65_000)), ("narrow", (1, 1, 65_000, 1))):
        file[f"model_weights/{name}/kernel"] = np.zeros(shape, "f4")
        file[f"model_weights/{name}/bias"] = np.zeros(shape[-1:], "f4")


def shared_layers(file, folder):
    """Let 1,000 layers share the same weights, which would be read as often: 2.5 GB."""
    settings = {"name": "again", "units": 784, "activation": "relu", "use_bias": True}
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


MISFIT = "no Keras model, or its weights do not fit"
UNSAFE = "not a layer that is known to be safe"
ELSEWHERE = "links to other places|outside the file"
NOT_DIGITS = "ten digits|do not fit"
HUGE = "too much memory or time"
DAMAGED = "damaged or not an HDF5 file"
ANY = "."
RAW_MODELS = {  # name: (bytes, or None for no file; the pattern of the answer)
    "missing": (None, "no such file"),
    "empty": (b"", DAMAGED),
    "text": (b"print('hello')\n" * 100, DAMAGED),
    "pickle": (b"\x80\x04cposix\nmkdir\nX\x08\0\0\0executed\x85R.", DAMAGED),
    "signature": (MODEL_BYTES[:8], DAMAGED),
    "truncated": (MODEL_BYTES[: len(MODEL_BYTES) // 2], DAMAGED),
    "one byte short": (MODEL_BYTES[:-1], DAMAGED),
    "endless heap": (endless_heap(), HUGE),
    "zeros": (bytes(100_000), DAMAGED),
    "newer than known": (MODEL_BYTES[:8] + b"\x63" + MODEL_BYTES[9:], DAMAGED),
}
EDITED_MODELS = {  # name: (function of the open file and a folder; the pattern of the answer)
    "no description": (lambda file, _: file.attrs.__delitem__("model_config"), MISFIT),
    "numbers for a description": (described(np.arange(9)), MISFIT),
    "empty description": (described(""), MISFIT),
    "not JSON": (described("{'class_name': Sequential}"), MISFIT),
    "nested objects": (described('{"config":' * 100_000 + "1" + "}" * 100_000), ANY),
    "long description": (attribute_of(20_000), DAMAGED),
    "huge description": (described('{"x": "' + "y" * 30_000_000 + '"}'), MISFIT),
    "layers empty": (configured(lambda config: config["config"].update(layers=[])), ANY),
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
    "no softmax": (
        configured(lambda c: c["config"]["layers"][-1]["config"].update(activation="linear")),
        "probabilities",
    ),
    "output of another shape": (
        configured(lambda c: c["config"]["layers"].pop() and None),
        NOT_DIGITS,
    ),
    "a billion units": (layer("Dense", units=10**9), MISFIT),
    "many units": (layer("Dense", units=60_000), MISFIT),
    "same name twice": (layer("Dense", name="conv2d"), ANY),
    "epsilon not a number": (layer("BatchNormalization", epsilon=float("nan")), ANY),
    "not a number among weights": (filled(np.nan), "not finite"),
    "infinite weight": (filled(np.inf), "not finite"),
    "weights turned": (weights(lambda values: values.T.copy()), MISFIT),
    "weights of text": (weights(lambda values: np.full(values.shape, b"x")), ANY),
    "weights missing": (replaced(lambda *_: None), MISFIT),
    "all weights missing": (lambda file, _: file.__delitem__("model_weights"), MISFIT),
    "10^12 weights": (claimed((10**6, 10**6)), HUGE),
    "10^18 weights": (claimed((10**9, 10**9), chunks=(1000, 1000)), HUGE),
    "10^12 packed weights": (
        claimed((10**6, 10**6), chunks=(1000, 1000), compression="gzip"),
        HUGE,
    ),
    "weights of unlimited size": (claimed((0, 256), maxshape=(None, 256)), MISFIT),
    "unknown filter": (replaced(with_unknown_filter), ANY),
    "external link": (
        group_linked_to(lambda folder: h5py.ExternalLink(str(outside(folder)), "/")),
        ELSEWHERE,
    ),
    "soft link": (group_linked_to(lambda _: h5py.SoftLink("/model_weights/dense_1")), ELSEWHERE),
    "virtual weights": (replaced(virtual), ELSEWHERE),
    "externally stored weights": (replaced(external), ELSEWHERE),
    "nested groups": (nested_groups, ANY),
    "loop of groups": (group_loop, ANY),
    "wide convolutions": (wide_convolutions, HUGE),
    "1,000 layers that share weights": (shared_layers, ANY),
    "large input for Keras": (large_input_for_keras, MISFIT),
}
KERAS_MODELS = {  # what only Keras, within its limits, can tell is bad
    "nested model": added(("Sequential", {"name": "x", "layers": []})),
    "unknown activation": layer("Dense", activation="evil"),
    "activation a number": layer("Dense", activation=3),
    "unknown padding": layer("Conv2D", padding="evil"),
    "wide layers": wide_through_keras,
    "far padding": far_padding,
}
GOOD_MODEL = added(("Activation", {"name": "x", "activation": "linear"}))  # but for Keras alone
ODD_MODELS = {
    **RAW_MODELS,
    **EDITED_MODELS,
    **{name: (make, ANY) for name, make in KERAS_MODELS.items()},
    "good": (GOOD_MODEL, ANY),
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
        places = [(None, None), *places_in(config)]
        container, key = places[number % len(places)]
        if container is None:
            return value
        container[key] = value

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
