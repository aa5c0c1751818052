"""What the servers are asked to do: one function for each workload, and the table of them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.bench.figures import Figure, Figures
from tests.bench.session import Session
from tests.bench.workloads import chats, copying, process, prompts, streams, structured


@dataclass(frozen=True, slots=True)
class Workload:
    """`measure` gives a value for each of `figures` that the server has a part in, or raises ReplyFailed."""

    name: str
    measure: Callable[[Session], Awaitable[Figures]]
    figures: tuple[Figure, ...]
    needs_new_server: bool = False  # one that nobody has asked anything; the others share one
    keeps_prompts: bool = False  # the server may keep them on disk


MANY = tuple(streams.Many(n_streams) for n_streams in streams.GOALS)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("start", process.start, process.START, needs_new_server=True),
        Workload("memory", process.loaded, process.LOADED, needs_new_server=True),
        Workload("stream", streams.one, streams.ONE),
        Workload("ordinary", streams.ordinary, streams.ORDINARY),
        *(Workload(f"streams-{many.n_streams}", many, many.figures) for many in MANY),
        Workload("whole", streams.whole, streams.WHOLE),
        Workload("long", prompts.long, prompts.LONG),
        Workload("restart", prompts.restart, prompts.RESTART, needs_new_server=True, keeps_prompts=True),
        Workload("arriving", prompts.arriving, prompts.ARRIVING),
        Workload("shared", prompts.shared, prompts.SHARED),
        Workload("chat", chats.ten_turns, chats.TURNS),
        Workload("changes", chats.changes, chats.CHANGES),
        Workload("copying", copying.copying, copying.COPYING),
        Workload("structured", structured.structured, structured.STRUCTURED),
        Workload("large-schema", structured.large, structured.LARGE),
    )
}
FIGURES = {figure.key: figure for workload in WORKLOADS.values() for figure in workload.figures}
