//! Structs that the host and kernels exchange: one Rust struct for each WGSL struct, field by field, of 32-bit members.
//! A test holds every row of `WIRE` against the structs that the shader compiler reads from the kernels' texts.

use crate::geometry::SLABS;
use bytemuck::{Pod, Zeroable};

/// A struct as kernels declare it.
#[derive(Debug, Clone, Copy)]
pub struct WireStruct {
    /// Its name, in Rust and in WGSL.
    pub name: &'static str,
    /// Bytes.
    pub size: usize,
    /// Name, offset in bytes and type of each member.
    pub members: &'static [(&'static str, usize, &'static str)],
}

macro_rules! wire {
    ($( $(#[$doc:meta])* $name:ident { $( $(#[$about:meta])* $member:ident: $type:ident, )* } )*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
            pub struct $name { $( $(#[$about])* pub $member: $type, )* }
        )*
        /// Every struct.
        pub const WIRE: &[WireStruct] = &[ $( WireStruct {
            name: stringify!($name),
            size: size_of::<$name>(),
            members: &[ $( (stringify!($member), std::mem::offset_of!($name, $member), stringify!($type)) ),* ],
        } ),* ];
    };
}

wire! {
    /// What changes from step to step: one slot of the step uniform.
    StepUniform {
        /// Tokens of the step, of all its sequences.
        tokens: u32,
        /// Position of the first of them, where all are of one sequence.
        position: u32,
        /// Step counter, which comes back with the results.
        serial: u32,
        /// First row for which logits are computed.
        head_first: u32,
        /// Rows of logits in this batch.
        head_rows: u32,
        /// Number of this batch of logits.
        batch: u32,
        /// Entries of the origins: one for each token, or one for all of them.
        entries: u32,
        /// Row of this batch of logits from which on tokens are picked.
        pick_first: u32,
        /// Row of candidates that belongs to it.
        pick_at: u32,
    }
    /// A value whose statistics are taken: an entry of the statistics table.
    StatsValue {
        /// Elements of a row; heads, of scores.
        width: u32,
        /// Elements from row to row.
        stride: u32,
        /// `ROWS_TOKENS`, `ROWS_HEAD` or `ROWS_SCORES`.
        rows: u32,
        /// Most workgroups of a part; small parts keep fewer of them busy.
        groups: u32,
        /// First partial in the output; each batch of logits has its own.
        slot: u32,
        /// 1: two f16 in a word.
        narrow: u32,
        /// Heads that are reduced apart; 1 for the whole value.
        parts: u32,
    }
    /// Statistics of the elements of one workgroup.
    Partial {
        /// Largest magnitude of the finite elements; −1 without any.
        max_abs: f32,
        /// Its place, row · width + element; `NOWHERE` without any.
        max_at: u32,
        /// Sum of the finite elements.
        sum: f32,
        /// Sum of their squares.
        squares: f32,
        /// Smallest finite element.
        low: f32,
        /// Largest finite element.
        high: f32,
        /// NaN elements.
        nan: u32,
        /// Infinite elements.
        inf: u32,
        /// Elements equal to zero.
        zero: u32,
        /// Place of the first NaN, or else of the first infinite element.
        bad_at: u32,
        /// Elements.
        count: u32,
    }
    /// A token that may be picked.
    Candidate {
        /// The logit's bits in an order of integers; 0 for an empty entry.
        key: u32,
        /// The token id; `NOWHERE` for an empty entry.
        id: u32,
    }
    /// An element to gather.
    Place {
        /// Row, counted from the step's first token.
        row: u32,
        /// Element of the row.
        dim: u32,
    }
}

/// Where a token, or all tokens of a sequence's step, are from: an entry of the origins. It holds vectors, which `wire` does
/// not express; `tests/suite/shaders.rs` holds its size.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct Origin {
    /// Its position.
    pub position: u32,
    /// 1: the long list of longrope.
    pub long_rope: u32,
    /// Place of its id.
    pub id: u32,
    /// Place for the id that is picked after it.
    pub picked: u32,
    /// First slot and slots of its sequence in each kind of caches.
    pub slabs: [[u32; 2]; SLABS],
}

/// The place or id of an entry that holds nothing.
pub const NOWHERE: u32 = u32::MAX;

impl Origin {
    /// The origin of the token that comes `count` tokens later in the same step. What is picked after the `last` of them is
    /// the sequence's; after another it goes where that token's own id was, which has been read by then.
    pub fn of_token(mut self, count: u32, last: bool) -> Self {
        self.position += count;
        self.id += count;
        if !last {
            self.picked = self.id;
        }
        self
    }
}

impl StatsValue {
    /// Rows of the step's tokens.
    pub const ROWS_TOKENS: u32 = 0;
    /// Rows of logits.
    pub const ROWS_HEAD: u32 = 1;
    /// `width` heads, a row for each token, a cell for each position.
    pub const ROWS_SCORES: u32 = 2;
}

impl Candidate {
    /// Id and logit; `None` for an empty entry.
    pub fn read(self) -> Option<(u32, f32)> {
        let bits = if self.key & 0x8000_0000 != 0 { self.key & 0x7fff_ffff } else { !self.key };
        (self.id != NOWHERE && self.key != 0).then_some((self.id, f32::from_bits(bits)))
    }
}

/// The structs in `bytes`, wherever they are in memory.
pub fn structs<T: Pod>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned)
}
