// What changes from step to step, and ids of workgroups that may be spread over two dimensions.
struct StepUniform {
    tokens: u32,       // T: tokens of this step, of all its sequences
    position: u32,     // position of the first of them, where all are of one sequence
    serial: u32,       // step counter, echoed with results
    head_first: u32,   // first row for which logits are computed
    head_rows: u32,    // rows of logits in this batch
    batch: u32,        // number of this batch of logits
    entries: u32,      // of `origins`: one for each token, or one for all of them
    pick_first: u32,   // row of this batch of logits from which on tokens are picked
    pick_at: u32,      // row of candidates that belongs to it
}
@group(0) @binding(0) var<uniform> step: StepUniform;

fn linear_id(id: vec3<u32>, count: vec3<u32>) -> u32 {
    return id.x + id.y * count.x;
}
