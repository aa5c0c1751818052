"""`stop`: ends servers in the background, kindly first.

Knows signals, and which server a command names. `server_records` knows which there are.
"""

import os
import signal
import socket
import sys

from shimmy.commands import server_records
from shimmy.commands.console import CommandCall, CommandFailed
from shimmy.commands.server_client import ServerAddress, answers, server_address
from shimmy.commands.server_records import ServerFolder, ServerRecord
from shimmy.option_kinds import ConfigError

END_S = 30.0  # for a server to end, if --wait says nothing: running requests have 5 s, and workers a while after that
_KILL_S = 10.0


def stop(call: CommandCall) -> int:
    """End the servers in the background that the command names. None is no error, unless another one answers there."""
    servers = server_records.running(server_records.places(call.config.cache_dir))
    address = server_address(call)
    if call.options.all:
        if call.options.bind or call.options.url:
            raise ConfigError("--all ends all servers, and goes without --bind and --url")
        if not servers:
            print("shimmy: no server in the background", file=sys.stderr)
    else:
        has_port = call.options.url is not None or bool(call.config.bind.port)
        named = [(folder, record) for folder, record in servers if _is_at(record, address, with_port=has_port)]
        if not named:
            _say_that_none_runs(address, servers)
        if len(named) > 1 and not has_port:
            raise CommandFailed(f"several servers run: {_urls(named)}; name one with --bind or --url, or stop --all")
        servers = named
    for folder, record in servers:
        _stop(folder, record, END_S if call.options.wait is None else call.options.wait)
    return 0


def _is_at(record: ServerRecord, address: ServerAddress, *, with_port: bool) -> bool:
    if with_port and record.port != address.port:
        return False
    return bool({*record.hosts} & {*address.hosts}) or bool(_resolved(record.hosts) & _resolved(address.hosts))


def _resolved(hosts: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    for host in hosts:
        try:
            found |= {str(place[0]) for _, _, _, _, place in socket.getaddrinfo(host, None)}
        except (OSError, UnicodeError):
            continue
    return found


def _urls(servers: list[tuple[ServerFolder, ServerRecord]]) -> str:
    return ", ".join(ServerAddress(record.hosts, record.port).url for _, record in servers)


def _say_that_none_runs(address: ServerAddress, others: list[tuple[ServerFolder, ServerRecord]]) -> None:
    if answers(address):
        raise CommandFailed(
            f"the server on {address.url} was not started with `serve --background` by this user: end it where it was "
            "started"
        )
    elsewhere = f"; there is {_urls(others)}" if others else ""
    print(f"shimmy: no server in the background on {address.url}{elsewhere}", file=sys.stderr)


def _stop(folder: ServerFolder, record: ServerRecord, within_s: float) -> None:
    url = ServerAddress(record.hosts, record.port).url
    if not record.is_of_a_process_here:
        if folder.is_alive:
            raise CommandFailed(f"the server on {url} runs in another container or on another machine: stop it there")
        return
    try:
        os.kill(record.pid, signal.SIGTERM)
        if not folder.is_free_within(within_s):
            print(f"shimmy: the server on {url} has not ended within {within_s:g} s, and is killed", file=sys.stderr)
            os.killpg(os.getpgid(record.pid), signal.SIGKILL)  # the leader of a session has its workers there
            if not folder.is_free_within(_KILL_S):
                raise CommandFailed(f"the server on {url} cannot be killed")
    except ProcessLookupError:
        pass
    except PermissionError as exc:
        raise CommandFailed(f"the server on {url} belongs to another user") from exc
    folder.remove()
    print(f"{url} has ended")
