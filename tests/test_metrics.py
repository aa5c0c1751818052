"""The text form of the metrics."""

from shimmy.metrics import Counter, Gauge, Histogram, Metrics


def test_a_counter_without_labels_is_there_before_its_first_event() -> None:
    counter = Counter("jobs_total", "Jobs.")
    assert counter.lines() == ["# HELP jobs_total Jobs.", "# TYPE jobs_total counter", "jobs_total 0"]
    counter.add(2)
    counter.add(0.5)
    assert counter.samples() == ["jobs_total 2.5"]


def test_labels_make_series_and_are_escaped() -> None:
    counter = Counter("requests_total", "Requests.", "route", "status")
    assert counter.samples() == []
    counter.add(1, "/v1", "200")
    counter.add(1, "/v1", "200")
    counter.add(1, 'a"b\\c\nd', "404")
    assert counter.samples() == [
        'requests_total{route="/v1",status="200"} 2',
        'requests_total{route="a\\"b\\\\c\\nd",status="404"} 1',
    ]


def test_a_gauge_goes_up_and_down() -> None:
    gauge = Gauge("running", "Running.", "model")
    gauge.set(3, "m")
    gauge.add(-1, "m")
    assert gauge.lines()[1:] == ["# TYPE running gauge", 'running{model="m"} 2']


def test_large_counts_are_not_rounded() -> None:
    counter = Counter("tokens_total", "Tokens.")
    counter.add(123_456_789_012)
    assert counter.samples() == ["tokens_total 123456789012"]


def test_histogram_buckets_are_cumulative_and_hold_their_bound() -> None:
    histogram = Histogram("wait_seconds", "Waits.", "model", bounds=(0.1, 1.0))
    for value_s in (0.05, 0.1, 0.5, 7):
        histogram.observe(value_s, "m")
    assert histogram.lines() == [
        "# HELP wait_seconds Waits.",
        "# TYPE wait_seconds histogram",
        'wait_seconds_bucket{model="m",le="0.1"} 2',
        'wait_seconds_bucket{model="m",le="1.0"} 3',
        'wait_seconds_bucket{model="m",le="+Inf"} 4',
        'wait_seconds_sum{model="m"} 7.65',
        'wait_seconds_count{model="m"} 4',
    ]


def test_the_page_has_every_metric_once_and_ends_with_a_newline() -> None:
    metrics = Metrics()
    metrics.requests.add(1, "/health", "200")
    page = metrics.render()
    assert page.endswith("\n")
    names = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)) == len(vars(metrics))
    assert all(name.startswith("shimmy_") for name in names)
