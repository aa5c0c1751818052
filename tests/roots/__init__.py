"""Other Linux systems to run the frozen file in, as folders that become its root: see `python -m tests.roots`."""

import os
import shutil
import subprocess


def may_mount() -> bool:
    """Whether this user may make a mount namespace, and mount in it without being mapped to another user."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
