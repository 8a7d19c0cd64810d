"""What holds for every test."""

import os

# Torch's threads spin while they wait, and take the cores from whatever runs beside the tests.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
