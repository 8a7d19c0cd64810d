"""What holds for every test."""

import atexit
import os
import shutil
import tempfile

# There is a process of tests for each core: more threads of torch would only take it from the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing that a test measures is left for the user, and nothing that the user measured decides a test.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="segpress-cache-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
