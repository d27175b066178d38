//! A packed file against the model that it was made of: one that is merely coarse, and some in which a tensor is damaged.

use super::filled;
use crate::agreeing::{demo, stored, windows};
use crate::convert::{convert, open, scratch};
use doppler::convert::Target;
use doppler::debug::attribution::{Attribution, Text, attribute};
use doppler::debug::weight_source::Stored;
use doppler::exec::Storage;
use doppler::formats::InMemory;
use doppler::formats::gguf::read_header;
use pollster::block_on;
use std::ops::ControlFlow;
use std::path::Path;

/// What the built-in model's packed file at `path` differs by, with the two noisiest tensors restored.
fn attributed(path: &Path) -> Attribution {
    let (demo, tokenizer) = demo();
    let windows = windows(&tokenizer, 1);
    let (checkpoint, matched) = stored(&demo);
    let original = Stored { checkpoint: &checkpoint, matched: &matched };
    let packed = open(path).expect("a model");
    let weights = block_on(packed.weights()).expect("its weights");
    let own = Stored { checkpoint: &weights.checkpoint, matched: &weights.matched };
    let exact = demo.oracle::<f32>(Storage::F32);
    let text = Text { windows: &windows, valid: demo.plan.vocab_size, most: Some(2) };
    block_on(attribute(&exact, &mut filled(&packed.plan, &own), &original, &own, text, &mut |_| ControlFlow::Continue(())))
        .expect("an attribution")
}

/// Takes the scale, two bytes from `at` on, of every `step`-th block of `bytes` bytes of a tensor.
fn damage(file: &mut [u8], tensor: &str, [bytes, at, step]: [usize; 3]) {
    let header = block_on(read_header(&InMemory::new("packed.gguf", file.to_vec()))).expect("a header");
    let range = header.tensors.iter().find(|known| known.name == tensor).expect("the tensor").range.clone();
    let blocks = file[range.start as usize..range.end as usize].chunks_exact_mut(bytes);
    blocks.step_by(step).for_each(|block| block[at..at + 2].fill(0));
}

/// Restoring names the damaged tensor, and nothing else is said to be poor, although the file has other conventions than the
/// original: norms hold the added 1, queries a part of the factor on q·k.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are the point of --nocapture")]
fn restoring_names_the_damaged_tensor_of_a_packed_file() {
    let (folder, demo) = (scratch("damaged"), demo().0.folder);
    let poor = |found: &Attribution| found.tensors.iter().filter(|t| t.noise.is_poor()).map(|t| t.noise.role.clone()).collect::<Vec<_>>();
    let path = folder.join("packed.gguf");
    convert(&demo, &path, Target::Gguf, "q2_k").expect("a conversion");
    let coarse = attributed(&path);
    println!("{}\n{}", coarse.text(), coarse.lines()[..2].join("\n"));
    assert_eq!(poor(&coarse), Vec::<String>::new());
    // What our own encoder leaves, as in the sibling test of single tensors.
    let explained = |attainable: f64, relative_l2: f64| (relative_l2 / attainable - 1.0).abs() < 0.05;
    assert!(coarse.tensors.iter().all(|t| t.noise.attainable.is_some_and(|attainable| explained(attainable, t.noise.relative_l2))));

    convert(&demo, &path, Target::Gguf, "q4_k_m").expect("a conversion");
    let whole = std::fs::read(&path).expect("a file");
    // Q6_K has its scale at the end, Q4_K at the beginning of a block.
    for (tensor, role, blocks) in [("token_embd.weight", "embed", [210, 208, 32]), ("blk.3.ffn_down.weight", "L3 down_proj", [144, 0, 2])] {
        let mut bytes = whole.clone();
        damage(&mut bytes, tensor, blocks);
        std::fs::write(&path, bytes).expect("a file");
        let found = attributed(&path);
        println!("{}\n{}", found.text(), found.lines()[..2].join("\n"));
        assert_eq!(poor(&found), [role]);
        let first = &found.tensors[0];
        assert!(first.noise.role == role && first.restored.is_some_and(|restored| restored.share > 0.5), "{}", first.text());
    }
    std::fs::remove_dir_all(folder).expect("a folder");
}
