"""Set up the process that runs the tests."""

import os

# As the predictor does for its own process, if it comes before NumPy: here it comes after.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
