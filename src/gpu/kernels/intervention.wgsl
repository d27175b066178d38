// x = 0, factor · x, x + factor · given or given, in place, at chosen tokens and elements. One thread per word: an element,
// or two with X_F16. SCORES: rows of heads and tokens, with a cell for each position; only cells that the token sees.
#include "step"
#include "origins"
#include "pack"
#ifdef SCORES
#include "visible"
#endif
override KIND: u32 = 0u; // 0 zero, 1 scale, 2 add, 3 set
struct Params {
    width: u32,       // elements of a row; of scores heads
    stride: u32,      // elements from row to row; not of scores
    window: u32,
    shift: u32,       // positions before those that the step counts from
    tokens: u32,      // ranges of tokens in `chosen`, first and last of each; 0 is every token
    columns: u32,     // words of a mask of elements, or of heads, after them; 0 is every one
    positions: u32,   // ranges of positions after that; 0 is every one
    given_first: u32, // position of the first token in `given`
    per_token: u32,
    per_head: u32,
    factor: f32,
}
@group(1) @binding(0) var<uniform> p: Params;
@group(1) @binding(2) var<storage, read_write> x: array<u32>; // f32 bits, or two halves
@group(1) @binding(3) var<storage, read> chosen: array<u32>;
@group(1) @binding(4) var<storage, read> given: array<f32>;

// Whether one of `count` ranges from word `first` of `chosen` on has `i`; of none, every one does.
fn among(i: u32, first: u32, count: u32) -> bool {
    var found = count == 0u;
    for (var r = 0u; r < count; r++) {
        let at = first + 2u * r;
        found = found || (i >= chosen[at] && i <= chosen[at + 1u]);
    }
    return found;
}

fn masked(i: u32) -> bool {
    return p.columns == 0u || ((chosen[2u * p.tokens + i / 32u] >> (i % 32u)) & 1u) == 1u;
}

fn changed(old: f32, head: u32, at: u32, column: u32) -> f32 {
    if (KIND == 0u) { return 0.0; }
    if (KIND == 1u) { return p.factor * old; }
    let g = given[head * p.per_head + (at - p.given_first) * p.per_token + column];
    if (KIND == 2u) { return old + p.factor * g; }
    return g;
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = linear_id(group, groups) * 64u + thread;
#ifdef SCORES
    let cells = step.position + step.tokens;
    let row = item / cells;
    if (row >= p.width * step.tokens) { return; }
    let column = item % cells;
    let seen = step.position + row % step.tokens;
    let head = row / step.tokens;
    if (column > seen || column < first_visible(seen) || !masked(head)) { return; }
    let at = seen + p.shift;
    if (!among(at, 0u, p.tokens)) { return; }
    if (!among(column + p.shift, 2u * p.tokens + p.columns, p.positions)) { return; }
    x[item] = bitcast<u32>(changed(bitcast<f32>(x[item]), head, at, column + p.shift));
#else
#ifdef X_F16
    let words = (p.width + 1u) / 2u;
#else
    let words = p.width;
#endif
    let row = item / words;
#ifdef HEAD
    if (row >= step.head_rows) { return; }
    let at = position_of(step.head_first + row) + p.shift;
#else
    if (row >= step.tokens) { return; }
    let at = position_of(row) + p.shift;
#endif
    if (!among(at, 0u, p.tokens)) { return; }
#ifdef X_F16
    let column = 2u * (item % words);
    let word = row * (p.stride / 2u) + item % words;
    var bits = x[word];
    let old = unpack2x16float(bits);
    if (masked(column)) { bits = (bits & 0xffff0000u) | f16_bits(changed(old.x, 0u, at, column)); }
    if (column + 1u < p.width && masked(column + 1u)) {
        bits = (bits & 0xffffu) | (f16_bits(changed(old.y, 0u, at, column + 1u)) << 16u);
    }
    x[word] = bits;
#else
    let column = item % words;
    if (!masked(column)) { return; }
    let word = row * p.stride + column;
    x[word] = bitcast<u32>(changed(bitcast<f32>(x[word]), 0u, at, column));
#endif
#endif
}
