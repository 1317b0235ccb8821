// Depthwise convolution of one image and LANES channels, from a padded tile that fits in the first caches.
// A *unit* is what one lane of a vector holds: a float, or (UNIT == 2) a pair of bfloat16 pixels, columns 2j and
// 2j + 1, that one dot-product instruction takes together.
//
// A template: layers.c includes it once an element type and arithmetic. The includer must define
//   FN(name)        `name` with the suffix of this inclusion
//   UNIT            floats or bfloat16 values in a lane: 1, or 2 for dot products of bfloat16 pairs

typedef struct {
    long height, width, kernel, pad, left;  // left: zero columns before the first pixel, whole units
    long units, taps, row;                  // units across the image, taps in a row of the kernel, units in a tile row
    long skip;                              // where the taps of the odd pixel of a pair begin: unit 0 or 1
} FN(shape);

static FN(shape) FN(shape_of)(long height, long width, long kernel) {
    FN(shape) s = {.height = height, .width = width, .kernel = kernel, .pad = kernel / 2};
    s.left = (s.pad + UNIT - 1) / UNIT;
    s.units = (width + UNIT - 1) / UNIT;
    s.taps = (kernel + UNIT - 1) / UNIT;
    s.skip = s.pad % UNIT;
    s.row = s.units + s.taps + 2;
    return s;
}

// ---------------------------------------------------------------------------------------------- units

INLINE vf FN(dot)(vf sum, vf a, vf b) {
#if UNIT == 2
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    return sum + a * b;
#endif
}

// One unit a lane, from the values of two neighbours (the second is not looked at where a unit is a float).
INLINE vf FN(unit)(vf first, vf second) {
#if UNIT == 2
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                                22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (vf)_mm512_permutexvar_epi16(interleave, both);
#else
    (void)second;
    return first;
#endif
}

// ---------------------------------------------------------------------------------------------- weights

// weight (dim, k, k), the LANES channels from `slab` on -> units [k][taps][UNIT]: for each tap, one vector for each
// pixel of the output unit.
static void FN(pack_taps)(vf *to, const float *weight, long slab, const FN(shape) *s, int flip) {
    long k = s->kernel;
    for (long r = 0; r < k; r++)
        for (long t = 0; t < s->taps; t++)
            for (long pixel = 0; pixel < UNIT; pixel++) {
                vf tap[2] = {splat(0), splat(0)};
                // Column of the kernel that meets the first pixel of input unit t (+ skip for the odd pixel).
                long column = UNIT * (t + (pixel ? s->skip : 0)) - (UNIT * s->left - s->pad) - pixel;
                for (long half = 0; half < UNIT; half++)
                    for (long lane = 0; lane < LANES; lane++) {
                        long at = column + half;
                        if (at < 0 || at >= k) continue;
                        long place = r * k + at;
                        tap[half][lane] = weight[(slab + lane) * k * k + (flip ? k * k - 1 - place : place)];
                    }
                *to++ = FN(unit)(tap[0], tap[1]);
            }
}

// ---------------------------------------------------------------------------------------------- convolution

enum { FN(STRIP) = REGISTERS / 4 / UNIT };  // output units side by side, whose sums stay in registers, for two rows at once

// Adds one tile row to the sums of up to two output rows; which of them is known when it is compiled.
INLINE void FN(convolve_row)(const vf *tile, const vf *upper, const vf *lower, long taps, long skip, const int strip,
                             const int use_upper, const int use_lower, vf sums[2][FN(STRIP)][UNIT]) {
    for (long t = 0; t < taps; t++)
        UNROLL for (int pixel = 0; pixel < UNIT; pixel++) {
            const vf *input = tile + t + (pixel ? skip : 0);
            vf up = use_upper ? upper[t * UNIT + pixel] : splat(0);
            vf low = use_lower ? lower[t * UNIT + pixel] : splat(0);
            UNROLL for (int i = 0; i < strip; i++) {
                if (use_upper) sums[0][i][pixel] = FN(dot)(sums[0][i][pixel], input[i], up);
                if (use_lower) sums[1][i][pixel] = FN(dot)(sums[1][i][pixel], input[i], low);
            }
        }
}

// Output rows h and h + 1 (the second may lie below the image: it is computed and not used).
INLINE void FN(convolve_strip)(const vf *tile, const vf *taps, const FN(shape) *s, long h, const int strip,
                               vf sums[2][FN(STRIP)][UNIT]) {
    UNROLL for (int i = 0; i < strip; i++)
        UNROLL for (int p = 0; p < UNIT; p++) sums[0][i][p] = sums[1][i][p] = splat(0);
    long each = s->taps * UNIT, from = most(0, h - s->pad), to = least(s->height, h + s->pad + 2);
    for (long q = from; q < to; q++) {
        long r = q - h + s->pad;  // the kernel's row for the upper output row; the lower one is a row behind
        const vf *input = tile + q * s->row, *upper = taps + r * each, *lower = upper - each;
        if (r == 0) FN(convolve_row)(input, upper, lower, s->taps, s->skip, strip, 1, 0, sums);
        else if (r == s->kernel) FN(convolve_row)(input, upper, lower, s->taps, s->skip, strip, 0, 1, sums);
        else FN(convolve_row)(input, upper, lower, s->taps, s->skip, strip, 1, 1, sums);
    }
}

// ---------------------------------------------------------------------------------------------- weight gradient

// The gradient of tap (r, c) is the sum over pixels of dy[h][w] x[h + r - pad][w + c - pad]. `x` is a padded tile;
// `even` and `odd` hold dy without side padding, the units of the odd one beginning a pixel earlier (odd: UNIT == 2
// only). Rows of dy above and below the image are zero, so that `rows` rows of taps share each load of x.
INLINE void FN(correlate_rows)(const vf *x, const vf *even, const vf *odd, const FN(shape) *s, long r, const int rows,
                               const int kernel, const int shift, long dy_row, vf *sums) {
    const int taps = (kernel + UNIT - 1) / UNIT;  // input units that meet one unit of dy
    vf total[4][16];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int c = 0; c < kernel; c++) total[i][c] = splat(0);
    long from = most(0, r - s->pad), to = least(s->height, s->height + r + rows - 1 - s->pad);
    for (long q = from; q < to; q++) {
        const vf *input = x + q * s->row;
        const vf *e = even + (q - r + s->pad) * dy_row, *o = odd + (q - r + s->pad) * dy_row;
        for (long j = 0; j < s->units + UNIT - 1; j++)
            UNROLL for (int t = 0; t < taps; t++) UNROLL for (int i = 0; i < rows; i++) {
                int c = UNIT * t - (UNIT == 2 ? shift : 0);  // column of the kernel for the even units
                if (c >= 0 && c < kernel) total[i][c] = FN(dot)(total[i][c], input[j + t], e[j - i * dy_row]);
                if (UNIT == 2 && c + 1 >= 0 && c + 1 < kernel)
                    total[i][c + 1] = FN(dot)(total[i][c + 1], input[j + t], o[j - i * dy_row]);
            }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int c = 0; c < kernel; c++) sums[(r + i) * kernel + c] += total[i][c];
}

INLINE void FN(correlate_kernel)(const vf *x, const vf *even, const vf *odd, const FN(shape) *s, const int kernel,
                                 const int rows, long dy_row, vf *sums) {
    const int shift = kernel / 2 % 2;
    long r = 0;
    for (; r + rows <= kernel; r += rows) FN(correlate_rows)(x, even, odd, s, r, rows, kernel, shift, dy_row, sums);
    for (; r < kernel; r++) FN(correlate_rows)(x, even, odd, s, r, 1, kernel, shift, dy_row, sums);
}

// Any kernel: one tap after another.
static void FN(correlate_any)(const vf *x, const vf *even, const vf *odd, const FN(shape) *s, long dy_row, vf *sums) {
    for (long r = 0; r < s->kernel; r++)
        for (long c = 0; c < s->kernel; c++) {
            long column = c + s->skip;
            vf total = splat(0);
            const vf *dy = column % UNIT ? odd : even;
            for (long q = most(0, r - s->pad); q < least(s->height, s->height + r - s->pad); q++)
                for (long j = 0; j < s->units + UNIT - 1; j++)
                    total = FN(dot)(total, x[q * s->row + j + column / UNIT], dy[(q - r + s->pad) * dy_row + j]);
            sums[r * s->kernel + c] += total;
        }
}

static void FN(correlate)(const vf *x, const vf *even, const vf *odd, const FN(shape) *s, long dy_row, vf *sums) {
    // As many rows of taps at once as their sums leave room for in the registers.
    const int large = REGISTERS == 16 ? 1 : UNIT == 2 ? 2 : 3;
    switch (s->kernel) {
        case 3: FN(correlate_kernel)(x, even, odd, s, 3, 3, dy_row, sums); break;
        case 5: FN(correlate_kernel)(x, even, odd, s, 5, REGISTERS == 16 ? 2 : 3, dy_row, sums); break;
        case 7: FN(correlate_kernel)(x, even, odd, s, 7, large, dy_row, sums); break;
        case 9: FN(correlate_kernel)(x, even, odd, s, 9, large, dy_row, sums); break;
        default: FN(correlate_any)(x, even, odd, s, dy_row, sums);
    }
}
