"""Computes for one client of another machine: the process behind `rpc-worker`, with the client at the other end of a
socket; a hidden sub-command.

Knows devices and ggml's server; nothing of networks. It takes its devices, then gives up what else a process may do,
and then serves.
"""

import ctypes
import json
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from shimmy import log
from shimmy.engine.llama.binding import aborts, function
from shimmy.engine.loading import trusted_backend
from shimmy.engine.remote import confinement, library
from shimmy.errors import ModelUnavailable
from shimmy.rpc.engine_process import READY
from shimmy.rpc.offer import PROCESSOR
from shimmy.system.parent_process import end_with
from shimmy.system.signals import ignore
from shimmy.wire.worker_options import Offload

_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_processor = function("ggml_backend_dev_by_type", ctypes.c_void_p, ctypes.c_int)


def main(arguments: Sequence[str]) -> NoReturn:
    """`arguments`: the socket's descriptor, the process to end with, and EngineSettings as JSON."""
    connection, parent = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    end_with(parent)
    ignore(signal.SIGINT, signal.SIGTERM)  # terminals send them to every process; the parent decides
    log.set_up("warning", "text")
    aborts.handler = lambda _: os._exit(1)
    settings: dict[str, Any] = json.loads(arguments[2])
    try:
        devices = _devices(settings)
        server = library.opened().ggml_backend_rpc_start_server
    except ModelUnavailable as error:
        log.flush()
        os.write(2, f"shimmy: {error.message}\n".encode())
        os._exit(1)
    server.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
    server.restype = None
    array = (ctypes.c_void_p * len(devices))(*devices)
    name = library.endpoint(connection.detach())
    descriptor = int(name.rpartition(b":")[2])
    os.write(descriptor, READY)
    if settings["devices"] == [PROCESSOR]:  # drivers of GPUs need files as they go
        confinement.give_up_files_and_network()
    server(name, None, settings["n_threads"], len(devices), array)
    log.flush()
    os._exit(0)


def _devices(settings: dict[str, Any]) -> list[int]:
    """Pointers to the devices, in the order of their names; raises ModelUnavailable."""
    cache_dir = settings["cache_dir"]
    trusted_backend(settings["cpu_variant"], cache_dir)
    gpus = [name for name in settings["devices"] if name != PROCESSOR]
    pointers = {PROCESSOR: _processor(_CPU)}
    if gpus:
        from shimmy.engine.gpu.devices import open_devices

        one = (1,) * len(gpus)
        opened = open_devices(Offload(tuple(gpus), one, one), None if cache_dir is None else Path(cache_dir))
        pointers |= zip(gpus, opened.pointers, strict=True)
    return [pointers[name] for name in settings["devices"]]
