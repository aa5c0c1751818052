"""The metrics of a server, and Prometheus' text form of them. Written and read on the event loop's thread only.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text format 0.0.4).
"""

from abc import ABC, abstractmethod
from bisect import bisect_left

FIRST_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
SWAP_BUCKETS_S = (0.0001, 0.001, 0.01, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
LOAD_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class _Metric(ABC):
    """A name, its help, its label names, and one value for each combination of label values."""

    type = "untyped"

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = labels

    def lines(self) -> list[str]:
        return [f"# HELP {self.name} {self.help_text}", f"# TYPE {self.name} {self.type}", *self.samples()]

    @abstractmethod
    def samples(self) -> list[str]: ...

    def _sample(self, suffix: str, label_values: tuple[str, ...], value: float, le: str | None = None) -> str:
        pairs = [f'{name}="{_escape(label)}"' for name, label in zip(self.labels, label_values, strict=True)]
        if le is not None:
            pairs.append(f'le="{le}"')
        return f"{self.name}{suffix}{'{' + ','.join(pairs) + '}' if pairs else ''} {value:.15g}"


class _Scalar(_Metric):
    """One number; without labels it is there, as 0, before its first event."""

    def __init__(self, name: str, help_text: str, *labels: str) -> None:
        super().__init__(name, help_text, *labels)
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, amount: float, *label_values: str) -> None:
        self._values[label_values] = self._values.get(label_values, 0) + amount

    def samples(self) -> list[str]:
        return [self._sample("", labels, value) for labels, value in self._values.items()]


class Counter(_Scalar):
    """A sum that only grows."""

    type = "counter"

    def follow(self, total: float) -> None:
        """Take over a sum that is kept elsewhere."""
        self._values[()] = total


class Gauge(_Scalar):
    """A value that goes up and down."""

    type = "gauge"

    def set(self, value: float, *label_values: str) -> None:
        self._values[label_values] = value


class Histogram(_Metric):
    """How often a value fell at or below each bound; `bounds` grow, +Inf is added."""

    type = "histogram"

    def __init__(self, name: str, help_text: str, *labels: str, bounds: tuple[float, ...]) -> None:
        super().__init__(name, help_text, *labels)
        self._bounds = bounds
        self._n_in_bucket: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def observe(self, value: float, *label_values: str) -> None:
        buckets = self._n_in_bucket.setdefault(label_values, [0] * (len(self._bounds) + 1))
        buckets[bisect_left(self._bounds, value)] += 1
        self._sums[label_values] = self._sums.get(label_values, 0.0) + value

    def samples(self) -> list[str]:
        lines = []
        for labels, buckets in self._n_in_bucket.items():
            n_so_far = 0
            for bound, n_in_bucket in zip((*map(str, self._bounds), "+Inf"), buckets, strict=True):
                n_so_far += n_in_bucket
                lines.append(self._sample("_bucket", labels, n_so_far, le=bound))
            lines.append(self._sample("_sum", labels, self._sums[labels]))
            lines.append(self._sample("_count", labels, n_so_far))
        return lines


class Metrics:
    """Every metric of one server, in the order of the page. The code that causes an event counts it."""

    def __init__(self) -> None:
        self._define_tokens()
        self._define_jobs()
        self._define_models()

    def _define_tokens(self) -> None:
        self.requests = Counter("shimmy_requests_total", "HTTP requests answered.", "route", "status")
        self.prompt_tokens = Counter("shimmy_prompt_tokens_total", "Prompt tokens of finished jobs.", "model")
        self.cached_tokens = Counter("shimmy_cached_tokens_total", "Prompt tokens taken from a cache.", "model")
        self.stored_prompt_lookups = Counter(
            "shimmy_stored_prompt_lookups_total",
            "Prompts looked up on the disk (`--prompt-cache`), and whether it had enough of them: hit, miss.",
            "model",
            "outcome",
        )
        self.stored_prompt_tokens = Counter(
            "shimmy_stored_prompt_tokens_total", "Prompt tokens that came from the disk.", "model"
        )
        self.stored_prompt_bytes = Counter(
            "shimmy_stored_prompt_bytes_total",
            "Bytes of stored prompts read or written.",
            "model",
            "direction",
        )
        self.stored_prompts_size = Gauge(
            "shimmy_stored_prompts_size_bytes", "Size of all stored prompts, when the last one was written."
        )
        self.completion_tokens = Counter("shimmy_completion_tokens_total", "Tokens generated.", "model")
        self.drafted_tokens = Counter(
            "shimmy_drafted_tokens_total",
            "Tokens drafted by prompt lookup (lookup) or by a draft model (draft_model).",
            "model",
            "by",
        )
        self.accepted_tokens = Counter(
            "shimmy_accepted_tokens_total", "Drafted tokens that were accepted.", "model", "by"
        )

    def _define_jobs(self) -> None:
        self.jobs_running = Gauge("shimmy_jobs_running", "Jobs that hold a sequence.", "model")
        self.jobs_queued = Gauge("shimmy_jobs_queued", "Jobs that wait for a worker or a sequence.", "model")
        self.kv_used = Gauge(
            "shimmy_kv_used_tokens", "Tokens in the KV pool, of running jobs and kept for later prompts.", "model"
        )
        self.kv_size = Gauge("shimmy_kv_tokens", "Tokens that the KV pool may hold.", "model")
        self.queue_wait_s = Histogram(
            "shimmy_queue_wait_seconds",
            "How long a finished job had waited for a worker and a sequence.",
            "model",
            bounds=FIRST_TOKEN_BUCKETS_S,
        )
        self.first_token_s = Histogram(
            "shimmy_first_token_seconds",
            "Time from a request to its first token.",
            "model",
            bounds=FIRST_TOKEN_BUCKETS_S,
        )
        self.token_s = Histogram(
            "shimmy_token_seconds",
            "Time from a token to the next, the mean of a finished job.",
            "model",
            bounds=TOKEN_BUCKETS_S,
        )

    def _define_models(self) -> None:
        self.models_loaded = Gauge("shimmy_models_loaded", "Models with a running worker.")
        self.models_quarantined = Gauge(
            "shimmy_models_quarantined",
            "Models not loaded any more because their workers ended again and again.",
        )
        self.device_layers = Gauge(
            "shimmy_model_gpu_layers",
            "Layers of a loaded model that devices have, its output counted as one; no device: the processor has all.",
            "model",
            "device",
        )
        self.device_failures = Counter(
            "shimmy_gpu_failures_total",
            "Loads and workers that failed on a GPU, and what follows: fewer_layers there, or the processor.",
            "model",
            "outcome",
        )
        self.memory_given = Gauge("shimmy_memory_given_bytes", "Memory reserved for all workers.")
        self.model_load_s = Histogram(
            "shimmy_model_load_seconds", "Time to load a model.", "model", bounds=LOAD_BUCKETS_S
        )
        self.swaps = Counter("shimmy_swaps_total", "Workers replaced because a file changed.", "model", "outcome")
        self.swap_s = Histogram(
            "shimmy_swap_seconds",
            "Time of each phase of a swap: load, validation, switch (the old worker keeps serving until it), drain.",
            "model",
            "phase",
            bounds=SWAP_BUCKETS_S,
        )
        self.unloads = Counter(
            "shimmy_unloads_total",
            "Workers ended on purpose: idle, asked, memory or device_memory (evicted), removed.",
            "reason",
        )
        self.log_lines_dropped = Counter(
            "shimmy_log_lines_dropped_total",
            "Lines of the server's log dropped because its reader was too slow.",
        )
        self.worker_deaths = Counter("shimmy_worker_deaths_total", "Workers that ended unasked.", "model")

    def render(self) -> str:
        """The whole text page."""
        return "\n".join(line for metric in vars(self).values() for line in metric.lines()) + "\n"


def _escape(label_value: str) -> str:
    return label_value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
