//! Texts of kernels as browsers get them: without comments and indentation, which nobody reads there and everybody would
//! download. Computed while compiling.

/// Bytes that `shorten` leaves.
pub const fn length(text: &str) -> usize {
    walk(text, &mut [])
}

/// `text` in `N` bytes, as many as `length` says.
pub const fn shorten<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    walk(text, &mut out);
    out
}

/// Writes what is left of `text`, where `out` has room at all, and counts it. WGSL has no texts, so `//` begins a comment.
const fn walk(text: &str, out: &mut [u8]) -> usize {
    let bytes = text.as_bytes();
    let (mut i, mut n, mut begins) = (0, 0, true);
    while i < bytes.len() {
        if bytes[i] == b'/' && i + 1 < bytes.len() && bytes[i + 1] == b'/' {
            while i < bytes.len() && bytes[i] != b'\n' {
                i += 1;
            }
            continue;
        }
        // Of a line that is empty nothing is left.
        let skipped = begins && (bytes[i] == b' ' || bytes[i] == b'\n');
        begins = bytes[i] == b'\n' || (begins && skipped);
        if !skipped {
            if n < out.len() {
                out[n] = bytes[i];
            }
            n += 1;
        }
        i += 1;
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::kernels::{KERNELS, SHARED};

    #[test]
    fn comments_and_indentation_go() {
        const TEXT: &str = "// why\n#ifdef A // b\n    let x = 1u / 2u; // c\n\n}\n";
        const SHORT: [u8; length(TEXT)] = shorten(TEXT);
        assert_eq!(std::str::from_utf8(&SHORT), Ok("#ifdef A \nlet x = 1u / 2u; \n}\n"));
    }

    #[test]
    fn every_line_of_a_kernel_that_is_no_comment_stays() {
        let texts = KERNELS.iter().map(|kernel| kernel.source).chain(SHARED.iter().map(|(_, text)| *text));
        for text in texts {
            let mut out = vec![0; length(text)];
            assert_eq!(walk(text, &mut out), out.len());
            let lines = text.lines().map(|line| line.split("//").next().unwrap_or("").trim_start_matches(' '));
            let expected: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
            let found = String::from_utf8(out).expect("UTF-8");
            assert_eq!(found.lines().collect::<Vec<_>>(), expected);
        }
    }
}
