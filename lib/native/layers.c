// A ConvMixer block, forward and backward, in a few passes over memory; see passes_template.h for what each pass does.
//
// Activations are (batch, height, width, dim) floats or bfloat16, dim a multiple of LANES; parameters, statistics and
// every sum are floats, and so are the products unless the suffix is bf16_dot. Compiled by compiler.py; layers.py is the
// caller.

#include "vectors.h"
#include "gelu.h"
#include "threads.h"

// One BatchNorm: its parameters, the statistics that it uses, and how it keeps the running ones.
typedef struct {
    const float *weight, *bias;
    float *mean, *rstd;                  // used: of this batch (written by forward), or the running ones
    float *running_mean, *running_var;   // updated where `batch` is set, unless NULL
    float *d_weight, *d_bias;
    double momentum, eps;
    int64_t batch;                       // whether the statistics are this batch's
} norm;

// One block (kernel > 0), or a stem's product, GELU and BatchNorm (kernel == 0: x holds patches, `inputs` wide).
typedef struct {
    int64_t batch, height, width, dim, inputs, kernel, threads;
    void *x, *y, *u, *out, *dout, *dz, *dx;  // u NULL: evaluation, nothing is kept
    const float *depthwise_weight, *depthwise_bias, *pointwise_weight, *pointwise_bias;
    float *d_depthwise_weight, *d_depthwise_bias, *d_pointwise_weight, *d_pointwise_bias;
    norm norm1, norm2;
} layer;

// partial [chunks][shift, sum, sum of squares][dim] -> mean, 1 / sqrt(var + eps), and the running statistics.
static void statistics(const norm *n, const float *partial, long chunks, long chunk, long pixels, long dim) {
    for (long c = 0; c < dim; c += LANES) {
        double sum[LANES] = {0}, squares[LANES] = {0};
        for (long i = 0; i < chunks; i++) {
            const float *p = partial + i * 3 * dim + c;
            double count = (double)least(chunk, pixels - i * chunk);
            for (int l = 0; l < LANES; l++) sum[l] += count * p[l] + p[dim + l];
        }
        for (int l = 0; l < LANES; l++) sum[l] /= (double)pixels;
        for (long i = 0; i < chunks; i++) {
            const float *p = partial + i * 3 * dim + c;
            double count = (double)least(chunk, pixels - i * chunk);
            for (int l = 0; l < LANES; l++) {
                double off = p[l] - sum[l];
                squares[l] += p[2 * dim + l] + off * (2 * p[dim + l] + count * off);
            }
        }
        for (int l = 0; l < LANES; l++) {
            double m = n->momentum;
            n->mean[c + l] = (float)sum[l];
            n->rstd[c + l] = (float)(1 / sqrt(squares[l] / (double)pixels + n->eps));
            if (!n->running_mean) continue;
            n->running_mean[c + l] = (float)((1 - m) * n->running_mean[c + l] + m * sum[l]);
            n->running_var[c + l] = (float)((1 - m) * n->running_var[c + l] + m * squares[l] / (double)(pixels - 1));
        }
    }
}

// BatchNorm as scale * g + shift.
static void affine_of(const norm *n, long dim, float *scale, float *shift) {
    for (long c = 0; c < dim; c++) {
        scale[c] = n->weight[c] * n->rstd[c];
        shift[c] = n->bias[c] - n->mean[c] * scale[c];
    }
}

// d_bias holds sum(d), d_weight sum(d (g - mean)): makes them gradients, and dg = coef[0] d + coef[1] g + coef[2].
static void backward_of(const norm *n, long dim, long pixels, float *coef) {
    for (long c = 0; c < dim; c++) {
        float scale = n->weight[c] * n->rstd[c];
        n->d_weight[c] *= n->rstd[c];
        float by_g = n->batch ? -scale * n->rstd[c] * n->d_weight[c] / (float)pixels : 0;
        coef[c] = scale;
        coef[dim + c] = by_g;
        coef[2 * dim + c] = n->batch ? -scale * n->d_bias[c] / (float)pixels - by_g * n->mean[c] : 0;
    }
}

typedef struct {
    const float *from;
    long count, step;
    float *to;
} addition;

static void add_up_work(void *context, long begin, long end, long group) {
    const addition *a = context;
    (void)group;
    for (long c = begin * LANES; c < end * LANES; c += LANES) {
        double sum[LANES] = {0};
        for (long i = 0; i < a->count; i++)
            for (int l = 0; l < LANES; l++) sum[l] += a->from[i * a->step + c + l];
        for (int l = 0; l < LANES; l++) a->to[c + l] = (float)sum[l];
    }
}

// to[c] = the sum over `count` rows of from[row * step + c], in a fixed order, in double; `to` may be `from`.
static void add_up(const float *from, long count, long step, long dim, float *to, int threads) {
    addition a = {from, count, step, to};
    parallel(add_up_work, &a, dim / LANES, 0, count * dim > 50000 ? threads : 1);
}

#define T float
#define LOAD load_f32
#define STORE store_f32
#define GELU gelu_f32
#define SLOPE slope_f32
#define FN(name) name##_f32
#define UNIT 1
#include "depthwise_template.h"
#include "pointwise_template.h"
#include "passes_template.h"
#undef T
#undef LOAD
#undef STORE
#undef GELU
#undef SLOPE
#undef FN
#undef UNIT
#undef STORE_CELL

#define T bf16
#define LOAD load_bf16
#define STORE store_bf16
#define GELU gelu_bf16
#define SLOPE slope_bf16
#define FN(name) name##_bf16
#define UNIT 1
#include "depthwise_template.h"
#include "pointwise_template.h"
#include "passes_template.h"
#undef FN
#undef UNIT
#undef STORE_CELL

// The same storage with the processor's dot products of bfloat16 pairs, which some processors are slower with: layers.py
// finds out which of the two to call.
#ifdef __AVX512BF16__
#define FN(name) name##_bf16_dot
#define UNIT 2
#include "depthwise_template.h"
#include "pointwise_template.h"
#include "passes_template.h"
#endif
