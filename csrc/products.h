// What the 32 bits of a lane hold, and how lanes are multiplied: floats, or pairs of bfloat16 whose two products one
// instruction adds to a float32 sum.
#pragma once
#include "vectors.h"

namespace {

struct Floats {
    static constexpr int each = 1;  // numbers in a lane
    template <int L> static INLINE Vec<L> add_product(Vec<L> sum, Vec<L> a, Vec<L> b) { return sum + a * b; }
    // The same lane `b` for all of them.
    template <int L> static INLINE Vec<L> add_multiple(Vec<L> sum, Vec<L> a, const float* b) { return sum + a * *b; }
};

#ifdef __AVX512BF16__

// Products are exact, sums are rounded to float32, and subnormal numbers count as zeros.
struct Pairs {
    static constexpr int each = 2;
    template <int L> static INLINE Vec<L> add_product(Vec<L> sum, Vec<L> a, Vec<L> b) {
        if constexpr (L == 16) return (Vec<L>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
        else if constexpr (L == 8) return (Vec<L>)_mm256_dpbf16_ps((__m256)sum, (__m256bh)a, (__m256bh)b);
        else if constexpr (L == 4) return (Vec<L>)_mm_dpbf16_ps((__m128)sum, (__m128bh)a, (__m128bh)b);
        else return _mm_cvtss_f32(_mm_dpbf16_ps(_mm_set_ss(sum), (__m128bh)_mm_set_ss(a), (__m128bh)_mm_set_ss(b)));
    }
    template <int L> static INLINE Vec<L> add_multiple(Vec<L> sum, Vec<L> a, const float* b) {
        if constexpr (L == 16) return add_product<L>(sum, a, (Vec<L>)_mm512_set1_ps(*b));
        else if constexpr (L == 8) return add_product<L>(sum, a, (Vec<L>)_mm256_set1_ps(*b));
        else if constexpr (L == 4) return add_product<L>(sum, a, (Vec<L>)_mm_set1_ps(*b));
        else return add_product<L>(sum, a, *b);
    }
};

// Rounds to bfloat16: a lane of `low` and the same lane of `high` become a pair.
template <int L> INLINE Vec<L> rounded_pairs(Vec<L> low, Vec<L> high) {
    static_assert(L == 16 || L == 8);
    if constexpr (L == 16) {
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return (Vec<L>)_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low));
    } else {
        const __m256i order = _mm256_set_epi16(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
        return (Vec<L>)_mm256_permutexvar_epi16(order, (__m256i)_mm256_cvtne2ps_pbh((__m256)high, (__m256)low));
    }
}

#endif

}  // namespace
