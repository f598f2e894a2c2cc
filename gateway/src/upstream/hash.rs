//! The hash that places clients on upstreams.
//!
//! It must say the same in every shard, every process and every release, because several gateways
//! side by side have to agree where a client belongs; so it is XXH64 (the xxHash specification,
//! version 0.2.0) with seed 0, and not the hasher of a library. It is not for security: whoever
//! knows it can choose keys that meet on one upstream, which the bound on loads contains
//! (`balance.rs`).

const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME_5: u64 = 0x27D4_EB2F_1656_67C5;

/// XXH64 of `bytes` with seed 0.
pub fn stable_hash(bytes: &[u8]) -> u64 {
    let (stripes, rest) = bytes.as_chunks::<32>();
    let mut hash = PRIME_5;
    if !stripes.is_empty() {
        let mut lanes = [PRIME_1.wrapping_add(PRIME_2), PRIME_2, 0, 0_u64.wrapping_sub(PRIME_1)];
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
                *lane = round(*lane, u64::from_le_bytes(*word));
            }
        }
        let turned = lanes.iter().zip([1, 7, 12, 18]).map(|(lane, by)| lane.rotate_left(by));
        hash = turned.fold(0, u64::wrapping_add);
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(PRIME_1).wrapping_add(PRIME_4);
        }
    }
    hash = hash.wrapping_add(bytes.len() as u64);
    let (words, rest) = rest.as_chunks::<8>();
    for word in words {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(PRIME_1).wrapping_add(PRIME_4);
    }
    let (halves, rest) = rest.as_chunks::<4>();
    for half in halves {
        hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(PRIME_1);
        hash = hash.rotate_left(23).wrapping_mul(PRIME_2).wrapping_add(PRIME_3);
    }
    for byte in rest {
        hash ^= u64::from(*byte).wrapping_mul(PRIME_5);
        hash = hash.rotate_left(11).wrapping_mul(PRIME_1);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(PRIME_2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(PRIME_3);
    hash ^ (hash >> 32)
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIME_2)).rotate_left(31).wrapping_mul(PRIME_1)
}

/// Spreads the bits of `value`: a bijection (the finalizer of SplitMix64), for values that are
/// hashes already or drawn at random.
pub(super) fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published vectors; the last two go through the stripes.
    #[test]
    fn it_is_xxh64() {
        for (text, want) in [
            ("", 0xEF46_DB37_51D8_E999),
            ("a", 0xD24E_C4F1_A98C_6E5B),
            ("abc", 0x44BC_2CF5_AD77_0999),
            ("Nobody inspects the spammish repetition", 0xFBCE_A83C_8A37_8BF1),
        ] {
            assert_eq!(stable_hash(text.as_bytes()), want, "{text:?}");
        }
    }

    /// Each bit that goes in turns about half of those that come out, at every length that takes
    /// another way through the function.
    #[test]
    fn every_bit_matters() {
        for length in 1..=70 {
            let mut bytes: Vec<u8> = (0..length).map(|index| (index * 37) as u8).collect();
            let before = stable_hash(&bytes);
            let mut turned = 0;
            for bit in 0..length * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                turned += (before ^ stable_hash(&bytes)).count_ones();
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            // A mean of 32 with a deviation of 4 / sqrt(bits); six of those either way.
            let (bits, mean) = ((length * 8) as f64, f64::from(turned) / (length * 8) as f64);
            assert!((mean - 32.0).abs() < 24.0 / bits.sqrt(), "length {length}: {mean}");
        }
    }
}
