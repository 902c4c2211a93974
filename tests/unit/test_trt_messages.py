"""Texts as TensorRT 8.5 to 11, its parser, CUDA and the loader really write them → cause and fix."""

from __future__ import annotations

import pytest

from app.backends.tensorrt.messages import explained, words

VERSION_TAG = (
    "1: [stdArchiveReader.cpp::StdArchiveReaderInitCommon::46] Error Code 1: Serialization (Serialization assertion"
    " stdVersionRead == serializationVersion failed.Version tag does not match. Note: Current Version: 213, Serialized"
    " Engine Version: 205)"
)
LIBRARY_VERSION = (
    "6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.5.3.1 got"
    " 8.4.1.5, please rebuild."
)
COMPUTE = (
    "6: The engine plan file is generated on an incompatible device, expecting compute 8.7 got compute 8.6, please"
    " rebuild."
)
MAGIC = (
    "1: [runtime.cpp::parsePlan::314] Error Code 1: Serialization (Serialization assertion plan->header.magicTag =="
    " rt::kPLAN_MAGIC_TAG failed.)"
)
MODELS = (
    "Using an engine plan file across different models of devices is not recommended and is likely to affect"
    " performance or even cause errors."
)
NO_PROFILE = (
    "4: [network.cpp::validate::3062] Error Code 4: Internal Error (Network has dynamic or shape inputs, but no"
    " optimization profile has been defined.)"
)
NO_IMPLEMENTATION = (
    "10: [optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (Could not find any implementation for node"
    " {ForeignNode[/model.22/Constant_output_0.../model.22/Concat_5]}.)"
)
WORKSPACE = (
    "10: Could not find any implementation for node /conv1/Conv due to insufficient workspace. See verbose log for"
    " requested sizes."
)
NO_SCALES = (
    "Calibration failure occurred with no scaling factors detected. This could be due to no int8 calibrator or"
    " insufficient custom scales for network layers. Please see int8 sample to setup calibration correctly."
)
NO_IMPORTER = "No importer registered for op: GridSample. Attempting to import as plugin."
NO_PLUGIN = "getPluginCreator could not find plugin: GridSample version: 1"
NO_PLUGIN_CALL = "3: getPluginCreator() could not find Plugin EfficientNMS_TRT version 1"
PLUGIN_NOT_FOUND = "Assertion failed: creator && Plugin not found, are the plugin name, version, and namespace correct?"
STATIC = (
    "3: [executionContext.cpp::setInputShape::2068] Error Code 3: API Usage Error (Parameter check failed at:"
    " runtime/api/executionContext.cpp::setInputShape::2068, condition: engineDims.d[i] == dims.d[i] Static dimension"
    " mismatch while setting input shape for images.)"
)
OUTSIDE = (
    "IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, condition:"
    " satisfyProfile. Set dimension [9,3,224,224] for tensor image does not satisfy any optimization profiles. Valid"
    " range for profile 0: [1,3,224,224]..[8,3,224,224].)"
)
MEMORY = "NvMapMemAllocInternalTagged: 1075072515 error 12"
NO_DRIVER = (
    "6: [cudaErrorCheck] CUDA initialization failure with error: 35. Please check your CUDA installation: "
    " http://docs.nvidia.com/cuda/cuda-installation-guide-linux/index.html"
)
NO_LIBRARY = "libnvinfer.so.8: cannot open shared object file: No such file or directory"
CUBLAS = "SymbolAddress for cublasGetProperty could not be loaded, check function name and library path."


@pytest.mark.parametrize(
    ("text", "cause", "fix"),
    [
        (VERSION_TAG, "another version of TensorRT", "again"),
        (LIBRARY_VERSION, "TensorRT 8.4.1.5; this is 8.5.3.1", "again"),
        (COMPUTE, "compute capability 8.6; this GPU has 8.7", "again"),
        (MAGIC, "not a TensorRT engine", "Upload"),
        (MODELS, "another model of GPU", "again"),
        (NO_PROFILE, "dynamic inputs", "max_shapes"),
        (NO_IMPLEMENTATION, "{ForeignNode[/model.22/Constant_output_0.../model.22/Concat_5]}", "workspace_mib"),
        (WORKSPACE, "scratch memory", "workspace_mib"),
        (NO_SCALES, "without calibration samples", "calibration archive"),
        (NO_IMPORTER, "no operator GridSample", "opset"),
        (NO_PLUGIN, "GridSample", "opset"),
        (NO_PLUGIN_CALL, "EfficientNMS_TRT", "opset"),
        (PLUGIN_NOT_FOUND, "no plugin is installed", "opset"),
        (STATIC, "another length", "signature"),
        (OUTSIDE, "outside those", "max_shapes"),
        ("Killed", "want of memory", "workspace_mib"),
        ("signal 9", "want of memory", "swap"),
        (MEMORY, "fragmented", "restart"),
        (NO_DRIVER, "no NVIDIA driver", "newer driver"),
        ("CUDA initialization failure with error: 222", "error 222", "nvidia-smi"),
        (NO_LIBRARY, "libnvinfer.so.8 is not where", "LD_LIBRARY_PATH"),
        ("libcuda.so.1: cannot open shared object file: No such file or directory", "driver", "--runtime nvidia"),
        ("libcudnn.so.8: cannot open shared object file: No such file or directory", "libcudnn.so.8", "JetPack"),
        ("No module named 'tensorrt'", "not installed", "--system-site-packages"),
        ("No module named 'pycuda'", "pycuda is not installed", "pip install pycuda"),
        (CUBLAS, "cuBLAS", "tactic_sources"),
        ("Requested amount of GPU memory (2147483648 bytes) could not be allocated.", "not enough", "workspace_mib"),
        ("In node -1 (importInput): UNSUPPORTED_NODE: Unsupported ONNX data type: DOUBLE (11)", "DOUBLE", "float32"),
    ],
)
def test_a_text_is_told_with_its_cause_and_what_to_do(text, cause, fix):
    found = explained([text])

    assert found is not None
    assert cause in found.cause and fix in found.fix


@pytest.mark.parametrize("text", [VERSION_TAG, LIBRARY_VERSION, COMPUTE])
def test_an_engine_of_another_device_or_version_is_stale(text):
    found = explained([text])

    assert found is not None and found.is_stale


@pytest.mark.parametrize("text", [MAGIC, MODELS, WORKSPACE])
def test_other_failures_are_not_taken_for_stale_engines(text):
    found = explained([text])

    assert found is not None and not found.is_stale


def test_the_cause_is_found_among_the_lines_that_follow_from_it():
    lines = [
        "4: [runtime.cpp::deserializeCudaEngine::50] Error Code 4: Internal Error (Engine deserialization failed.)"
    ]

    found = explained([*lines, LIBRARY_VERSION])

    assert found is not None and found.is_stale


def test_a_text_that_nobody_has_seen_is_not_explained():
    assert explained(["Everything is fine.", ""]) is None


def test_words_are_told_without_positions_in_the_source():
    assert words(["", NO_PROFILE]) == (
        "Internal Error (Network has dynamic or shape inputs, but no optimization profile has been defined.)"
    )
