// The passes of one mixing block, forward and backward.
//
// A template: layers.c includes it once an element type and arithmetic, after depthwise_template.h and
// pointwise_template.h. The includer must define
//   T               the type of a stored activation: float or bf16
//   FN(name)        `name` with the suffix of this inclusion
//   UNIT            floats or bfloat16 values in a lane that is multiplied: 1, or 2 for dot products of bfloat16 pairs
//   LOAD, STORE     a vector of floats from and to activations
//   GELU, SLOPE     of a vector of floats, as exactly as T can hold them
//
//     depthwise: y = depthwise(x) + bias,  g = GELU(y),  z = BatchNorm(g) + x
//     pointwise: u = z W^T + bias,         v = GELU(u),  out = BatchNorm(v)
//
// Kept for backward: x, y, u. GELU, z and the normalised values are computed again wherever a pass meets them.
// BatchNorm needs a sum over the whole batch between passes; that is why there are several, and why no more.
// The stem is a pointwise half alone: its z are the patches of the image.

// What the passes of one call share.
typedef struct {
    const layer *a;
    FN(shape) shape;
    long pixels, panels;
    vf *taps, *weight;                         // packed
    int flip;                                  // taps for the input's gradient, the weight transposed
    float *scale1, *shift1, *scale2, *shift2;  // the BatchNorms, forward
    float *coef;                               // the one on hand, backward
    float *partial;                            // sums of one image or panel, in rows
    float *sums;                               // of one group of images or panels: the weight gradients
    const T *dz;
} FN(pass);

// The weights in units, LANES channels a task.
static void FN(pack_work)(void *context, long begin, long end, long group) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    const FN(shape) *s = &pass->shape;
    long each = s->kernel * s->taps * UNIT, n = pass->flip ? a->inputs : a->dim, k = pass->flip ? a->dim : a->inputs;
    (void)group;
    for (long c = begin * LANES; c < end * LANES; c += LANES) {
        if (a->kernel && c < a->dim) FN(pack_taps)(pass->taps + c / LANES * each, a->depthwise_weight, c, s, pass->flip);
        if (c < n) FN(pack_weight)(pass->weight, a->pointwise_weight, c, n, k, pass->flip ? 1 : k, pass->flip ? n : 1);
    }
}

// Pixels from what is read to what is asked for meanwhile. A processor foresees a walk along memory, but not one in steps
// of `dim` through an image, nor the next panel while the products of this one keep it busy.
enum { FN(AHEAD_IN_IMAGE) = 32, FN(AHEAD_IN_PANEL) = 4 };
INLINE void FN(fetch)(const T *from, long dim, const long ahead) { __builtin_prefetch(from + ahead * dim); }

// ---------------------------------------------------------------------------------------------- forward

// x of one image, LANES channels -> the inside of a padded tile.
static void FN(fill_tile)(vf *tile, const T *x, const FN(shape) *s, long dim) {
    for (long h = 0; h < s->height; h++) {
        vf *to = tile + h * s->row + s->left;
        const T *from = x + h * s->width * dim;
        for (long w = 0; w < s->width; w += UNIT, from += UNIT * dim) {
            UNROLL for (int i = 0; i < UNIT; i++) FN(fetch)(from + i * dim, dim, FN(AHEAD_IN_IMAGE));
            *to++ = FN(unit)(LOAD(from), UNIT == 2 && w + 1 < s->width ? LOAD(from + dim) : splat(0));
        }
    }
}

// y = depthwise(x) + bias for LANES channels of an image; `add` (or NULL) is added to the result.
INLINE void FN(convolve_columns)(const vf *tile, const vf *taps, const FN(shape) *s, vf bias, const T *add, T *y,
                                 long dim, long unit, const int strip) {
    for (long h = 0; h < s->height; h += 2) {
        vf sums[2][FN(STRIP)][UNIT];
        FN(convolve_strip)(tile + unit, taps, s, h, strip, sums);
        UNROLL for (int row = 0; row < 2; row++) {
            if (h + row >= s->height) break;
            UNROLL for (int i = 0; i < strip; i++) UNROLL for (int p = 0; p < UNIT; p++) {
                long w = (unit + i) * UNIT + p;
                if (UNIT == 2 && w >= s->width) break;
                long at = ((h + row) * s->width + w) * dim;
                vf value = sums[row][i][p] + bias;
                STORE(y + at, add ? value + LOAD(add + at) : value);
            }
        }
    }
}

static void FN(convolve)(const vf *tile, const vf *taps, const FN(shape) *s, vf bias, const T *add, T *y, long dim) {
    long unit = 0;
    for (; unit + FN(STRIP) <= s->units; unit += FN(STRIP))
        FN(convolve_columns)(tile, taps, s, bias, add, y, dim, unit, FN(STRIP));
    for (; unit < s->units; unit++) FN(convolve_columns)(tile, taps, s, bias, add, y, dim, unit, 1);
}

// Shifted sums of GELU(y) over some pixels, LANES channels: sound where the mean is large beside the spread.
// to[0] = the shift, to[dim] = sum(g - shift), to[2 dim] = sum((g - shift)^2).
static void FN(sum_gelu)(float *to, const T *y, long pixels, long dim) {
    vf shift = GELU(LOAD(y)), first = splat(0), second = splat(0);
    for (long p = 0; p < pixels; p++) {
        vf g = GELU(LOAD(y + p * dim)) - shift;
        first += g;
        second += g * g;
    }
    store_f32(to, shift);
    store_f32(to + dim, first);
    store_f32(to + 2 * dim, second);
}

static void FN(depthwise_forward_work)(void *context, long begin, long end, long group) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    const FN(shape) *s = &pass->shape;
    (void)group;
    long dim = a->dim, slabs = dim / LANES, image = s->height * s->width;
    vf *tile = scratch(X_TILE, s->height * s->row * sizeof(vf));
    memset(tile, 0, s->height * s->row * sizeof(vf));
    for (long task = begin; task < end; task++) {
        long b = task / slabs, slab = task % slabs, at = b * image * dim + slab * LANES;
        FN(fill_tile)(tile, (const T *)a->x + at, s, dim);
        const vf *taps = pass->taps + slab * s->kernel * s->taps * UNIT;
        FN(convolve)(tile, taps, s, load_f32(a->depthwise_bias + slab * LANES), NULL, (T *)a->y + at, dim);
        if (!pass->partial) continue;
        FN(sum_gelu)(pass->partial + b * 3 * dim + slab * LANES, (const T *)a->y + at, image, dim);
    }
}

// z = scale1 GELU(y) + shift1 + x of one pixel and LANES channels, or the patch itself (y is NULL).
INLINE vf FN(z_at)(const T *x, const T *y, const float *scale, const float *shift) {
    vf z = LOAD(x);
    return y ? load_f32(scale) * GELU(LOAD(y)) + load_f32(shift) + z : z;
}

static void FN(make_z)(FN(cell) *z, const T *x, const T *y, const float *scale, const float *shift, long rows,
                       long dim) {
    for (long p = 0; p < rows; p++)
        for (long c = 0; c < dim; c += LANES) {
            long at = p * dim + c;
            FN(fetch)(x + at, dim, FN(AHEAD_IN_PANEL));
            if (y) FN(fetch)(y + at, dim, FN(AHEAD_IN_PANEL));
            STORE_CELL(z + p * FN(row_of)(dim) + c, FN(z_at)(x + at, y ? y + at : NULL, scale + c, shift + c));
        }
}

static void FN(normalise)(T *out, const T *u, const float *scale, const float *shift, long rows, long dim) {
    for (long p = 0; p < rows; p++)
        for (long c = 0; c < dim; c += LANES)
            STORE(out + p * dim + c, load_f32(scale + c) * GELU(LOAD(u + p * dim + c)) + load_f32(shift + c));
}

static void FN(pointwise_forward_work)(void *context, long begin, long end, long group) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    (void)group;
    const size_t size = PANEL * FN(row_of)(a->inputs) * sizeof(FN(cell));
    FN(cell) *z = scratch(Z_PANEL, size);
    memset(z, 0, size);
    for (long panel = begin; panel < end; panel++) {
        long from = panel * PANEL, rows = least(PANEL, pass->pixels - from);
        const T *x = (const T *)a->x + from * a->inputs, *y = a->kernel ? (const T *)a->y + from * a->inputs : NULL;
        T *u = (T *)a->u + from * a->dim;
        FN(make_z)(z, x, y, pass->scale1, pass->shift1, rows, a->inputs);
        FN(product)(z, rows, a->inputs / UNIT, pass->weight, a->pointwise_bias, u, a->dim);
        for (long c = 0; c < a->dim && pass->partial; c += LANES)
            FN(sum_gelu)(pass->partial + panel * 3 * a->dim + c, u + c, rows, a->dim);
    }
}

static void FN(normalise_work)(void *context, long begin, long end, long group) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    (void)group;
    for (long panel = begin; panel < end; panel++) {
        long from = panel * PANEL, rows = least(PANEL, pass->pixels - from);
        const T *u = (const T *)a->u + from * a->dim;
        FN(normalise)((T *)a->out + from * a->dim, u, pass->scale2, pass->shift2, rows, a->dim);
    }
}

// Evaluation without gradients: an image (or a panel of patches) goes through the whole block while it is in the cache.
static void FN(evaluate_work)(void *context, long begin, long end, long group) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    long image = a->kernel ? pass->shape.height * pass->shape.width : PANEL;
    T *y = a->kernel ? scratch(Y_IMAGE, image * a->inputs * sizeof *y) : NULL;
    T *u = scratch(U_PANEL, PANEL * a->dim * sizeof *u);
    const size_t size = PANEL * FN(row_of)(a->inputs) * sizeof(FN(cell));
    FN(cell) *z = scratch(Z_PANEL, size);
    memset(z, 0, size);
    for (long b = begin; b < end; b++) {
        long start = b * image, stop = least(pass->pixels, start + image);
        if (a->kernel) {
            layer one = *a;
            one.y = y;
            one.x = (char *)a->x + start * a->inputs * sizeof(T);
            FN(pass) half = *pass;
            half.a = &one;
            half.partial = NULL;
            FN(depthwise_forward_work)(&half, 0, a->dim / LANES, group);
        }
        for (long from = start; from < stop; from += PANEL) {
            long rows = least(PANEL, stop - from);
            const T *yy = y ? y + (from - start) * a->inputs : NULL;
            FN(make_z)(z, (const T *)a->x + from * a->inputs, yy, pass->scale1, pass->shift1, rows, a->inputs);
            FN(product)(z, rows, a->inputs / UNIT, pass->weight, a->pointwise_bias, u, a->dim);
            FN(normalise)((T *)a->out + from * a->dim, u, pass->scale2, pass->shift2, rows, a->dim);
        }
    }
}

void FN(layers_forward)(const layer *a) {
    int threads = (int)a->threads;
    long dim = a->dim, in = a->inputs, image = a->height * a->width;
    FN(pass) pass = {.a = a, .shape = FN(shape_of)(a->height, a->width, a->kernel), .pixels = a->batch * image};
    pass.panels = (pass.pixels + PANEL - 1) / PANEL;

    pass.taps = floats(TAPS, dim * a->kernel * pass.shape.taps * UNIT);
    pass.weight = floats(WEIGHT, dim * in);
    pass.scale1 = floats(SCALE1, dim);
    pass.shift1 = floats(SHIFT1, dim);
    pass.scale2 = floats(SCALE2, dim);
    pass.shift2 = floats(SHIFT2, dim);
    float *partial = floats(PARTIAL, 3 * most(a->batch, pass.panels) * dim);
    parallel(FN(pack_work), &pass, most(dim, in) / LANES, 0, threads);

    if (!a->u) {
        if (a->kernel) affine_of(&a->norm1, dim, pass.scale1, pass.shift1);
        affine_of(&a->norm2, dim, pass.scale2, pass.shift2);
        parallel(FN(evaluate_work), &pass, a->kernel ? a->batch : pass.panels, 0, threads);
        return;
    }
    if (a->kernel) {
        pass.partial = a->norm1.batch ? partial : NULL;
        parallel(FN(depthwise_forward_work), &pass, a->batch * (dim / LANES), 0, threads);
        if (a->norm1.batch) statistics(&a->norm1, partial, a->batch, image, pass.pixels, dim);
        affine_of(&a->norm1, dim, pass.scale1, pass.shift1);
    }
    pass.partial = a->norm2.batch ? partial : NULL;
    parallel(FN(pointwise_forward_work), &pass, pass.panels, 0, threads);
    if (a->norm2.batch) statistics(&a->norm2, partial, pass.panels, PANEL, pass.pixels, dim);
    affine_of(&a->norm2, dim, pass.scale2, pass.shift2);
    parallel(FN(normalise_work), &pass, pass.panels, 0, threads);
}

// ---------------------------------------------------------------------------------------------- backward

// Pass 1: sums of dout and of dout GELU(u), the two that BatchNorm's gradient needs.
static void FN(sum_backward_work)(void *context, long begin, long end, long group) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    long dim = a->dim;
    (void)group;
    for (long panel = begin; panel < end; panel++) {
        long from = panel * PANEL, rows = least(PANEL, pass->pixels - from);
        const T *dout = (const T *)a->dout + from * dim, *u = (const T *)a->u + from * dim;
        float *plain = pass->partial + panel * 2 * dim, *times = plain + dim;
        memset(plain, 0, 2 * dim * sizeof(float));
        for (long p = 0; p < rows; p++)
            for (long c = 0; c < dim; c += LANES) {
                vf d = LOAD(dout + p * dim + c), v = GELU(LOAD(u + p * dim + c));
                store_f32(plain + c, load_f32(plain + c) + d);
                store_f32(times + c, load_f32(times + c) + d * (v - load_f32(a->norm2.mean + c)));
            }
    }
}

// du of one pixel and LANES channels: BatchNorm's gradient, then GELU's.
// `coef` is what backward_of made of a BatchNorm, [3][dim].
INLINE vf FN(through_norm_and_gelu)(const T *d, const T *in, const float *coef, long dim) {
    vf x = LOAD(in), by_d = load_f32(coef), by_g = load_f32(coef + dim), constant = load_f32(coef + 2 * dim);
    return (by_d * LOAD(d) + by_g * GELU(x) + constant) * SLOPE(x);
}

// The sums of a panel in units, for each of dim channels.
static void FN(sum_units)(float *to, const vf *units, long dim) {
    for (long c = 0; c < dim; c += LANES) {
        vf total = splat(0), one = FN(unit)(splat(1), splat(1));
        for (long p = 0; p < FN(PAIRS); p++) total = FN(dot)(total, units[FN(unit_at)(p, c, dim)], one);
        store_f32(to + c, total);
    }
}

// Sums over pixels of d and of d (g - mean), for each channel.
static void FN(sum_products)(float *plain, float *times, const T *d, const float *g, const float *mean, long rows,
                             long dim) {
    for (long c = 0; c < dim; c += LANES) {
        vf first = splat(0), second = splat(0), middle = load_f32(mean + c);
        for (long p = 0; p < rows; p++) {
            vf value = LOAD(d + p * dim + c);
            first += value;
            second += value * (load_f32(g + p * dim + c) - middle);
        }
        store_f32(plain + c, first);
        store_f32(times + c, second);
    }
}

// Pass 2: du, then dz = du W, and what a panel adds to the gradients of W, its bias and the first BatchNorm.
static void FN(pointwise_backward_work)(void *context, long begin, long end, long group) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    long dim = a->dim, in = a->inputs;
    // Floats are summed over pixels where they lie.
    size_t du_size = PANEL * FN(row_of)(dim) * sizeof(float), z_size = PANEL * FN(row_of)(in) * sizeof(float);
    vf *du_units = scratch(DU_UNITS, du_size), *z_units = scratch(Z_UNITS, z_size);
    FN(cell) *du_rows = UNIT == 2 ? scratch(DU_PANEL, du_size) : (void *)du_units;
    float *g_panel = floats(G_PANEL, PANEL * in), *gradient = pass->sums + group * dim * in;
    memset(gradient, 0, dim * in * sizeof(float));
    for (long panel = begin; panel < end; panel++) {
        long from = panel * PANEL, rows = least(PANEL, pass->pixels - from);
        const T *dout = (const T *)a->dout + from * dim, *u = (const T *)a->u + from * dim;
        const T *x = (const T *)a->x + from * in, *y = a->kernel ? (const T *)a->y + from * in : NULL;
        if (rows < PANEL) {
            memset(du_units, 0, du_size);
            memset(z_units, 0, z_size);
        }
        for (long p = 0; p < rows; p += UNIT) {
            const int both = UNIT == 2 && p + 1 < rows;
            for (long c = 0; c < dim; c += LANES) {
                long at = p * dim + c, row = p * FN(row_of)(dim) + c;
                UNROLL for (int i = 0; i < UNIT; i++) {
                    FN(fetch)(dout + at + i * dim, dim, FN(AHEAD_IN_PANEL));
                    FN(fetch)(u + at + i * dim, dim, FN(AHEAD_IN_PANEL));
                }
                vf first = FN(through_norm_and_gelu)(dout + at, u + at, pass->coef + c, dim), second = splat(0);
                if (both) second = FN(through_norm_and_gelu)(dout + at + dim, u + at + dim, pass->coef + c, dim);
                if (UNIT == 2) {
                    STORE_CELL(du_rows + row, first);
                    STORE_CELL(du_rows + row + FN(row_of)(dim), second);
                }
                du_units[FN(unit_at)(p / UNIT, c, dim)] = FN(unit)(first, second);
            }
            for (long c = 0; c < in; c += LANES) {
                vf z[UNIT];
                for (int i = 0; i < UNIT; i++) {
                    long at = (p + i) * in + c;
                    FN(fetch)(x + at, in, FN(AHEAD_IN_PANEL));
                    z[i] = i == 0 || both ? LOAD(x + at) : splat(0);
                    if (!y || (i == 1 && !both)) continue;
                    FN(fetch)(y + at, in, FN(AHEAD_IN_PANEL));
                    vf g = GELU(LOAD(y + at));
                    store_f32(g_panel + at, g);
                    z[i] += load_f32(pass->scale1 + c) * g + load_f32(pass->shift1 + c);
                }
                z_units[FN(unit_at)(p / UNIT, c, in)] = FN(unit)(z[0], z[UNIT - 1]);
            }
        }
        float *d_bias = pass->partial + panel * 3 * dim, *plain = d_bias + dim, *times = plain + dim;
        FN(sum_units)(d_bias, du_units, dim);
        FN(accumulate)(du_units, z_units, gradient, dim, in);
        if (!pass->dz) continue;
        T *dz = (T *)pass->dz + from * in;
        FN(product)(du_rows, rows, dim / UNIT, pass->weight, NULL, dz, in);
        if (y) FN(sum_products)(plain, times, dz, g_panel, a->norm1.mean, rows, in);
    }
}

// dy of LANES channels of an image, three times: in a padded tile, and without side padding in even and odd units.
// Returns its sum.
static vf FN(fill_dy)(vf *tile, vf *even, vf *odd, long dy_row, const T *dz, const T *y, const float *coef, long dim,
                      const FN(shape) *s) {
    vf total = splat(0);
    for (long h = 0; h < s->height; h++) {
        vf before = splat(0), *e = even + h * dy_row, *o = odd + h * dy_row, *t = tile + h * s->row + s->left;
        for (long w = 0; w < s->width; w += UNIT) {
            long at = (h * s->width + w) * dim, next = at + dim;
            UNROLL for (int i = 0; i < UNIT; i++) {
                FN(fetch)(dz + at + i * dim, dim, FN(AHEAD_IN_IMAGE));
                FN(fetch)(y + at + i * dim, dim, FN(AHEAD_IN_IMAGE));
            }
            vf first = FN(through_norm_and_gelu)(dz + at, y + at, coef, dim), second = splat(0);
            if (UNIT == 2 && w + 1 < s->width) second = FN(through_norm_and_gelu)(dz + next, y + next, coef, dim);
            total += UNIT == 2 ? first + second : first;
            *e++ = *t++ = FN(unit)(first, second);
            if (UNIT == 2) *o++ = FN(unit)(before, first);
            before = second;
        }
        if (UNIT == 2) *o = FN(unit)(before, splat(0));
    }
    return total;
}

// Pass 3: dy, then dx = its convolution with the flipped kernel + dz, and the gradients of the kernel and its bias.
static void FN(depthwise_backward_work)(void *context, long begin, long end, long group) {
    enum { GUARD = 2 };  // rows of zeros above and below dy
    FN(pass) *pass = context;
    const layer *a = pass->a;
    const FN(shape) *s = &pass->shape;
    long dim = a->dim, slabs = dim / LANES, image = s->height * s->width, kk = s->kernel * s->kernel;
    long dy_row = s->units + UNIT, dy_size = (s->height + 2 * GUARD) * dy_row;
    size_t tile_size = s->height * s->row * sizeof(vf);
    vf *x_tile = scratch(X_TILE, tile_size), *dy_tile = scratch(DY_TILE, tile_size);
    vf *even = scratch(DY_EVEN, dy_size * sizeof(vf)), *odd = scratch(DY_ODD, dy_size * sizeof(vf));
    float *gradient = pass->sums + group * dim * kk;
    memset(gradient, 0, dim * kk * sizeof(float));
    memset(x_tile, 0, tile_size);
    memset(dy_tile, 0, tile_size);
    memset(even, 0, dy_size * sizeof(vf));
    memset(odd, 0, dy_size * sizeof(vf));
    even += GUARD * dy_row;
    odd += GUARD * dy_row;
    for (long task = begin; task < end; task++) {
        long b = task / slabs, slab = task % slabs, c = slab * LANES, at = b * image * dim + c;
        const T *dz = pass->dz + at;
        FN(fill_tile)(x_tile, (const T *)a->x + at, s, dim);
        vf sum = FN(fill_dy)(dy_tile, even, odd, dy_row, dz, (const T *)a->y + at, pass->coef + c, dim, s);
        store_f32(pass->partial + b * dim + c, sum);
        FN(correlate)(x_tile, even, odd, s, dy_row, (vf *)gradient + slab * kk);
        FN(convolve)(dy_tile, pass->taps + slab * s->kernel * s->taps * UNIT, s, splat(0), dz, (T *)a->dx + at, dim);
    }
}

void FN(layers_backward)(const layer *a) {
    int threads = (int)a->threads;
    long dim = a->dim, in = a->inputs, image = a->height * a->width, kk = a->kernel * a->kernel;
    FN(pass) pass = {.a = a, .shape = FN(shape_of)(a->height, a->width, a->kernel), .pixels = a->batch * image};
    pass.panels = (pass.pixels + PANEL - 1) / PANEL;

    long groups = sum_groups(threads), slabs = a->batch * (dim / LANES);
    long of_panels = least(groups, pass.panels), of_slabs = least(groups, slabs);  // one without work costs a sum
    pass.flip = 1;
    pass.taps = floats(TAPS, dim * a->kernel * pass.shape.taps * UNIT);
    pass.weight = floats(WEIGHT, dim * in);
    pass.scale1 = floats(SCALE1, dim);
    pass.shift1 = floats(SHIFT1, dim);
    pass.coef = floats(COEFFICIENTS, 3 * dim);
    pass.partial = floats(PARTIAL, 3 * most(a->batch, pass.panels) * dim);
    pass.sums = floats(SUMS, groups * dim * most(in, kk));
    pass.dz = a->kernel ? a->dz : a->dx;
    parallel(FN(pack_work), &pass, most(dim, in) / LANES, 0, threads);
    if (a->kernel) affine_of(&a->norm1, dim, pass.scale1, pass.shift1);

    parallel(FN(sum_backward_work), &pass, pass.panels, 0, threads);
    add_up(pass.partial, pass.panels, 2 * dim, dim, a->norm2.d_bias, threads);
    add_up(pass.partial + dim, pass.panels, 2 * dim, dim, a->norm2.d_weight, threads);
    backward_of(&a->norm2, dim, pass.pixels, pass.coef);

    parallel(FN(pointwise_backward_work), &pass, pass.panels, of_panels, threads);
    add_up(pass.partial, pass.panels, 3 * dim, dim, a->d_pointwise_bias, threads);
    add_up(pass.sums, of_panels, dim * in, dim * in, a->d_pointwise_weight, threads);
    if (!a->kernel) return;
    add_up(pass.partial + dim, pass.panels, 3 * dim, dim, a->norm1.d_bias, threads);
    add_up(pass.partial + 2 * dim, pass.panels, 3 * dim, dim, a->norm1.d_weight, threads);
    backward_of(&a->norm1, dim, pass.pixels, pass.coef);

    parallel(FN(depthwise_backward_work), &pass, slabs, of_slabs, threads);
    add_up(pass.partial, a->batch, dim, dim, a->d_depthwise_bias, threads);
    add_up(pass.sums, of_slabs, dim * kk, dim * kk, pass.sums, threads);
    for (long c = 0; c < dim; c++)
        for (long i = 0; i < kk; i++)
            a->d_depthwise_weight[c * kk + i] = pass.sums[(c / LANES * kk + i) * LANES + c % LANES];
}
