/* Stand-ins for libnvinfer, libnvonnxparser, libnvinfer_plugin and (TensorRT 8) libnvparsers: just the symbols that
 * TensorRT's Python bindings look up. Every factory returns NULL, as the real ones do without a GPU, so the bindings
 * can be imported and asked what they have. The same source is compiled once for each library. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

#if defined(LIB_nvinfer)
EXPORTED int32_t getInferLibVersion(void) { return TENSORRT_NUMBER; }
EXPORTED void *createInferBuilder_INTERNAL(void *logger, int32_t version) { (void)logger, (void)version; return NULL; }
EXPORTED void *createInferRuntime_INTERNAL(void *logger, int32_t version) { (void)logger, (void)version; return NULL; }
EXPORTED void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version)
{
    (void)engine, (void)logger, (void)version;
    return NULL;
}
EXPORTED void *getPluginRegistry(void) { return NULL; }
EXPORTED void *getBuilderPluginRegistry(int32_t capability) { (void)capability; return NULL; }
#elif defined(LIB_nvonnxparser)
EXPORTED int getNvOnnxParserVersion(void) { return TENSORRT_NUMBER; }
EXPORTED void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version)
{
    (void)network, (void)logger, (void)version;
    return NULL;
}
EXPORTED void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version)
{
    (void)refitter, (void)logger, (void)version;
    return NULL;
}
#elif defined(LIB_nvinfer_plugin)
EXPORTED bool initLibNvInferPlugins(void *logger, const char *space) { (void)logger, (void)space; return true; }
#elif defined(LIB_nvparsers) /* C++ names, as the linker sees them */
EXPORTED void *_ZN14nvcaffeparser117createCaffeParserEv(void) { return NULL; }
EXPORTED void _ZN14nvcaffeparser123shutdownProtobufLibraryEv(void) {}
EXPORTED void *_ZN11nvuffparser15createUffParserEv(void) { return NULL; }
EXPORTED void _ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi(void) {}
#endif
