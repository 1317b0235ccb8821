// What both element types share: vectors of floats, loads and stores, scratch memory.
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
