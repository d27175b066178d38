//! As many inputs of every target as are wanted, on all processors: progress, a line for each target at its end, and a record
//! from which a later run of the same binary goes on.

use super::targets::{TARGETS, Target};
use super::{SEED, attempt, folder, try_number};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a round of inputs is, about. What is done is recorded after each.
const ROUND: Duration = Duration::from_secs(5);
/// Inputs that a thread takes at a time.
const BATCH: u64 = 16;
/// A target with so many faults is left: they are hardly so many kinds.
const MOST: u64 = 100;

/// How far a target is.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Done {
    inputs: u64,
    seconds: f64,
    faults: u64,
}

/// What was done of each target with each seed, by one build of the tests.
#[derive(Debug, PartialEq)]
struct Record {
    build: String,
    done: BTreeMap<(String, u64), Done>,
}

impl Record {
    /// Reads a record; an empty one where the text is of another build or is none.
    fn parse(text: &str, build: &str) -> Self {
        let mut lines = text.lines();
        let same = lines.next().is_some_and(|line| line == build);
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let key = (words.next()?.to_string(), words.next()?.parse().ok()?);
            let done =
                Done { inputs: words.next()?.parse().ok()?, seconds: words.next()?.parse().ok()?, faults: words.next()?.parse().ok()? };
            Some((key, done))
        };
        Self { build: build.into(), done: lines.filter(|_| same).filter_map(line).collect() }
    }
    fn text(&self) -> String {
        let line =
            |((name, seed), done): (&(String, u64), &Done)| format!("{name} {seed} {} {:.3} {}\n", done.inputs, done.seconds, done.faults);
        format!("{}\n", self.build) + &self.done.iter().map(line).collect::<String>()
    }
    fn save(&self, file: &Path) {
        let new = file.with_extension("new");
        std::fs::write(&new, self.text()).and_then(|()| std::fs::rename(&new, file)).expect("a record can be written");
    }
}

/// What tells one build of the tests from another.
fn build() -> String {
    let binary = std::env::current_exe().and_then(std::fs::read).expect("the tests' binary can be read");
    format!("build {:016x}", xxhash_rust::xxh64::xxh64(&binary, 0))
}

/// Runs the inputs of `numbers` on `threads` threads; what is wrong with those that failed.
fn round(target: &Target, seeds: &[Vec<u8>], seed: u64, numbers: Range<u64>, threads: u64) -> Vec<String> {
    let (next, found, folder) = (AtomicU64::new(numbers.start), Mutex::new(Vec::new()), folder());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let first = next.fetch_add(BATCH, Ordering::Relaxed);
                    if first >= numbers.end {
                        return;
                    }
                    for number in first..(first + BATCH).min(numbers.end) {
                        if let Err(wrong) = try_number(target, seeds, seed, number, &folder) {
                            found.lock().expect("no thread panics").push(wrong);
                        }
                    }
                }
            });
        }
    });
    found.into_inner().expect("no thread panics")
}

#[expect(clippy::print_stdout, reason = "a command for people")]
pub fn run() {
    let told = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let number = |name: &str| told(name).map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is no whole number: {text}")));
    let (inputs, seed) = (number("DOPPLER_FUZZ_INPUTS").unwrap_or(100_000), number("DOPPLER_FUZZ_SEED").unwrap_or(SEED));
    let end = number("DOPPLER_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let wanted = told("DOPPLER_FUZZ_TARGET").filter(|name| name != "all");
    let known = TARGETS.map(|target| target.name);
    assert!(wanted.as_ref().is_none_or(|name| known.contains(&&**name)), "no such target; known are all, {}", known.join(", "));
    // Panics within libraries are caught, and told as errors; those of ours come back as failures.
    std::panic::set_hook(Box::new(|_| {}));
    let targets = TARGETS.iter().filter(|target| wanted.as_ref().is_none_or(|name| name == target.name));
    if let Some(file) = told("DOPPLER_FUZZ_INPUT") {
        let input = std::fs::read(&file).unwrap_or_else(|e| panic!("{file}: {e}"));
        for target in targets {
            println!("{}: {file}: {:?}", target.name, (target.run)(&input));
            attempt(target, &input).unwrap_or_else(|wrong| panic!("{}: {wrong}", target.name));
        }
        return;
    }
    std::fs::create_dir_all(folder()).expect("a folder for the record");
    let file = folder().join("record.txt");
    let mut record = Record::parse(&std::fs::read_to_string(&file).unwrap_or_default(), &build());
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut failures = Vec::new();
    let mut faults = 0;
    for target in targets {
        let seeds = (target.seeds)();
        let key = (target.name.to_string(), seed);
        let mut done = record.done.get(&key).copied().unwrap_or_default();
        let (mut size, mut said) = (threads * BATCH, Instant::now());
        while done.inputs < inputs && done.faults < MOST && end.is_none_or(|end| Instant::now() < end) {
            let (start, numbers) = (Instant::now(), done.inputs..inputs.min(done.inputs + size));
            let found = round(target, &seeds, seed, numbers.clone(), threads);
            let seconds = start.elapsed().as_secs_f64();
            done.inputs = numbers.end;
            done.seconds += seconds;
            done.faults += found.len() as u64;
            failures.extend(found);
            record.done.insert(key.clone(), done);
            record.save(&file);
            let speed = (numbers.end - numbers.start) as f64 / seconds.max(1e-6);
            size = ((speed * ROUND.as_secs_f64()) as u64).clamp(threads * BATCH, size * 8);
            if said.elapsed() >= 2 * ROUND {
                said = Instant::now();
                println!("  {} {} of {inputs}, {speed:.0} a second, {} faults", target.name, done.inputs, done.faults);
            }
        }
        let Done { inputs: tried, seconds, faults: found } = done;
        let state = match tried < inputs {
            true if found >= MOST => ", left",
            true => ", to go on: run it again",
            false => "",
        };
        println!("{:16} {tried:>10} inputs, {seconds:.0} s on {threads} threads, {found} faults{state}", target.name);
        faults += found;
    }
    assert!(faults == 0, "{faults} faults; inputs of some are in {}\n{}", folder().display(), failures.join("\n"));
}

#[test]
fn a_record_goes_on_in_the_same_build_only() {
    let done = BTreeMap::from([(("gguf".to_string(), 1), Done { inputs: 4096, seconds: 1.25, faults: 1 })]);
    let record = Record { build: "build 1".into(), done };
    assert_eq!(Record::parse(&record.text(), "build 1"), record);
    assert!(Record::parse(&record.text(), "build 2").done.is_empty());
    assert!(Record::parse("", "build 1").done.is_empty());
}
