"""Where pytest runs in several processes (-n), each computes with its share of the cores: two threads in each of two processes wait for each other."""

import os

PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if PROCESSES > 1:                                                  # before torch is imported; what a test starts inherits it
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // PROCESSES)))
