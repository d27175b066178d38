// Statistics of up to six values at a time, or of 30 or 126 where an adapter binds as many (WIDE, WIDEST), each as partial
// results of its own workgroups that the host combines.
// A value made of heads can be reduced by head. Workgroup (g, v) reads every busy-th stretch of one part of value v.
// Exponent bits decide what is NaN or infinite; the rest is over finite elements.
#include "step"
struct Params {
    first: u32, // first of this dispatch's entries in `table`
}
struct StatsValue {
    width: u32,   // elements of a row; heads where rows is 2
    stride: u32,
    rows: u32,    // 0: step.tokens, 1: step.head_rows, 2: heads·tokens rows of `positions` cells
    groups: u32,  // most workgroups of a part; small parts keep fewer of them busy
    slot: u32,    // first partial in `out`; each batch of logits has its own
    narrow: u32,  // 1: two f16 in a word
    parts: u32,   // heads that are reduced apart; 1: the whole value
}
struct Partial {
    max_abs: f32, // of the finite elements
    max_at: u32,
    sum: f32,
    squares: f32,
    low: f32,
    high: f32,
    nan: u32,
    inf: u32,
    zero: u32,
    bad_at: u32,  // first NaN, or else first infinite element
    count: u32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read> x0: array<u32>;
@group(1) @binding(3) var<storage, read> x1: array<u32>;
@group(1) @binding(4) var<storage, read> x2: array<u32>;
@group(1) @binding(5) var<storage, read> x3: array<u32>;
@group(1) @binding(6) var<storage, read> x4: array<u32>;
@group(1) @binding(7) var<storage, read> x5: array<u32>;
#ifdef WIDEST
#for 6 126 @group(1) @binding({+2}) var<storage, read> x{}: array<u32>;
@group(1) @binding(128) var<storage, read> table: array<StatsValue>;
@group(1) @binding(129) var<storage, read_write> out: array<Partial>;
#else
#ifdef WIDE
#for 6 30 @group(1) @binding({+2}) var<storage, read> x{}: array<u32>;
@group(1) @binding(32) var<storage, read> table: array<StatsValue>;
@group(1) @binding(33) var<storage, read_write> out: array<Partial>;
#else
@group(1) @binding(8) var<storage, read> table: array<StatsValue>;
@group(1) @binding(9) var<storage, read_write> out: array<Partial>;
#endif
#endif

// Elements for which another workgroup is worth its barriers.
override SHARE: u32;
const NONE = 0xffffffffu;
var<workgroup> parts: array<Partial, 128>;

fn word(value: u32, i: u32) -> u32 {
    switch value {
#for 1 6         case {}u: { return x{}[i]; }
#ifdef WIDEST
#for 6 126         case {}u: { return x{}[i]; }
#else
#ifdef WIDE
#for 6 30         case {}u: { return x{}[i]; }
#endif
#endif
        default: { return x0[i]; }
    }
}

fn bits_at(value: u32, narrow: u32, i: u32) -> u32 {
    if (narrow == 0u) { return word(value, i); }
    let bits = (word(value, i / 2u) >> (16u * (i & 1u))) & 0xffffu;
    if ((bits & 0x7c00u) == 0x7c00u) { return 0x7f800000u | (bits & 0x3ffu); }
    return bitcast<u32>(unpack2x16float(bits).x);
}

fn merge(a: Partial, b: Partial) -> Partial {
    var m = a;
    if (b.max_abs > a.max_abs || (b.max_abs == a.max_abs && b.max_at < a.max_at)) { m.max_abs = b.max_abs; m.max_at = b.max_at; }
    m.sum += b.sum;
    m.squares += b.squares;
    m.low = min(a.low, b.low);
    m.high = max(a.high, b.high);
    // a NaN outranks an infinity
    if ((b.nan > 0u) == (a.nan > 0u)) { m.bad_at = min(a.bad_at, b.bad_at); } else if (b.nan > 0u) { m.bad_at = b.bad_at; }
    m.nan += b.nan;
    m.inf += b.inf;
    m.zero += b.zero;
    m.count += b.count;
    return m;
}

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let v = table[p.first + group.y];
    var rows = step.tokens;
    var width = v.width;
    var stride = v.stride;
    // elements of a row that belong to the part, and the place of its first
    var part_width = v.width / v.parts;
    if (v.rows == 1u) { rows = step.head_rows; }
    if (v.rows == 2u) {
        rows = v.width * step.tokens;
        width = step.position + step.tokens;
        stride = width;
        rows /= v.parts;
        part_width = width;
    }
    let count = rows * part_width;
    let busy = clamp(count / SHARE, 1u, v.groups);
    if (group.x >= busy * v.parts) { return; }
    let part = group.x / busy;
    let stretch = group.x % busy;
    let first_row = select(0u, part * rows, v.rows == 2u);
    let first_dim = select(part * part_width, 0u, v.rows == 2u);
    var m = Partial(-1.0, NONE, 0.0, 0.0, 3.0e38, -3.0e38, 0u, 0u, 0u, NONE, 0u);
    for (var n = stretch * 128u + thread; n < count; n += busy * 128u) {
        let row = first_row + n / part_width;
        let dim = first_dim + n % part_width;
        let i = row * width + dim;
        let bits = bits_at(group.y, v.narrow, row * stride + dim);
        m.count += 1u;
        if ((bits & 0x7f800000u) == 0x7f800000u) {
            let is_nan = (bits & 0x7fffffu) != 0u;
            if ((is_nan && m.nan == 0u) || m.bad_at == NONE) { m.bad_at = i; }
            m.nan += select(0u, 1u, is_nan);
            m.inf += select(1u, 0u, is_nan);
            continue;
        }
        let x = bitcast<f32>(bits);
        if (abs(x) > m.max_abs) { m.max_abs = abs(x); m.max_at = i; }
        m.sum += x;
        m.squares += x * x;
        m.low = min(m.low, x);
        m.high = max(m.high, x);
        m.zero += select(0u, 1u, x == 0.0);
    }
    parts[thread] = m;
    workgroupBarrier();
    for (var n = 64u; n > 0u; n /= 2u) {
        if (thread < n) { parts[thread] = merge(parts[thread], parts[thread + n]); }
        workgroupBarrier();
    }
    if (thread == 0u) { out[v.slot + (step.batch * v.parts + part) * v.groups + stretch] = parts[0]; }
}
