// Vectors of floats in one vocabulary for every instruction set.
//
// Everything here and in the other kernel headers has internal linkage and uses no inline function of the standard
// library: a COMDAT compiled for AVX-512 must never be merged into the AVX2 or the baseline code.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef CONVATTN_GUARD
#include "guarded_scratch.h"
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE __attribute__((always_inline)) inline
#define NOINLINE __attribute__((noinline))
#define UNROLLED __attribute__((always_inline))  // for lambdas given to repeat<>

namespace {

#if defined(__AVX512F__)
constexpr int native_lanes = 16, vector_registers = 32;
#elif defined(__AVX2__)
constexpr int native_lanes = 8, vector_registers = 16;
#elif __ARM_FEATURE_SVE_BITS == 256
constexpr int native_lanes = 8, vector_registers = 32;
#elif defined(__aarch64__)
constexpr int native_lanes = 4, vector_registers = 32;
#else
constexpr int native_lanes = 4, vector_registers = 16;
#endif

template <int L> struct VecOf;
template <> struct VecOf<1> {
    typedef float type;
    typedef uint32_t bits;
};
template <> struct VecOf<4> {
    typedef float type __attribute__((vector_size(16)));
    typedef uint32_t bits __attribute__((vector_size(16)));
};
template <> struct VecOf<8> {
    typedef float type __attribute__((vector_size(32)));
    typedef uint32_t bits __attribute__((vector_size(32)));
};
template <> struct VecOf<16> {
    typedef float type __attribute__((vector_size(64)));
    typedef uint32_t bits __attribute__((vector_size(64)));
};
template <int L> using Vec = typename VecOf<L>::type;
template <int L> using Bits = typename VecOf<L>::bits;

template <int L> INLINE Vec<L> load(const float* p) {
    Vec<L> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
template <int L> INLINE void store(float* p, Vec<L> v) { __builtin_memcpy(p, &v, sizeof v); }

// The first `count` lanes, zeros in the others; nothing beyond is read or written.
template <int L> INLINE Vec<L> load_first(const float* p, int count) {
#ifdef __AVX512F__
    if constexpr (L == 16) return (Vec<L>)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), p);
    if constexpr (L == 8) return (Vec<L>)_mm256_maskz_loadu_ps((__mmask8)((1u << count) - 1), p);
#elif defined(__AVX2__)
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    if constexpr (L == 8) return (Vec<L>)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes));
#endif
    alignas(64) float lane[L] = {};
    for (int i = 0; i < count; i++) lane[i] = p[i];
    return load<L>(lane);
}
template <int L> INLINE void store_first(float* p, Vec<L> v, int count) {
#ifdef __AVX512F__
    if constexpr (L == 16) return _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1), (__m512)v);
    if constexpr (L == 8) return _mm256_mask_storeu_ps(p, (__mmask8)((1u << count) - 1), (__m256)v);
#elif defined(__AVX2__)
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    if constexpr (L == 8) return _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes), (__m256)v);
#endif
    alignas(64) float lane[L];
    store<L>(lane, v);
    for (int i = 0; i < count; i++) p[i] = lane[i];
}

// Keeps a value in a register: GCC otherwise repeats an unaligned load inside each multiply-add that uses it.
#if defined(__AVX512F__)
#define PIN(x) asm("" : "+v"(x))
#elif defined(__x86_64__)
#define PIN(x) asm("" : "+x"(x))
#else
#define PIN(x) (void)0
#endif

template <int I> struct Index {
    static constexpr int value = I;
    constexpr operator int() const { return I; }
};

// repeat<N>(f) is f(0), f(1) ... f(N-1) with the number known to the compiler, so that arrays stay in registers.
template <int N, int I = 0, class F> INLINE void repeat(F&& f) {
    if constexpr (I < N) {
        f(Index<I>{});
        repeat<N, I + 1>(f);
    }
}

// A function of its caller's, called by address: the kernels that call it are compiled once for all callers.
template <class... A> struct Callback {
    void* of;
    void (*call)(void*, A...);
    template <class F> Callback(F* f) : of((void*)f), call([](void* of, A... a) { (*(F*)of)(a...); }) {}
    void operator()(A... a) const { call(of, a...); }
};

constexpr INLINE int smaller(int a, int b) { return a < b ? a : b; }
constexpr INLINE int larger(int a, int b) { return a < b ? b : a; }
constexpr INLINE int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr INLINE int round_up(int a, int b) { return ceil_div(a, b) * b; }
// Counts of units of work and of rows over a batch: they may pass 2^31, which a map's height and width do not.
constexpr INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr INLINE int common_divisor(int a, int b) {
    while (b) {
        const int rest = a % b;
        a = b, b = rest;
    }
    return a;
}
// Into how many parts to cut an image, so that all threads have as many of them to do. Where images are many, none is cut.
constexpr INLINE int parts_of_image(int batch, int threads) { return batch / 4 >= threads ? 1 : threads / common_divisor(batch, threads); }
// Whether `d` channels can be cut into so many parts of whole vectors.
constexpr INLINE bool whole_vectors(int d, int parts) { return d % (parts * native_lanes) == 0; }
// The first of the `rows` rows of part `i` of `parts`.
constexpr INLINE int first_of_part(int rows, int64_t i, int64_t parts) { return (int)(rows * i / parts); }

template <int... I> struct Indices {};
template <int N, int... I> struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I> struct MakeIndices<0, I...> {
    typedef Indices<I...> type;
};

// Lanes J to J+L-1 of the 2L lanes (a, b).
template <int J, class V, int... I> INLINE V shift_lanes(V a, V b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I + J)...);
}
template <int L, int J> INLINE Vec<L> lanes_from(Vec<L> a, Vec<L> b) {
    if constexpr (J == 0) return a;
    else return shift_lanes<J>(a, b, typename MakeIndices<L>::type{});
}

// In-register transpose of L vectors of L lanes: exchange blocks of 1, 2, 4 ... lanes.
template <int Step, class V, int... I> INLINE void exchange(V& a, V& b, Indices<I...>) {
    constexpr int L = sizeof...(I);
    V low = __builtin_shufflevector(a, b, ((I & Step) ? L + I - Step : I)...);
    V high = __builtin_shufflevector(a, b, ((I & Step) ? L + I : I + Step)...);
    a = low;
    b = high;
}
template <int L, int Step = L / 2> INLINE void transpose(Vec<L>* r) {
    if constexpr (Step > 0) {
        repeat<L>([&](auto i) UNROLLED {
            if constexpr (!(i.value & Step)) exchange<Step>(r[i], r[i + Step], typename MakeIndices<L>::type{});
        });
        transpose<L, Step / 2>(r);
    }
}

// (a0 a1 ...), (b0 b1 ...) -> a0 b0 a1 b1 ..., and back
template <class V, int... I> INLINE void zip(V a, V b, V& low, V& high, Indices<I...>) {
    constexpr int L = sizeof...(I);
    low = __builtin_shufflevector(a, b, ((I & 1) ? L + I / 2 : I / 2)...);
    high = __builtin_shufflevector(a, b, ((I & 1) ? L + (L + I) / 2 : (L + I) / 2)...);
}
// The two halves of a vector, a lane of each in turn.
template <class V, int... I> INLINE V zip_halves(V v, Indices<I...>) {
    return __builtin_shufflevector(v, v, (((I & 1) * (int)sizeof...(I) + I) / 2)...);
}
template <class V, int... I> INLINE void unzip(V low, V high, V& a, V& b, Indices<I...>) {
    a = __builtin_shufflevector(low, high, (2 * I)...);
    b = __builtin_shufflevector(low, high, (2 * I + 1)...);
}

template <int L> INLINE float sum_of_lanes(Vec<L> v) {
    alignas(64) float lanes[L];
    store<L>(lanes, v);
    float sum = 0;
    for (int i = 0; i < L; i++) sum += lanes[i];
    return sum;
}

// How often working memory could not be had. A kernel then leaves its output unfinished and says so.
static int64_t failures = 0;
INLINE bool fail() {
    __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED);
    return false;
}

#ifndef CONVATTN_GUARD
// Working memory of one thread, cut into 64-byte aligned pieces; it only grows.
struct Scratch {
    char* base = nullptr;
    size_t size = 0, used = 0;
    ~Scratch() { free(base); }
    // False where there is not so much: take nothing then.
    bool reserve(size_t floats, int pieces = 32) {
        used = 0;
        const size_t bytes = (floats * 4 + 64 * (size_t)pieces + 4095) / 4096 * 4096;
        if (bytes <= size) return true;
        free(base);
        base = (char*)aligned_alloc(4096, bytes);
        size = base ? bytes : 0;
        return base || fail();
    }
    float* take(size_t floats) {
        float* p = (float*)(base + used);
        used += (floats * 4 + 63) / 64 * 64;
        return p;
    }
    int* take_ints(size_t count) { return (int*)take(count); }
    template <class T> T* take_array(size_t count) { return (T*)take(ceil_div((int)sizeof(T), 4) * count); }
};
#endif
thread_local Scratch scratch;

}  // namespace

#define CONVATTN_PASTE2(a, b) a##_##b
#define CONVATTN_PASTE(a, b) CONVATTN_PASTE2(a, b)
// The name of an entry point, with the suffix of the instruction set that this file is compiled for.
#define ENTRY(name) extern "C" int CONVATTN_PASTE(name, CONVATTN_ISA)
