//! Packed rows as kernels read them. The blocks of a row are taken apart: what its codes and its scales are stays the same,
//! bit by bit, but each lies with its like, in order of the elements, in words that threads beside each other can read.
//!
//! A row is a run of 32-bit words, a multiple of four of them: the low bits of every code, then the bits above them, where
//! there are any, then the scales. `gpu/kernels/shared/packed.wgsl` reads what this file writes.

use super::Format;

/// How a code's lower bits lie; element i of a plane of n bits is at bit n·i, counted from the lowest of the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Low {
    Bytes,
    Nibbles,
    Twos,
    Ones,
}

/// How the bits above them lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum High {
    None,
    Twos,
    Ones,
}

/// How scales lie, and for how many elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scales {
    /// A f16 for each block.
    Half,
    /// The upper half of a f32 for each block.
    Bf16,
    /// Two f16 for each block: the scale, and what is added.
    Pair,
    /// d f16, dmin f16 and 12 bytes of eight scales and minima, for 256.
    K4,
    /// Sixteen i8, for 16 elements each; a f16 for all 256; two bytes of nothing.
    Bytes16,
    /// Eight i8, for 32 elements each; a f16 for all 256; two bytes of nothing.
    Bytes32,
    /// Sixteen bytes of scale and minimum, for 16 elements each; d f16, dmin f16.
    K2,
    /// A f32 for each block.
    F32,
    /// A f32 for each block, whose lowest byte is a zero point.
    Zero,
    /// Two f32 for each block: the scale, and what is added.
    Affine,
}

impl Scales {
    /// Bytes for a block.
    fn bytes(self) -> usize {
        match self {
            Scales::Half | Scales::Bf16 => 2,
            Scales::Pair | Scales::F32 | Scales::Zero => 4,
            Scales::Affine => 8,
            Scales::K4 => 16,
            Scales::Bytes16 | Scales::K2 => 20,
            Scales::Bytes32 => 12,
        }
    }
}

/// How a format lies on a device.
#[derive(Debug, Clone, Copy)]
pub struct Planes {
    format: Format,
    low: Low,
    high: High,
    scales: Scales,
    /// Takes a block apart: its codes, one byte each, and its scales.
    split: fn(&[u8], &mut [u8], &mut [u8]),
    /// What makes kernels read it.
    pub defines: &'static [&'static str],
}

const fn row(
    format: Format,
    low: Low,
    high: High,
    scales: Scales,
    split: fn(&[u8], &mut [u8], &mut [u8]),
    defines: &'static [&'static str],
) -> Planes {
    Planes { format, low, high, scales, split, defines }
}

/// Formats that kernels read as they are.
pub static TABLE: [Planes; 28] = [
    row(Format::Q8_0, Low::Bytes, High::None, Scales::Half, split::q8_0, &["PACKED", "WHOLE", "ONE_PLANE", "BYTES", "S_HALF"]),
    row(
        Format::Q4_0,
        Low::Nibbles,
        High::None,
        Scales::Half,
        split::q4_0,
        &["PACKED", "WHOLE", "ONE_PLANE", "NIBBLES", "CENTER_8", "S_HALF"],
    ),
    row(
        Format::Q4_1,
        Low::Nibbles,
        High::None,
        Scales::Pair,
        split::q4_1,
        &["PACKED", "WHOLE", "ONE_PLANE", "NIBBLES", "OFFSET", "S_PAIR"],
    ),
    row(
        Format::Q5_0,
        Low::Nibbles,
        High::Ones,
        Scales::Half,
        split::q5_0,
        &["PACKED", "WHOLE", "NIBBLES", "HIGH_ONES", "CENTER_16", "S_HALF"],
    ),
    row(
        Format::Q5_1,
        Low::Nibbles,
        High::Ones,
        Scales::Pair,
        split::q5_1,
        &["PACKED", "WHOLE", "NIBBLES", "HIGH_ONES", "OFFSET", "S_PAIR"],
    ),
    row(Format::Q2K, Low::Twos, High::None, Scales::K2, split::q2_k, &["PACKED", "TWOS", "OFFSET", "S_K2"]),
    row(Format::Q3K, Low::Twos, High::Ones, Scales::Bytes16, split::q3_k, &["PACKED", "TWOS", "HIGH_ONES", "CENTER_4", "S_BYTES16"]),
    row(Format::Q4K, Low::Nibbles, High::None, Scales::K4, split::q4_k, &["PACKED", "WHOLE", "ONE_PLANE", "NIBBLES", "OFFSET", "S_K4"]),
    row(Format::Q5K, Low::Nibbles, High::Ones, Scales::K4, split::q5_k, &["PACKED", "WHOLE", "NIBBLES", "HIGH_ONES", "OFFSET", "S_K4"]),
    row(
        Format::Q6K,
        Low::Nibbles,
        High::Twos,
        Scales::Bytes16,
        split::q6_k,
        &["PACKED", "WHOLE", "NIBBLES", "HIGH_TWOS", "CENTER_32", "S_BYTES16"],
    ),
    row(Format::Iq4Nl, Low::Nibbles, High::None, Scales::Half, split::q4_0, &["PACKED", "NIBBLES", "LEVELS_IQ4", "S_HALF"]),
    row(Format::Iq4Xs, Low::Nibbles, High::None, Scales::Bytes32, split::iq4_xs, &["PACKED", "NIBBLES", "LEVELS_IQ4", "S_BYTES32"]),
    row(Format::Mxfp4, Low::Nibbles, High::None, Scales::Bf16, split::mxfp4, &["PACKED", "WHOLE", "NIBBLES", "LEVELS_FP4", "S_BF16"]),
    row(Format::Tq2_0, Low::Twos, High::None, Scales::Half, split::tq2_0, &["PACKED", "TWOS", "CENTER_1", "S_HALF", "BLOCK_256"]),
    row(Format::Q1_0, Low::Ones, High::None, Scales::Half, split::q1_0, &["PACKED", "ONES", "SIGNS", "S_HALF", "BLOCK_128"]),
    row(Format::Q2_0, Low::Twos, High::None, Scales::Half, split::q2_0, &["PACKED", "TWOS", "CENTER_1", "S_HALF", "BLOCK_64"]),
    row(
        Format::Z4x32,
        Low::Nibbles,
        High::None,
        Scales::Zero,
        split::nibbles_after::<4>,
        &["PACKED", "WHOLE", "ONE_PLANE", "NIBBLES", "CENTER_8", "OFFSET", "S_ZERO"],
    ),
    row(
        Format::Z4x128,
        Low::Nibbles,
        High::None,
        Scales::Zero,
        split::nibbles_after::<4>,
        &["PACKED", "WHOLE", "ONE_PLANE", "NIBBLES", "CENTER_8", "OFFSET", "S_ZERO", "BLOCK_128"],
    ),
    row(
        Format::A4x32,
        Low::Nibbles,
        High::None,
        Scales::Affine,
        split::nibbles_after::<8>,
        &["PACKED", "WHOLE", "ONE_PLANE", "NIBBLES", "OFFSET", "S_AFFINE"],
    ),
    row(
        Format::A4x64,
        Low::Nibbles,
        High::None,
        Scales::Affine,
        split::nibbles_after::<8>,
        &["PACKED", "WHOLE", "ONE_PLANE", "NIBBLES", "OFFSET", "S_AFFINE", "BLOCK_64"],
    ),
    row(
        Format::A8x32,
        Low::Bytes,
        High::None,
        Scales::Affine,
        split::bytes_after::<8>,
        &["PACKED", "BYTES", "UNSIGNED", "OFFSET", "S_AFFINE"],
    ),
    row(
        Format::A8x64,
        Low::Bytes,
        High::None,
        Scales::Affine,
        split::bytes_after::<8>,
        &["PACKED", "BYTES", "UNSIGNED", "OFFSET", "S_AFFINE", "BLOCK_64"],
    ),
    row(Format::S8x32, Low::Bytes, High::None, Scales::F32, split::bytes_after::<4>, &["PACKED", "WHOLE", "ONE_PLANE", "BYTES", "S_F32"]),
    row(
        Format::S8x128,
        Low::Bytes,
        High::None,
        Scales::F32,
        split::bytes_after::<4>,
        &["PACKED", "WHOLE", "ONE_PLANE", "BYTES", "S_F32", "BLOCK_128"],
    ),
    row(Format::E4m3x32, Low::Bytes, High::None, Scales::F32, split::bytes_after::<4>, &["PACKED", "BYTES", "LEVELS_E4M3", "S_F32"]),
    row(
        Format::E4m3x128,
        Low::Bytes,
        High::None,
        Scales::F32,
        split::bytes_after::<4>,
        &["PACKED", "BYTES", "LEVELS_E4M3", "S_F32", "BLOCK_128"],
    ),
    row(
        Format::Nf4,
        Low::Nibbles,
        High::None,
        Scales::F32,
        split::nibbles_after::<4>,
        &["PACKED", "NIBBLES", "LEVELS_TABLE", "LEVELS_NF4", "S_F32", "BLOCK_64"],
    ),
    row(
        Format::Fp4,
        Low::Nibbles,
        High::None,
        Scales::F32,
        split::nibbles_after::<4>,
        &["PACKED", "NIBBLES", "LEVELS_TABLE", "LEVELS_BNB4", "S_F32", "BLOCK_64"],
    ),
];

impl Format {
    /// How kernels read it packed; `None` for plain values, and for formats that no kernel reads.
    pub fn planes(self) -> Option<&'static Planes> {
        TABLE.iter().find(|planes| planes.format == self)
    }
}

impl Planes {
    /// The format.
    pub fn format(&self) -> Format {
        self.format
    }
    /// Words of a row of `columns` elements, which are whole blocks.
    pub fn row_words(&self, columns: usize) -> usize {
        let [low, high, scales] = self.sizes(columns);
        (low + high + scales).div_ceil(4).next_multiple_of(4)
    }
    /// Bytes of the planes of a row.
    fn sizes(&self, columns: usize) -> [usize; 3] {
        let low = match self.low {
            Low::Bytes => columns,
            Low::Nibbles => columns / 2,
            Low::Twos => columns / 4,
            Low::Ones => columns / 8,
        };
        let high = match self.high {
            High::None => 0,
            High::Twos => columns / 4,
            High::Ones => columns / 8,
        };
        [low, high, columns / self.format.info().block * self.scales.bytes()]
    }
    /// Takes a row of blocks apart into `out`, which has `row_words` words' bytes. What does not fit is left out.
    pub fn pack(&self, row: &[u8], columns: usize, out: &mut [u8]) {
        let info = self.format.info();
        let [low, high, _] = self.sizes(columns);
        let (low_plane, rest) = out.split_at_mut(low.min(out.len()));
        let (high_plane, scale_plane) = rest.split_at_mut(high.min(rest.len()));
        let mut codes = [0; 256];
        let codes = &mut codes[..info.block];
        let blocks = row.chunks_exact(info.bytes).zip(scale_plane.chunks_exact_mut(self.scales.bytes()));
        for (i, (block, scales)) in blocks.enumerate() {
            (self.split)(block, codes, scales);
            let first = i * info.block;
            match self.low {
                Low::Bytes => write::<1>(codes, 0, low_plane, first),
                Low::Nibbles => write::<2>(codes, 0, low_plane, first),
                Low::Twos => write::<4>(codes, 0, low_plane, first),
                Low::Ones => write::<8>(codes, 0, low_plane, first),
            }
            let shift = if self.low == Low::Twos { 2 } else { 4 };
            match self.high {
                High::None => {}
                High::Twos => write::<4>(codes, shift, high_plane, first),
                High::Ones => write::<8>(codes, shift, high_plane, first),
            }
        }
    }
}

/// Writes bits of `codes`, from bit `shift` on, into `plane`, `PER` of them to a byte, from element `first` on.
fn write<const PER: usize>(codes: &[u8], shift: u32, plane: &mut [u8], first: usize) {
    let bits = 8 / PER;
    let mask = if PER == 1 { 0xff } else { (1u8 << bits) - 1 };
    let plane = plane.get_mut(first / PER..).unwrap_or_default();
    for (byte, codes) in plane.iter_mut().zip(codes.as_chunks::<PER>().0) {
        *byte = codes.iter().enumerate().fold(0, |byte, (i, code)| byte | (code >> shift & mask) << (i * bits));
    }
}

/// Blocks taken apart; each format's file says what its bytes are.
mod split {
    /// The low nibbles of `bytes`, then the high ones.
    fn nibbles(bytes: &[u8], codes: &mut [u8]) {
        let (low, high) = codes.split_at_mut(bytes.len().min(codes.len()));
        for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
    /// Adds bit i of `bits` to code i, as its bit 4.
    fn fifth_bits(bits: &[u8], codes: &mut [u8]) {
        for (codes, byte) in codes.as_chunks_mut::<8>().0.iter_mut().zip(bits) {
            for (i, code) in codes.iter_mut().enumerate() {
                *code |= (byte >> i & 1) << 4;
            }
        }
    }
    /// Two bits each, of 128 elements in 32 bytes at a time.
    fn twos(bytes: &[u8], codes: &mut [u8]) {
        for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(bytes.as_chunks::<32>().0) {
            for (n, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    *code = byte >> (2 * n) & 3;
                }
            }
        }
    }
    /// Nibbles of neighbours, after `HEAD` bytes of scales.
    pub fn nibbles_after<const HEAD: usize>(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..HEAD]);
        for (codes, byte) in codes.as_chunks_mut::<2>().0.iter_mut().zip(&block[HEAD..]) {
            *codes = [byte & 15, byte >> 4];
        }
    }
    /// Bytes, after `HEAD` bytes of scales.
    pub fn bytes_after<const HEAD: usize>(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..HEAD]);
        codes.copy_from_slice(&block[HEAD..]);
    }
    pub fn q8_0(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..2]);
        codes.copy_from_slice(&block[2..34]);
    }
    pub fn q4_0(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..2]);
        nibbles(&block[2..18], codes);
    }
    pub fn q4_1(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..4]);
        nibbles(&block[4..20], codes);
    }
    pub fn q5_0(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..2]);
        nibbles(&block[6..22], codes);
        fifth_bits(&block[2..6], codes);
    }
    pub fn q5_1(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..4]);
        nibbles(&block[8..24], codes);
        fifth_bits(&block[4..8], codes);
    }
    pub fn q2_k(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales[..16].copy_from_slice(&block[..16]);
        scales[16..].copy_from_slice(&block[80..84]);
        twos(&block[16..80], codes);
    }
    pub fn q3_k(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        twos(&block[32..96], codes);
        for (n, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, byte) in codes.iter_mut().zip(&block[..32]) {
                *code |= (byte >> n & 1) << 2;
            }
        }
        for (group, scale) in scales[..16].iter_mut().enumerate() {
            let low = block[96 + group % 8] >> (group / 8 * 4) & 15;
            let high = block[104 + group % 4] >> (group / 4 * 2) & 3;
            *scale = (low | high << 4).wrapping_sub(32);
        }
        scales[16..18].copy_from_slice(&block[108..110]);
        scales[18..].fill(0);
    }
    pub fn q4_k(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..16]);
        for (codes, bytes) in codes.as_chunks_mut::<64>().0.iter_mut().zip(block[16..144].as_chunks::<32>().0) {
            nibbles(bytes, codes);
        }
    }
    pub fn q5_k(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..16]);
        for (codes, bytes) in codes.as_chunks_mut::<64>().0.iter_mut().zip(block[48..176].as_chunks::<32>().0) {
            nibbles(bytes, codes);
        }
        for (n, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, byte) in codes.iter_mut().zip(&block[16..48]) {
                *code |= (byte >> n & 1) << 4;
            }
        }
    }
    pub fn q6_k(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(block[..128].as_chunks::<64>().0) {
            nibbles(bytes, codes);
        }
        for (codes, bytes) in codes.as_chunks_mut::<128>().0.iter_mut().zip(block[128..192].as_chunks::<32>().0) {
            for (n, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    *code |= (byte >> (2 * n) & 3) << 4;
                }
            }
        }
        scales[..18].copy_from_slice(&block[192..210]);
        scales[18..].fill(0);
    }
    pub fn iq4_xs(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        let high = u16::from_le_bytes([block[2], block[3]]);
        for (group, scale) in scales[..8].iter_mut().enumerate() {
            let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
            *scale = (low | ((high >> (group * 2) & 3) as u8) << 4).wrapping_sub(32);
        }
        scales[8..10].copy_from_slice(&block[..2]);
        scales[10..].fill(0);
        for (codes, bytes) in codes.as_chunks_mut::<32>().0.iter_mut().zip(block[8..136].as_chunks::<16>().0) {
            nibbles(bytes, codes);
        }
    }
    pub fn mxfp4(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        // 2^(e − 128): half the scale, as levels are doubled.
        let bits: u32 = if block[0] < 2 { 0x0020_0000 << block[0] } else { u32::from(block[0] - 1) << 23 };
        scales.copy_from_slice(&bits.to_le_bytes()[2..]);
        nibbles(&block[1..17], codes);
    }
    pub fn tq2_0(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[64..66]);
        twos(&block[..64], codes);
    }
    pub fn q1_0(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..2]);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = block[2 + i / 8] >> (i % 8) & 1;
        }
    }
    pub fn q2_0(block: &[u8], codes: &mut [u8], scales: &mut [u8]) {
        scales.copy_from_slice(&block[..2]);
        for (i, code) in codes.iter_mut().enumerate() {
            *code = block[2 + i / 4] >> (i % 4 * 2) & 3;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// Blocks of random bytes, whose f16 scales are finite.
    fn blocks(format: Format, count: usize) -> Vec<u8> {
        let mut state = format as u64 + 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        loop {
            let mut bytes: Vec<u8> = (0..count * format.info().bytes).map(|_| next()).collect();
            if format.info().encode.is_none() {
                // Scales of ordinary size, and no NaN among numbers of eight bits.
                bytes.iter_mut().for_each(|byte| *byte = if *byte & 127 == 127 { 1 } else { *byte });
                bytes.chunks_exact_mut(format.info().bytes).for_each(|block| (block[3], block[7]) = (0x3c, 0xbd));
            }
            if format.values(&bytes).unwrap().iter().all(|x| x.is_finite()) {
                return bytes;
            }
        }
    }

    /// What the kernels make of a packed row.
    fn unpack(planes: &Planes, row: &[u8], columns: usize) -> Vec<f32> {
        let [low, high, _] = planes.sizes(columns);
        let (low_plane, high_plane, scales) = (&row[..low], &row[low..low + high], &row[low + high..]);
        let field = |plane: &[u8], bits: usize, i: usize| {
            if bits == 8 { plane[i] } else { plane[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1) }
        };
        let half = |at: usize| f16::from_le_bytes([scales[at], scales[at + 1]]).to_f32();
        let has = |define: &str| planes.defines.contains(&define);
        let center = |center: f32, define: &str| if has(define) { center } else { 0.0 };
        let center: f32 = [(1.0, "CENTER_1"), (4.0, "CENTER_4"), (8.0, "CENTER_8"), (16.0, "CENTER_16"), (32.0, "CENTER_32")]
            .iter()
            .map(|(value, define)| center(*value, define))
            .sum();
        (0..columns)
            .map(|i| {
                let (bits, code) = match planes.low {
                    Low::Bytes => (8, field(low_plane, 8, i)),
                    Low::Nibbles => (4, field(low_plane, 4, i)),
                    Low::Twos => (2, field(low_plane, 2, i)),
                    Low::Ones => (1, field(low_plane, 1, i)),
                };
                let code = match planes.high {
                    High::None => code,
                    High::Twos => code | field(high_plane, 2, i) << bits,
                    High::Ones => code | field(high_plane, 1, i) << bits,
                };
                let level = if has("LEVELS_E4M3") {
                    crate::quant::fp8::e4m3(code)
                } else if has("LEVELS_NF4") {
                    crate::quant::four_bit::NF4[usize::from(code)]
                } else if has("LEVELS_BNB4") {
                    crate::quant::four_bit::FP4[usize::from(code)]
                } else if has("BYTES") && !has("UNSIGNED") {
                    f32::from(code.cast_signed())
                } else if has("LEVELS_IQ4") {
                    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.][usize::from(code)]
                } else if has("LEVELS_FP4") {
                    [0., 1., 2., 3., 4., 6., 8., 12., -0., -1., -2., -3., -4., -6., -8., -12.][usize::from(code)]
                } else if has("SIGNS") {
                    2.0 * f32::from(code) - 1.0
                } else {
                    f32::from(code) - center
                };
                let block = i / planes.format.info().block * planes.scales.bytes();
                let signed = |at: usize| f32::from(scales[at].cast_signed());
                let group = i % 256 / 32;
                let word = |at: usize| f32::from_le_bytes([scales[at], scales[at + 1], scales[at + 2], scales[at + 3]]);
                let (s, offset) = match planes.scales {
                    Scales::Half => (half(block), 0.0),
                    Scales::Bf16 => (f32::from_bits(u32::from(u16::from_le_bytes([scales[block], scales[block + 1]])) << 16), 0.0),
                    Scales::Pair => (half(block), half(block + 2)),
                    Scales::K4 => {
                        let b = &scales[block + 4..block + 16];
                        let (s, m) = if group < 4 {
                            (b[group] & 63, b[group + 4] & 63)
                        } else {
                            (b[group + 4] & 15 | b[group - 4] >> 6 << 4, b[group + 4] >> 4 | b[group] >> 6 << 4)
                        };
                        (half(block) * f32::from(s), -(half(block + 2) * f32::from(m)))
                    }
                    Scales::Bytes16 => (half(block + 16) * signed(block + i % 256 / 16), 0.0),
                    Scales::Bytes32 => (half(block + 8) * signed(block + group), 0.0),
                    Scales::K2 => {
                        let byte = scales[block + i % 256 / 16];
                        (half(block + 16) * f32::from(byte & 15), -(half(block + 18) * f32::from(byte >> 4)))
                    }
                    Scales::F32 => (word(block), 0.0),
                    Scales::Affine => (word(block), word(block + 4)),
                    Scales::Zero => {
                        let s = f32::from_bits(word(block).to_bits() & !0xff);
                        (s, -(s * signed(block)))
                    }
                };
                s * level + offset
            })
            .collect()
    }

    #[test]
    fn planes_hold_what_blocks_hold() {
        for planes in &TABLE {
            let (format, columns) = (planes.format, 768);
            let row = blocks(format, columns / format.info().block);
            let words = planes.row_words(columns);
            assert!(words.is_multiple_of(4), "{format}");
            let mut out = vec![0; words * 4];
            planes.pack(&row, columns, &mut out);
            let (found, expected) = (unpack(planes, &out, columns), format.values(&row).unwrap());
            let differ = found.iter().zip(&expected).position(|(a, b)| a != b);
            assert_eq!(differ, None, "{format}");
            // No more than a twentieth above what is stored.
            assert!(out.len() * 20 <= row.len() * 22, "{format}: {} of {}", out.len(), row.len());
        }
    }

    #[test]
    fn what_is_cut_off_is_left_out() {
        for planes in &TABLE {
            let mut out = vec![0; 7];
            planes.pack(&blocks(planes.format, 1), planes.format.info().block, &mut out);
            planes.pack(&[1; 5], planes.format.info().block, &mut out);
        }
    }
}
