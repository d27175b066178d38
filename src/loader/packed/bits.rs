//! Codes in runs of bits, the lowest first, which may cross from one word to the next.

/// The mask of a code of `bits` bits, at most 8.
pub(super) fn mask(bits: u32) -> u32 {
    (1 << bits.min(8)) - 1
}

/// Code `i` of `bits` bits in a run of words, which `word` gives.
pub(super) fn code(bits: u32, i: usize, word: impl Fn(usize) -> u32) -> u8 {
    let at = i * bits as usize;
    let (first, shift) = (at / 32, (at % 32) as u32);
    let mut found = word(first) >> shift;
    if shift + bits > 32 {
        found |= word(first + 1) << (32 - shift);
    }
    (found & mask(bits)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_cross_words() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let codes: Vec<u32> = (0..64).map(|i: u32| i.wrapping_mul(2_654_435_769) >> 7 & mask(bits)).collect();
            let mut words = [0u32; 16];
            for bit in 0..64 * bits {
                let set = codes[(bit / bits) as usize] >> (bit % bits) & 1;
                words[bit as usize / 32] |= set << (bit % 32);
            }
            for (i, expected) in codes.iter().enumerate() {
                assert_eq!(u32::from(code(bits, i, |word| words[word])), *expected, "{bits} bits, {i}");
            }
        }
    }
}
