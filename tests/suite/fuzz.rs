//! Every parser over broken files: it gives a value or an error with words, and never panics, hangs or takes memory that its
//! input does not account for.
//!
//! `cargo test` tries some thousand inputs of each target. `cargo xtask fuzz [TARGET] [INPUTS] [SEED] [SECONDS]` tries as many
//! as are wanted, on all processors. An input that fails is kept in `target/fuzz`, and its message says how to try it again.

mod heap;
mod length;
mod mutate;
mod targets;

use mutate::Mutator;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use targets::{TARGETS, Target};

/// Inputs of each target in an ordinary run, and their seed.
const INPUTS: u64 = 1_500;
const SEED: u64 = 1;
/// What one input may take: a hang, not a slow machine.
const SLOWEST: Duration = Duration::from_secs(20);

/// Runs one input; what is wrong with how it went.
fn attempt(target: &Target, input: &[u8]) -> Result<(), String> {
    let (start, before) = (Instant::now(), heap::start());
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (peak, took) = (heap::peak().saturating_sub(before), start.elapsed());
    let allowed = target.heap + target.heap_per_byte * input.len();
    match outcome {
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_string()));
            Err(format!("panic: {}", words.unwrap_or_default()))
        }
        Ok(Some(words)) if words.trim().len() < 10 => Err(format!("an error without words: `{words}`")),
        Ok(_) if took > SLOWEST => Err(format!("took {took:?}")),
        Ok(_) if peak > allowed => Err(format!("{peak} bytes of memory for {} bytes of input", input.len())),
        Ok(_) => Ok(()),
    }
}

/// Runs the input of one number. What is wrong, with the file in `folder` that keeps the input.
fn try_number(target: &Target, seeds: &[Vec<u8>], seed: u64, number: u64, folder: &Path) -> Result<(), String> {
    let input = Mutator::new(seed, number, target.words).input(seeds);
    attempt(target, &input).map_err(|wrong| {
        let file = folder.join(format!("{}-{seed}-{number}", target.name));
        let kept = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&file, &input));
        let place = kept.map_or_else(|e| e.to_string(), |()| file.display().to_string());
        format!("{}: {wrong}\n  again: DOPPLER_FUZZ_INPUT={place} cargo xtask fuzz {}", target.name, target.name)
    })
}

/// Where inputs that failed are kept, and how far a long run is.
fn folder() -> PathBuf {
    let usual = || Path::new(env!("CARGO_TARGET_TMPDIR")).join("../fuzz");
    std::env::var_os("DOPPLER_FUZZ_FOLDER").map_or_else(usual, PathBuf::from)
}

/// A few thousand inputs of one target.
fn briefly(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{name}: no seeds");
    // Files as they are go through: what is mutated is not refused for another reason at once.
    assert!(seeds.iter().any(|seed| (target.run)(seed).is_none()), "{name}: each seed is refused: {:?}", (target.run)(&seeds[0]));
    let failure = (0..INPUTS / target.cost).find_map(|number| try_number(target, &seeds, SEED, number, &folder()).err());
    assert_eq!(failure, None);
}

macro_rules! brief {
    ($($name:ident)*) => {
        $(#[test] fn $name() { briefly(stringify!($name)); })*
        #[test]
        fn every_target_is_tried() {
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),*]);
        }
    };
}
brief! { gguf gguf_vocabulary safetensors shards config packed_config manifest importance runtime tokenizer tokenizer_config template conversation dump bundle profile exam }

/// What `cargo xtask fuzz` runs.
#[test]
#[ignore = "as long as is asked for: cargo xtask fuzz"]
fn at_length() {
    length::run();
}
