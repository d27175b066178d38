//! What a template may cost. Templates come with models, from anywhere, so every one of these holds whatever stands in
//! them: what is built is counted where it is built, and nothing nests deeper than the stack bears.

use std::cell::Cell;

/// Bytes of a template's text.
pub(super) const SOURCE: usize = 512 << 10;
/// Brackets, blocks, signs and `not` inside each other. (Python takes 20 loops and some 60 brackets.)
pub(super) const NESTING: u32 = 64;
/// Lists, dicts and namespaces inside each other.
pub(super) const VALUE_DEPTH: u32 = 100;
/// Expressions, blocks and macro calls that are being evaluated inside each other.
pub(super) const CALL_DEPTH: u32 = 400;
/// Bytes that a rendering may make in all, in texts, lists, dicts and output, and as many times its input.
const BYTES: u64 = 96 << 20;
const BYTES_PER_INPUT: u64 = 48;
/// Steps that a rendering may take (an expression, an element, or 16 bytes of a text that are looked at).
const STEPS: u64 = 8_000_000;
const STEPS_PER_INPUT: u64 = 32;

/// Why a rendering stopped.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub message: String,
    /// 0 until the line is known.
    pub line: u32,
}

pub(super) type Fallible<T> = Result<T, Fault>;

/// A fault at a line that the caller adds.
pub(super) fn fault<T>(message: impl Into<String>) -> Fallible<T> {
    Err(Fault { message: message.into(), line: 0 })
}

/// Counts what a rendering has made and done.
#[derive(Debug)]
pub(super) struct Meter {
    bytes: Cell<u64>,
    steps: Cell<u64>,
}

impl Meter {
    /// For an input of so many bytes.
    pub fn new(input: usize) -> Self {
        let input = input as u64;
        Self {
            bytes: Cell::new(BYTES.saturating_add(BYTES_PER_INPUT.saturating_mul(input))),
            steps: Cell::new(STEPS.saturating_add(STEPS_PER_INPUT.saturating_mul(input))),
        }
    }

    /// Counts `bytes` about to be made, before they are.
    pub fn make(&self, bytes: usize) -> Fallible<()> {
        let Some(left) = self.bytes.get().checked_sub(bytes as u64) else {
            return fault("it builds texts or lists without end: it needs more memory than a chat template may have");
        };
        self.bytes.set(left);
        self.work(bytes)
    }

    /// Counts steps.
    pub fn step(&self, steps: usize) -> Fallible<()> {
        let Some(left) = self.steps.get().checked_sub(steps as u64) else {
            return fault("it does not come to an end: it takes more steps than a chat template may take");
        };
        self.steps.set(left);
        Ok(())
    }

    /// Counts the steps of looking at `bytes` of a text.
    pub fn work(&self, bytes: usize) -> Fallible<()> {
        self.step(1 + bytes / 16)
    }
}
