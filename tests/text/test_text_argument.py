"""What the text argument of a call costs, whatever a model writes there."""

import subprocess
import sys
from time import process_time

from shimmy.text.text_argument import text_in

MEMORY = """
import resource
from shimmy.text.text_argument import text_in
text = '{"input": "' + "x" * 2_000_000 + '"}'
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(text_in(text)) == 2_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_long_text_takes_memory_of_its_own_size() -> None:
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 * 1024


def test_what_begins_no_escape_takes_time_that_grows_with_its_length() -> None:
    text = r"\q" * 100_000
    started_s = process_time()
    assert text_in(f'{{"input": "{text}"}}') == text
    assert process_time() - started_s < 3.2
