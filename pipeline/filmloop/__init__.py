"""filmloop keeps the model in front of an X-ray laser fresh.

One pass of the loop: the edge watches every shot and stages it, a cluster retrains the model, a gate judges it on
held-out frames, the registry ships it, and the edge swaps it in at a batch boundary without losing a frame.
Start reading at `filmloop.cycle`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("filmloop")
except PackageNotFoundError:  # a source tree on sys.path that nobody installed
    __version__ = "0+unknown"
