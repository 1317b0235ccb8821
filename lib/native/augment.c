/* Applies the rows of an augmentation plan to a batch of images: lib/data/augment.py draws them and says what they mean.
 *
 * Every step gives the very pixels that Pillow gives, so its arithmetic is Pillow's down to types, order and rounding:
 * double for coordinates and interpolated values, float for blends, 22-bit fixed point for resizing, 16.16 for nearest
 * neighbours, truncation to bytes. Compile with -ffp-contract=off: a fused multiply-add rounds once where Pillow
 * rounds twice. tests/test_augment.py holds each step to Pillow.
 *
 * An image is worked on as height * width pixels of four bytes, red, green, blue and one unused, so that a pixel is
 * one vector. Nothing is kept between calls and nothing is shared, so several threads may call at once.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* The same numbers and layouts as in lib/data/randaugment.py (Code, Filter, OP) and lib/data/augment.py (FRAME). */
enum { NOTHING, AFFINE, BRIGHTNESS, COLOR, CONTRAST, SHARPNESS, POSTERIZE, SOLARIZE, SOLARIZE_ADD, INVERT,
       AUTOCONTRAST, EQUALIZE };
enum { NEAREST = 0, BILINEAR = 2, BICUBIC = 3 };
typedef struct { int32_t code, filter; double arg[6]; } op;
typedef struct { int32_t top, left, height, width, filter, flip, hole[4], noise; } frame;

#define INLINED static inline __attribute__((always_inline)) /* loops over a constant number of taps unroll */
typedef uint8_t pixel __attribute__((vector_size(4)));
typedef int32_t int4 __attribute__((vector_size(16)));
typedef float float4 __attribute__((vector_size(16)));
typedef double double4 __attribute__((vector_size(32)));
typedef uint8_t curve[256];

/* What one call works with. `image` holds the current pixels; a step that cannot work in place fills `spare` and
 * swaps the two. */
typedef struct {
    int height, width;
    pixel *image, *spare, fill;
    struct taps { int first, weight[4]; } *taps;
} canvas;

static void swap(canvas *c) { pixel *p = c->image; c->image = c->spare; c->spare = p; }
static int clamp(int v, int low, int high) { return v < low ? low : v > high ? high : v; }
static uint8_t byte(float v) { return v <= 0 ? 0 : v >= 255 ? 255 : (uint8_t)v; }
static int floor_int(double v) { return v < 0 ? (int)floor(v) : (int)v; }
static pixel bytes(int4 v) {
    int4 over = v > 255;
    return __builtin_convertvector((v & (v > 0) & ~over) | (over & 255), pixel);
}

/* ---- The frame: a window of the source, resized where it is smaller, and mirrored ---- */

static pixel source_pixel(const uint8_t *source, int64_t at) {
    const uint8_t *p = source + 3 * at;
    return (pixel){p[0], p[1], p[2], 0};
}

/* A window of the full size, that may reach over the border: `reflect` mirrors there (about the outermost pixel,
 * which is not repeated), otherwise it is black. */
static void shift(canvas *c, const uint8_t *source, const frame *f, int reflect) {
    int height = c->height, width = c->width;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++) {
            int v = y + f->top, u = x + f->left;
            if (reflect) {
                v = v < 0 ? -v : v >= height ? 2 * (height - 1) - v : v;
                u = u < 0 ? -u : u >= width ? 2 * (width - 1) - u : u;
            }
            int inside = v >= 0 && v < height && u >= 0 && u < width;
            c->image[y * width + x] = inside ? source_pixel(source, v * width + u) : (pixel){0, 0, 0, 0};
        }
}

static double kernel(double x, int filter) {
    x = fabs(x);
    if (filter == BILINEAR) return x < 1 ? 1 - x : 0;
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/* How place i of `to` is made from `from` pixels, in units of 2^-22: 2 or 4 of them, those beyond the border with
 * weight 0. */
static void find_taps(struct taps *taps, int from, int to, int filter) {
    int count = filter == BILINEAR ? 2 : 4;
    double support = count / 2, scale = (double)from / to;
    for (int i = 0; i < to; i++, taps++) {
        double center = (i + 0.5) * scale, weight[4] = {0}, total = 0;
        int first = (int)(center - support + 0.5), end = (int)(center + support + 0.5);
        first = first < 0 ? 0 : first;
        end = end > from ? from : end > first + count ? first + count : end;
        taps->first = clamp(first, 0, from > count ? from - count : 0);
        for (int k = first; k < end; k++)
            total += weight[k - taps->first] = kernel(k - center + 0.5, filter);
        for (int k = 0; k < count; k++) {
            double w = weight[k] / total * (1 << 22);
            taps->weight[k] = (int)(w < 0 ? w - 0.5 : w + 0.5);
        }
    }
}

/* Enlarges `from` lines of `length` pixels to `to` lines. */
INLINED void stretch_by(canvas *c, int from, int to, int length, int filter, int count) {
    find_taps(c->taps, from, to, filter);
    for (int i = 0; i < to; i++) {
        const struct taps *t = c->taps + i;
        const uint8_t *in = (const uint8_t *)(c->image + t->first * length);
        uint8_t *restrict out = (uint8_t *)(c->spare + i * length);
        for (int b = 0; b < 4 * length; b++) {
            int sum = 1 << 21;
            for (int k = 0; k < count; k++) sum += in[4 * length * k + b] * t->weight[k];
            out[b] = clamp(sum >> 22, 0, 255);
        }
    }
    swap(c);
}

static void stretch(canvas *c, int from, int to, int length, int filter) {
    if (from == to) return;
    if (filter == BILINEAR) stretch_by(c, from, to, length, filter, 2);
    else stretch_by(c, from, to, length, filter, 4);
}

/* A window inside the source, enlarged to the full size: across, rounded to bytes, then down. Lying on its side first,
 * so that both times whole lines are added up. */
static void enlarge(canvas *c, const uint8_t *source, const frame *f) {
    int height = c->height, width = c->width, h = f->height, w = f->width;
    for (int y = 0; y < h; y++)
        for (int x = 0; x < w; x++)
            c->image[x * h + y] = source_pixel(source, (f->top + y) * width + f->left + x);
    stretch(c, w, width, h, f->filter);
    for (int y = 0; y < h; y++)
        for (int x = 0; x < width; x++) c->spare[y * width + x] = c->image[x * h + y];
    swap(c);
    stretch(c, h, height, width, f->filter);
}

static void mirror(canvas *c) {
    for (int y = 0; y < c->height; y++) {
        pixel *a = c->image + y * c->width, *b = a + c->width - 1;
        for (; a < b; a++, b--) { pixel p = *a; *a = *b; *b = p; }
    }
}

/* ---- Geometry: the place (x, y) of the result shows the place (m0 x + m1 y + m2, m3 x + m4 y + m5) ---- */

/* Coordinates in 1/65536 of a pixel, enough for images up to 32,767 pixels wide. */
static void affine_nearest(canvas *c, const double *m) {
    int across[2] = {floor_int(m[0] * 65536 + 0.5), floor_int(m[3] * 65536 + 0.5)};
    int down[2] = {floor_int(m[1] * 65536 + 0.5), floor_int(m[4] * 65536 + 0.5)};
    int row_u = floor_int((m[2] + m[0] * 0.5 + m[1] * 0.5) * 65536 + 0.5);
    int row_v = floor_int((m[5] + m[3] * 0.5 + m[4] * 0.5) * 65536 + 0.5);
    pixel *out = c->spare;
    for (int y = 0; y < c->height; y++, row_u += down[0], row_v += down[1])
        for (int x = 0, u = row_u, v = row_v; x < c->width; x++, u += across[0], v += across[1]) {
            int i = u >> 16, j = v >> 16;
            int inside = i >= 0 && i < c->width && j >= 0 && j < c->height;
            *out++ = inside ? c->image[j * c->width + i] : c->fill;
        }
}

INLINED double4 load(const pixel *p) { return __builtin_convertvector(*p, double4); }

INLINED double4 cubic(double4 a, double4 b, double4 c, double4 d, double t) {
    double4 p2 = -a + c, p3 = 2 * (a - b) + c - d, p4 = -a + b - c + d;
    return b + t * (p2 + t * (p3 + t * p4));
}

/* Two or four pixels each way; beyond the border the outermost ones stand in. */
INLINED void affine_smooth(canvas *c, const double *m, int cubically) {
    int height = c->height, width = c->width;
    pixel *out = c->spare;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, out++) {
            double u = m[0] * (x + 0.5) + m[1] * (y + 0.5) + m[2], v = m[3] * (x + 0.5) + m[4] * (y + 0.5) + m[5];
            if (u < 0 || u >= width || v < 0 || v >= height) {
                *out = c->fill;
                continue;
            }
            u -= 0.5, v -= 0.5;
            int i = floor_int(u), j = floor_int(v), taps = cubically ? 4 : 2, first = cubically ? -1 : 0;
            double s = u - i, t = v - j;
            double4 line[4], value;
            for (int k = 0; k < taps; k++) {
                const pixel *row = c->image + clamp(j + first + k, 0, height - 1) * width;
                double4 b = load(row + clamp(i, 0, width - 1)), d = load(row + clamp(i + 1, 0, width - 1));
                line[k] = !cubically ? b + (d - b) * s : cubic(load(row + clamp(i - 1, 0, width - 1)), b, d,
                                                               load(row + clamp(i + 2, 0, width - 1)), s);
            }
            value = cubically ? cubic(line[0], line[1], line[2], line[3], t) : line[0] + (line[1] - line[0]) * t;
            *out = bytes(__builtin_convertvector(value, int4));
        }
}

static void affine(canvas *c, const op *o) {
    if (o->filter == BICUBIC) affine_smooth(c, o->arg, 1);
    else if (o->filter == BILINEAR) affine_smooth(c, o->arg, 0);
    else affine_nearest(c, o->arg);
    swap(c);
}

/* ---- Colour ---- */

static uint8_t blend(int from, int to, float factor) { return byte(from + factor * (to - from)); }
static int grey(pixel p) { return (p[0] * 19595 + p[1] * 38470 + p[2] * 7471 + 0x8000) >> 16; }

static void color(canvas *c, float factor) {
    for (int i = 0; i < c->height * c->width; i++) {
        pixel p = c->image[i];
        float g = grey(p);
        c->image[i] = bytes(__builtin_convertvector(g + factor * (__builtin_convertvector(p, float4) - g), int4));
    }
}

/* Blends with a smoothed image: 3 x 3, the middle counts five times; the border stays as it is. Whole numbers give
 * what Pillow's floats give: a sum of bytes over 13 plus a half is never within 1/26 of a whole number. */
static void sharpness(canvas *c, float factor) {
    int height = c->height, width = c->width;
    memcpy(c->spare, c->image, sizeof(pixel) * height * width);
    for (int y = 1; y < height - 1; y++) {
        const uint8_t *in = (const uint8_t *)(c->image + y * width);
        uint8_t *out = (uint8_t *)(c->spare + y * width);
        for (int i = 4; i < 4 * (width - 1); i++) {
            const uint8_t *a = in + i - 4 * width, *b = in + i, *d = in + i + 4 * width;
            int sum = a[-4] + a[0] + a[4] + b[-4] + 5 * b[0] + b[4] + d[-4] + d[0] + d[4];
            out[i] = blend((2 * sum + 13) / 26, b[0], factor);
        }
    }
    swap(c);
}

/* Every other operation sends each value of a channel to another: one curve a channel. */

static void histogram(const canvas *c, int channel, int count[256]) {
    memset(count, 0, 256 * sizeof *count);
    for (int i = 0; i < c->height * c->width; i++) count[c->image[i][channel]]++;
}

static void autocontrast(const canvas *c, int channel, curve out) {
    int count[256], low = 0, high = 255;
    histogram(c, channel, count);
    while (!count[low]) low++;
    while (!count[high]) high--;
    double scale = high > low ? 255.0 / (high - low) : 1, offset = high > low ? -low * scale : 0;
    for (int v = 0; v < 256; v++) out[v] = clamp((int)(v * scale + offset), 0, 255);
}

static void equalize(const canvas *c, int channel, curve out) {
    int count[256], last = 255;
    histogram(c, channel, count);
    while (!count[last]) last--;
    int step = (c->height * c->width - count[last]) / 255, sum = step / 2;
    for (int v = 0; v < 256; sum += count[v++]) out[v] = step ? clamp(sum / step, 0, 255) : v;
}

static void recolour(canvas *c, const op *o) {
    curve curves[3];
    float factor = (float)o->arg[0];
    int level = (int)o->arg[0], pixels = c->height * c->width;
    double mean = 0;
    if (o->code == CONTRAST) {
        int64_t sum = 0;
        for (int i = 0; i < pixels; i++) sum += grey(c->image[i]);
        mean = (double)sum / pixels;
    }
    int own = o->code == AUTOCONTRAST || o->code == EQUALIZE;
    for (int k = 0; k < (own ? 3 : 1); k++) {
        uint8_t *out = curves[k];
        if (o->code == AUTOCONTRAST) autocontrast(c, k, out);
        else if (o->code == EQUALIZE) equalize(c, k, out);
        else for (int v = 0; v < 256; v++) switch (o->code) {
            case BRIGHTNESS: out[v] = blend(0, v, factor); break;
            case CONTRAST: out[v] = blend((int)(mean + 0.5), v, factor); break;
            case POSTERIZE: out[v] = v & (0xff << (8 - level)); break;
            case SOLARIZE: out[v] = v < o->arg[0] ? v : 255 - v; break;
            case SOLARIZE_ADD: out[v] = v < 128 ? clamp(v + level, 0, 255) : v; break;
            default: out[v] = 255 - v; break; /* INVERT */
        }
    }
    const uint8_t *red = curves[0], *green = curves[own ? 1 : 0], *blue = curves[own ? 2 : 0];
    for (int i = 0; i < pixels; i++) {
        pixel p = c->image[i];
        c->image[i] = (pixel){red[p[0]], green[p[1]], blue[p[2]], 0};
    }
}

static void apply(canvas *c, const op *o) {
    switch (o->code) {
        case NOTHING: break;
        case AFFINE: affine(c, o); break;
        case COLOR: color(c, (float)o->arg[0]); break;
        case SHARPNESS: sharpness(c, (float)o->arg[0]); break;
        default: recolour(c, o);
    }
}

/* ---- The result ---- */

static void normalise(const canvas *c, const float (*table)[3], float *out) {
    for (int i = 0; i < c->height * c->width; i++)
        for (int k = 0; k < 3; k++) *out++ = table[c->image[i][k]][k];
}

static void erase(const canvas *c, const frame *f, const float *noise, float *out) {
    int top = f->hole[0], left = f->hole[1], height = f->hole[2], row = 3 * f->hole[3];
    for (int y = 0; y < height; y++) {
        float *to = out + 3 * ((top + y) * c->width + left);
        if (noise) memcpy(to, noise + f->noise + y * row, row * sizeof *to);
        else memset(to, 0, row * sizeof *to);
    }
}

/* images (N, height, width, 3) bytes; of `batch` of them, named by `rows`, frames (batch) and ops (batch, slots)
 * say what is done to each; they go to out (batch, height, width, 3). table (256, 3) is the normalised value of each
 * byte in each channel; noise is what holes are filled with, or NULL for zeros; fill is what geometry brings in.
 * Returns 0, or -1 without memory. */
int augment(const uint8_t *images, int height, int width, const frame *frames, const op *ops, int slots, int reflect,
            const uint8_t *fill, const float *table, const float *noise, const int64_t *rows, int batch,
            float *out) {
    int64_t pixels = (int64_t)height * width;
    canvas c = {.height = height, .width = width, .fill = {fill[0], fill[1], fill[2], 0}};
    pixel *pixmaps = malloc(2 * pixels * sizeof(pixel));
    c.taps = malloc((height > width ? height : width) * sizeof *c.taps);
    c.image = pixmaps, c.spare = pixmaps + pixels;
    for (int b = 0; b < batch && pixmaps && c.taps; b++, out += 3 * pixels) {
        const frame *f = frames + b;
        const uint8_t *source = images + 3 * pixels * rows[b];
        if (f->height == height && f->width == width) shift(&c, source, f, reflect);
        else enlarge(&c, source, f);
        if (f->flip) mirror(&c);
        for (int k = 0; k < slots; k++) apply(&c, ops + b * slots + k);
        normalise(&c, (const float (*)[3])table, out);
        erase(&c, f, noise, out);
    }
    int failed = !pixmaps || !c.taps;
    free(pixmaps), free(c.taps);
    return -failed;
}
