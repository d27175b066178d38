// How the positions that a query sees are divided among workgroups: in runs of whole tiles, at most MOST_RUNS of them.
const TILE = 64u;
const MOST_RUNS = 64u;

fn run_length(count: u32) -> u32 {
    return TILE * ((count + TILE * MOST_RUNS - 1u) / (TILE * MOST_RUNS));
}
