// The softmax over the taps of L pixels at once.
#pragma once
#include "vectors.h"

namespace {

// 2^x for x <= 0: relative error 1.5e-7, 0 below 2^-126, NaN of a NaN.
template <int L> INLINE Vec<L> exp2_polynomial(Vec<L> r) {  // for r in [-1/2, 1/2]
    Vec<L> poly = 0.00132764666f * r + 0.00967554096f;
    poly = poly * r + 0.0555071346f;
    poly = poly * r + 0.240221202f;
    poly = poly * r + 0.693146944f;
    return poly * r + 1.00000012f;
}
template <int L> INLINE Vec<L> exp2_nonpositive(Vec<L> x) {
#ifdef __AVX512F__
    if constexpr (L == 16) {
        const __m512 rounded = _mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m512 poly = (__m512)exp2_polynomial<L>(x - (Vec<L>)rounded);
        return (Vec<L>)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ), poly, rounded);
    }
#endif
    const float to_integer = 12582912.f;  // 1.5 * 2^23: adding it rounds to the nearest integer
    const Vec<L> rounded = x + to_integer;
    const Vec<L> r = x - (rounded - to_integer);  // in [-1/2, 1/2]
    Bits<L> exponent;
    __builtin_memcpy(&exponent, &rounded, sizeof exponent);
    exponent = (exponent << 23) + 0x3f800000;
    Vec<L> power;
    __builtin_memcpy(&power, &exponent, sizeof power);
    const Vec<L> result = exp2_polynomial<L>(r) * power;
    return x < -126.f ? Vec<L>{} : result;
}

// logits (base 2) -> exp2(logit - max), unnormalised; inverse = 1 / sum.
template <int L> void softmax(float* logits, int taps, float* inverse) {
    Vec<L> max = load<L>(logits);
    for (int j = 1; j < taps; j++) {
        const Vec<L> s = load<L>(logits + j * L);
        max = max < s ? s : max;
    }
    Vec<L> sum = {}, sum2 = {};
    int j = 0;
    for (; j + 2 <= taps; j += 2) {
        const Vec<L> e = exp2_nonpositive<L>(load<L>(logits + j * L) - max);
        const Vec<L> f = exp2_nonpositive<L>(load<L>(logits + j * L + L) - max);
        store<L>(logits + j * L, e);
        store<L>(logits + j * L + L, f);
        sum += e;
        sum2 += f;
    }
    for (; j < taps; j++) {
        const Vec<L> e = exp2_nonpositive<L>(load<L>(logits + j * L) - max);
        store<L>(logits + j * L, e);
        sum += e;
    }
    store<L>(inverse, 1.f / (sum + sum2));
}

}  // namespace
