// The passes of one mixing block, forward and backward; included once an element type.
//
//     mix:   y = depthwise(x) + bias,  g = GELU(y),  z = BatchNorm(g) + x
//     lift:  u = z W^T + bias,         v = GELU(u),  out = BatchNorm(v)
//
// Kept for backward: x, y, u. GELU, z and the normalised values are computed again wherever a pass meets them.
// BatchNorm needs a sum over the whole batch between passes; that is why there are several, and why no more.
// The stem is a lift alone: its z are the patches of the image.


typedef struct {
    const layer *a;
    FN(shape) shape;
    long pixels, panels;
    const vf *taps, *weight;
    float *scale1, *shift1, *scale2, *shift2;
    float *partial;
    float *coef, *sums;
    const T *dz;
} FN(pass);

// ---------------------------------------------------------------------------------------------- forward

// x of one image, LANES channels -> the inside of a padded tile.
static void FN(fill_tile)(vf *tile, const T *x, const FN(shape) *s, long dim) {
    for (long h = 0; h < s->height; h++) {
        vf *to = tile + h * s->row + s->left;
        const T *from = x + h * s->width * dim;
        for (long w = 0; w < s->width; w += UNIT, from += UNIT * dim)
            *to++ = FN(unit)(LOAD(from), UNIT == 2 && w + 1 < s->width ? LOAD(from + dim) : splat(0));
    }
}

// y = depthwise(x) + bias for LANES channels of an image; `add` (or NULL) is added to the result.
INLINE void FN(convolve_columns)(const vf *tile, const vf *taps, const FN(shape) *s, vf bias, const T *add, T *y, long dim,
                                 long unit, const int strip) {
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

// Shifted sums of GELU(y) over some pixels: sound where the mean is large beside the spread.
// to[0] = the shift, to[dim] = sum(g - shift), to[2 dim] = sum((g - shift)^2).
static void FN(sum_gelu)(float *to, const T *y, long pixels, long dim) {
    for (long c = 0; c < dim; c += LANES) {
        vf shift = FN(gelu)(LOAD(y + c)), first = splat(0), second = splat(0);
        for (long p = 0; p < pixels; p++) {
            vf g = FN(gelu)(LOAD(y + p * dim + c)) - shift;
            first += g;
            second += g * g;
        }
        store_f32(to + c, shift);
        store_f32(to + dim + c, first);
        store_f32(to + 2 * dim + c, second);
    }
}

static void FN(mix_forward_work)(void *context, long begin, long end, int thread) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    const FN(shape) *s = &pass->shape;
    (void)thread;
    long dim = a->dim, slabs = dim / LANES, image = s->height * s->width;
    vf *tile = scratch(1, s->height * s->row * sizeof(vf));
    memset(tile, 0, s->height * s->row * sizeof(vf));
    for (long task = begin; task < end; task++) {
        long b = task / slabs, slab = task % slabs, at = b * image * dim + slab * LANES;
        FN(fill_tile)(tile, (const T *)a->x + at, s, dim);
        const vf *taps = pass->taps + slab * s->kernel * s->taps * UNIT;
        FN(convolve)(tile, taps, s, load_f32(a->mix_bias + slab * LANES), NULL, (T *)a->y + at, dim);
        if (!pass->partial) continue;
        float *to = pass->partial + b * 3 * dim + slab * LANES;
        const T *y = (const T *)a->y + at;
        vf shift = FN(gelu)(LOAD(y)), first = splat(0), second = splat(0);
        for (long p = 0; p < image; p++) {
            vf g = FN(gelu)(LOAD(y + p * dim)) - shift;
            first += g;
            second += g * g;
        }
        store_f32(to, shift);
        store_f32(to + dim, first);
        store_f32(to + 2 * dim, second);
    }
}

// z = scale1 GELU(y) + shift1 + x for some pixels, or the patches themselves (y is NULL).
static void FN(make_z)(FN(cell) *z, const T *x, const T *y, const float *scale, const float *shift, long rows, long dim) {
    for (long p = 0; p < rows; p++)
        for (long c = 0; c < dim; c += LANES) {
            vf value = LOAD(x + p * dim + c);
            if (y) value += load_f32(scale + c) * FN(gelu)(LOAD(y + p * dim + c)) + load_f32(shift + c);
            STORE_CELL(z + p * dim + c, value);
        }
}

static void FN(normalise)(T *out, const T *u, const float *scale, const float *shift, long rows, long dim) {
    for (long p = 0; p < rows; p++)
        for (long c = 0; c < dim; c += LANES)
            STORE(out + p * dim + c, load_f32(scale + c) * FN(gelu)(LOAD(u + p * dim + c)) + load_f32(shift + c));
}

static void FN(lift_forward_work)(void *context, long begin, long end, int thread) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    (void)thread;
    FN(cell) *z = scratch(1, PANEL * a->inputs * sizeof *z);
    memset(z, 0, PANEL * a->inputs * sizeof *z);
    for (long panel = begin; panel < end; panel++) {
        long from = panel * PANEL, rows = least(PANEL, pass->pixels - from);
        const T *x = (const T *)a->x + from * a->inputs, *y = a->kernel ? (const T *)a->y + from * a->inputs : NULL;
        T *u = (T *)a->u + from * a->dim;
        FN(make_z)(z, x, y, pass->scale1, pass->shift1, rows, a->inputs);
        FN(product)(z, rows, a->inputs / UNIT, pass->weight, a->lift_bias, u, a->dim);
        if (pass->partial) FN(sum_gelu)(pass->partial + panel * 3 * a->dim, u, rows, a->dim);
    }
}

static void FN(normalise_work)(void *context, long begin, long end, int thread) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    (void)thread;
    for (long panel = begin; panel < end; panel++) {
        long from = panel * PANEL, rows = least(PANEL, pass->pixels - from);
        FN(normalise)((T *)a->out + from * a->dim, (const T *)a->u + from * a->dim, pass->scale2, pass->shift2, rows, a->dim);
    }
}

// Evaluation without gradients: an image (or a panel of patches) goes through the whole block while it is in the cache.
static void FN(evaluate_work)(void *context, long begin, long end, int thread) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    long image = a->kernel ? pass->shape.height * pass->shape.width : PANEL;
    T *y = a->kernel ? scratch(2, image * a->inputs * sizeof *y) : NULL, *u = scratch(3, PANEL * a->dim * sizeof *u);
    FN(cell) *z = scratch(4, PANEL * a->inputs * sizeof *z);
    memset(z, 0, PANEL * a->inputs * sizeof *z);
    for (long b = begin; b < end; b++) {
        long start = b * image, stop = least(pass->pixels, start + image);
        if (a->kernel) {
            layer one = *a;
            one.y = y;
            one.x = (char *)a->x + start * a->inputs * sizeof(T);
            FN(pass) mix = *pass;
            mix.a = &one;
            mix.partial = NULL;
            FN(mix_forward_work)(&mix, 0, a->dim / LANES, thread);
        }
        for (long from = start; from < stop; from += PANEL) {
            long rows = least(PANEL, stop - from);
            const T *yy = y ? y + (from - start) * a->inputs : NULL;
            FN(make_z)(z, (const T *)a->x + from * a->inputs, yy, pass->scale1, pass->shift1, rows, a->inputs);
            FN(product)(z, rows, a->inputs / UNIT, pass->weight, a->lift_bias, u, a->dim);
            FN(normalise)((T *)a->out + from * a->dim, u, pass->scale2, pass->shift2, rows, a->dim);
        }
    }
}

void FN(fast_forward)(const layer *a) {
    int threads = (int)a->threads;
    long dim = a->dim, in = a->inputs, image = a->height * a->width;
    FN(pass) pass = {.a = a, .shape = FN(shape_of)(a->height, a->width, a->kernel), .pixels = a->batch * image};
    pass.panels = (pass.pixels + PANEL - 1) / PANEL;
    const FN(shape) *s = &pass.shape;

    long chunks = most(a->batch, pass.panels);
    size_t taps = dim * a->kernel * s->taps * UNIT * sizeof(float), weight = dim * in * sizeof(float);
    char *memory = scratch(0, taps + weight + 4 * dim * sizeof(float) + 3 * chunks * dim * sizeof(float));
    vf *packed_taps = (vf *)memory, *packed_weight = (vf *)(memory + taps);
    pass.scale1 = (float *)(memory + taps + weight);
    pass.shift1 = pass.scale1 + dim;
    pass.scale2 = pass.shift1 + dim;
    pass.shift2 = pass.scale2 + dim;
    float *partial = pass.shift2 + dim;
    pass.taps = packed_taps;
    pass.weight = packed_weight;
    if (a->kernel) FN(pack_taps)(packed_taps, a->mix_weight, dim, s, 0);
    FN(pack_weight)(packed_weight, a->lift_weight, dim, in, in, 1);

    if (!a->u) {
        if (a->kernel) affine_of(&a->norm1, dim, pass.scale1, pass.shift1);
        affine_of(&a->norm2, dim, pass.scale2, pass.shift2);
        parallel(FN(evaluate_work), &pass, a->kernel ? a->batch : pass.panels, threads);
        return;
    }
    if (a->kernel) {
        pass.partial = a->norm1.batch ? partial : NULL;
        parallel(FN(mix_forward_work), &pass, a->batch * (dim / LANES), threads);
        if (a->norm1.batch) statistics(&a->norm1, partial, a->batch, image, pass.pixels, dim);
        affine_of(&a->norm1, dim, pass.scale1, pass.shift1);
    }
    pass.partial = a->norm2.batch ? partial : NULL;
    parallel(FN(lift_forward_work), &pass, pass.panels, threads);
    if (a->norm2.batch) statistics(&a->norm2, partial, pass.panels, PANEL, pass.pixels, dim);
    affine_of(&a->norm2, dim, pass.scale2, pass.shift2);
    parallel(FN(normalise_work), &pass, pass.panels, threads);
}

// ---------------------------------------------------------------------------------------------- backward

// Pass 1: sums of dout and of dout GELU(u), the two that BatchNorm's gradient needs.
static void FN(sum_backward_work)(void *context, long begin, long end, int thread) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    long dim = a->dim;
    (void)thread;
    for (long panel = begin; panel < end; panel++) {
        long from = panel * PANEL, rows = least(PANEL, pass->pixels - from);
        const T *dout = (const T *)a->dout + from * dim, *u = (const T *)a->u + from * dim;
        float *plain = pass->partial + panel * 2 * dim, *times = plain + dim;
        memset(plain, 0, 2 * dim * sizeof(float));
        for (long p = 0; p < rows; p++)
            for (long c = 0; c < dim; c += LANES) {
                vf d = LOAD(dout + p * dim + c), v = FN(gelu)(LOAD(u + p * dim + c));
                store_f32(plain + c, load_f32(plain + c) + d);
                store_f32(times + c, load_f32(times + c) + d * (v - load_f32(a->norm2.mean + c)));
            }
    }
}

// Pass 2: du, then dz = du W, and what a panel adds to the gradients of W, its bias and the first BatchNorm.
static void FN(lift_backward_work)(void *context, long begin, long end, int thread) {
    FN(pass) *pass = context;
    const layer *a = pass->a;
    long dim = a->dim, in = a->inputs;
    vf *du_units = scratch(1, dim * PANEL * 4), *z_units = scratch(2, in * PANEL * 4);
    FN(cell) *du_rows = scratch(3, PANEL * dim * sizeof *du_rows);
    float *gradient = pass->sums + thread * dim * in;
    const float *by_dout = pass->coef, *by_v = by_dout + dim, *constant = by_v + dim;
    for (long panel = begin; panel < end; panel++) {
        long from = panel * PANEL, rows = least(PANEL, pass->pixels - from);
        const T *dout = (const T *)a->dout + from * dim, *u = (const T *)a->u + from * dim;
        const T *x = (const T *)a->x + from * in, *y = a->kernel ? (const T *)a->y + from * in : NULL;
        float *d_bias = pass->partial + panel * 3 * dim, *plain = d_bias + dim, *times = plain + dim;
        memset(d_bias, 0, 3 * dim * sizeof(float));
        if (rows < PANEL) {
            memset(du_units, 0, dim * PANEL * 4);
            memset(z_units, 0, in * PANEL * 4);
        }
        for (long p = 0; p < rows; p += UNIT) {
            for (long c = 0; c < dim; c += LANES) {
                vf du[2] = {splat(0), splat(0)};
                for (int half = 0; half < UNIT && p + half < rows; half++) {
                    long at = (p + half) * dim + c;
                    vf raw = LOAD(u + at), v = FN(gelu)(raw), slope = FN(slope)(raw);
                    vf dv = load_f32(by_dout + c) * LOAD(dout + at) + load_f32(by_v + c) * v + load_f32(constant + c);
                    du[half] = dv * slope;
                    STORE_CELL(du_rows + at, du[half]);
                }
                du_units[c / LANES * FN(PAIRS) + p / UNIT] = FN(unit)(du[0], du[1]);
                store_f32(d_bias + c, load_f32(d_bias + c) + du[0] + du[1]);
            }
            for (long c = 0; c < in; c += LANES) {
                vf z[2] = {splat(0), splat(0)};
                for (int half = 0; half < UNIT && p + half < rows; half++) {
                    long at = (p + half) * in + c;
                    z[half] = LOAD(x + at);
                    if (y) z[half] += load_f32(pass->scale1 + c) * FN(gelu)(LOAD(y + at)) + load_f32(pass->shift1 + c);
                }
                z_units[c / LANES * FN(PAIRS) + p / UNIT] = FN(unit)(z[0], z[1]);
            }
        }
        FN(accumulate)(du_units, z_units, gradient, dim, in);
        if (!pass->dz) continue;
        T *dz = (T *)pass->dz + from * in;
        FN(product)(du_rows, rows, dim / UNIT, pass->weight, NULL, dz, in);
        if (!y) continue;
        for (long p = 0; p < rows; p++)
            for (long c = 0; c < in; c += LANES) {
                vf d = LOAD(dz + p * in + c), g = FN(gelu)(LOAD(y + p * in + c));
                store_f32(plain + c, load_f32(plain + c) + d);
                store_f32(times + c, load_f32(times + c) + d * (g - load_f32(a->norm1.mean + c)));
            }
    }
}

// Pass 3: dy, then dx = its convolution with the flipped kernel + dz, and the gradients of the kernel and its bias.
static void FN(mix_backward_work)(void *context, long begin, long end, int thread) {
    enum { GUARD = 2 };
    FN(pass) *pass = context;
    const layer *a = pass->a;
    const FN(shape) *s = &pass->shape;
    long dim = a->dim, slabs = dim / LANES, image = s->height * s->width, kk = s->kernel * s->kernel;
    long dy_row = s->units + UNIT - 1 + 1, dy_size = (s->height + 2 * GUARD) * dy_row;
    size_t tile_size = s->height * s->row * sizeof(vf);
    vf *x_tile = scratch(1, tile_size), *dy_tile = scratch(2, tile_size);
    vf *even = scratch(3, dy_size * sizeof(vf)), *odd = scratch(4, dy_size * sizeof(vf));
    memset(x_tile, 0, tile_size);
    memset(dy_tile, 0, tile_size);
    memset(even, 0, dy_size * sizeof(vf));
    memset(odd, 0, dy_size * sizeof(vf));
    const float *by_dz = pass->coef, *by_g = by_dz + dim, *constant = by_g + dim;
    for (long task = begin; task < end; task++) {
        long b = task / slabs, slab = task % slabs, c = slab * LANES, at = b * image * dim + c;
        FN(fill_tile)(x_tile, (const T *)a->x + at, s, dim);
        vf by_d = load_f32(by_dz + c), by = load_f32(by_g + c), always = load_f32(constant + c), total = splat(0);
        for (long h = 0; h < s->height; h++) {
            vf before = splat(0);
            vf *e = even + (h + GUARD) * dy_row, *o = odd + (h + GUARD) * dy_row, *t = dy_tile + h * s->row + s->left;
            for (long j = 0; j < s->units; j++) {
                vf dy[2] = {splat(0), splat(0)};
                for (int half = 0; half < UNIT && j * UNIT + half < s->width; half++) {
                    long pixel = at + (h * s->width + j * UNIT + half) * dim;
                    vf raw = LOAD((const T *)a->y + pixel), g = FN(gelu)(raw), slope = FN(slope)(raw);
                    dy[half] = (by_d * LOAD(pass->dz + pixel) + by * g + always) * slope;
                    total += dy[half];
                }
                e[j] = t[j] = FN(unit)(dy[0], dy[1]);
                if (UNIT == 2) o[j] = FN(unit)(before, dy[0]);
                before = dy[1];
            }
            if (UNIT == 2) o[s->units] = FN(unit)(before, splat(0));
        }
        float *partial = pass->partial + b * dim + c;
        store_f32(partial, total);
        FN(correlate)(x_tile, even + GUARD * dy_row, odd + GUARD * dy_row, s, dy_row,
                      (vf *)(pass->sums + thread * dim * kk) + slab * kk);
        FN(convolve)(dy_tile, pass->taps + slab * s->kernel * s->taps * UNIT, s, splat(0), pass->dz + at, (T *)a->dx + at, dim);
    }
}

void FN(fast_backward)(const layer *a) {
    int threads = (int)a->threads;
    long dim = a->dim, in = a->inputs, image = a->height * a->width, kk = a->kernel * a->kernel;
    FN(pass) pass = {.a = a, .shape = FN(shape_of)(a->height, a->width, a->kernel), .pixels = a->batch * image};
    pass.panels = (pass.pixels + PANEL - 1) / PANEL;
    const FN(shape) *s = &pass.shape;

    long chunks = most(a->batch, pass.panels);
    size_t taps = dim * a->kernel * s->taps * UNIT * sizeof(float), weight = dim * in * sizeof(float);
    size_t lift_sums = threads * weight, mix_sums = threads * dim * kk * sizeof(float);
    size_t sums = (size_t)most((long)lift_sums, (long)mix_sums);
    char *memory = scratch(0, taps + weight + sums + (5 + 3 * chunks) * dim * sizeof(float));
    vf *packed_taps = (vf *)memory, *packed_weight = (vf *)(memory + taps);
    pass.sums = (float *)(memory + taps + weight);
    pass.scale1 = (float *)(memory + taps + weight + sums);
    pass.shift1 = pass.scale1 + dim;
    pass.coef = pass.shift1 + dim;
    pass.partial = pass.coef + 3 * dim;
    pass.taps = packed_taps;
    pass.weight = packed_weight;
    pass.dz = a->kernel ? a->dz : a->dx;
    if (a->kernel) FN(pack_taps)(packed_taps, a->mix_weight, dim, s, 1);
    if (pass.dz) FN(pack_weight)(packed_weight, a->lift_weight, in, dim, 1, in);
    if (a->kernel) affine_of(&a->norm1, dim, pass.scale1, pass.shift1);

    parallel(FN(sum_backward_work), &pass, pass.panels, threads);
    add_up(pass.partial, pass.panels, 2 * dim, dim, a->norm2.d_bias);
    add_up(pass.partial + dim, pass.panels, 2 * dim, dim, a->norm2.d_weight);
    backward_of(&a->norm2, dim, pass.pixels, pass.coef);

    memset(pass.sums, 0, lift_sums);
    parallel(FN(lift_backward_work), &pass, pass.panels, threads);
    add_up(pass.partial, pass.panels, 3 * dim, dim, a->d_lift_bias);
    add_up(pass.sums, threads, dim * in, dim * in, a->d_lift_weight);
    if (!a->kernel) return;
    add_up(pass.partial + dim, pass.panels, 3 * dim, dim, a->norm1.d_bias);
    add_up(pass.partial + 2 * dim, pass.panels, 3 * dim, dim, a->norm1.d_weight);
    backward_of(&a->norm1, dim, pass.pixels, pass.coef);

    memset(pass.sums, 0, mix_sums);
    parallel(FN(mix_backward_work), &pass, a->batch * (dim / LANES), threads);
    add_up(pass.partial, a->batch, dim, dim, a->d_mix_bias);
    add_up(pass.sums, threads, dim * kk, dim * kk, pass.sums);
    for (long c = 0; c < dim; c++)
        for (long i = 0; i < kk; i++)
            a->d_mix_weight[c * kk + i] = pass.sums[(c / LANES * kk + i) * LANES + c % LANES];
}
