"""The LoRA adapters of a model: which of those on offer it takes, and at what scales a job runs.

An adapter that an option names has to work, or the model is not served; one that merely lies beside the model is left
out where it does not. The id of an adapter is its place among the loaded ones.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shimmy.engine.llama.model import LlamaModel
from shimmy.errors import BadRequest, ModelUnavailable
from shimmy.formats.gguf import lora, reader
from shimmy.formats.gguf.header import GgufHeader
from shimmy.formats.gguf.reader import InvalidGguf, StoredTensor
from shimmy.messages.model_info import Adapter
from shimmy.messages.request import AdapterScales
from shimmy.wire.worker_options import WorkerOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """An adapter the model may take."""

    path: Path
    scale: float
    is_asked_for: bool

    def refuse(self, reason: str) -> None:
        """Say that it cannot be applied; raises ModelUnavailable where that means that the model cannot be served."""
        message = f"the adapter `{self.path.name}` cannot be applied: {reason}"
        if self.is_asked_for:
            raise ModelUnavailable(message)
        logger.warning("%s", message)


def load(model: LlamaModel, model_path: Path, header: GgufHeader, options: WorkerOptions) -> list[Offer]:
    """Load the adapters that fit, before the context of `model` is opened; raises ModelUnavailable.

    Those that were asked for come first. One that was made for another architecture is for another model of the server.
    """
    offers = list(_offers(options))
    tensors = reader.tensors(model_path, header) if offers else {}
    taken = []
    for offer in offers:
        try:
            with _as_gguf(offer.path, model_path, tensors, options) as path:
                if path is None or (found := lora.read(path)).header.architecture != header.architecture:
                    message = "the adapter `%s` is not applied: it is for models of another architecture than `%s`"
                    logger.info(message, offer.path.name, header.architecture)
                    continue
                lora.check(found, tensors)
                model.add_adapter(path)
        except InvalidGguf as exc:
            offer.refuse(str(exc))
        except OSError as exc:
            offer.refuse(exc.strerror or "it cannot be read")
        except ModelUnavailable as error:
            offer.refuse(error.message)
        else:
            taken.append(offer)
    return taken


def try_out(model: LlamaModel, offers: Sequence[Offer]) -> tuple[Adapter, ...]:
    """Decode a token with each loaded adapter alone, and keep those that work; raises ModelUnavailable."""
    taken: list[Adapter] = []
    for n_left, offer in zip(range(len(offers), 0, -1), offers, strict=True):
        scales = [0.0] * (len(taken) + n_left)
        scales[len(taken)] = 1.0
        model.set_scales(scales)
        try:
            model.warm_up()
        except ModelUnavailable:
            offer.refuse("the model computes no numbers with it, its weights are damaged")
            model.remove_adapter(len(taken))
        else:
            taken.append(Adapter(str(offer.path), offer.scale))
    if taken:
        model.set_scales([0.0] * len(taken))
    return tuple(taken)


def scales(adapters: Sequence[Adapter], asked: AdapterScales | None) -> tuple[float, ...]:
    """The scale of each adapter for a job that asked for these; BadRequest for an id that there is not."""
    if asked is None:
        return tuple(adapter.scale for adapter in adapters)
    result = [0.0] * len(adapters)
    for place, (index, scale) in enumerate(asked):
        if index >= len(adapters):
            known = f"has 0 to {len(adapters) - 1}" if adapters else "has no adapters"
            raise BadRequest(f"lora[{place}].id: the model {known}, got {index}", param=f"lora[{place}].id")
        result[index] = scale
    return tuple(result)


@contextlib.contextmanager
def _as_gguf(
    path: Path, model_path: Path, tensors: Mapping[bytes, StoredTensor], options: WorkerOptions
) -> Iterator[Path | None]:
    """The adapter at `path` as a file that llama.cpp reads: made of a folder for this model, or else the file itself.

    None when it is for models of another architecture.
    """
    if not path.is_dir():
        yield path
        return
    from shimmy.engine import convert_checkpoint  # few workers need it
    from shimmy.formats.convert import peft

    base = peft.Base.of(reader.contents(model_path), tensors)
    cache_dir = None if options.cache_dir is None else Path(options.cache_dir)
    with convert_checkpoint.adapter_gguf_of(path, base, cache_dir) as made:
        yield made


def _offers(options: WorkerOptions) -> Iterator[Offer]:
    """Each file or folder once."""
    seen: set[str] = set()
    asked_for = [Offer(Path(path), scale, is_asked_for=True) for path, scale in options.lora]
    siblings = [Offer(Path(path), 0.0, is_asked_for=False) for path in options.siblings]
    for offer in (*asked_for, *siblings):
        real_path = os.path.realpath(offer.path)  # never raises
        if real_path not in seen:
            seen.add(real_path)
            yield offer
