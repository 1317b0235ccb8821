// What both element types share: vectors of floats, loads and stores, GELU, scratch memory, threads.
// Only GCC's and Clang's vector extensions, so the same text serves AVX-512, AVX2 and NEON.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

// Floats in a vector, and how many vectors the processor can hold at once (NEON's registers are half a vector each).
// Sums that are meant to stay in registers must leave some of these for what is added to them.
#ifdef __AVX512F__
#define LANES 16
#define REGISTERS 32
#else
#define LANES 8
#define REGISTERS 16
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));
typedef uint16_t bf16;

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

// Keeps the compiler from reading a vector from memory again at each of its uses: that costs as much as the arithmetic.
#ifdef __AVX512F__
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#elif defined(__AVX__)
#define IN_REGISTER(v) __asm__("" : "+x"(v))
#else
#define IN_REGISTER(v) ((void)0)
#endif

int64_t layers_lanes(void) { return LANES; }

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }

// ---------------------------------------------------------------------------------------------- vectors

INLINE vf splat(float s) {
#ifdef __AVX512F__
    return (vf){s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s};
#else
    return (vf){s, s, s, s, s, s, s, s};
#endif
}

INLINE vf load_f32(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_f32(float *p, vf v) { memcpy(p, &v, sizeof v); }

INLINE vf load_bf16(const bf16 *p) {
    vh half;
    memcpy(&half, p, sizeof half);
#ifdef __AVX512F__
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)half), 16);
#else
    return (vf)(__builtin_convertvector(half, vu) << 16);
#endif
}
INLINE void store_bf16(bf16 *p, vf v) {
#ifdef __AVX512BF16__
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
#else
    vu bits = (vu)v;  // round to nearest, ties to even
    vh half = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, vh);
#endif
    memcpy(p, &half, sizeof half);
}

// One number as bfloat16.
static inline bf16 narrow(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }

INLINE vf clamp(vf x, float limit) {
#ifdef __AVX512F__
    return (vf)_mm512_min_ps(_mm512_max_ps((__m512)x, (__m512)splat(-limit)), (__m512)splat(limit));
#elif defined(__AVX__)
    return (vf)_mm256_min_ps(_mm256_max_ps((__m256)x, (__m256)splat(-limit)), (__m256)splat(limit));
#else
    x = choose(x > splat(limit), splat(limit), x);
    return choose(x < splat(-limit), splat(-limit), x);
#endif
}

// ---------------------------------------------------------------------------------------------- GELU

// GELU(x) = x P(X <= x), X normal, and its slope P(X <= x) + x density(x): both are 1/2 plus an odd function that is
// flat beyond a few units, here x times a minimax polynomial in s = 2 (x / limit)^2 - 1 (in s rather than x^2, since
// its coefficients stay small and so do the rounding errors). Errors, absolute: float32 2.5e-7 max(1, |x|) and 5e-7
// (slope); bfloat16 2e-5 max(1, |x|) and 2e-4, a tenth of its rounding.
INLINE vf half_plus_odd(vf x, float limit, const float *coefficients, const int degree) {
    vf inside = clamp(x, limit), s = inside * inside * splat(2 / (limit * limit)) - splat(1);
    vf p = splat(coefficients[degree]);
    UNROLL for (int i = degree - 1; i >= 0; i--) p = p * s + splat(coefficients[i]);
    return inside * p + splat(0.5f);
}

INLINE vf gelu_f32(vf x) {
    static const float c[] = {0.128551938f,   -0.0641723654f,  0.0477366874f,  -0.0387910595f,  0.0320887255f,
                              -0.0260757452f, 0.0202320963f,   -0.0148217747f, 0.0106737177f,   -0.0073791865f,
                              0.00386052432f, -0.00150446907f, 0.00135767168f, -0.00127149997f, 0.000423829724f};
    return x * half_plus_odd(x, 5.5f, c, 14);
}

INLINE vf slope_f32(vf x) {
    static const float c[] = {0.12875917f,    -0.0657400432f,  0.0536711518f,  -0.0537273398f,
                              0.060180275f,   -0.0688494542f,  0.0753854604f,  -0.0729435415f,
                              0.0604937857f,  -0.0530254498f,  0.0498290433f,  -0.0279263809f,
                              0.00389389996f, -0.00633383794f, 0.0121835423f,  -0.00494111667f};
    return half_plus_odd(x, 5.5f, c, 15);
}

INLINE vf gelu_bf16(vf x) {
    static const float c[] = {0.165934898f,  -0.0807775541f, 0.0557330629f,  -0.0391652063f, 0.0253226187f,
                              -0.0146164741f, 0.0092294542f, -0.00602766659f, 0.00201229554f};
    return x * half_plus_odd(x, 4.25f, c, 8);
}

INLINE vf slope_bf16(vf x) {
    static const float c[] = {0.170307269f,  -0.100460098f, 0.0997188222f,  -0.106285799f, 0.105103454f,
                              -0.083107291f, 0.0486404147f, -0.0364843503f, 0.0339514779f, -0.0136974719f};
    return half_plus_odd(x, 4.25f, c, 9);
}

// ---------------------------------------------------------------------------------------------- memory

// What needs memory for the length of a call: each has a buffer of its own, in each thread.
typedef enum {
    TAPS, WEIGHT, SCALE1, SHIFT1, SCALE2, SHIFT2, COEFFICIENTS, PARTIAL, SUMS,  // a pass: see there
    X_TILE, DY_TILE, DY_EVEN, DY_ODD,                                            // an image, LANES channels
    Z_PANEL, U_PANEL, G_PANEL, DU_PANEL, Z_UNITS, DU_UNITS, Y_IMAGE,             // some pixels, all channels
    SLOTS,
} slot;

// That buffer, kept for the next call: nothing is mapped or zeroed in a warm loop.
static void *scratch(slot s, size_t bytes) {
    static _Thread_local struct {
        void *memory;
        size_t bytes;
    } kept[SLOTS];
    if (kept[s].bytes < bytes) {
        free(kept[s].memory);
        bytes = (bytes + 4095) & ~(size_t)4095;
        if (posix_memalign(&kept[s].memory, 4096, bytes)) abort();
        kept[s].bytes = bytes;
    }
    return kept[s].memory;
}

static void *floats(slot s, size_t count) { return scratch(s, count * sizeof(float)); }
