"""Find a Chromium, or install Debian's: ``python tests/browser/chromium.py``, which `make test` calls and never fails.

``HPDVAL_CHROMIUM`` names another executable; set but empty, it means that no browser is used and none installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HINT = "tests in a browser are skipped: install chromium (as root: apt-get install chromium), or set HPDVAL_CHROMIUM"
DOWNLOAD_SECONDS = 240
UNPACK_SECONDS = 600  # long, since dpkg should not be ended in the middle


def find_chromium() -> str | None:
    """The first executable that works (Ubuntu has one of that name that does not), or None."""
    given = os.environ.get("HPDVAL_CHROMIUM")
    if given is not None:
        return given or None
    return next((path for path in map(shutil.which, NAMES) if path and works(path)), None)


def works(path: str) -> bool:
    """Whether it can say its version."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install() -> str:
    """Install Debian's package if that is possible; an empty string, or why it was not."""
    release = Path("/etc/os-release")
    if not release.exists() or "ID=debian" not in release.read_text(encoding="utf-8").splitlines():
        return "this is not Debian"
    if os.geteuid() != 0:
        return "only root can install it"
    package = ["install", "--yes", "--quiet", "--no-install-recommends", "chromium"]
    steps = [(["update"], DOWNLOAD_SECONDS), ([*package, "--download-only"], DOWNLOAD_SECONDS)]
    for arguments, seconds in [*steps, (package, UNPACK_SECONDS)]:
        command = ["apt-get", *arguments]
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if done.returncode:
            return f"{' '.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    return ""


if __name__ == "__main__" and "HPDVAL_CHROMIUM" not in os.environ and not find_chromium():
    print("Installing chromium for the tests in a browser.", flush=True)
    if problem := install():
        print(f"{HINT} ({problem})")
