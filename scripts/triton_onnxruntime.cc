// A backend for Triton Inference Server that runs ONNX Runtime on processors, for scripts/bench (see --triton): the
// server that pip installs has a backend for Python only. It works as Triton's own does: the rows of a batch are one
// tensor, without a copy where there is one request; one run of a session whose options are the runtime's defaults;
// outputs are copied into the responses, and the times are reported. It serves the networks of the benchmark: one
// input, one output `logits` of float32. Of both C interfaces it declares what it uses.
//
//   c++ -O2 -std=c++17 -shared -fPIC -o libtriton_onnxruntime.so triton_onnxruntime.cc libonnxruntime.so
//
// TRITON_INTRA_OP_THREADS: threads of one run; 0 or unset: the runtime's choice.

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

extern "C" {

// --- Triton's C interface (tritonserver.h, tritonbackend.h) ---------------------------------------------------------

struct TRITONSERVER_Error;
struct TRITONBACKEND_Model;
struct TRITONBACKEND_ModelInstance;
struct TRITONBACKEND_Request;
struct TRITONBACKEND_Input;
struct TRITONBACKEND_Response;
struct TRITONBACKEND_Output;

TRITONSERVER_Error* TRITONSERVER_ErrorNew(int code, const char* message);
TRITONSERVER_Error* TRITONBACKEND_ModelRepository(TRITONBACKEND_Model*, int* kind, const char** location);
TRITONSERVER_Error* TRITONBACKEND_ModelVersion(TRITONBACKEND_Model*, uint64_t* version);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceModel(TRITONBACKEND_ModelInstance*, TRITONBACKEND_Model**);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceSetState(TRITONBACKEND_ModelInstance*, void* state);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceState(TRITONBACKEND_ModelInstance*, void** state);
TRITONSERVER_Error* TRITONBACKEND_RequestInputByIndex(TRITONBACKEND_Request*, uint32_t index, TRITONBACKEND_Input**);
TRITONSERVER_Error* TRITONBACKEND_InputProperties(TRITONBACKEND_Input*, const char** name, int* datatype,
                                                  const int64_t** shape, uint32_t* dims, uint64_t* bytes,
                                                  uint32_t* buffers);
TRITONSERVER_Error* TRITONBACKEND_InputBuffer(TRITONBACKEND_Input*, uint32_t index, const void** buffer,
                                              uint64_t* bytes, int* memory_type, int64_t* memory_type_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseNew(TRITONBACKEND_Response**, TRITONBACKEND_Request*);
TRITONSERVER_Error* TRITONBACKEND_ResponseOutput(TRITONBACKEND_Response*, TRITONBACKEND_Output**, const char* name,
                                                 int datatype, const int64_t* shape, uint32_t dims);
TRITONSERVER_Error* TRITONBACKEND_OutputBuffer(TRITONBACKEND_Output*, void** buffer, uint64_t bytes, int* memory_type,
                                               int64_t* memory_type_id);
TRITONSERVER_Error* TRITONBACKEND_ResponseSend(TRITONBACKEND_Response*, uint32_t flags, TRITONSERVER_Error*);
TRITONSERVER_Error* TRITONBACKEND_RequestRelease(TRITONBACKEND_Request*, uint32_t flags);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportStatistics(TRITONBACKEND_ModelInstance*, TRITONBACKEND_Request*,
                                                                bool success, uint64_t exec_start,
                                                                uint64_t compute_start, uint64_t compute_end,
                                                                uint64_t exec_end);
TRITONSERVER_Error* TRITONBACKEND_ModelInstanceReportBatchStatistics(TRITONBACKEND_ModelInstance*, uint64_t batch,
                                                                     uint64_t exec_start, uint64_t compute_start,
                                                                     uint64_t compute_end, uint64_t exec_end);
}

namespace {

constexpr int kInternal = 1;              // TRITONSERVER_ERROR_INTERNAL
constexpr uint32_t kFinal = 1, kAll = 1;  // TRITONSERVER_RESPONSE_COMPLETE_FINAL, TRITONSERVER_REQUEST_RELEASE_ALL
constexpr int kTritonFloat = 11;          // TRITONSERVER_TYPE_FP32
constexpr int kOrtFloat = 1;              // ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
constexpr int64_t kClasses = 1000;

// --- ONNX Runtime's C interface (onnxruntime_c_api.h): a table of functions whose places never change ---------------

extern "C" {
struct OrtApiBase {
  const void* const* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};
const OrtApiBase* OrtGetApiBase();
}
using Status = void;

enum Place : int {
  kGetErrorMessage = 2,
  kCreateEnv = 3,
  kDisableTelemetryEvents = 6,
  kCreateSession = 7,
  kRun = 9,
  kCreateSessionOptions = 10,
  kSetIntraOpNumThreads = 24,
  kCreateTensorWithData = 49,
  kGetTensorMutableData = 51,
  kCreateCpuMemoryInfo = 69,
  kReleaseStatus = 93,
  kReleaseValue = 96,
};
constexpr uint32_t kApiVersion = 1;

class Runtime {
 public:
  static Runtime& get() {
    static Runtime one;
    return one;
  }

  template <typename... Args>
  void call(Place place, Args... args) const {
    auto* status = reinterpret_cast<Status* (*)(Args...)>(const_cast<void*>(api_[place]))(args...);
    if (status == nullptr) return;
    std::string message = reinterpret_cast<const char* (*)(Status*)>(const_cast<void*>(api_[kGetErrorMessage]))(status);
    release(kReleaseStatus, status);
    throw std::runtime_error(message);
  }

  void release(Place place, void* object) const {
    reinterpret_cast<void (*)(void*)>(const_cast<void*>(api_[place]))(object);
  }

  void* env = nullptr;
  void* cpu = nullptr;  // OrtMemoryInfo

 private:
  Runtime() {
    api_ = OrtGetApiBase()->GetApi(kApiVersion);
    call(kCreateEnv, 2, "triton", &env);
    call(kDisableTelemetryEvents, static_cast<const void*>(env));
    call(kCreateCpuMemoryInfo, 1, 0, &cpu);
  }

  const void* const* api_;
};

void check(TRITONSERVER_Error* error) {
  if (error != nullptr) throw std::runtime_error("Triton refused a call");
}

uint64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Tensor {
  const char* name;
  std::vector<int64_t> shape;
  const void* data;
  uint64_t bytes;
};

// One request's input; it comes in several buffers where Triton received it so, and is joined then.
Tensor input_of(TRITONBACKEND_Request* request, std::vector<char>& joined) {
  TRITONBACKEND_Input* input;
  check(TRITONBACKEND_RequestInputByIndex(request, 0, &input));
  Tensor found;
  const int64_t* shape;
  uint32_t dims, buffers;
  int datatype;  // Triton has checked it against the configuration
  check(TRITONBACKEND_InputProperties(input, &found.name, &datatype, &shape, &dims, &found.bytes, &buffers));
  found.shape.assign(shape, shape + dims);
  uint64_t at = 0;
  for (uint32_t index = 0; index < buffers; ++index) {
    const void* data;
    uint64_t bytes;
    int memory_type = 0;
    int64_t memory_type_id = 0;
    check(TRITONBACKEND_InputBuffer(input, index, &data, &bytes, &memory_type, &memory_type_id));
    if (buffers == 1) {
      found.data = data;
      return found;
    }
    if (index == 0) joined.resize(found.bytes);
    std::memcpy(joined.data() + at, data, bytes);
    at += bytes;
  }
  found.data = joined.data();
  return found;
}

class Instance {
 public:
  explicit Instance(const std::string& model) {
    Runtime& runtime = Runtime::get();
    void* options;
    runtime.call(kCreateSessionOptions, &options);
    const char* threads = std::getenv("TRITON_INTRA_OP_THREADS");
    runtime.call(kSetIntraOpNumThreads, options, threads ? std::atoi(threads) : 0);
    runtime.call(kCreateSession, static_cast<const void*>(runtime.env), model.c_str(),
                 static_cast<const void*>(options), &session_);
  }

  void execute(TRITONBACKEND_ModelInstance* self, TRITONBACKEND_Request** requests, uint32_t count) {
    const uint64_t start = now_ns();
    std::vector<std::vector<char>> joined(count);
    std::vector<Tensor> inputs;
    for (uint32_t number = 0; number < count; ++number) inputs.push_back(input_of(requests[number], joined[number]));
    Tensor all = inputs[0];
    std::vector<char> batch;
    if (count > 1) {
      all.shape[0] = 0;
      for (const Tensor& one : inputs) {
        all.shape[0] += one.shape[0];
        batch.insert(batch.end(), static_cast<const char*>(one.data), static_cast<const char*>(one.data) + one.bytes);
      }
      all.data = batch.data();
      all.bytes = batch.size();
    }
    const uint64_t compute_start = now_ns();
    void* value = run(all);
    const uint64_t compute_end = now_ns();
    float* rows;
    Runtime::get().call(kGetTensorMutableData, value, reinterpret_cast<void**>(&rows));
    for (uint32_t number = 0; number < count; ++number) {
      const int64_t shape[] = {inputs[number].shape[0], kClasses};
      answer(requests[number], rows, shape);
      rows += shape[0] * kClasses;
    }
    Runtime::get().release(kReleaseValue, value);
    const uint64_t end = now_ns();
    for (uint32_t number = 0; number < count; ++number) {
      check(TRITONBACKEND_ModelInstanceReportStatistics(self, requests[number], true, start, compute_start,
                                                        compute_end, end));
      check(TRITONBACKEND_RequestRelease(requests[number], kAll));
    }
    check(TRITONBACKEND_ModelInstanceReportBatchStatistics(self, all.shape[0], start, compute_start, compute_end, end));
  }

 private:
  void* run(const Tensor& input) {
    const Runtime& runtime = Runtime::get();
    void* in;
    runtime.call(kCreateTensorWithData, static_cast<const void*>(runtime.cpu), const_cast<void*>(input.data),
                 static_cast<size_t>(input.bytes), input.shape.data(), input.shape.size(),
                 kOrtFloat, &in);
    const char* input_names[] = {input.name};
    const char* output_names[] = {"logits"};
    const void* values[] = {in};
    void* out[] = {nullptr};
    runtime.call(kRun, session_, static_cast<const void*>(nullptr), static_cast<const char* const*>(input_names),
                 static_cast<const void* const*>(values), static_cast<size_t>(1),
                 static_cast<const char* const*>(output_names), static_cast<size_t>(1), static_cast<void**>(out));
    runtime.release(kReleaseValue, in);
    return out[0];
  }

  void answer(TRITONBACKEND_Request* request, const float* rows, const int64_t* shape) {
    TRITONBACKEND_Response* response;
    TRITONBACKEND_Output* output;
    check(TRITONBACKEND_ResponseNew(&response, request));
    check(TRITONBACKEND_ResponseOutput(response, &output, "logits", kTritonFloat, shape, 2));
    const uint64_t bytes = shape[0] * shape[1] * sizeof(float);
    void* buffer;
    int memory_type = 0;
    int64_t memory_type_id = 0;
    check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory_type, &memory_type_id));
    std::memcpy(buffer, rows, bytes);
    check(TRITONBACKEND_ResponseSend(response, kFinal, nullptr));
  }

  void* session_;
};

}  // namespace

extern "C" {

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* instance) {
  try {
    TRITONBACKEND_Model* model;
    int kind;
    const char* location;
    uint64_t version;
    check(TRITONBACKEND_ModelInstanceModel(instance, &model));
    check(TRITONBACKEND_ModelRepository(model, &kind, &location));
    check(TRITONBACKEND_ModelVersion(model, &version));
    const std::string path = std::string(location) + "/" + std::to_string(version) + "/model.onnx";
    check(TRITONBACKEND_ModelInstanceSetState(instance, new Instance(path)));
    return nullptr;
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(kInternal, error.what());
  }
}

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance*) { return nullptr; }

TRITONSERVER_Error* TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* instance,
                                                       TRITONBACKEND_Request** requests, uint32_t count) {
  try {
    void* state;
    check(TRITONBACKEND_ModelInstanceState(instance, &state));
    static_cast<Instance*>(state)->execute(instance, requests, count);
    return nullptr;
  } catch (const std::exception& error) {
    return TRITONSERVER_ErrorNew(kInternal, error.what());
  }
}
}
