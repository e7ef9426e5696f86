/* ONNX Runtime through its C interface, and session options with our execution provider.
   Written without ONNX Runtime's header, which its wheel lacks: functions are slots of a table that never move. */
#ifndef ONNXPRESS_TESTS_RUNTIME_H
#define ONNXPRESS_TESTS_RUNTIME_H

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*Slot)(void);
typedef struct {
  const Slot* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)(void);
} ApiBase;

static const Slot* api;
static const char* program;

enum { kApiVersion = 23, kWarning = 2, kFloat = 1, kInt64 = 7, kThreads = 2 };

static void fail(const char* why) {
  fprintf(stderr, "%s: %s\n", program, why);
  exit(1);
}

static void check(void* status) {
  if (status != NULL) fail(((const char* (*)(const void*))api[2])(status)); /* GetErrorMessage */
}

/* Opens the shared object of ONNX Runtime; returns its version. */
static const char* open_runtime(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) fail(dlerror());
  const ApiBase* (*get_base)(void) = NULL;
  *(void**)&get_base = dlsym(library, "OrtGetApiBase");
  if (get_base == NULL || (api = get_base()->GetApi(kApiVersion)) == NULL) {
    fail("this is no ONNX Runtime of version 1.23 or newer");
  }
  return get_base()->GetVersionString();
}

/* Session options with the devices of our execution provider. */
static void* make_options(void* env, const char* library) {
  const void* const* devices = NULL;
  const void* ours[16];
  size_t count = 0, taken = 0;
  void* options = NULL;
  /* RegisterExecutionProviderLibrary, GetEpDevices, CreateSessionOptions, SetIntraOpNumThreads */
  check(((void* (*)(void*, const char*, const char*))api[301])(env, "onnxpress", library));
  check(((void* (*)(void*, const void* const**, size_t*))api[303])(env, &devices, &count));
  for (size_t i = 0; i < count && taken < 16; ++i) {
    const char* name = ((const char* (*)(const void*))api[312])(devices[i]); /* EpDevice_EpName */
    if (strcmp(name, "OnnxpressExecutionProvider") == 0) ours[taken++] = devices[i];
  }
  check(((void* (*)(void**))api[10])(&options));
  check(((void* (*)(void*, int))api[24])(options, kThreads));
  /* SessionOptionsAppendExecutionProvider_V2 */
  check(((void* (*)(void*, void*, const void* const*, size_t, const char* const*, const char* const*, size_t))api[304])(
      options, env, ours, taken, NULL, NULL, 0));
  return options;
}

/* A tensor that points to `values`, which hold `bytes` and must outlive it. */
static void* make_tensor(void* values, size_t bytes, const int64_t* shape, size_t rank, int type) {
  void *memory = NULL, *tensor = NULL;
  check(((void* (*)(int, int, void**))api[69])(0, 0, &memory)); /* CreateCpuMemoryInfo */
  /* CreateTensorWithDataAsOrtValue */
  check(((void* (*)(const void*, void*, size_t, const int64_t*, size_t, int, void**))api[49])(
      memory, values, bytes, shape, rank, type, &tensor));
  ((void (*)(void*))api[94])(memory); /* ReleaseMemoryInfo */
  return tensor;
}

/* What a tensor holds, and how many numbers these are. */
static void* values_of(void* tensor, size_t* count) {
  void *info = NULL, *values = NULL;
  /* GetTensorTypeAndShape, GetTensorShapeElementCount, GetTensorMutableData */
  check(((void* (*)(const void*, void**))api[65])(tensor, &info));
  check(((void* (*)(const void*, size_t*))api[64])(info, count));
  check(((void* (*)(void*, void**))api[51])(tensor, &values));
  ((void (*)(void*))api[99])(info); /* ReleaseTensorTypeAndShapeInfo */
  return values;
}

static void run(void* session, const char* const* names, void* const* inputs, size_t input_count,
                const char* const* output_names, size_t output_count, void** outputs) {
  check(((void* (*)(void*, const void*, const char* const*, void* const*, size_t, const char* const*, size_t,
                    void**))api[9])(session, NULL, names, inputs, input_count, output_names, output_count, outputs));
}

static void* make_env(void) {
  void* env = NULL;
  check(((void* (*)(int, const char*, void**))api[3])(kWarning, program, &env)); /* CreateEnv */
  return env;
}

static void* make_session(void* env, const char* model, void* options) {
  void* session = NULL;
  check(((void* (*)(void*, const char*, void*, void**))api[7])(env, model, options, &session)); /* CreateSession */
  return session;
}

static void release_tensor(void* tensor) { ((void (*)(void*))api[96])(tensor); }

static void release_session(void* session, void* options, void* env) {
  ((void (*)(void*))api[95])(session);  /* ReleaseSession */
  ((void (*)(void*))api[100])(options); /* ReleaseSessionOptions */
  ((void (*)(void*))api[92])(env);      /* ReleaseEnv */
}

#endif
