"""What holds for every test."""

import atexit
import os
import shutil
import tempfile

# Torch's threads spin while they wait, and take the cores from whatever runs beside the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Nothing that a test measures is left for the user, and nothing that the user measured decides a test.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="segpress-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
