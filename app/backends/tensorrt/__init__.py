"""TensorRT, 8.5 to 11: one code path, chosen by what the installed version has.

No module here imports tensorrt or pycuda when it is itself imported: `TensorRT` does, and hands them down.
"""
