// Entry points of X-volution's pixel-shift attention.
#include "pixel_shift.h"
#include "pixel_shift_backward.h"

ENTRY(convattn_pixel_shift)(const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v,
                            const float* weight, const float* bias, const ConvattnMap* out) {
    const int64_t before = failures;
    static const ConvattnMap none = {};
    PixelShift(*s, *q, *k, v ? *v : none, *out, weight, bias).run();
    return failures != before;
}

// dk and dv are added to.
ENTRY(convattn_pixel_shift_backward)(const ConvattnOffsets* s, const ConvattnMap* q, const ConvattnMap* k, const ConvattnMap* v,
                                     const float* weight, const float* bias, const ConvattnMap* dout, const ConvattnMap* dq,
                                     const ConvattnMap* dk, const ConvattnMap* dv, double* dweight, double* dbias) {
    const int64_t before = failures;
    static const ConvattnMap none = {};
    const bool elements = s->heads == s->channels;
    PixelShiftBackward({Geometry(*s), elements, s->softmax_scale, *q, *k, v ? *v : none, *dout, *dq, *dk, dv ? *dv : none, weight, bias,
                        dweight, dbias})
        .run();
    return failures != before;
}
