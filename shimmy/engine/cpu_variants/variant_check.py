"""Whether a CPU variant computes correctly: products of each weight type, attention and the operations between them
are compared with results that Python computes.

Knows ggml's functions for tensors and graphs; nothing of which variants there are (`variants`) or which one is trusted
(`variant_trust`). A variant that does not suit the processor kills the process that calls `check`.
"""

import ctypes
import math
import struct
from ctypes import POINTER, byref, c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from operator import mul, sub
from typing import NamedTuple, TypeVar

from shimmy.engine.llama.binding import function

_N_WEIGHTS = 256  # of a row: one block of the types with the largest blocks
_N_ROWS = 32  # of weights; fewer are not repacked for AMX
_N_OTHER_ROWS = 8  # of them differ, and the others repeat them
_N_COLUMNS = (1, 33)  # of activations: kernels for one and for many differ
_N_OTHER_COLUMNS = 3
_HEAD_SIZE, _N_CELLS, _N_HEADS, _N_QUERIES = 64, 64, 2, (1, 64)  # many queries go through the tiled kernel
_LAST_CELLS = 5  # that the mask hides
# Activations are whole numbers that eight bits hold, so kernels that quantise them lose nothing. What is left are sums
# in half precision; this is relative to the sum of the absolute terms.
_TOLERANCE = 2e-3
_ATTENTION_TOLERANCE = 1e-2  # keys, values and weights of cells are half precision there
_LARGEST = 127

# ggml_type
_F32, _F16, _IQ1_M = 0, 1, 29
_MADE_WITH_TABLES = {16, 17, 18, 19, 21, 22, _IQ1_M}  # IQ1, IQ2 and IQ3; see `_block`
# All that weights of a model can have: F32 and F16, Q4_0 to Q8_0, Q2_K to Q6_K, the IQ types, BF16, TQ1_0, TQ2_0,
# MXFP4, NVFP4, Q1_0 and Q2_0.
_WEIGHT_TYPES = (0, 1, 2, 3, 6, 7, 8, *range(10, 15), *range(16, 24), 29, 30, 34, 35, *range(39, 43))
_HALF_SCALE = struct.pack("<e", 0.05)


class _Traits(ctypes.Structure):
    """ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", c_int64),
        ("block_size_interleave", c_int64),
        ("type_bytes", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", c_void_p),
        ("from_float", c_void_p),
    )


class _InitParams(ctypes.Structure):
    """ggml_init_params of ggml.h."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class _TensorHead(ctypes.Structure):
    """The first fields of ggml_tensor."""

    _fields_ = (("type", c_int), ("buffer", c_void_p))


_Item = TypeVar("_Item")

_CONVERT = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)

_load = function("ggml_backend_load", c_void_p, ctypes.c_char_p)
_device_of = function("ggml_backend_reg_dev_get", c_void_p, c_void_p, c_size_t)
_proc_address = function("ggml_backend_reg_get_proc_address", c_void_p, c_void_p, ctypes.c_char_p)
_init_backend = function("ggml_backend_dev_init", c_void_p, c_void_p, ctypes.c_char_p)
_supports = function("ggml_backend_dev_supports_op", c_bool, c_void_p, c_void_p)
_buffer_type_of = function("ggml_backend_dev_buffer_type", c_void_p, c_void_p)
_empty_buffer = function("ggml_backend_buft_alloc_buffer", c_void_p, c_void_p, c_size_t)
_alloc = function("ggml_backend_alloc_ctx_tensors_from_buft", c_void_p, c_void_p, c_void_p)
_init = function("ggml_init", c_void_p, _InitParams)
_new_tensor = function("ggml_new_tensor_3d", c_void_p, c_void_p, c_int, c_int64, c_int64, c_int64)
_mul_mat = function("ggml_mul_mat", c_void_p, c_void_p, c_void_p, c_void_p)
_attention = function(
    "ggml_flash_attn_ext", c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_float, c_float, c_float
)
_rms_norm = function("ggml_rms_norm", c_void_p, c_void_p, c_void_p, c_float)
_silu = function("ggml_silu", c_void_p, c_void_p, c_void_p)
_soft_max = function("ggml_soft_max", c_void_p, c_void_p, c_void_p)
_new_graph = function("ggml_new_graph", c_void_p, c_void_p)
_expand = function("ggml_build_forward_expand", None, c_void_p, c_void_p)
_compute = function("ggml_backend_graph_compute", c_int, c_void_p, c_void_p)
_set = function("ggml_backend_tensor_set", None, c_void_p, c_void_p, c_size_t, c_size_t)
_get = function("ggml_backend_tensor_get", None, c_void_p, c_void_p, c_size_t, c_size_t)
_traits_of = function("ggml_get_type_traits", POINTER(_Traits), c_int)


class _Expected(NamedTuple):
    """A tensor of the graph, the numbers that have to be in it, and how far one may be off."""

    what: str
    tensor: int
    numbers: list[float]
    tolerance: float


def check(path: str) -> str | None:
    """What the variant in the library at `path` does wrong, or nothing; None where ggml says itself that the processor
    lacks something for it. May not return at all: the process dies of an illegal instruction, or hangs."""
    registry = _load(path.encode())
    return _Check(registry).fault() if registry else None


class _Check:
    """One graph with all that is checked, computed by one thread. Its memory stays until the process ends."""

    def __init__(self, registry: int) -> None:
        self._device = _device_of(registry, 0)
        self._buffer_types = [_buffer_type_of(self._device), *_extra_buffer_types(registry, self._device)]
        self._backend = _init_backend(self._device, None)
        set_threads = ctypes.CFUNCTYPE(None, c_void_p, c_int)(_proc_address(registry, b"ggml_backend_set_n_threads"))
        set_threads(self._backend, 1)
        self._context = _new_context()
        self._graph = _new_graph(self._context)
        self._inputs: list[tuple[int, bytes]] = []
        self._expected: list[_Expected] = []

    def fault(self) -> str:
        self._add_products()
        self._add_attention()
        self._add_norm(_fractions(0, _N_WEIGHTS))
        _alloc(self._context, self._buffer_types[0])
        for tensor, data in self._inputs:
            _set(tensor, data, 0, len(data))
        if _compute(self._backend, self._graph) != 0:
            return "its computation failed"
        wrong = [expected.what for expected in self._expected if not _is_right(expected)]
        return f"it computes {wrong[0]} wrongly" if wrong else ""

    def _add_products(self) -> None:
        """Weights of each type in each kind of memory for which the variant has kernels, times few and many columns."""
        columns = [_whole_numbers(column) for column in range(_N_OTHER_COLUMNS)]
        activations = []
        for n_columns in _N_COLUMNS:
            activations.append(_new_tensor(self._context, _F32, _N_WEIGHTS, n_columns, 1))
            self._inputs.append((activations[-1], b"".join(map(_floats, _repeated(columns, n_columns)))))
        plain = [_fractions(10 + row, _N_WEIGHTS) for row in range(_N_OTHER_ROWS)]
        for kind in _WEIGHT_TYPES:
            data, rows = _weights(kind, plain)
            numbers = [[sum(map(mul, row, column)) for row in rows] for column in columns]
            tolerance = _TOLERANCE * _LARGEST * min(sum(map(abs, row)) for row in rows)
            name = _traits_of(kind).contents.type_name.decode()
            for buffer_type in self._buffer_types:
                context = _new_context()
                weights = _new_tensor(context, kind, _N_WEIGHTS, _N_ROWS, 1)
                products = [_mul_mat(self._context, weights, each) for each in activations]
                if not self._is_supported(weights, products[0], buffer_type):
                    continue
                _alloc(context, buffer_type)
                _set(weights, data, 0, len(data))
                for product, n_columns in zip(products, _N_COLUMNS, strict=True):
                    _expand(self._graph, product)
                    found = [each for column in _repeated(numbers, n_columns) for each in _repeated(column, _N_ROWS)]
                    what = f"products of {name} weights with {n_columns} rows"
                    self._expected.append(_Expected(what, product, found, tolerance))

    def _is_supported(self, weights: int, product: int, buffer_type: int) -> bool:
        """Asked as llama.cpp does (weight_buft_supported): the weights have to seem to be in such memory."""
        head = _TensorHead.from_address(weights)
        head.buffer = _empty_buffer(buffer_type, 0)
        is_supported: bool = _supports(self._device, product)
        head.buffer = None
        return is_supported

    def _add_attention(self) -> None:
        keys, values = _fractions(1, _N_CELLS * _N_HEADS * _HEAD_SIZE), _fractions(2, _N_CELLS * _N_HEADS * _HEAD_SIZE)
        k, v = (_new_tensor(self._context, _F16, _HEAD_SIZE, _N_CELLS, _N_HEADS) for _ in range(2))
        self._inputs += [(k, _halves(keys)), (v, _halves(values))]
        seen = _N_CELLS - _LAST_CELLS
        queries = [_fractions(3 + place, _HEAD_SIZE) for place in range(2)]
        outputs = []
        for query in queries:
            for head in range(_N_HEADS):
                start, end = head * _N_CELLS, head * _N_CELLS + seen
                outputs.append(_attended(query, _vectors(keys)[start:end], _vectors(values)[start:end]))
        for n_queries in _N_QUERIES:
            q = _new_tensor(self._context, _F32, _HEAD_SIZE, n_queries, _N_HEADS)
            mask = _new_tensor(self._context, _F16, _N_CELLS, n_queries, 1)
            hidden = [0.0] * seen + [-math.inf] * _LAST_CELLS
            self._inputs += [
                (q, b"".join(map(_floats, _repeated(queries, n_queries) * _N_HEADS))),
                (mask, _halves(hidden * n_queries)),
            ]
            attention = _attention(self._context, q, k, v, mask, 4 / math.sqrt(_HEAD_SIZE), 0.0, 0.0)
            _expand(self._graph, attention)
            # [head size, heads, queries]
            numbers = [number for output in _repeated(outputs, n_queries * _N_HEADS) for number in output]
            what = f"attention of {n_queries} rows"
            self._expected.append(_Expected(what, attention, numbers, _ATTENTION_TOLERANCE))

    def _add_norm(self, numbers: list[float]) -> None:
        tensor = _new_tensor(self._context, _F32, len(numbers), 1, 1)
        self._inputs.append((tensor, _floats(numbers)))
        result = _soft_max(self._context, _silu(self._context, _rms_norm(self._context, tensor, 1e-6)))
        _expand(self._graph, result)
        scale = 1 / math.sqrt(sum(map(mul, numbers, numbers)) / len(numbers) + 1e-6)
        expected = _softened([x * scale / (1 + math.exp(-x * scale)) for x in numbers])
        self._expected.append(_Expected("norms", result, expected, 1e-2 * min(expected)))


def _new_context() -> int:
    """For tensors whose data ggml allocates elsewhere."""
    context: int = _init(_InitParams(1 << 20, None, True))
    return context


def _extra_buffer_types(registry: int, device: int) -> list[int]:
    """Memory in which weights are kept in an order that suits the processor: repacked, or in tiles for AMX."""
    address = _proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return []
    pointers = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(device)
    found: list[int] = []
    while pointers and (pointer := pointers[len(found)]) is not None:
        found.append(pointer)
    return found


def _weights(kind: int, rows: list[list[float]]) -> tuple[bytes, list[list[float]]]:
    """The `rows` as ggml stores them in a type, repeated; and the numbers that they are then, once. Both by functions
    of libggml-base, which are plain C for every processor."""
    traits = _traits_of(kind).contents
    if kind == _F32:
        return b"".join(map(_floats, _repeated(rows, _N_ROWS))), rows
    row_bytes = _N_WEIGHTS // traits.block_size * traits.type_bytes
    stored = (ctypes.c_uint8 * (row_bytes * _N_OTHER_ROWS))()
    if kind not in _MADE_WITH_TABLES:
        source = b"".join(map(_floats, rows))
        _CONVERT(traits.from_float)(source, byref(stored), _N_WEIGHTS * _N_OTHER_ROWS)
        data = bytes(stored)
    else:
        data = b"".join(_block(kind, row, row_bytes) for row in range(_N_OTHER_ROWS))
    numbers = (c_float * (_N_WEIGHTS * _N_OTHER_ROWS))()
    _CONVERT(traits.to_float)(data, byref(numbers), len(numbers))
    decoded = list(numbers)
    found = [decoded[start : start + _N_WEIGHTS] for start in range(0, len(decoded), _N_WEIGHTS)]
    return data * (_N_ROWS // _N_OTHER_ROWS), found


def _block(kind: int, seed: int, n_bytes: int) -> bytes:
    """A block of a type that ggml quantises with tables which take long to make: any bits mean something, but for the
    scale. It stands first, or in the upper four bits of the last four words (iq1m_scale_t of ggml-common.h)."""
    noise = bytes(int(number * _LARGEST) & 255 for number in _fractions(seed, n_bytes))
    if kind != _IQ1_M:
        return _HALF_SCALE + noise[len(_HALF_SCALE) :]
    words = list(struct.unpack("<4H", noise[-8:]))
    (scale,) = struct.unpack("<H", _HALF_SCALE)
    words = [word & 0x0FFF | (scale >> 4 * place & 15) << 12 for place, word in enumerate(words)]
    return noise[:-8] + struct.pack("<4H", *words)


def _attended(query: list[float], keys: list[list[float]], values: list[list[float]]) -> list[float]:
    scores = _softened([4 / math.sqrt(_HEAD_SIZE) * sum(map(mul, query, key)) for key in keys])
    return [sum(map(mul, scores, column)) for column in zip(*values, strict=True)]


def _softened(numbers: list[float]) -> list[float]:
    """Their softmax."""
    largest = max(numbers)
    powers = [math.exp(number - largest) for number in numbers]
    total = sum(powers)
    return [power / total for power in powers]


def _fractions(seed: int, n: int) -> list[float]:
    """Numbers between -1 and 1 without a pattern: the upper bits of a linear congruential generator."""
    state = seed * 2654435761 + 12345
    found = []
    for _ in range(n):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        found.append((state >> 8) / 2**23 - 1)
    return found


def _whole_numbers(seed: int) -> list[float]:
    """Activations; each 32 of them have the largest number, so that their scale is 1 when they are quantised."""
    numbers = [float(round(number * _LARGEST)) for number in _fractions(100 + seed, _N_WEIGHTS)]
    numbers[::32] = [_LARGEST] * len(numbers[::32])
    return numbers


def _vectors(numbers: list[float]) -> list[list[float]]:
    return [numbers[start : start + _HEAD_SIZE] for start in range(0, len(numbers), _HEAD_SIZE)]


def _repeated(items: list[_Item], n: int) -> list[_Item]:
    """The first `n` of `items`, and of them again, and so on."""
    return (items * -(-n // len(items)))[:n]


def _floats(numbers: list[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def _halves(numbers: list[float]) -> bytes:
    return struct.pack(f"<{len(numbers)}e", *numbers)


def _is_right(expected: _Expected) -> bool:
    found = (c_float * len(expected.numbers))()
    _get(expected.tensor, byref(found), 0, ctypes.sizeof(found))
    numbers = list(found)
    return math.isfinite(sum(numbers)) and max(map(abs, map(sub, numbers, expected.numbers))) <= expected.tolerance
