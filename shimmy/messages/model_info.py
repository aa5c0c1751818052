"""What is said of a model: its adapters, its defaults for requests, what a worker knows of it once it is loaded."""

from dataclasses import dataclass
from typing import NamedTuple

# A larger scale of an adapter is a mistake: it drives a model out of the range of its number formats.
MAX_ADAPTER_SCALE = 100.0


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that a model has loaded, and its scale for requests that bring none."""

    path: str
    scale: float


@dataclass(frozen=True, slots=True)
class ModelDefaults:
    """What a model brings along for requests that say nothing else."""

    sampling: tuple[tuple[str, float], ...] = ()  # fields of SamplingParams, and their values
    n_predict: int | None = None
    stop: tuple[str, ...] = ()
    system: str = ""  # for conversations without a system message


@dataclass(frozen=True, slots=True)
class PromptCacheStats:
    """What has happened between a worker and the prompts on the disk since it was told last."""

    n_hits: int = 0  # prompts that went on from what was stored
    n_misses: int = 0  # those that had to be computed
    n_tokens: int = 0  # of the hits: that were not computed
    read_bytes: int = 0
    written_bytes: int = 0
    stored_bytes: int | None = None  # of all files, once something was written


class WorkerLoad(NamedTuple):
    """What a worker has to do and to keep, as it was when its last events were told."""

    n_running: int = 0  # jobs
    n_waiting: int = 0
    n_kv_used: int = 0  # cells of the KV pool that hold a token, of a job or kept for later prompts


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is: first a folder in SafeTensors may have to be converted, then the model's file is read."""

    share: float  # that is done, 0 to 1
    total_bytes: int | None = None  # of the file that is read; None: it is a conversion

    @property
    def is_conversion(self) -> bool:
        return self.total_bytes is None

    @property
    def percent(self) -> int:
        return int(100 * self.share)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a worker knows of its model once it is loaded."""

    n_ctx: int  # tokens in the KV pool, shared by all sequences
    n_ctx_train: int
    n_vocab: int
    n_sequences: int
    n_params: int
    size_bytes: int
    description: str
    cpu_variant: str
    has_chat_template: bool
    template_error: str | None = None  # why the chat template does not render a plain message
    load_s: float = 0.0
    validation_s: float = 0.0  # of which the first decode and the first rendering took
    adapters: tuple[Adapter, ...] = ()  # in the order of their ids
    longest_token_bytes: int | None = None  # bytes of UTF-8 that one token stands for at most; None: any number
    cpu_variant_note: str = ""  # which better variants do not work on this machine, and why
    device: str = ""  # names of the devices that have layers; '' where the processor computes alone
    device_description: str = ""  # of these, as their drivers call them
    device_note: str = ""  # why they do not have all layers
    n_layers: int = 0  # of the model, and one more for its output
    n_device_layers: int = 0  # of these, on the devices

    @property
    def place(self) -> str:
        """Where its layers are, for a person; '' where the processor has all and no device was thought of."""
        if not self.device:
            return self.device_note and f"on the processor ({self.device_note})"
        note = f" ({self.device_note})" if self.device_note else ""
        return f"{self.n_device_layers} of {self.n_layers} layers on {self.device_description}{note}"
