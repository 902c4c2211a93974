"""The process that simplifies one file into another: `python -m app.build.simplifier MODEL OUT`."""

from __future__ import annotations

import sys

from app.build.process import die_with_parent


def main(model: str, out: str) -> None:
    die_with_parent()
    import onnx  # only now: until then the end of the build would leave this process behind
    import onnxsim

    graph, _ = onnxsim.simplify(onnx.load_model(model, load_external_data=False))
    onnx.save_model(graph, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
