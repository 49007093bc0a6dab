// Picks the instruction set when the library is loaded. CONVATTN_CPU_ISA=avx512, =avx2 or =baseline forces a lower one.
#include "convattn.h"

#include <stdlib.h>
#include <string.h>
#ifdef __aarch64__
#include <sys/auxv.h>
#include <sys/prctl.h>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int convattn_abi_version() { return CONVATTN_ABI_VERSION; }

#ifdef CONVATTN_ONLY_BASELINE

static constexpr int isa = 0;
static const char* const names[] = {"baseline"};
#define FUNCTION(name, parameters, arguments)    \
    extern "C" int name##_baseline parameters; \
    EXPORT int name parameters { return name##_baseline arguments; }

#else
#ifdef __x86_64__

static const char* const names[] = {"baseline", "avx2", "avx512", "avx512_bf16"};
static int supported() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (avx512) return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
    return avx2 ? 1 : 0;
}
// Weak: what avx512_bf16_*.cpp do not define is that of AVX-512.
#define FUNCTION(name, parameters, arguments)    \
    extern "C" int name##_avx512 parameters;   \
    extern "C" int name##_avx2 parameters;     \
    extern "C" int name##_baseline parameters; \
    extern "C" __attribute__((weak, visibility("hidden"))) int name##_avx512_bf16 parameters { return name##_avx512 arguments; } \
    EXPORT int name parameters {               \
        if (isa == 3) return name##_avx512_bf16 arguments; \
        if (isa == 2) return name##_avx512 arguments;  \
        if (isa == 1) return name##_avx2 arguments; \
        return name##_baseline arguments;         \
    }

#else  // aarch64

static const char* const names[] = {"baseline", "sve256"};
// The kernels of sve256 are right for vectors of 256 bits alone.
static int supported() {
    if (!(getauxval(AT_HWCAP) & HWCAP_SVE)) return 0;
    const int length = prctl(PR_SVE_GET_VL);
    return length >= 0 && (length & PR_SVE_VL_LEN_MASK) == 32;
}
#define FUNCTION(name, parameters, arguments)    \
    extern "C" int name##_sve256 parameters;   \
    extern "C" int name##_baseline parameters; \
    EXPORT int name parameters { return isa == 1 ? name##_sve256 arguments : name##_baseline arguments; }

#endif

// The one asked for where the processor has it, else the best that it has.
static int chosen() {
    const int best = supported();
    const char* asked = getenv("CONVATTN_CPU_ISA");
    for (int i = 0; asked && i < best; i++)
        if (!strcmp(asked, names[i])) return i;
    return best;
}
static const int isa = chosen();

#endif

EXPORT const char* convattn_isa() { return names[isa]; }

CONVATTN_FUNCTIONS(FUNCTION)
