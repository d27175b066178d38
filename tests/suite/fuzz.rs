//! Every parser over broken files: it gives a value or an error with words, and never panics, hangs or takes memory that its
//! input does not account for.
//!
//! `cargo test` tries some thousand inputs of each target. `cargo xtask fuzz [TARGET] [INPUTS] [SEED]` tries as many as are
//! wanted, on all processors. An input that fails is kept in `target/fuzz`, and its message says how to try it again.

mod heap;
mod mutate;
mod targets;

use mutate::Mutator;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// The first failure of `inputs` inputs, which are numbered from `first`, every `step`-th.
fn search(target: &Target, seeds: &[Vec<u8>], seed: u64, (first, step, inputs): (u64, u64, u64), done: &AtomicU64) -> Option<String> {
    for number in (first..inputs).step_by(step as usize) {
        let input = Mutator::new(seed, number, target.words).input(seeds);
        if let Err(wrong) = attempt(target, &input) {
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../fuzz");
            let file = folder.join(format!("{}-{seed}-{number}", target.name));
            let kept = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&file, &input));
            let place = kept.map_or_else(|e| e.to_string(), |()| file.display().to_string());
            return Some(format!("{}: {wrong}\n  again: DOPPLER_FUZZ_INPUT={place} cargo xtask fuzz {}", target.name, target.name));
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    None
}

/// A few thousand inputs of one target.
fn briefly(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty(), "{name}: no seeds");
    // Files as they are go through: what is mutated is not refused for another reason at once.
    assert!(seeds.iter().any(|seed| (target.run)(seed).is_none()), "{name}: each seed is refused: {:?}", (target.run)(&seeds[0]));
    let failure = search(target, &seeds, SEED, (0, 1, INPUTS / target.cost), &AtomicU64::new(0));
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
#[expect(clippy::print_stdout, reason = "a command for people")]
fn at_length() {
    let told = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let number = |name: &str, default: u64| told(name).map_or(default, |text| text.parse().expect("a number"));
    let (inputs, seed) = (number("DOPPLER_FUZZ_INPUTS", 100_000), number("DOPPLER_FUZZ_SEED", SEED));
    let wanted = told("DOPPLER_FUZZ_TARGET");
    let known = TARGETS.map(|target| target.name);
    assert!(wanted.as_ref().is_none_or(|name| known.contains(&&**name)), "no such target; known are {}", known.join(", "));
    // Panics within libraries are caught, and told as errors; those of ours come back as failures.
    std::panic::set_hook(Box::new(|_| {}));
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut failures = Vec::new();
    for target in TARGETS.iter().filter(|target| wanted.as_ref().is_none_or(|name| name == target.name)) {
        if let Some(file) = told("DOPPLER_FUZZ_INPUT") {
            let input = std::fs::read(&file).expect("an input");
            failures.extend(attempt(target, &input).err());
            println!("{}: {file}: {:?}", target.name, (target.run)(&input));
            continue;
        }
        let (seeds, start, done) = ((target.seeds)(), Instant::now(), AtomicU64::new(0));
        let found: Vec<String> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|first| {
                    let (seeds, done) = (&seeds, &done);
                    scope.spawn(move || search(target, seeds, seed, (first, threads, inputs), done))
                })
                .collect();
            workers.into_iter().filter_map(|worker| worker.join().expect("a worker")).collect()
        });
        let seconds = start.elapsed().as_secs_f64();
        println!("{:16} {:>10} inputs, {seconds:.0} s, {} failures", target.name, done.into_inner(), found.len());
        failures.extend(found);
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
