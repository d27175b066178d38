// The k highest of each row of logits that is asked for, in descending order, ties by ascending id, in passes: each
// workgroup reduces 2048 entries of a row to k. FIRST reads logits, later passes read candidates; LAST also writes the highest as
// the next token id of the row's sequence. Entries are compared as integers: the order of floats, -0 as 0; -infinity never wins, and NaN always
// does, so that the host sees that there is one.
#include "step"
#include "origins"
struct Params {
    count: u32,   // entries of a row in this pass
    k: u32,
    valid: u32,   // ids from here on never win
    stride: u32,  // row of `logits`, FIRST only
}
struct Candidate { key: u32, id: u32 }
@group(1) @binding(0) var<uniform> p: Params;
#ifdef FIRST
@group(1) @binding(2) var<storage, read> logits: array<f32>;
#else
@group(1) @binding(2) var<storage, read> entries: array<Candidate>;
#endif
@group(1) @binding(3) var<storage, read_write> out: array<Candidate>;
#ifdef LAST
@group(1) @binding(4) var<storage, read_write> ids: array<u32>;
#endif

const NONE = 0xffffffffu;
var<workgroup> keys: array<u32, 2048>;
var<workgroup> best_key: array<u32, 256>;
var<workgroup> best_at: array<u32, 256>;

fn order(x: f32) -> u32 {
    var bits = bitcast<u32>(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) { return 0xffffffffu; }
    if (bits == 0xff800000u) { return 0u; }
    if (bits == 0x80000000u) { bits = 0u; }
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn entry(row: u32, i: u32) -> Candidate {
    if (i >= p.count) { return Candidate(0u, NONE); }
#ifdef FIRST
    if (i >= p.valid) { return Candidate(0u, NONE); }
    return Candidate(order(logits[(step.pick_first + row) * p.stride + i]), i);
#else
    return entries[(step.pick_at + row) * p.count + i];
#endif
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let chunk = group.x + group.z * groups.x;
    let row = group.y;
    let base = chunk * 2048u;
    if (base >= p.count) { return; }
    for (var i = thread; i < 2048u; i += 256u) { keys[i] = entry(row, base + i).key; }
    workgroupBarrier();
    for (var rank = 0u; rank < p.k; rank++) {
        var key = 0u;
        var at = NONE;
        // entries are in ascending id within equal keys, so the first of equals wins
        for (var i = thread; i < 2048u; i += 256u) {
            if (keys[i] > key) { key = keys[i]; at = i; }
        }
        best_key[thread] = key;
        best_at[thread] = at;
        workgroupBarrier();
        for (var n = 128u; n > 0u; n /= 2u) {
            if (thread < n) {
                let other = best_key[thread + n];
                let other_at = best_at[thread + n];
                if (other > best_key[thread] || (other == best_key[thread] && other_at < best_at[thread])) {
                    best_key[thread] = other;
                    best_at[thread] = other_at;
                }
            }
            workgroupBarrier();
        }
        if (thread == 0u) {
            var winner = Candidate(0u, NONE);
            if (best_at[0] != NONE) {
                winner = entry(row, base + best_at[0]);
                keys[best_at[0]] = 0u;
            }
            let chunks = (p.count + 2047u) / 2048u;
            out[((step.pick_at + row) * chunks + chunk) * p.k + rank] = winner;
#ifdef LAST
            if (rank == 0u) {
                let token = step.head_first + step.pick_first + row;
                ids[origins[entry_of(token)].picked] = min(winner.id, p.valid - 1u);
            }
#endif
        }
        workgroupBarrier();
    }
}
