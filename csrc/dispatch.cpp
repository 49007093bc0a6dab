// Picks the instruction set when the library is loaded. CONVATTN_CPU_ISA=avx2 or =baseline forces a lower one.
#include "convattn.h"

#include <stdlib.h>
#include <string.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int convattn_abi_version() { return CONVATTN_ABI_VERSION; }

#ifdef CONVATTN_ONLY_BASELINE

EXPORT const char* convattn_isa() { return "baseline"; }
#define FUNCTION(name, parameters, arguments)    \
    extern "C" int name##_baseline parameters; \
    EXPORT int name parameters { return name##_baseline arguments; }

#else

static int best_isa() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    const int supported = avx512 ? 2 : avx2 ? 1 : 0;
    const char* asked = getenv("CONVATTN_CPU_ISA");
    const int limit = !asked ? 2 : !strcmp(asked, "baseline") ? 0 : !strcmp(asked, "avx2") ? 1 : 2;
    return limit < supported ? limit : supported;
}
static const int isa = best_isa();

EXPORT const char* convattn_isa() { return isa == 2 ? "avx512" : isa == 1 ? "avx2" : "baseline"; }
#define FUNCTION(name, parameters, arguments)    \
    extern "C" int name##_avx512 parameters;   \
    extern "C" int name##_avx2 parameters;     \
    extern "C" int name##_baseline parameters; \
    EXPORT int name parameters {               \
        if (isa == 2) return name##_avx512 arguments;  \
        if (isa == 1) return name##_avx2 arguments; \
        return name##_baseline arguments;         \
    }

#endif

CONVATTN_FUNCTIONS(FUNCTION)
