// Matrix products of a panel of pixels with the pointwise weight, and of two panels into the weight's gradient.
// A unit is a float, or (UNIT == 2) a pair of bfloat16 along the summed dimension.
//
// A template: layers.c includes it once an element type and arithmetic, after depthwise_template.h. The includer must
// define
//   T               the type of a stored activation: float or bf16
//   FN(name)        `name` with the suffix of this inclusion
//   UNIT            floats or bfloat16 values in a lane that is multiplied: 1, or 2 for dot products of bfloat16 pairs
//   STORE           a vector of floats to activations

#if UNIT == 2
typedef bf16 FN(cell);  // an element of a panel that is summed over
#define STORE_CELL store_bf16
#else
typedef float FN(cell);
#define STORE_CELL store_f32
#endif

#ifndef PANEL
#define PANEL 96  // pixels in a panel
#define TALL 6                // a block of a product in registers: rows
#define WIDE (REGISTERS / 8)  // and vectors
#endif

// Cells from one pixel of a panel to the next: at a step of a power of two, pixels would push each other out of the
// first cache.
INLINE long FN(row_of)(long dim) { return dim + UNIT * LANES; }

// weight(n, k) = from[n * step_n + k * step_k], for LANES values of n from `at` on, into its place in units: vectors
// of n, in blocks of WIDE vectors (the last may be narrower), each [k units][WIDE].
static void FN(pack_weight)(vf *to, const float *from, long at, long n, long k, long step_n, long step_k) {
    long block = at / (WIDE * LANES) * (WIDE * LANES), wide = least(WIDE, (n - block) / LANES);
    to += block / LANES * (k / UNIT) + (at - block) / LANES;
    for (long unit = 0; unit < k; unit += UNIT, to += wide) {
        vf value[2] = {splat(0), splat(0)};
        for (int half = 0; half < UNIT; half++)
            for (int lane = 0; lane < LANES; lane++)
                value[half][lane] = from[(at + lane) * step_n + (unit + half) * step_k];
        *to = FN(unit)(value[0], value[1]);
    }
}

INLINE void FN(product_block)(const FN(cell) *rows, long units, const vf *weight, const int wide, vf sums[TALL][WIDE]) {
    const long step = FN(row_of)(units * UNIT);
    for (long k = 0; k < units; k++) {
        vf w[WIDE];
        UNROLL for (int j = 0; j < wide; j++) {
            w[j] = weight[k * wide + j];
            IN_REGISTER(w[j]);
        }
        UNROLL for (int i = 0; i < TALL; i++) {
            float one;
            memcpy(&one, rows + i * step + k * UNIT, sizeof one);
            UNROLL for (int j = 0; j < wide; j++) sums[i][j] = FN(dot)(sums[i][j], splat(one), w[j]);
        }
    }
}

INLINE void FN(product_columns)(const FN(cell) *panel, long rows, long units, const vf *weight, const int wide,
                                const float *bias, T *out, long out_dim) {
    for (long row = 0; row < rows; row += TALL) {
        vf sums[TALL][WIDE];
        UNROLL for (int j = 0; j < wide; j++) {
            vf start = bias ? load_f32(bias + j * LANES) : splat(0);
            UNROLL for (int i = 0; i < TALL; i++) sums[i][j] = start;
        }
        FN(product_block)(panel + row * FN(row_of)(units * UNIT), units, weight, wide, sums);
        UNROLL for (int i = 0; i < TALL; i++)
            if (row + i < rows)
                UNROLL for (int j = 0; j < wide; j++) STORE(out + (row + i) * out_dim + j * LANES, sums[i][j]);
    }
}

// out (rows, out_dim) = panel (rows, units * UNIT) weight + bias; the panel has PANEL rows, whatever they hold.
static void FN(product)(const FN(cell) *panel, long rows, long units, const vf *weight, const float *bias, T *out,
                        long out_dim) {
    for (long at = 0; at < out_dim; at += WIDE * LANES) {
        const vf *w = weight + at / LANES * units;
        const float *b = bias ? bias + at : NULL;
        switch (least(WIDE, (out_dim - at) / LANES)) {
            case WIDE: FN(product_columns)(panel, rows, units, w, WIDE, b, out + at, out_dim); break;
            case WIDE - 1: FN(product_columns)(panel, rows, units, w, WIDE - 1, b, out + at, out_dim); break;
#if WIDE > 2
            case 2: FN(product_columns)(panel, rows, units, w, 2, b, out + at, out_dim); break;
            default: FN(product_columns)(panel, rows, units, w, 1, b, out + at, out_dim);
#endif
        }
    }
}

// A panel in units of pixels, to be summed over them: floats stay where they are, bfloat16 pairs lie by channels, a
// vector of them STEP units from the next (not PAIRS, for the same reason).
enum { FN(PAIRS) = PANEL / UNIT, FN(STEP) = FN(PAIRS) + 1 };
INLINE long FN(unit_at)(long pair, long c, long dim) {
    return UNIT == 2 ? c / LANES * FN(STEP) + pair : (pair * FN(row_of)(dim) + c) / LANES;
}

INLINE void FN(gradient_block)(const vf *du, int lane, long du_step, const vf *z, long z_step, const int wide,
                               float *out, long in_dim) {
    vf sums[4][WIDE];
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < wide; j++) sums[i][j] = splat(0);
    for (long p = 0; p < FN(PAIRS); p++, du += du_step, z += z_step) {
        vf w[WIDE];
        UNROLL for (int j = 0; j < wide; j++) {
            w[j] = z[UNIT == 2 ? j * FN(STEP) : j];
            IN_REGISTER(w[j]);
        }
        UNROLL for (int i = 0; i < 4; i++) {
            vf one = splat(((const float *)du)[lane + i]);
            UNROLL for (int j = 0; j < wide; j++) sums[i][j] = FN(dot)(sums[i][j], one, w[j]);
        }
    }
    UNROLL for (int i = 0; i < 4; i++) UNROLL for (int j = 0; j < wide; j++) {
        float *at = out + i * in_dim + j * LANES;
        store_f32(at, load_f32(at) + sums[i][j]);
    }
}

// gradient (out_dim, in_dim) += du^T z, of panels in units of pixels.
static void FN(accumulate)(const vf *du, const vf *z, float *gradient, long out_dim, long in_dim) {
    const long du_step = FN(unit_at)(1, 0, out_dim), z_step = FN(unit_at)(1, 0, in_dim);
    for (long from = 0; from < in_dim; from += WIDE * LANES)
        for (long row = 0; row < out_dim; row += 4) {
            const vf *d = du + FN(unit_at)(0, row, out_dim), *zz = z + FN(unit_at)(0, from, in_dim);
            float *to = gradient + row * in_dim + from;
            const int lane = row % LANES;
            switch (least(WIDE, (in_dim - from) / LANES)) {
                case WIDE: FN(gradient_block)(d, lane, du_step, zz, z_step, WIDE, to, in_dim); break;
                case WIDE - 1: FN(gradient_block)(d, lane, du_step, zz, z_step, WIDE - 1, to, in_dim); break;
#if WIDE > 2
                case 2: FN(gradient_block)(d, lane, du_step, zz, z_step, 2, to, in_dim); break;
                default: FN(gradient_block)(d, lane, du_step, zz, z_step, 1, to, in_dim);
#endif
            }
        }
}
