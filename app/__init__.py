"""jetforge: turns uploaded networks into engines on the device they will run on, proves them, serves them warm."""

__version__ = "0.1.0"
