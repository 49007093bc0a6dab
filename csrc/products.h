// What the 32 bits of a lane hold, and how lanes are multiplied: floats, or pairs of bfloat16 whose two products one
// instruction adds to a float32 sum.
#pragma once
#include "vectors.h"

namespace {

struct Floats {
    static constexpr int each = 1;  // numbers in a lane
    template <int L> static INLINE Vec<L> all(const float* lane) { return *lane - Vec<L>{}; }
    template <int L> static INLINE Vec<L> add_product(Vec<L> sum, Vec<L> a, Vec<L> b) { return sum + a * b; }
};

#ifdef __AVX512BF16__

// Products are exact, sums are rounded to float32, and subnormal numbers count as zeros.
struct Pairs {
    static constexpr int each = 2;
    template <int L> static INLINE Vec<L> all(const float* lane) {
        if constexpr (L == 16) return (Vec<L>)_mm512_set1_ps(*lane);
        else if constexpr (L == 8) return (Vec<L>)_mm256_set1_ps(*lane);
        else if constexpr (L == 4) return (Vec<L>)_mm_set1_ps(*lane);
        else return *lane;
    }
    template <int L> static INLINE Vec<L> add_product(Vec<L> sum, Vec<L> a, Vec<L> b) {
        if constexpr (L == 16) return (Vec<L>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
        else if constexpr (L == 8) return (Vec<L>)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
        else if constexpr (L == 4) return (Vec<L>)_mm_dpbf16_ps((__m128)sum, (__m128bh)a, (__m128bh)b);
        else return _mm_cvtss_f32(_mm_dpbf16_ps(_mm_set_ss(sum), (__m128bh)_mm_set_ss(a), (__m128bh)_mm_set_ss(b)));
    }
};

// 2L numbers in bfloat16: L pairs.
template <int L> struct HalvesOf;
template <> struct HalvesOf<8> {
    typedef uint16_t type __attribute__((vector_size(32)));
};
template <> struct HalvesOf<16> {
    typedef uint16_t type __attribute__((vector_size(64)));
};
template <int L> using Halves = typename HalvesOf<L>::type;

// Rounds to bfloat16: a lane of `low` and the same lane of `high` become a pair.
template <int L> INLINE Vec<L> rounded_pairs(Vec<L> low, Vec<L> high) {
    Halves<L> both;
    if constexpr (L == 16) both = (Halves<L>)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    else both = (Halves<L>)_mm256_cvtne2ps_pbh((__m256)high, (__m256)low);
    return (Vec<L>)zip_halves(both, typename MakeIndices<2 * L>::type{});
}

#endif

}  // namespace
