// Statistics of a value [rows, width] in rows of `stride` elements, as partial results of up to 64 workgroups that
// the host combines. Exponent bits decide what is NaN or infinite; the rest is over finite elements.
#include "step"
#include "pack"
struct Params {
    width: u32,
    stride: u32,
    kind: u32,     // rows: 0 step.tokens, 1 step.head_rows, 2 heads·tokens of `positions` cells each
    heads: u32,
    groups: u32,
    slot: u32,     // first partial in `out`; each batch of logits has its own
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
@group(0) @binding(0) var<uniform> p: Params;
#ifdef X_F16
@group(0) @binding(2) var<storage, read> x: array<u32>;
#else
@group(0) @binding(2) var<storage, read> x: array<f32>;
#endif
@group(0) @binding(3) var<storage, read_write> out: array<Partial>;

const NONE = 0xffffffffu;
var<workgroup> parts: array<Partial, 128>;

fn bits_at(i: u32) -> u32 {
#ifdef X_F16
    let pair = unpack2x16float(x[i / 2u]);
    let half = select(x[i / 2u] & 0xffffu, x[i / 2u] >> 16u, (i & 1u) == 1u);
    if ((half & 0x7c00u) == 0x7c00u) { return 0x7f800000u | (half & 0x3ffu); }
    return bitcast<u32>(select(pair.x, pair.y, (i & 1u) == 1u));
#else
    return bitcast<u32>(x[i]);
#endif
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
    var rows = step.tokens;
    var width = p.width;
    var stride = p.stride;
    if (p.kind == 1u) { rows = step.head_rows; }
    if (p.kind == 2u) {
        rows = p.heads * step.tokens;
        width = step.position + step.tokens;
        stride = width;
    }
    var m = Partial(-1.0, NONE, 0.0, 0.0, 3.0e38, -3.0e38, 0u, 0u, 0u, NONE, 0u);
    for (var i = group.x * 128u + thread; i < rows * width; i += p.groups * 128u) {
        let bits = bits_at(i / width * stride + i % width);
        m.count += 1u;
        if ((bits & 0x7f800000u) == 0x7f800000u) {
            let is_nan = (bits & 0x7fffffu) != 0u;
            if ((is_nan && m.nan == 0u) || m.bad_at == NONE) { m.bad_at = i; }
            m.nan += select(0u, 1u, is_nan);
            m.inf += select(1u, 0u, is_nan);
            continue;
        }
        let v = bitcast<f32>(bits);
        if (abs(v) > m.max_abs) { m.max_abs = abs(v); m.max_at = i; }
        m.sum += v;
        m.squares += v * v;
        m.low = min(m.low, v);
        m.high = max(m.high, v);
        m.zero += select(0u, 1u, v == 0.0);
    }
    parts[thread] = m;
    workgroupBarrier();
    for (var n = 64u; n > 0u; n /= 2u) {
        if (thread < n) { parts[thread] = merge(parts[thread], parts[thread + n]); }
        workgroupBarrier();
    }
    if (thread == 0u) { out[p.slot + step.batch * p.groups + group.x] = parts[0]; }
}
