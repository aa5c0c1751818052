"""Devices of other machines in the hands of this engine, beside those of its own.

Knows ggml's RPC client; how the machines are reached is in `shimmy.rpc.tunnel`. Once in a process.
"""

import ctypes
import os
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from shimmy import log
from shimmy.engine.gpu.devices import EngineDevices, open_devices
from shimmy.engine.llama.binding import aborts, function
from shimmy.engine.remote import library
from shimmy.errors import ModelUnavailable
from shimmy.rpc.address import Address
from shimmy.rpc.key import read_key
from shimmy.rpc.tunnel import open_tunnel
from shimmy.wire.worker_options import Offload, WorkerOptions, is_remote

_device = function("ggml_backend_reg_dev_get", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def open_all(options: WorkerOptions) -> EngineDevices:
    """The devices of `options.offload`, those of this machine first; raises ModelUnavailable.

    The machines are reached here. When one is lost later, this process says so and ends.
    """
    offload, cache_dir = options.offload, None if options.cache_dir is None else Path(options.cache_dir)
    own = [name for name in offload.devices if not is_remote(name)]
    pointers: dict[str, tuple[int, str]] = {}
    if own:
        opened = open_devices(_part(offload, own), cache_dir)
        pointers |= {name: (pointer, name) for name, pointer in zip(own, opened.pointers, strict=True)}
    try:
        key = read_key(None if options.rpc_key_file is None else Path(options.rpc_key_file))
    except ValueError as exc:
        raise ModelUnavailable(str(exc)) from exc
    remote = [name for name in offload.devices if is_remote(name)]
    for address, names in groupby(remote, lambda name: name.rpartition("/")[0]):
        pointers |= {
            name: (pointer, name) for name, pointer in _opened(address, list(names), key, options.rpc_timeout_s).items()
        }
    found = [pointers[name] for name in offload.devices]
    described = ", ".join(name for _, name in found)
    return EngineDevices(
        tuple(pointer for pointer, _ in found), offload.layers, offload.n_cpu_moe, ", ".join(offload.devices), described
    )


def _opened(address: str, names: list[str], key: bytes, limit_s: float) -> dict[str, int]:
    """Pointers to these devices of one machine; raises ModelUnavailable."""
    rpc = library.opened()
    wanted = [name.rpartition("/")[2] for name in names]
    endpoint = library.endpoint(open_tunnel(Address.parse(address), wanted, key, limit_s, _on_lost))
    rpc.ggml_backend_rpc_init.argtypes = (ctypes.c_char_p, ctypes.c_uint32)
    rpc.ggml_backend_rpc_init.restype = ctypes.c_void_p
    rpc.ggml_backend_rpc_add_server.argtypes = (ctypes.c_char_p,)
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    rpc.ggml_backend_rpc_init(endpoint, 0)  # never freed: the connection would end with its last user, and begin anew
    registry = rpc.ggml_backend_rpc_add_server(endpoint)
    return {name: _device(registry, index) for index, name in enumerate(names)}


def _part(offload: Offload, names: list[str]) -> Offload:
    places = [offload.devices.index(name) for name in names]
    return replace(
        offload,
        devices=tuple(names),
        layers=tuple(offload.layers[place] for place in places),
        n_bytes=tuple(offload.n_bytes[place] for place in places),
    )


def _on_lost(reason: str) -> None:
    """A machine is gone: the engine would wait for it, or abort with words of its own."""
    if aborts.handler is not None:
        aborts.handler(reason)
    log.flush()
    os._exit(1)
