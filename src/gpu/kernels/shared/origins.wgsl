// Where tokens are from: the position of each, its id, and where its sequence is in the caches.
struct Origin {
    position: u32,
    long_rope: u32,             // 1: the long list of longrope
    id: u32,                    // place of its id
    picked: u32,                // where the id that is picked after it goes
    slabs: array<vec4<u32>, 2>, // first slot and slots, of two kinds of caches each
}
@group(0) @binding(1) var<uniform> origins: array<Origin, 64>;

// The entry of a token. A sequence's entry serves all of its tokens, or each has its own.
fn entry_of(token: u32) -> u32 {
    return min(token, step.entries - 1u);
}
fn position_of(token: u32) -> u32 {
    let entry = entry_of(token);
    return origins[entry].position + token - entry;
}
