// Packed weights, as quant/planes.rs lays them: a row is p.row4 words, first the low bits of every code (BYTES, NIBBLES,
// TWOS or ONES), then those above them (HIGH_TWOS, HIGH_ONES), then the scales (S_…). Rows are whole blocks, of 32 elements
// or a multiple. `w` is declared by the kernel as array<vec4<u32>>, `p` has k8 (elements of a row, in eights) and row4.
// WHOLE: codes are whole numbers, of a byte with a sign at most. ONE_PLANE: of one plane, and scales are for 32 elements or more.
struct Eight { a: vec4<f32>, b: vec4<f32> }
struct Codes { a: vec4<u32>, b: vec4<u32> }

fn word(index: u32) -> u32 {
    return w[index / 4u][index % 4u];
}

// Whole numbers below 2^23, without a conversion, which is slow where it is done by the number.
fn small(v: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(v | vec4<u32>(0x4b000000u)) - vec4<f32>(8388608.0);
}
// Bytes with a sign.
fn signed_bytes(v: vec4<u32>) -> vec4<f32> {
    return small((v & vec4<u32>(255u)) ^ vec4<u32>(128u)) - vec4<f32>(128.0);
}

// First word of a row.
fn row_start(row: u32) -> u32 {
    return row * p.row4;
}
// Words of the plane of low bits, and of that above it.
fn low_words() -> u32 {
#ifdef BYTES
    return 2u * p.k8;
#endif
#ifdef NIBBLES
    return p.k8;
#endif
#ifdef TWOS
    return p.k8 / 2u;
#endif
#ifdef ONES
    return p.k8 / 4u;
#endif
}
fn high_words() -> u32 {
#ifdef HIGH_TWOS
    return p.k8 / 2u;
#else
#ifdef HIGH_ONES
    return p.k8 / 4u;
#else
    return 0u;
#endif
#endif
}

#ifdef LEVELS_IQ4
#ifdef NIBBLES
const LEVELS = vec4<u32>(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
#endif
#endif
#ifdef LEVELS_FP4
const LEVELS = vec4<u32>(0x03020100u, 0x0c080604u, 0xfdfeff00u, 0xf4f8fafcu);
#endif

#ifdef LEVELS_NF4
const TABLE_0 = vec4<f32>(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453);
const TABLE_4 = vec4<f32>(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0);
const TABLE_8 = vec4<f32>(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224);
const TABLE_12 = vec4<f32>(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0);
#endif
#ifdef LEVELS_BNB4
const TABLE_0 = vec4<f32>(0.0, 0.005208333333333333, 0.6666666666666666, 1.0);
const TABLE_4 = vec4<f32>(0.3333333333333333, 0.5, 0.16666666666666666, 0.25);
const TABLE_8 = -TABLE_0;
const TABLE_12 = -TABLE_4;
#endif
#ifdef LEVELS_TABLE
// The element of `four` that two bits of a code choose.
fn chosen(four: vec4<f32>, one: vec4<bool>, two: vec4<bool>) -> vec4<f32> {
    return select(select(vec4<f32>(four.x), vec4<f32>(four.y), one), select(vec4<f32>(four.z), vec4<f32>(four.w), one), two);
}
#endif

// What codes stand for.
fn levels(code: vec4<u32>) -> vec4<f32> {
#ifdef LEVELS_IQ4
    let upper = (code & vec4<u32>(4u)) != vec4<u32>(0u);
    let four = select(select(vec4<u32>(LEVELS.x), vec4<u32>(LEVELS.y), upper), select(vec4<u32>(LEVELS.z), vec4<u32>(LEVELS.w), upper), code > vec4<u32>(7u));
    return signed_bytes(four >> ((code & vec4<u32>(3u)) * vec4<u32>(8u)));
#else
#ifdef LEVELS_FP4
    let upper = (code & vec4<u32>(4u)) != vec4<u32>(0u);
    let four = select(select(vec4<u32>(LEVELS.x), vec4<u32>(LEVELS.y), upper), select(vec4<u32>(LEVELS.z), vec4<u32>(LEVELS.w), upper), code > vec4<u32>(7u));
    return signed_bytes(four >> ((code & vec4<u32>(3u)) * vec4<u32>(8u)));
#else
#ifdef LEVELS_TABLE
    let one = (code & vec4<u32>(1u)) != vec4<u32>(0u);
    let two = (code & vec4<u32>(2u)) != vec4<u32>(0u);
    let four = (code & vec4<u32>(4u)) != vec4<u32>(0u);
    let low = select(chosen(TABLE_0, one, two), chosen(TABLE_4, one, two), four);
    let high = select(chosen(TABLE_8, one, two), chosen(TABLE_12, one, two), four);
    return select(low, high, code > vec4<u32>(7u));
#else
#ifdef LEVELS_E4M3
    let magnitude = code & vec4<u32>(127u);
    // Below 8 there is no leading one; 127 is NaN.
    let bits = select((magnitude << vec4<u32>(20u)) + vec4<u32>(0x3c000000u), vec4<u32>(0x7fc00000u), magnitude == vec4<u32>(127u));
    let value = select(bitcast<vec4<f32>>(bits), small(magnitude) * 0.001953125, magnitude < vec4<u32>(8u));
    return select(value, -value, code > vec4<u32>(127u));
#else
#ifdef SIGNS
    // Not from `small`: a compiler that puts its constants together rounds an odd one above 2^24.
    return select(vec4<f32>(-1.0), vec4<f32>(1.0), code != vec4<u32>(0u));
#else
#ifdef UNSIGNED
    return small(code);
#else
#ifdef BYTES
    return small(code ^ vec4<u32>(128u)) - vec4<f32>(128.0);
#else
    var center = 0.0;
#ifdef CENTER_1
    center = 1.0;
#endif
#ifdef CENTER_4
    center = 4.0;
#endif
#ifdef CENTER_8
    center = 8.0;
#endif
#ifdef CENTER_16
    center = 16.0;
#endif
#ifdef CENTER_32
    center = 32.0;
#endif
    return small(code) - vec4<f32>(center);
#endif
#endif
#endif
#endif
#endif
#endif
#endif
}

// Eight fields of one word, `bits` apart.
fn fields(v: u32, bits: u32, mask: u32) -> Codes {
    let at = vec4<u32>(0u, 1u, 2u, 3u) * vec4<u32>(bits);
    return Codes((vec4<u32>(v) >> at) & vec4<u32>(mask), (vec4<u32>(v >> (4u * bits)) >> at) & vec4<u32>(mask));
}

#ifdef BYTES
// Levels of the eight codes in two words.
fn eight_levels(low: vec2<u32>) -> Eight {
    let at = vec4<u32>(0u, 8u, 16u, 24u);
    let mask = vec4<u32>(255u);
    return Eight(levels((vec4<u32>(low.x) >> at) & mask), levels((vec4<u32>(low.y) >> at) & mask));
}
#else
// Levels of eight codes, from words whose lowest bits are theirs.
fn eight_levels(low: u32, high: u32) -> Eight {
#ifdef NIBBLES
    var codes = fields(low, 4u, 15u);
    let shift = vec4<u32>(4u);
#endif
#ifdef TWOS
    var codes = fields(low, 2u, 3u);
    let shift = vec4<u32>(2u);
#endif
#ifdef ONES
    var codes = fields(low, 1u, 1u);
    let shift = vec4<u32>(1u);
#endif
#ifdef HIGH_TWOS
    let above = fields(high, 2u, 3u);
    codes = Codes(codes.a | (above.a << shift), codes.b | (above.b << shift));
#endif
#ifdef HIGH_ONES
    let above = fields(high, 1u, 1u);
    codes = Codes(codes.a | (above.a << shift), codes.b | (above.b << shift));
#endif
    return Eight(levels(codes.a), levels(codes.b));
}
// The words of the plane above the low bits that hold elements 8·k8 …, moved down to them.
fn high_bits(row: u32, k8: u32) -> u32 {
#ifdef HIGH_TWOS
    return word(row + low_words() + k8 / 2u) >> (16u * (k8 % 2u));
#else
#ifdef HIGH_ONES
    return word(row + low_words() + k8 / 4u) >> (8u * (k8 % 4u));
#else
    return 0u;
#endif
#endif
}
#endif

// Levels of elements 8·k8 … of the row that begins at word `row`.
fn levels8(row: u32, k8: u32) -> Eight {
#ifdef BYTES
    let i = row + 2u * k8;
    return eight_levels(vec2<u32>(word(i), word(i + 1u)));
#endif
#ifdef NIBBLES
    return eight_levels(word(row + k8), high_bits(row, k8));
#endif
#ifdef TWOS
    return eight_levels(word(row + k8 / 2u) >> (16u * (k8 % 2u)), high_bits(row, k8));
#endif
#ifdef ONES
    return eight_levels(word(row + k8 / 4u) >> (8u * (k8 % 4u)), high_bits(row, k8));
#endif
}

// The block that holds elements 32·k32 …, where blocks have one scale.
fn block_of(k32: u32) -> u32 {
#ifdef BLOCK_64
    return k32 / 2u;
#else
#ifdef BLOCK_128
    return k32 / 4u;
#else
#ifdef BLOCK_256
    return k32 / 8u;
#else
    return k32;
#endif
#endif
#endif
}

// The words that hold the scale of elements 32·k32 …, where the scales of a row begin at word `first`; and from them the scale
// and what is added, of the first sixteen elements and of the last.
#ifdef S_BYTES16
alias StoredScale = vec2<u32>;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    let block = first + 5u * (k32 / 8u);
    return vec2<u32>(word(block + (k32 % 8u) / 2u), word(block + 4u));
}
fn scales_of(stored: StoredScale, k32: u32) -> vec4<f32> {
    let two = stored.x >> (16u * (k32 % 2u));
    let s = unpack2x16float(stored.y).x * signed_bytes(vec4<u32>(two, two >> 8u, 0u, 0u)).xy;
    return vec4<f32>(s.x, 0.0, s.y, 0.0);
}
#else
#ifdef S_K2
alias StoredScale = vec2<u32>;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    let block = first + 5u * (k32 / 8u);
    return vec2<u32>(word(block + (k32 % 8u) / 2u), word(block + 4u));
}
fn scales_of(stored: StoredScale, k32: u32) -> vec4<f32> {
    let d = unpack2x16float(stored.y);
    let two = stored.x >> (16u * (k32 % 2u));
    let fours = (vec4<u32>(two) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
    let v = small(fours);
    return vec4<f32>(d.x * v.x, -(d.y * v.y), d.x * v.z, -(d.y * v.w));
}
#else
#ifdef S_HALF
alias StoredScale = u32;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    return word(first + block_of(k32) / 2u);
}
fn scale_of(stored: StoredScale, k32: u32) -> vec2<f32> {
    return vec2<f32>(unpack2x16float(stored >> (16u * (block_of(k32) % 2u))).x, 0.0);
}
#endif
#ifdef S_BF16
alias StoredScale = u32;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    return word(first + k32 / 2u);
}
fn scale_of(stored: StoredScale, k32: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>((stored >> (16u * (k32 % 2u))) << 16u), 0.0);
}
#endif
#ifdef S_F32
alias StoredScale = u32;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    return word(first + block_of(k32));
}
fn scale_of(stored: StoredScale, k32: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(stored), 0.0);
}
#endif
#ifdef S_ZERO
alias StoredScale = u32;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    return word(first + block_of(k32));
}
fn scale_of(stored: StoredScale, k32: u32) -> vec2<f32> {
    let d = bitcast<f32>(stored & 0xffffff00u);
    return vec2<f32>(d, -(d * signed_bytes(vec4<u32>(stored)).x));
}
#endif
#ifdef S_AFFINE
alias StoredScale = vec2<u32>;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    let at = first + 2u * block_of(k32);
    return vec2<u32>(word(at), word(at + 1u));
}
fn scale_of(stored: StoredScale, k32: u32) -> vec2<f32> {
    return bitcast<vec2<f32>>(stored);
}
#endif
#ifdef S_PAIR
alias StoredScale = u32;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    return word(first + k32);
}
fn scale_of(stored: StoredScale, k32: u32) -> vec2<f32> {
    return unpack2x16float(stored);
}
#endif
#ifdef S_K4
alias StoredScale = vec4<u32>;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    return w[first / 4u + k32 / 8u];
}
fn scale_of(stored: StoredScale, k32: u32) -> vec2<f32> {
    let d = unpack2x16float(stored.x);
    let bytes = stored.yzw >> vec3<u32>(8u * (k32 % 4u));
    // groups 0 to 3, and 4 to 7
    let early = bytes.xy & vec2<u32>(63u);
    let late = (vec2<u32>(bytes.z, bytes.z >> 4u) & vec2<u32>(15u)) | ((bytes.xy >> vec2<u32>(2u)) & vec2<u32>(48u));
    let codes = select(early, late, k32 % 8u > 3u);
    return vec2<f32>(d.x, -d.y) * (bitcast<vec2<f32>>(codes | vec2<u32>(0x4b000000u)) - vec2<f32>(8388608.0));
}
#endif
#ifdef S_BYTES32
alias StoredScale = vec2<u32>;
fn stored_scale(first: u32, k32: u32) -> StoredScale {
    let block = first + 3u * (k32 / 8u);
    return vec2<u32>(word(block + (k32 % 8u) / 4u), word(block + 2u));
}
fn scale_of(stored: StoredScale, k32: u32) -> vec2<f32> {
    return vec2<f32>(unpack2x16float(stored.y).x * signed_bytes(vec4<u32>(stored.x >> (8u * (k32 % 4u)))).x, 0.0);
}
#endif
fn scales_of(stored: StoredScale, k32: u32) -> vec4<f32> {
    return scale_of(stored, k32).xyxy;
}
#endif
#endif

// Weights 8·k8 … of the row that begins at word `row`.
fn weight8(row: u32, k8: u32) -> Eight {
    let q = levels8(row, k8);
    let all = scales_of(stored_scale(row + low_words() + high_words(), k8 / 4u), k8 / 4u);
    let s = select(all.xy, all.zw, k8 % 4u > 1u);
    return Eight(s.x * q.a + vec4<f32>(s.y), s.x * q.b + vec4<f32>(s.y));
}

// Elements 32·k32 … of a row, as they are stored.
struct Stored32 {
#ifdef BYTES
    low: vec4<u32>,
    more: vec4<u32>,
#endif
#ifdef NIBBLES
    low: vec4<u32>,
#endif
#ifdef TWOS
    low: vec2<u32>,
#endif
#ifdef ONES
    low: u32,
#endif
#ifdef HIGH_TWOS
    high: vec2<u32>,
#endif
#ifdef HIGH_ONES
    high: u32,
#endif
    scale: StoredScale,
}
fn two_words(index: u32) -> vec2<u32> {
    let four = w[index / 4u];
    return select(four.xy, four.zw, index % 4u > 1u);
}
// Those of the row that begins at word `row`, for reading ahead of use.
fn stored32(row: u32, k32: u32) -> Stored32 {
    var v = Stored32();
#ifdef BYTES
    v.low = w[row / 4u + 2u * k32];
    v.more = w[row / 4u + 2u * k32 + 1u];
#endif
#ifdef NIBBLES
    v.low = w[row / 4u + k32];
#endif
#ifdef TWOS
    v.low = two_words(row + 2u * k32);
#endif
#ifdef ONES
    v.low = word(row + k32);
#endif
#ifdef HIGH_TWOS
    v.high = two_words(row + low_words() + 2u * k32);
#endif
#ifdef HIGH_ONES
    v.high = word(row + low_words() + k32);
#endif
    v.scale = stored_scale(row + low_words() + high_words(), k32);
    return v;
}
// The words of the plane above the low bits, moved down to each of four eights.
fn high_eights(v: Stored32) -> vec4<u32> {
#ifdef HIGH_TWOS
    return vec4<u32>(v.high.x, v.high.x >> 16u, v.high.y, v.high.y >> 16u);
#else
#ifdef HIGH_ONES
    return vec4<u32>(v.high) >> vec4<u32>(0u, 8u, 16u, 24u);
#else
    return vec4<u32>(0u);
#endif
#endif
}

#ifdef ONE_PLANE
// Four codes of a word, each times the power of two at which it lies, and what takes that away. In a float's last bits a code
// is a whole number without being shifted or converted.
#ifdef BYTES
const STEPS = vec4<f32>(1.0, 0.00390625, 1.0, 0.00390625);
fn four_codes(v: u32) -> vec4<f32> {
    let fields = vec4<u32>(v, v, v >> 16u, v >> 16u) & vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u);
    let bits = fields ^ vec4<u32>(0x4b000080u, 0x4b008000u, 0x4b000080u, 0x4b008000u);
    return bitcast<vec4<f32>>(bits) - vec4<f32>(8388736.0, 8421376.0, 8388736.0, 8421376.0);
}
#else
const STEPS = vec4<f32>(1.0, 0.0625, 0.00390625, 0.000244140625);
#ifdef CENTER_8
const ZEROS = vec4<f32>(8388616.0, 8388736.0, 8390656.0, 8421376.0);
#else
const ZEROS = vec4<f32>(8388608.0);
#endif
fn four_codes(v: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>((vec4<u32>(v) & vec4<u32>(0xfu, 0xf0u, 0xf00u, 0xf000u)) | vec4<u32>(0x4b000000u)) - ZEROS;
}
#endif

// Σ w[k]·x[k] of elements 32·k32 …; `sums` are those of x, of the first sixteen and of the last.
fn dot32(v: Stored32, k32: u32, x0: Eight, x1: Eight, x2: Eight, x3: Eight, sums: vec2<f32>) -> f32 {
#ifdef BYTES
    let a = v.low.xz;
    let b = v.low.yw;
    let c = v.more.xz;
    let d = v.more.yw;
#else
    let a = v.low.xy;
    let b = a >> vec2<u32>(16u);
    let c = v.low.zw;
    let d = c >> vec2<u32>(16u);
#endif
    let first = four_codes(a.x) * x0.a + four_codes(b.x) * x0.b + four_codes(a.y) * x1.a + four_codes(b.y) * x1.b;
    let last = four_codes(c.x) * x2.a + four_codes(d.x) * x2.b + four_codes(c.y) * x3.a + four_codes(d.y) * x3.b;
    let s = scale_of(v.scale, k32);
#ifdef OFFSET
    return s.x * dot(first + last, STEPS) + s.y * (sums.x + sums.y);
#else
    return s.x * dot(first + last, STEPS);
#endif
}
#else
// Likewise, for codes of two planes, levels from a table, or scales of sixteen elements.
fn dot32(v: Stored32, k32: u32, x0: Eight, x1: Eight, x2: Eight, x3: Eight, sums: vec2<f32>) -> f32 {
#ifdef BYTES
    let a = eight_levels(v.low.xy);
    let b = eight_levels(v.low.zw);
    let c = eight_levels(v.more.xy);
    let d = eight_levels(v.more.zw);
#else
    let high = high_eights(v);
#ifdef NIBBLES
    let low = v.low;
#endif
#ifdef TWOS
    let low = vec4<u32>(v.low.x, v.low.x >> 16u, v.low.y, v.low.y >> 16u);
#endif
#ifdef ONES
    let low = vec4<u32>(v.low) >> vec4<u32>(0u, 8u, 16u, 24u);
#endif
    let a = eight_levels(low.x, high.x);
    let b = eight_levels(low.y, high.y);
    let c = eight_levels(low.z, high.z);
    let d = eight_levels(low.w, high.w);
#endif
    let first = dot(a.a, x0.a) + dot(a.b, x0.b) + dot(b.a, x1.a) + dot(b.b, x1.b);
    let last = dot(c.a, x2.a) + dot(c.b, x2.b) + dot(d.a, x3.a) + dot(d.b, x3.b);
    let s = scales_of(v.scale, k32);
#ifdef OFFSET
    return s.x * first + s.z * last + s.y * sums.x + s.w * sums.y;
#else
    return s.x * first + s.z * last;
#endif
}
#endif
