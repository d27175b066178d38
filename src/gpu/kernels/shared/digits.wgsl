// Rows of x as whole numbers: each block of 32 in units of a power of two by which its largest element has 23 bits, each number as
// three digits of eight bits with a sign. What is stored as f16 is exact, but for elements below 2^-12 of their block's
// largest, which are rounded to that unit. Products with codes of up to eight bits are then exact sums of whole numbers.
// A workgroup of WG threads holds WG/2 blocks, of which each thread makes two eights. `packed` comes before this.
var<workgroup> tops: array<u32, 2u * WG>;         // of each eight: the largest magnitude, as its bits
var<workgroup> eight_sums: array<f32, 2u * WG>;
var<workgroup> units: array<f32, WG / 2u>;        // of each block
var<workgroup> digits: array<vec2<u32>, 6u * WG>; // [digit][eight of a block][block]

fn top4(v: vec4<f32>) -> u32 {
    let magnitude = bitcast<vec4<u32>>(v) & vec4<u32>(0x7fffffffu);
    return max(max(magnitude.x, magnitude.y), max(magnitude.z, magnitude.w));
}

// The nearest whole numbers, of magnitudes below 2^23 - 2^15, plus 0x808080: three bytes, each a digit plus 128.
fn whole(v: vec4<f32>) -> vec4<u32> {
    let magnitude = bitcast<vec4<u32>>(abs(v) + vec4<f32>(8388608.0)) - vec4<u32>(0x4b000000u);
    return select(magnitude, vec4<u32>(0u) - magnitude, v < vec4<f32>(0.0)) + vec4<u32>(0x808080u);
}
// The lowest, the middle and the highest digits of four such numbers.
fn three_digits(n: vec4<u32>) -> vec3<u32> {
    let low = (n.x & 255u) | ((n.y & 255u) << 8u) | ((n.z & 255u) << 16u) | (n.w << 24u);
    let middle = ((n.x >> 8u) & 255u) | (n.y & 0xff00u) | ((n.z & 0xff00u) << 8u) | ((n.w & 0xff00u) << 16u);
    let high = (n.x >> 16u) | ((n.y >> 8u) & 0xff00u) | (n.z & 0xff0000u) | ((n.w & 0xff0000u) << 8u);
    return vec3<u32>(low, middle, high) ^ vec3<u32>(0x80808080u);
}

// Before `hold_digits`, with a barrier between them: what it needs of its block's other eights.
fn hold_top(i: u32, v: Eight) {
    tops[i] = max(top4(v.a), top4(v.b));
    eight_sums[i] = dot(v.a, vec4<f32>(1.0)) + dot(v.b, vec4<f32>(1.0));
}
fn hold_digits(i: u32, v: Eight) {
    let block = i / 4u;
    let top = max(max(tops[4u * block], tops[4u * block + 1u]), max(tops[4u * block + 2u], tops[4u * block + 3u]));
    // With a little room above the largest; what is smaller than 2^-97 is 0.
    let exponent = clamp(bitcast<u32>(bitcast<f32>(top) * 1.0079) >> 23u, 30u, 253u);
    if (i % 4u == 0u) {
        // NaN or Inf anywhere makes the block NaN.
        units[block] = bitcast<f32>(select((exponent - 22u) << 23u, 0x7fc00000u, top >= 0x7f800000u));
    }
    let factor = bitcast<f32>((276u - exponent) << 23u);
    let a = whole(v.a * factor);
    let b = whole(v.b * factor);
#ifdef NIBBLES
    let first = three_digits(vec4<u32>(a.x, a.z, b.x, b.z));
    let second = three_digits(vec4<u32>(a.y, a.w, b.y, b.w));
#else
    let first = three_digits(a);
    let second = three_digits(b);
#endif
    let at = (i % 4u) * (WG / 2u) + block;
    digits[at] = vec2<u32>(first.x, second.x);
    digits[at + 2u * WG] = vec2<u32>(first.y, second.y);
    digits[at + 4u * WG] = vec2<u32>(first.z, second.z);
}

// A block: digits of its first sixteen elements and of its last, and its sum.
struct Digits32 { low: array<vec4<u32>, 2>, middle: array<vec4<u32>, 2>, high: array<vec4<u32>, 2>, unit: f32, sum: f32 }

fn two_eights(at: u32) -> vec4<u32> {
    return vec4<u32>(digits[at], digits[at + WG / 2u]);
}
fn digits32(block: u32) -> Digits32 {
    let sum = (eight_sums[4u * block] + eight_sums[4u * block + 1u]) + (eight_sums[4u * block + 2u] + eight_sums[4u * block + 3u]);
    return Digits32(
        array<vec4<u32>, 2>(two_eights(block), two_eights(block + WG)),
        array<vec4<u32>, 2>(two_eights(block + 2u * WG), two_eights(block + 3u * WG)),
        array<vec4<u32>, 2>(two_eights(block + 4u * WG), two_eights(block + 5u * WG)),
        units[block],
        sum,
    );
}

// Codes times digits and what was before: a chain, as an instruction multiplies four pairs and adds.
fn dot16(a: vec4<u32>, b: vec4<u32>, before: i32) -> i32 {
    return dot4I8Packed(a.w, b.w) + (dot4I8Packed(a.z, b.z) + (dot4I8Packed(a.y, b.y) + (dot4I8Packed(a.x, b.x) + before)));
}
// Converted, not made floats by a large number that is taken away: NVIDIA's compiler puts such numbers together, which rounds.
fn put_together(low: i32, middle: i32, high: i32) -> f32 {
    return f32(high) * 65536.0 + f32(middle * 256 + low);
}
#ifdef S_BYTES16
// The sum of sixteen codes times a half of x.
fn sum16(codes: vec4<u32>, low: vec4<u32>, middle: vec4<u32>, high: vec4<u32>) -> f32 {
    return put_together(dot16(codes, low, 0), dot16(codes, middle, 0), dot16(codes, high, 0));
}
#endif
// Codes of four bytes each, less the number in every byte of `center`: the bit that is set is not carried on, and makes a sign
// when it is taken away.
fn without(codes: vec4<u32>, center: u32) -> vec4<u32> {
    return ((codes | vec4<u32>(0x80808080u)) - vec4<u32>(center)) ^ vec4<u32>(0x80808080u);
}
#ifdef LEVELS_FP4
// What four codes in the lower halves of bytes stand for, as bytes with a sign: 0, 1, 2, 3, 4, 6, 8, 12, or less than 0. What is in
// the upper halves does not count. A code of at least 4 has its two lower bits once more, and 2 more where both are set.
fn levels_fp4(codes: vec4<u32>) -> vec4<u32> {
    const ONES = vec4<u32>(0x01010101u);
    let again = codes & (((codes >> vec4<u32>(2u)) & ONES) * 3u);
    let magnitude = (codes & (7u * ONES)) + again + (again & (again << vec4<u32>(1u)));
    // Where the sign is set, 31 less the magnitude, and 31 less; the bit that is set is not carried on, as in `without`.
    let negative = ((codes >> vec4<u32>(3u)) & ONES) * 31u;
    return ((magnitude ^ negative) + (128u * ONES - negative)) ^ (128u * ONES);
}
#endif
// Σ w[k]·x[k] over elements 32·k32 … of a row.
fn dot_digits(v: Stored32, k32: u32, x: Digits32) -> f32 {
#ifdef BYTES
    let a = v.low;
    let b = v.more;
#else
#ifdef LEVELS_FP4
    let even = levels_fp4(v.low);
    let odd = levels_fp4(v.low >> vec4<u32>(4u));
#else
    var even = v.low & vec4<u32>(0x0f0f0f0fu);
    var odd = (v.low >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
#ifdef HIGH_TWOS
    // Two elements' bits in each byte.
    let halves = high_eights(v) & vec4<u32>(0xffffu);
    let quarters = (halves | (halves << vec4<u32>(8u))) & vec4<u32>(0x00ff00ffu);
    let pairs = (quarters | (quarters << vec4<u32>(4u))) & vec4<u32>(0x0f0f0f0fu);
    even |= (pairs & vec4<u32>(0x03030303u)) << vec4<u32>(4u);
    odd |= (pairs & vec4<u32>(0x0c0c0c0cu)) << vec4<u32>(2u);
#endif
#ifdef HIGH_ONES
    // A product puts each of four bits into its byte; what else it makes is between them.
    let bits = high_eights(v);
    even |= ((bits & vec4<u32>(0x55u)) * vec4<u32>(0x00410410u)) & vec4<u32>(0x10101010u);
    odd |= ((bits & vec4<u32>(0xaau)) * vec4<u32>(0x00208208u)) & vec4<u32>(0x10101010u);
#endif
#ifdef CENTER_8
    even = without(even, 0x08080808u);
    odd = without(odd, 0x08080808u);
#endif
#ifdef CENTER_16
    even = without(even, 0x10101010u);
    odd = without(odd, 0x10101010u);
#endif
#ifdef CENTER_32
    even = without(even, 0x20202020u);
    odd = without(odd, 0x20202020u);
#endif
#endif
    let a = vec4<u32>(even.x, odd.x, even.y, odd.y);
    let b = vec4<u32>(even.z, odd.z, even.w, odd.w);
#endif
#ifdef S_BYTES16
    let s = scales_of(v.scale, k32);
    let first = sum16(a, x.low[0], x.middle[0], x.high[0]);
    let last = sum16(b, x.low[1], x.middle[1], x.high[1]);
    return x.unit * (s.x * first + s.z * last);
#else
    let low = dot16(b, x.low[1], dot16(a, x.low[0], 0));
    let middle = dot16(b, x.middle[1], dot16(a, x.middle[0], 0));
    let high = dot16(b, x.high[1], dot16(a, x.high[0], 0));
    let s = scale_of(v.scale, k32);
    let product = s.x * x.unit * put_together(low, middle, high);
#ifdef OFFSET
    return product + s.y * x.sum;
#else
    return product;
#endif
#endif
}
