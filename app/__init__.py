"""jetforge: turns uploaded networks into engines on the device they will run on, proves them, serves them warm."""

import os

__version__ = "0.1.0"

# OpenCV reads this once, when it is first imported, which is after this: an image with more pixels is refused before
# its pixels are allocated. 10^8 pixels are 300 MB once decoded.
IMAGE_PIXELS_MAX = 10**8
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(IMAGE_PIXELS_MAX))
