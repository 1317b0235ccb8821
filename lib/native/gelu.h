// GELU(x) = x P(X <= x), X normal, and its slope P(X <= x) + x density(x): P and the slope are 1/2 plus an odd function
// that is flat beyond a few units. Errors, absolute: float32 2.5e-7 max(1, |x|) and 6e-7 (slope); bfloat16 3e-5
// max(1, |x|) and 2e-4, a tenth of its rounding.

#ifdef __AVX512F__

// The odd function of |x| is made of 16 pieces, each a polynomial in the distance from its middle: half the arithmetic
// of one polynomial for all, as a vector looks up its lanes' coefficients in a table of 16 in one instruction. The middle
// of piece i is i / PIECES; its coefficients, a row for each power, are Chebyshev fits (numpy's chebfit at 64 nodes).
#define FLAT 5.5f
#define PIECES (15 / FLAT)

static const float gelu_pieces[5][16] = {  // P(X <= x) - 1/2
    {0, 0.143066153f, 0.268322408f, 0.364333928f, 0.428766638f, 0.466623485f, 0.486096561f, 0.494865924f, 0.498323292f,
     0.499516577f, 0.499877125f, 0.499972492f, 0.499994576f, 0.499999076f, 0.499999851f, 0.49999997f},
    {0.146277547f, 0.136767983f, 0.111790381f, 0.0798797831f, 0.0498976819f, 0.0272478964f, 0.0130074527f,
     0.00542819034f, 0.00198023999f, 0.00063150411f, 0.000176045651f, 4.29002321e-05f, 9.13845815e-06f, 1.70160286e-06f,
     2.76954097e-07f, 3.94015416e-08f},
    {0, -0.00919368677f, -0.0150293373f, -0.0161088351f, -0.013416769f, -0.00915828068f, -0.00524639012f,
     -0.00255434983f, -0.00106500287f, -0.000382106664f, -0.000118365024f, -3.17317536e-05f, -7.37485789e-06f,
     -1.48790673e-06f, -2.60858371e-07f, -3.9773326e-08f},
    {-0.00325715938f, -0.00263842545f, -0.0011574846f, 0.000365423737f, 0.00127465604f, 0.00143403967f, 0.00111759151f,
     0.000681402336f, 0.000339810562f, 0.000141642391f, 4.99615198e-05f, 1.5029369e-05f, 3.87602904e-06f,
     8.60184684e-07f, 1.64720774e-07f, 2.72750214e-08f},
    {0, 0.000292812911f, 0.000411812623f, 0.000321736996f, 0.000128072395f, -3.57966019e-05f, -0.000107167907f,
     -0.000102313323f, -6.69307628e-05f, -3.39554754e-05f, -1.39887088e-05f, -4.78788752e-06f, -1.37961024e-06f,
     -3.37515019e-07f, -7.05136642e-08f, -1.26331186e-08f},
};

static const float slope_pieces[6][16] = {  // the slope - 1/2
    {0, 0.279835016f, 0.491903216f, 0.603971303f, 0.628354251f, 0.60286063f, 0.564140677f, 0.532864034f, 0.514166355f,
     0.505201042f, 0.501638114f, 0.500444651f, 0.500104308f, 0.500021219f, 0.500003755f, 0.500000596f},
    {0.292557657f, 0.255149931f, 0.16346243f, 0.0631045252f, -0.00753997313f, -0.0370867774f, -0.0369408801f,
     -0.0249038301f, -0.0130793573f, -0.00561499968f, -0.00201535737f, -0.000612399308f, -0.000158767187f,
     -3.52994939e-05f, -6.75508181e-06f, -1.11557506e-06f},
    {0, -0.0355378687f, -0.0520341136f, -0.0449436717f, -0.0248068664f, -0.00585194863f, 0.00440656859f, 0.00661014067f,
     0.00490400009f, 0.00263295393f, 0.00111803843f, 0.000389345863f, 0.000113302805f, 2.78628213e-05f, 5.83237488e-06f,
     1.04445189e-06f},
    {-0.0131104579f, -0.00942955445f, -0.00131469266f, 0.00537987286f, 0.00718954625f, 0.00502530113f, 0.00188134261f,
     -0.000156164053f, -0.00079012959f, -0.000656176708f, -0.000357681827f, -0.000148852152f, -4.9855691e-05f,
     -1.37863835e-05f, -3.19377932e-06f, -6.25626967e-07f},
    {0, 0.00168557302f, 0.00206543435f, 0.00110725104f, -0.000146661914f, -0.000777899055f, -0.000690997171f,
     -0.000318187231f, -3.36123012e-05f, 7.05994753e-05f, 6.71876842e-05f, 3.70102898e-05f, 1.50201513e-05f,
     4.82262567e-06f, 1.26515056e-06f, 2.76056682e-07f},
    {0.000392921764f, 0.000233706945f, -8.18091939e-05f, -0.000262653193f, -0.000206498647f, -4.43586541e-05f,
     6.27565169e-05f, 7.35252397e-05f, 3.78868863e-05f, 6.74665307e-06f, -5.33605225e-06f, -5.68081305e-06f,
     -3.08069002e-06f, -1.19457138e-06f, -3.61342131e-07f, -8.85288642e-08f},
};

INLINE vf piecewise(vf size, const float (*coefficients)[16], const int degree) {
    const vf whole = splat(12582912);  // 1.5 2^23: what is added to it is rounded to a whole number, in the low bits
    vf place = (vf)_mm512_min_ps((__m512)size, (__m512)splat(FLAT)) * splat(PIECES), piece = place + whole;
    vf off = place - (piece - whole), p = splat(0);
    UNROLL for (int i = degree; i >= 0; i--)
        p = p * off + (vf)_mm512_permutexvar_ps((__m512i)piece, _mm512_loadu_ps(coefficients[i]));
    return p;
}

INLINE vf gelu_to(vf x, const int degree) {
    vf size = (vf)_mm512_abs_ps((__m512)x);
    return size * piecewise(size, gelu_pieces, degree) + splat(0.5f) * x;
}

INLINE vf slope_to(vf x, const int degree) {
    vi sign = (vi)x & (vi)splat(-0.0f);
    return (vf)((vi)piecewise((vf)_mm512_abs_ps((__m512)x), slope_pieces, degree) | sign) + splat(0.5f);
}

INLINE vf gelu_f32(vf x) { return gelu_to(x, 4); }
INLINE vf slope_f32(vf x) { return slope_to(x, 5); }
INLINE vf gelu_bf16(vf x) { return gelu_to(x, 3); }
INLINE vf slope_bf16(vf x) { return slope_to(x, 3); }

#else

// The odd function is x times a minimax polynomial in s = 2 (x / limit)^2 - 1 (in s rather than x^2, since its
// coefficients stay small and so do the rounding errors).
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

#endif
