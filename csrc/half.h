// Maps in half precision: read and written row by row, computed with in float32.
#pragma once
#include "convattn.h"
#include "vectors.h"

namespace {

struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};

inline void widen(const BFloat16* from, float* to, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)from[i].bits << 16;
        __builtin_memcpy(to + i, &bits, 4);
    }
}
// Rounded to the nearest, ties to even; NaN stays NaN.
inline void narrow(const float* from, BFloat16* to, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        __builtin_memcpy(&bits, from + i, 4);
        const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        to[i].bits = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
    }
}

// One by one where the processor has no instruction: exact, as every float16 is a float32.
float widened(Float16 value) {
    const uint32_t sign = (uint32_t)(value.bits & 0x8000) << 16, rest = value.bits & 0x7fff;
    uint32_t bits = (rest << 13) + ((127 - 15) << 23);
    if (rest >= 0x7c00) bits = 0x7f800000 | rest << 13;
    float found;
    if (rest < 0x0400) {
        found = (float)rest * 5.9604644775390625e-8f;  // 2^-24: subnormal
        __builtin_memcpy(&bits, &found, 4);
    }
    bits |= sign;
    __builtin_memcpy(&found, &bits, 4);
    return found;
}
Float16 narrowed(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return {(uint16_t)(sign | 0x7e00)};
    if (bits >= 0x47800000) return {(uint16_t)(sign | 0x7c00)};  // 65536 and above
    if (bits < 0x38800000) {                                     // below 2^-14: subnormal, rounded by an addition
        float shifted;
        __builtin_memcpy(&shifted, &bits, 4);
        shifted += 0.5f;  // whose last bit counts 2^-24
        __builtin_memcpy(&bits, &shifted, 4);
        return {(uint16_t)(sign | (bits - 0x3f000000))};
    }
    bits += 0xfff + (bits >> 13 & 1) - ((127 - 15) << 23);
    return {(uint16_t)(sign | bits >> 13)};
}

inline void widen(const Float16* from, float* to, size_t count) {
    size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
#endif
    for (; i < count; i++) to[i] = widened(from[i]);
}
inline void narrow(const float* from, Float16* to, size_t count) {
    size_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= count; i += 8) _mm_storeu_si128((__m128i*)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < count; i++) to[i] = narrowed(from[i]);
}

thread_local Scratch half_rows;  // beside `scratch`, which is reserved anew for every band

// Rows of one image of a channels-last map as floats, from `first` on; widened when they are asked for, so that they are
// in the cache when they are read.
template <class T> struct WidenedRows {
    const T* from;  // of the image's row 0
    float* data;
    size_t size;  // of a row
    int first, next;

    void operator()(int, int last) {
        for (; next <= last; next++) widen(from + (size_t)next * size, data + (size_t)(next - first) * size, size);
    }
};

// Rows of outputs of one image, narrowed when a block of them is complete.
template <class T> struct NarrowedRows {
    float* block;
    T* to;        // of the image's row 0
    size_t size;  // of a row
    int channels, first_channel, last_channel;  // of a pixel; those to write

    void operator()(int first, int rows) const {
        T* target = to + first * size;
        if (last_channel - first_channel == channels) return narrow(block, target, rows * size);
        for (size_t i = first_channel; i < rows * size; i += channels) narrow(block + i, target + i, last_channel - first_channel);
    }
};

}  // namespace
