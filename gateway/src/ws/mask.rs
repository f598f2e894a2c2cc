//! Masking (RFC 6455 §5.3): a client XORs its payload with a key of four bytes.

/// Masks or unmasks `payload` in place; the two are the same. `phase` is the number of bytes of
/// this frame's payload that came before, for a payload may be cut anywhere.
pub fn apply_mask(payload: &mut [u8], key: [u8; 4], phase: usize) {
    let turned: [u8; 4] = std::array::from_fn(|i| key[(phase + i) % 4]);
    let half = u32::from_ne_bytes(turned);
    // Two copies of the key, in the byte order of this machine either way around.
    let word = u64::from(half) << 32 | u64::from(half);
    // Whole words in a loop without branches: the compiler makes vector instructions of it.
    let mut words = payload.chunks_exact_mut(8);
    for chunk in &mut words {
        let masked = u64::from_ne_bytes((&*chunk).try_into().expect("eight bytes")) ^ word;
        chunk.copy_from_slice(&masked.to_ne_bytes());
    }
    // Eight is a multiple of four, so the key is where it started.
    for (byte, key) in words.into_remainder().iter_mut().zip(turned.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain twin, as §5.3 says it.
    fn apply_mask_plain(payload: &mut [u8], key: [u8; 4], phase: usize) {
        for (i, byte) in payload.iter_mut().enumerate() {
            *byte ^= key[(phase + i) % 4];
        }
    }

    #[test]
    fn equals_its_plain_twin_for_every_length_alignment_and_phase() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        let original: Vec<u8> = (0..400u32).map(|i| (i * 7) as u8).collect();
        for length in 0..=300 {
            for start in 0..16 {
                for phase in 0..4 {
                    let (mut fast, mut plain) = (original.clone(), original.clone());
                    apply_mask(&mut fast[start..start + length], key, phase);
                    apply_mask_plain(&mut plain[start..start + length], key, phase);
                    assert_eq!(fast, plain, "{length} bytes at {start} in phase {phase}");
                }
            }
        }
    }

    #[test]
    fn section_5_7_masked_hello() {
        let mut payload = *b"\x7f\x9f\x4d\x51\x58";
        apply_mask(&mut payload, [0x37, 0xfa, 0x21, 0x3d], 0);
        assert_eq!(&payload, b"Hello");
    }
}
