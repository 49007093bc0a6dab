// Entry points of X-volution's operators: the convolution over any offsets and pixel-shift attention.
#include "offset_conv.h"
#include "pixel_shift.h"

ENTRY(convattn_offset_conv)(const ConvattnOffsetConv* s, const ConvattnMap* in, const float* weight, const float* bias,
                            const ConvattnMap* out) {
    const int64_t before = failures;
    offset_conv(OffsetConv(*s), *in, weight, bias, *out);
    return failures != before;
}

ENTRY(convattn_pixel_shift)(const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v,
                            const float* weight, const float* bias, const ConvattnMap* out) {
    const int64_t before = failures;
    static const ConvattnMap none = {};
    PixelShift(*s, *q, *k, v ? *v : none, *out, weight, bias).run();
    return failures != before;
}
