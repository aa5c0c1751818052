"""`rpc-worker`: this machine computes for servers on others, which have its key. It knows no model.

What it offers is put together here: the devices by their names, and the memory that is free of them now.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from shimmy.background import keep_running
from shimmy.commands.console import CommandCall, CommandFailed
from shimmy.config import Config
from shimmy.http.listening import BindError, listen
from shimmy.messages.device import Device
from shimmy.option_kinds import ConfigError
from shimmy.rpc.engine_process import EngineSettings
from shimmy.rpc.front import Front, FrontOptions
from shimmy.rpc.key import HOW_TO_MAKE_ONE, read_key
from shimmy.rpc.networks import is_loopback
from shimmy.rpc.offer import PROCESSOR, OfferedDevice
from shimmy.rpc.tensor_store import TensorStore
from shimmy.system import backends, cpu, memory
from shimmy.system.frozen_program import UnpackedFolder

logger = logging.getLogger(__name__)


def rpc_worker(call: CommandCall) -> int:
    config, options = call.config, call.options
    if not backends.RPC.is_there():
        raise CommandFailed("this build cannot compute for other machines: `python3 build.py rpc` makes what it lacks")
    try:
        key = read_key(config.rpc_key_file)
    except ValueError as exc:
        raise ConfigError(f"--rpc-key-file: {exc}") from exc
    devices = _devices(config)
    try:
        listeners = listen(options.listen)
    except BindError as exc:
        raise CommandFailed(str(exc)) from exc
    try:
        _check_reach(listeners, config.rpc_key_file)
        front = FrontOptions(
            key=key,
            limit_s=config.rpc_timeout_s,
            max_clients=options.max_clients,
            max_bytes=options.memory,
            networks=tuple(options.allow or ()),
            devices=devices,
            engine=EngineSettings(
                (), config.n_threads or cpu.n_physical_cores(), config.cpu_variant,
                None if config.cache_dir is None else str(config.cache_dir),
            ),
            store=_store(config.cache_dir, options.weights_cache),
        )  # fmt: skip
        offered = ", ".join(f"{each.name} ({memory.shown(each.free_bytes)} free)" for each in devices())
        logger.info("offering %s on %s", offered, ", ".join(map(_place, listeners)))
        asyncio.run(_serve(Front(front), listeners, call.home))
    finally:
        for listener in listeners:
            listener.close()
    return 0


async def _serve(front: Front, listeners: Sequence[socket.socket], home: UnpackedFolder) -> None:
    """Until a signal ends it, or the death of the one-file program's outer process."""
    serving = asyncio.ensure_future(front.serve(listeners))
    chore = partial(_end_as_orphan, serving, home)
    orphaned = asyncio.ensure_future(keep_running("looking after the program's folder", chore))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        logger.info("shutting down")
    finally:
        orphaned.cancel()


async def _end_as_orphan(serving: "asyncio.Future[None]", home: UnpackedFolder) -> None:
    await home.until_orphaned()
    logger.error("the program that started this one was killed")
    serving.cancel()


def _check_reach(listeners: Sequence[socket.socket], key_file: Path | None) -> None:
    """Raises ConfigError where strangers would reach a machine that asks for no key."""
    wide = [listener for listener in listeners if not is_loopback(listener.getsockname()[0])]
    if wide and key_file is None:
        raise ConfigError(
            f"other machines would reach {_place(wide[0])}, so a key is needed: `--rpc-key-file FILE`; "
            f"{HOW_TO_MAKE_ONE}"
        )


def _place(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _store(cache_dir: Path | None, max_bytes: int) -> TensorStore | None:
    if cache_dir is None or not max_bytes:
        return None
    try:
        return TensorStore(cache_dir / "rpc-weights", max_bytes)
    except OSError as exc:
        logger.warning("no weights are kept: %s", exc.strerror)
        return None


# -- what is offered -------------------------------------------------------------------------------------------------


def _devices(config: Config) -> Callable[[], tuple[OfferedDevice, ...]]:
    """What tells the devices with what is free of them now. Raises CommandFailed where one that is named is missing."""
    chosen = _gpus(config)
    if config.devices and (missing := [name for name in config.devices if name not in {each.name for each in chosen}]):
        raise CommandFailed(f"there is no device `{missing[0]}` that can be used; `shimmy gpu-info` lists them")
    if not chosen:
        return lambda: (_processor(),)
    names = {each.name for each in chosen}
    return lambda: tuple(_offered(each) for each in _gpus(config) if each.name in names)


def _gpus(config: Config) -> list[Device]:
    """The GPUs that the options choose, as they are now; none: the processor."""
    if config.devices == () or not backends.has_one_for_gpus():
        return []
    from shimmy.gpus.devices import find_devices

    found = find_devices(config.cache_dir, is_enough=lambda _kept: False).devices
    if config.devices is None:
        return [each for each in found if each.is_automatic]
    return [each for each in found if each.name in config.devices and not each.unusable]


def _offered(device: Device) -> OfferedDevice:
    free = device.total_bytes if device.free_bytes is None else device.free_bytes
    return OfferedDevice(device.name, device.description, device.total_bytes, free)


def _processor() -> OfferedDevice:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = memory.free_bytes()
    return OfferedDevice(PROCESSOR, cpu.processor_name(), total, total if free is None else min(free, total))
