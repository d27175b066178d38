// The rows of out that a workgroup of a tiled product computes, at most as many as a tile has, and where their numbers are.
// With EXPERTS a row belongs to one of the chosen experts of a token, w has the matrices of all experts, p.n rows each, and a tile
// has rows of one expert, which expert_rows.wgsl put together. Rows of no expert are 0. There are order[0] tiles; what starts without one
// ends in `main`, where compilers see that all of a workgroup does.
#ifdef EXPERTS
struct Tile { first: u32, count: u32, expert: u32 }
@group(1) @binding(7) var<storage, read> order: array<u32>;
fn tile_of(number: u32, most: u32) -> Tile {
    let at = 1u + step.tokens * p.chosen + 3u * number;
    return Tile(order[at], order[at + 1u], order[at + 2u]);
}
fn has_row(tile: Tile, r: u32) -> bool {
    return r < tile.count;
}
// Row r of the tile; after its end the last one.
fn out_row(tile: Tile, r: u32) -> u32 {
    return order[1u + tile.first + min(r, tile.count - 1u)];
}
fn x_row(tile: Tile, r: u32) -> u32 {
    return out_row(tile, r) / p.share;
}
// Rows of another buffer read some row of this one, and are not written.
fn w_row(tile: Tile, n: u32) -> u32 {
    let row = tile.expert * p.n + min(n, p.n - 1u) - p.piece_first;
    return p.w_first + min(row, p.piece_rows - 1u);
}
fn is_computed(tile: Tile, n: u32) -> bool {
    let row = tile.expert * p.n + n - p.piece_first;
    // Rows of no expert are written with the first piece.
    let here = select(row < p.piece_rows, p.piece_first == 0u, tile.expert == p.experts);
    return n < p.n && here;
}
fn bias_at(tile: Tile, n: u32) -> u32 {
    return p.bias_first + min(tile.expert, p.experts - 1u) * p.n + n;
}
fn of_expert(tile: Tile, sum: f32) -> f32 {
    return select(sum, 0.0, tile.expert == p.experts);
}
#else
struct Tile { first: u32 }
fn tile_of(number: u32, most: u32) -> Tile {
    return Tile(number * most);
}
fn has_row(tile: Tile, r: u32) -> bool {
    return tile.first + r < step.tokens;
}
fn out_row(tile: Tile, r: u32) -> u32 {
    return tile.first + r;
}
fn x_row(tile: Tile, r: u32) -> u32 {
    return min(tile.first + r, step.tokens - 1u);
}
fn w_row(tile: Tile, n: u32) -> u32 {
    return p.w_first + min(n, p.n - 1u);
}
fn is_computed(tile: Tile, n: u32) -> bool {
    return n < p.n;
}
fn bias_at(tile: Tile, n: u32) -> u32 {
    return p.bias_first + p.n_first + n;
}
fn of_expert(tile: Tile, sum: f32) -> f32 {
    return sum;
}
#endif
