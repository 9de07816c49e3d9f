// One measurement on a phone or any Linux, by the C interface of ONNX Runtime. Commands come as JSON lines on standard input, each is
// answered by one JSON line on standard output (see rounds.py); the end of the input ends the process.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "json.h"
#include "onnxruntime_c_api.h"

#define API_VERSION 20 // functions are only ever added: newer libraries serve this one too
#define REFRESH_S 0.02 // untimed runs at the start of a block, if others ran before it and took the caches
#define PAUSE_S 0.05
#define MAX_DIMENSIONS 8

// NNAPI is no name that the C interface's general function knows; only Android's library has this one.
OrtStatus *OrtSessionOptionsAppendExecutionProvider_Nnapi(OrtSessionOptions *options, uint32_t flags) __attribute__((weak));

static const OrtApi *ort;
static OrtEnv *environment;

static struct {
    char model[4096], input[256], output[256], provider[64];
    int64_t shape[MAX_DIMENSIONS];
    int dimensions, threads, warmup_runs;
    ONNXTensorElementDataType type;
    size_t row_bytes, rows, batch;
    size_t keep[4096], keeps, keep_of;
    char *values;
    OrtSession *session;
    size_t next, timed;
    double first_s, last_s;
} job;

// --- answers -----------------------------------------------------------------------------------------------------------------------

static bool failed; // what was printed for the current command is an error already

static void print_string(const char *text) {
    putchar('"');
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') printf("\\%c", *c);
        else if (*c < 0x20 || *c == 0x7f) printf("\\u%04x", *c);
        else putchar(*c);
    }
    putchar('"');
}

// Answer with an error, once; always false, so that callers can pass it on.
static bool fail(const char *format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (!failed) {
        printf("{\"error\": \"DeviceError\", \"exit_code\": 4, \"message\": ");
        print_string(text);
        printf("}\n");
    }
    failed = true;
    return false;
}

static bool ok(OrtStatus *status) {
    if (!status) return true;
    fail("%s", ort->GetErrorMessage(status));
    ort->ReleaseStatus(status);
    return false;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// How long this thread has been ready to run while another process had the core; below 0 where the system does not tell.
static double waited_ms(void) {
    static int file = -2;
    char text[96];
    unsigned long long run_ns, wait_ns;
    if (file == -2) file = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    ssize_t n = file < 0 ? -1 : pread(file, text, sizeof text - 1, 0);
    if (n <= 0) return -1;
    text[n] = 0;
    return sscanf(text, "%llu %llu", &run_ns, &wait_ns) == 2 ? 1e-6 * (double)wait_ns : -1;
}

// Largest resident memory of this process so far, in bytes, as JSON.
static const char *peak(char text[32]) {
    char line[256];
    long kib = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "VmHWM: %ld kB", &kib) == 1) break;
    if (file) fclose(file);
    snprintf(text, 32, kib < 0 ? "null" : "%lld", 1024LL * kib);
    return text;
}

static void print_base64(const float *values, size_t count) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *bytes = (const unsigned char *)values; // all systems that this runs on are little-endian
    size_t size = count * sizeof *values;
    putchar('"');
    for (size_t i = 0; i < size; i += 3) {
        unsigned group = (unsigned)bytes[i] << 16 | (unsigned)(i + 1 < size ? bytes[i + 1] : 0) << 8 | (i + 2 < size ? bytes[i + 2] : 0);
        putchar(digits[group >> 18]);
        putchar(digits[group >> 12 & 63]);
        putchar(i + 1 < size ? digits[group >> 6 & 63] : '=');
        putchar(i + 2 < size ? digits[group & 63] : '=');
    }
    putchar('"');
}

// --- running -----------------------------------------------------------------------------------------------------------------------

// Load the model; with a profiler if told how the name of its file shall begin.
static bool create(double *ms, const char *profile) {
    OrtSessionOptions *options = NULL;
    double start = now_s();
    bool good = ok(ort->CreateSessionOptions(&options)) && ok(ort->SetIntraOpNumThreads(options, job.threads)) &&
                ok(ort->SetInterOpNumThreads(options, 1)) && ok(ort->SetSessionGraphOptimizationLevel(options, ORT_ENABLE_ALL));
    if (good && profile) good = ok(ort->EnableProfiling(options, profile));
    if (good && strcmp(job.provider, "cpu")) {
        char threads[16];
        snprintf(threads, sizeof threads, "%d", job.threads);
        const char *xnnpack_keys[] = {"intra_op_num_threads"}, *xnnpack_values[] = {threads};
        bool xnnpack = !strcmp(job.provider, "xnnpack");
        if (xnnpack) good = ok(ort->SessionOptionsAppendExecutionProvider(options, "XNNPACK", xnnpack_keys, xnnpack_values, 1));
        else if (strcmp(job.provider, "nnapi")) good = fail("unknown provider %s", job.provider);
        else good = OrtSessionOptionsAppendExecutionProvider_Nnapi ? ok(OrtSessionOptionsAppendExecutionProvider_Nnapi(options, 0))
                                                                   : fail("this build of ONNX Runtime has no NNAPI");
    }
    good = good && ok(ort->CreateSession(environment, job.model, options, &job.session));
    *ms = 1e3 * (now_s() - start);
    if (options) ort->ReleaseSessionOptions(options);
    return good;
}

// One run on the next input. The output is the caller's to release.
static bool run(double *ms, double *start_s, size_t *first_input, OrtValue **output) {
    OrtMemoryInfo *memory = NULL;
    OrtValue *input = NULL;
    const char *in = job.input, *out = job.output;
    size_t bytes = job.row_bytes * job.batch;
    *output = NULL;
    *first_input = job.next;
    // The last batch wraps around; the file was loaded with a batch of its first rows behind it.
    char *values = job.values + job.next * job.row_bytes;
    job.next = job.next + job.batch >= job.rows ? 0 : job.next + job.batch;
    bool good = ok(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory)) &&
                ok(ort->CreateTensorWithDataAsOrtValue(memory, values, bytes, job.shape, (size_t)job.dimensions, job.type, &input));
    if (good) {
        *start_s = now_s();
        good = ok(ort->Run(job.session, NULL, &in, (const OrtValue *const *)&input, 1, &out, 1, output));
        job.last_s = now_s();
        *ms = 1e3 * (job.last_s - *start_s);
    }
    if (input) ort->ReleaseValue(input);
    if (memory) ort->ReleaseMemoryInfo(memory);
    return good;
}

static bool run_once(double *ms) {
    OrtValue *output;
    double start_s;
    size_t first;
    bool good = run(ms, &start_s, &first, &output);
    if (output) ort->ReleaseValue(output);
    return good;
}

// --- commands ----------------------------------------------------------------------------------------------------------------------

static bool read_inputs(const char *path) {
    FILE *file = fopen(path, "rb");
    size_t bytes = job.row_bytes * job.rows, wrapped = job.batch - 1;
    if (!file) return fail("%s: %s", path, strerror(errno));
    free(job.values);
    job.values = malloc(bytes + wrapped * job.row_bytes);
    bool good = job.values && fread(job.values, 1, bytes, file) == bytes && fgetc(file) == EOF;
    fclose(file);
    if (!good) return fail("%s: has not the size of %zu inputs", path, job.rows);
    for (size_t i = 0; i < wrapped; i++) memcpy(job.values + bytes + i * job.row_bytes, job.values + i % job.rows * job.row_bytes, job.row_bytes);
    return true;
}

static bool parse(const Json *command) {
    const Json *request = json_get(command, "request"), *input = json_get(request, "input"), *shape = json_get(input, "shape");
    const Json *keep = json_get(request, "keep");
    const char *artifact = json_text(json_get(request, "artifact")), *bundle = json_text(json_get(command, "bundle"));
    const char *name = json_text(json_get(input, "name")), *dtype = json_text(json_get(input, "dtype"));
    const char *output = json_text(json_get(json_get(request, "output"), "name")), *provider = json_text(json_get(request, "provider"));
    if (!artifact || !bundle || !name || !dtype || !output || !provider) return fail("the request lacks a name");
    if (snprintf(job.model, sizeof job.model, "%s/%s", bundle, artifact) >= (int)sizeof job.model) return fail("the model's path is too long");
    if (snprintf(job.input, sizeof job.input, "%s", name) >= (int)sizeof job.input || snprintf(job.output, sizeof job.output, "%s", output) >= (int)sizeof job.output ||
        snprintf(job.provider, sizeof job.provider, "%s", provider) >= (int)sizeof job.provider)
        return fail("a name in the request is too long");
    size_t item = 4;
    if (!strcmp(dtype, "float32")) job.type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    else if (!strcmp(dtype, "int32")) job.type = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    else if (!strcmp(dtype, "uint8")) job.type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, item = 1;
    else return fail("inputs of type %s are not known", dtype);
    job.dimensions = json_length(shape);
    if (job.dimensions < 1 || job.dimensions > MAX_DIMENSIONS) return fail("the input has %d dimensions", job.dimensions);
    job.row_bytes = item;
    for (int i = 0; i < job.dimensions; i++) {
        job.shape[i] = (int64_t)json_number(json_at(shape, i));
        if (job.shape[i] < 1 || job.shape[i] > 1 << 20) return fail("the input's shape is unusable");
        if (i) job.row_bytes *= (size_t)job.shape[i];
        if (job.row_bytes > 1 << 30) return fail("the input is too large");
    }
    job.batch = (size_t)job.shape[0];
    double rows = json_number(json_get(request, "rows")), threads = json_number(json_get(request, "threads"));
    double keep_of = json_number(json_get(request, "keep_of")), warmup_runs = json_number(json_get(request, "warmup_runs"));
    if (!(rows >= 1 && rows <= 1e6 && threads >= 1 && threads <= 256 && keep_of >= 1 && keep_of <= 1e9 && warmup_runs >= 0 && warmup_runs <= 1e6))
        return fail("a number in the request is out of range");
    job.rows = (size_t)rows, job.threads = (int)threads, job.keep_of = (size_t)keep_of, job.warmup_runs = (int)warmup_runs;
    int keeps = json_length(keep);
    if (keeps < 1 || keeps > (int)(sizeof job.keep / sizeof *job.keep)) return fail("keep has %d entries", keeps);
    job.keeps = (size_t)keeps;
    for (int i = 0; i < keeps; i++) {
        double place = json_number(json_at(keep, i));
        if (!(place >= 0 && place < keep_of)) return fail("keep has an entry out of range");
        job.keep[i] = (size_t)place;
    }
    return true;
}

static void load(const Json *command) {
    double load_ms, first_run_ms;
    char before[32];
    const char *inputs = json_text(json_get(command, "inputs"));
    if (job.session) {
        fail("a model is loaded already");
        return;
    }
    if (!inputs) {
        fail("the command lacks the inputs");
        return;
    }
    if (!parse(command) || !read_inputs(inputs)) return;
    peak(before);
    if (create(&load_ms, NULL) && run_once(&first_run_ms)) {
        printf("{\"engine\": \"onnxruntime %s\", \"provider\": ", OrtGetApiBase()->GetVersionString());
        print_string(job.provider);
        struct timespec tick;
        clock_getres(CLOCK_MONOTONIC, &tick);
        printf(", \"load_ms\": %.4f, \"first_run_ms\": %.4f, \"baseline_memory_bytes\": %s, \"clock_ms\": %g}\n", load_ms, first_run_ms, before,
               1e3 * (double)tick.tv_sec + 1e-6 * (double)tick.tv_nsec);
    }
}

static void print_list(const char *name, const double *values, size_t count) {
    printf("\"%s\": [", name);
    for (size_t i = 0; i < count; i++) printf("%s%.4f", i ? ", " : "", values[i]);
    printf("]");
}

static void warm_up(void) {
    double *ms = calloc((size_t)job.warmup_runs + 1, sizeof *ms);
    if (!ms) {
        fail("no memory for the warm-up");
        return;
    }
    for (int i = 0; i < job.warmup_runs; i++)
        if (!run_once(&ms[i])) goto end;
    printf("{");
    print_list("warmup_ms", ms, (size_t)job.warmup_runs);
    printf("}\n");
end:
    free(ms);
}

typedef struct {
    size_t sample, first_input, count;
    float *values;
} Kept;

static bool keep_output(OrtValue *output, size_t sample, size_t first_input, Kept *kept) {
    OrtTensorTypeAndShapeInfo *info = NULL;
    ONNXTensorElementDataType type;
    float *values;
    kept->values = NULL; // is freed whatever happens
    bool good = ok(ort->GetTensorTypeAndShape(output, &info)) && ok(ort->GetTensorElementType(info, &type)) &&
                (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || fail("the output is not of float32")) &&
                ok(ort->GetTensorShapeElementCount(info, &kept->count)) && ok(ort->GetTensorMutableData(output, (void **)&values));
    if (info) ort->ReleaseTensorTypeAndShapeInfo(info);
    if (!good) return false;
    kept->sample = sample, kept->first_input = first_input;
    kept->values = malloc(kept->count * sizeof *values);
    if (!kept->values) return fail("no memory for an output");
    memcpy(kept->values, values, kept->count * sizeof *values);
    return true;
}

static void block(const Json *command) {
    double seconds = json_number(json_get(command, "seconds")), samples = json_number(json_get(command, "samples"));
    double *ms = NULL, *start = NULL, *wait = NULL, total = 0, ignored;
    Kept *kept = NULL;
    size_t count = 0, room = 0, keeps = 0, first;
    bool told = true;
    OrtValue *output = NULL;
    if (!(seconds >= 0 && seconds <= 3600 && samples >= 0 && samples <= 1e7)) {
        fail("a block of %g s and %g samples is out of range", seconds, samples);
        return;
    }
    if (now_s() - job.last_s > PAUSE_S) {
        double until = now_s() + REFRESH_S;
        do
            if (!run_once(&ignored)) return;
        while (now_s() < until);
    }
    while (total < 1e3 * seconds || (double)count < samples) {
        if (count == room) {
            room = room ? 2 * room : 1024;
            ms = realloc(ms, room * sizeof *ms), start = realloc(start, room * sizeof *start), wait = realloc(wait, room * sizeof *wait);
            kept = realloc(kept, room * sizeof *kept);
            if (!ms || !start || !wait || !kept) abort(); // the end of the output tells the host
        }
        double before = waited_ms(), start_s;
        if (!run(&ms[count], &start_s, &first, &output)) goto end;
        double after = waited_ms();
        told = told && before >= 0 && after >= 0;
        wait[count] = after - before;
        if (job.first_s == 0) job.first_s = start_s;
        start[count] = 1e3 * (start_s - job.first_s);
        total += ms[count++];
        bool wanted = job.timed % job.keep_of == job.keep[job.timed / job.keep_of % job.keeps];
        if (wanted && !keep_output(output, job.timed, first, &kept[keeps++])) goto end;
        ort->ReleaseValue(output);
        output = NULL;
        job.timed++;
    }
    printf("{");
    print_list("latency_ms", ms, count);
    printf(", ");
    print_list("start_ms", start, count);
    printf(", ");
    print_list("wait_ms", wait, told ? count : 0);
    printf(", \"kept\": [");
    for (size_t i = 0; i < keeps; i++) {
        printf("%s{\"sample\": %zu, \"first_input\": %zu, \"values\": ", i ? ", " : "", kept[i].sample, kept[i].first_input);
        print_base64(kept[i].values, kept[i].count);
        printf("}");
    }
    printf("]}\n");
end:
    if (output) ort->ReleaseValue(output);
    for (size_t i = 0; i < keeps; i++) free(kept[i].values);
    free(ms), free(start), free(wait), free(kept);
}

static void finish(void) {
    double warm_load_ms;
    char highest[32];
    peak(highest);
    ort->ReleaseSession(job.session);
    job.session = NULL;
    if (create(&warm_load_ms, NULL)) printf("{\"peak_memory_bytes\": %s, \"warm_load_ms\": %.4f}\n", highest, warm_load_ms);
}

static void print_profile(const char *path) {
    FILE *file = fopen(path, "rb");
    size_t size = 0, room = 1 << 20;
    char *text = malloc(room + 1);
    while (file && text && (size += fread(text + size, 1, room - size, file)) == room) text = realloc(text, (room *= 2) + 1);
    if (!file || !text) fail("%s: %s", path, strerror(errno));
    else {
        text[size] = 0;
        printf("{\"onnx_profile\": ");
        print_string(text);
        printf("}\n");
    }
    if (file) fclose(file);
    free(text);
    unlink(path);
}

// What each operator costs, in place of the loaded model.
static void profile(const Json *command) {
    double runs = json_number(json_get(command, "runs")), ignored;
    char prefix[sizeof job.model + 16], *path = NULL;
    OrtAllocator *allocator;
    bool good = (runs >= 1 && runs <= 1000) || fail("%g runs are out of range", runs);
    ort->ReleaseSession(job.session);
    job.session = NULL;
    snprintf(prefix, sizeof prefix, "%s.profile", job.model);
    good = good && create(&ignored, prefix);
    for (int i = 0; good && i < (int)runs; i++) good = run_once(&ignored);
    if (good && ok(ort->GetAllocatorWithDefaultOptions(&allocator)) && ok(ort->SessionEndProfiling(job.session, allocator, &path))) print_profile(path);
    if (path) allocator->Free(allocator, path);
}

int main(void) {
    char *line = NULL;
    size_t room = 0;
    ssize_t size;
    setenv("ORT_DISABLE_TELEMETRY", "1", 1); // before the library begins
    ort = OrtGetApiBase()->GetApi(API_VERSION);
    if (!ort) {
        fprintf(stderr, "libonnxruntime %s is too old\n", OrtGetApiBase()->GetVersionString());
        return 1;
    }
    if (!ok(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "mobileclip", &environment))) return 1;
    while ((size = getline(&line, &room, stdin)) > 0) {
        Json *command = json_parse(line, (size_t)size);
        const char *what = command ? json_text(json_get(command, "do")) : NULL;
        failed = false;
        if (!what) fail("the command is no JSON object that says what to do");
        else if (!strcmp(what, "load")) load(command);
        else if (!job.session) fail("%s: no model is loaded", what);
        else if (!strcmp(what, "warm_up")) warm_up();
        else if (!strcmp(what, "block")) block(command);
        else if (!strcmp(what, "finish")) finish();
        else if (!strcmp(what, "profile")) profile(command);
        else fail("unknown command %s", what);
        json_free(command);
        fflush(stdout);
    }
    free(line);
    return 0;
}
