"""Where pytest runs in several processes (-n), each computes with its share of the cores.

Two threads in each of two processes on two cores would wait for each other.
"""

import os

PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
if PROCESSES > 1:  # set before torch is imported; what a test starts inherits it
    threads = max(1, (os.cpu_count() or 1) // PROCESSES)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
