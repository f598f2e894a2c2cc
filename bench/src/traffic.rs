//! What is sent: how large, text or binary, masked with what; and whether it came back as it was.
//!
//! Every message has a number, and everything about it follows from that and the seed. So nothing
//! has to be kept of what is under way: when a message comes back, what it has to be is known.

use std::str::FromStr;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::proc::per;
use crate::websocket::{self, BINARY, Frame, TEXT, scramble};

/// What is sent.
#[derive(Args, Clone, Debug)]
pub(crate) struct Traffic {
    /// Bytes of a message: "64", "64..4096" (each as likely), "exp:512" (exponential, of that mean),
    /// or sizes with their weights, "64:70,1024:25,16384:5".
    #[arg(long = "size", default_value = "64", value_name = "BYTES")]
    pub(crate) sizes: Sizes,
    /// Binary messages instead of text.
    #[arg(long)]
    binary: bool,
    /// Text and binary messages, as many of each, in no order.
    #[arg(long, conflicts_with = "binary")]
    mixed: bool,
    /// What sizes, kinds and masks follow from: the same seed sends the same messages.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// How large messages are; at most [`MESSAGE_BYTES_MAX`] each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sizes {
    /// All alike.
    Fixed(u32),
    /// From one to the other, both included, each as likely.
    Uniform(u32, u32),
    /// Exponential with this mean; what is below [`NUMBER_BYTES`] or above 16 times the mean (one
    /// in nine million) is made that.
    Exponential(u32),
    /// Sizes with the sum of the weights up to and with each.
    Weighted(Vec<(u32, u64)>),
}

/// The largest message that is sent.
pub(crate) const MESSAGE_BYTES_MAX: u32 = 16 << 20;

/// The number of a message takes so much of its beginning; a smaller one has no whole number.
pub(crate) const NUMBER_BYTES: u32 = 16;

/// Sizes in a list.
const WEIGHTED_MAX: usize = 64;

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        let bytes = |text: &str| match text.parse() {
            Ok(bytes @ 0..=MESSAGE_BYTES_MAX) => Ok(bytes),
            _ => Err(format!("{text} is not a number of bytes up to {MESSAGE_BYTES_MAX}")),
        };
        if let Some(mean) = text.strip_prefix("exp:") {
            return match bytes(mean)? {
                mean @ NUMBER_BYTES.. => Ok(Sizes::Exponential(mean)),
                _ => Err(format!("a mean of at least {NUMBER_BYTES}")),
            };
        }
        if let Some((from, to)) = text.split_once("..") {
            return match (bytes(from)?, bytes(to)?) {
                (from, to) if from <= to => Ok(Sizes::Uniform(from, to)),
                _ => Err("the smaller one comes first".into()),
            };
        }
        if !text.contains(':') {
            return bytes(text).map(Sizes::Fixed);
        }
        let mut sizes = Vec::new();
        let mut sum = 0;
        for entry in text.split(',') {
            let (size, weight) = entry.split_once(':').ok_or("write SIZE:WEIGHT,SIZE:WEIGHT")?;
            let weight: u32 = weight.parse().map_err(|_| format!("{weight} is not a weight"))?;
            sum += u64::from(weight);
            sizes.push((bytes(size)?, sum));
        }
        match sum {
            0 => Err("weights above zero".into()),
            _ if sizes.len() > WEIGHTED_MAX => Err(format!("at most {WEIGHTED_MAX} sizes")),
            _ => Ok(Sizes::Weighted(sizes)),
        }
    }
}

impl Sizes {
    /// The size that a well-mixed number stands for.
    fn draw(&self, random: u64) -> u32 {
        // Below `count`, each as likely but for one in 2^32.
        let below = |count: u64| ((u128::from(random) * u128::from(count)) >> 64) as u64;
        match self {
            Sizes::Fixed(bytes) => *bytes,
            Sizes::Uniform(from, to) => from + below(u64::from(to - from) + 1) as u32,
            Sizes::Exponential(mean) => {
                // In (0, 1], so that the logarithm is finite.
                let uniform = ((random >> 11) + 1) as f64 / (1u64 << 53) as f64;
                let bytes = -uniform.ln() * f64::from(*mean);
                (bytes as u32).clamp(self.smallest(), self.largest())
            }
            Sizes::Weighted(sizes) => {
                let (_, sum) = sizes[sizes.len() - 1];
                let place = below(sum);
                sizes[sizes.partition_point(|(_, up_to)| *up_to <= place)].0
            }
        }
    }

    /// The smallest size that is drawn.
    pub(crate) fn smallest(&self) -> u32 {
        match self {
            Sizes::Fixed(bytes) | Sizes::Uniform(bytes, _) => *bytes,
            Sizes::Exponential(_) => NUMBER_BYTES,
            Sizes::Weighted(sizes) => sizes.iter().map(|(bytes, _)| *bytes).min().unwrap_or(0),
        }
    }

    /// The largest size that is drawn.
    pub(crate) fn largest(&self) -> u32 {
        match self {
            Sizes::Fixed(bytes) | Sizes::Uniform(_, bytes) => *bytes,
            Sizes::Exponential(mean) => mean.saturating_mul(16).min(MESSAGE_BYTES_MAX),
            Sizes::Weighted(sizes) => sizes.iter().map(|(bytes, _)| *bytes).max().unwrap_or(0),
        }
    }

    fn text(&self) -> String {
        match self {
            Sizes::Fixed(bytes) => bytes.to_string(),
            Sizes::Uniform(from, to) => format!("{from}..{to}"),
            Sizes::Exponential(mean) => format!("exp:{mean}"),
            Sizes::Weighted(sizes) => {
                let mut before = 0;
                let entry = |(bytes, up_to): &(u32, u64)| {
                    let weight = up_to - std::mem::replace(&mut before, *up_to);
                    format!("{bytes}:{weight}")
                };
                sizes.iter().map(entry).collect::<Vec<_>>().join(",")
            }
        }
    }
}

/// Makes messages, and knows them again.
pub(crate) struct Messages {
    sizes: Sizes,
    kind: Kind,
    seed: u64,
    /// Counts up; each mask is a well-mixed function of it (splitmix64).
    masks: u64,
    /// Letters, so that it is text. A message is a piece of it with its number written over the
    /// beginning; where the piece begins follows from the number.
    filler: Vec<u8>,
    /// Where a message is put together.
    message: Vec<u8>,
    sent: Sent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Binary,
    Mixed,
}

/// How large the messages were that were sent.
#[derive(Default)]
struct Sent {
    count: u64,
    bytes: u64,
    /// By the number of bits of the size: 0, 1, 2..3, 4..7, and so on.
    by_bits: [u64; 26],
}

/// Letters that the filler repeats.
const LETTERS: u32 = 26;

impl Messages {
    /// Messages as they were asked for.
    pub(crate) fn new(traffic: &Traffic) -> Messages {
        let kind = match (traffic.binary, traffic.mixed) {
            (_, true) => Kind::Mixed,
            (true, _) => Kind::Binary,
            _ => Kind::Text,
        };
        let largest = traffic.sizes.largest();
        Messages {
            sizes: traffic.sizes.clone(),
            kind,
            seed: scramble(traffic.seed),
            masks: scramble(!traffic.seed),
            filler: (0..largest + LETTERS).map(|i| b'a' + (i % LETTERS) as u8).collect(),
            message: Vec::with_capacity(largest as usize),
            sent: Sent::default(),
        }
    }

    /// Appends a client's message of this number as a frame.
    pub(crate) fn write(&mut self, client: u32, sequence: u32, out: &mut Vec<u8>) {
        let number = number(client, sequence);
        let Looks { opcode, size, start } = self.looks(number);
        self.message.clear();
        self.message.extend_from_slice(&self.filler[start..start + size]);
        let stamped = size.min(NUMBER_BYTES as usize);
        self.message[..stamped].copy_from_slice(&stamp(number)[..stamped]);
        self.masks = self.masks.wrapping_add(1);
        websocket::encode_frame(out, opcode, &self.message, scramble(self.masks) as u32);
        self.sent.count += 1;
        self.sent.bytes += size as u64;
        self.sent.by_bits[(usize::BITS - size.leading_zeros()) as usize] += 1;
    }

    /// Whether a frame is this message, to the last byte.
    pub(crate) fn is_echo(&self, frame: &Frame<'_>, client: u32, sequence: u32) -> bool {
        let number = number(client, sequence);
        let Looks { opcode, size, start } = self.looks(number);
        if frame.opcode != opcode || frame.payload.len() != size {
            return false;
        }
        let (front, rest) = frame.payload.split_at(size.min(NUMBER_BYTES as usize));
        front == &stamp(number)[..front.len()]
            && rest == &self.filler[start + front.len()..start + size]
    }

    /// What was sent: figures for a report.
    pub(crate) fn report(&self) -> Value {
        let counts = self.sent.by_bits.iter().enumerate().filter(|(_, count)| **count > 0);
        let by_size: Map<String, Value> = counts
            .map(|(bits, count)| {
                let (from, end) = ((1u64 << bits) / 2, 1u64 << bits);
                let last = end - 1;
                let range = if from < last { format!("{from}..{last}") } else { last.to_string() };
                (range, json!(count))
            })
            .collect();
        let kind = match self.kind {
            Kind::Text => "text",
            Kind::Binary => "binary",
            Kind::Mixed => "text and binary",
        };
        json!({
            "kind": kind,
            "sizes": self.sizes.text(),
            "bytes_mean": per(self.sent.bytes as f64, self.sent.count),
            "count_by_bytes": by_size,
        })
    }

    fn looks(&self, number: u64) -> Looks {
        // Sizes are drawn from the high bits, the kind is the lowest.
        let random = scramble(self.seed ^ number);
        let binary = match self.kind {
            Kind::Text => false,
            Kind::Binary => true,
            Kind::Mixed => random & 1 == 1,
        };
        Looks {
            opcode: if binary { BINARY } else { TEXT },
            size: self.sizes.draw(random) as usize,
            start: ((random >> 1) as u32 % LETTERS) as usize,
        }
    }
}

/// What a message looks like.
struct Looks {
    opcode: u8,
    size: usize,
    /// Where in the filler it begins.
    start: usize,
}

fn number(client: u32, sequence: u32) -> u64 {
    u64::from(sequence) << 32 | u64::from(client)
}

/// A number in 16 letters, A to P, the lowest four bits first.
fn stamp(number: u64) -> [u8; NUMBER_BYTES as usize] {
    // The nibbles are moved apart, half of what is left each time.
    let mut spread = u128::from(number);
    spread = (spread | spread << 32) & 0x0000_0000_FFFF_FFFF_0000_0000_FFFF_FFFF;
    spread = (spread | spread << 16) & 0x0000_FFFF_0000_FFFF_0000_FFFF_0000_FFFF;
    spread = (spread | spread << 8) & 0x00FF_00FF_00FF_00FF_00FF_00FF_00FF_00FF;
    spread = (spread | spread << 4) & 0x0F0F_0F0F_0F0F_0F0F_0F0F_0F0F_0F0F_0F0F;
    (spread + u128::from_ne_bytes([b'A'; 16])).to_le_bytes()
}

/// The sequence number in a message, if there is one.
pub(crate) fn read_sequence(message: &[u8]) -> Option<u32> {
    let letters: &[u8; NUMBER_BYTES as usize] = message.first_chunk()?;
    letters[8..].iter().rev().try_fold(0, |number: u32, letter| match letter {
        b'A'..=b'P' => Some(number << 4 | u32::from(letter - b'A')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::tests::parse;

    #[test]
    fn sizes_are_read_and_told_again() {
        for text in ["0", "64", "64..4096", "5..5", "exp:512", "64:70,1024:25,16384:5"] {
            assert_eq!(text.parse::<Sizes>().unwrap().text(), text);
        }
        for text in ["", "-1", "16777217", "9..8", "1..", "exp:15", "exp:", "1:0", "1:2,3", "1:-1"]
        {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
        assert!(vec!["1:1"; 65].join(",").parse::<Sizes>().unwrap_err().contains("at most"));
    }

    #[test]
    fn sizes_are_drawn_as_they_were_asked_for() {
        let draw = |text: &str| {
            let sizes: Sizes = text.parse().unwrap();
            let drawn: Vec<u32> = (0..100_000).map(|i| sizes.draw(scramble(i))).collect();
            let bounds = sizes.smallest()..=sizes.largest();
            assert!(drawn.iter().all(|size| bounds.contains(size)), "{text}");
            drawn
        };
        let mean = |drawn: &[u32]| drawn.iter().map(|size| f64::from(*size)).sum::<f64>() / 1e5;
        assert!(draw("7").iter().all(|size| *size == 7));
        let drawn = draw("10..19");
        for size in 10..=19 {
            let count = drawn.iter().filter(|drawn| **drawn == size).count();
            assert!((9_500..10_500).contains(&count), "{count} of {size}");
        }
        let drawn = draw("exp:1000");
        assert!((980.0..1020.0).contains(&mean(&drawn)), "{}", mean(&drawn));
        // Of an exponential distribution, 1 - 1/e is below the mean.
        let below = drawn.iter().filter(|size| **size < 1000).count();
        assert!((62_000..64_500).contains(&below), "{below}");
        let drawn = draw("64:70,1024:25,16384:5");
        for (size, percent) in [(64, 70), (1024, 25), (16384, 5)] {
            let count = drawn.iter().filter(|drawn| **drawn == size).count() as i64;
            assert!((count - percent * 1000).abs() < 500, "{count} of {size}");
        }
    }

    /// The frame that a message would come back as.
    fn echoed(messages: &mut Messages, client: u32, sequence: u32) -> (Vec<u8>, Vec<u8>) {
        let mut wire = Vec::new();
        messages.write(client, sequence, &mut wire);
        let header = match wire[1] & 0x7F {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let mask: [u8; 4] = wire[header..header + 4].try_into().unwrap();
        let mut back = wire[..header].to_vec();
        back[1] &= 0x7F;
        let mut payload = wire[header + 4..].to_vec();
        websocket::apply_mask(&mut payload, mask);
        back.extend_from_slice(&payload);
        (back, mask.to_vec())
    }

    #[test]
    fn a_message_is_known_again_and_a_changed_one_is_not() {
        for line in ["--size 0", "--size 5 --binary", "--size 16..90 --mixed", "--size exp:300"] {
            let mut messages = Messages::new(&parse(line));
            for (client, sequence) in [(0, 0), (7, 1), (1, 7), (1_000_000, u32::MAX)] {
                let (mut wire, _) = echoed(&mut messages, client, sequence);
                let is_echo = |wire: &[u8]| {
                    let (frame, _) = websocket::decode_frame(wire).unwrap().unwrap();
                    messages.is_echo(&frame, client, sequence)
                };
                assert!(is_echo(&wire), "{line}");
                let header = if wire[1] == 126 { 4 } else { 2 };
                for i in header..wire.len() {
                    wire[i] ^= 0x20;
                    assert!(!is_echo(&wire), "{line}: byte {i}");
                    wire[i] ^= 0x20;
                }
                wire[0] ^= 0x03; // The other kind.
                assert!(!is_echo(&wire), "{line}");
            }
            let (wire, _) = echoed(&mut messages, 3, 4);
            let (frame, _) = websocket::decode_frame(&wire).unwrap().unwrap();
            // A smaller one has no room for the number.
            let has_number = frame.payload.len() >= NUMBER_BYTES as usize;
            assert!(!has_number || !messages.is_echo(&frame, 3, 5), "{line}");
        }
    }

    #[test]
    fn the_number_of_a_message_is_read_back() {
        let mut messages = Messages::new(&parse("--size 20"));
        for sequence in [0, 1, 15, 16, 0x1234_5678, u32::MAX] {
            let (mut wire, _) = echoed(&mut messages, 77, sequence);
            assert_eq!(read_sequence(&wire[2..]), Some(sequence));
            wire[2 + 9] = b'Q';
            assert_eq!((read_sequence(&wire[2..]), read_sequence(&wire[2..17])), (None, None));
        }
        // Letter by letter, the naive twin.
        for number in [0, 1, 0x0123_4567_89AB_CDEF, u64::MAX] {
            let naive: Vec<u8> = (0..16).map(|i| b'A' + (number >> (4 * i) & 0xF) as u8).collect();
            assert_eq!(stamp(number).to_vec(), naive);
        }
    }

    #[test]
    fn the_same_seed_sends_the_same_and_masks_do_not_repeat() {
        let send = |line: &str| {
            let mut messages = Messages::new(&parse(line));
            let mut wire = Vec::new();
            (0..1000).for_each(|sequence| messages.write(1, sequence, &mut wire));
            (wire, messages.report())
        };
        let (wire, report) = send("--size 16..200 --mixed --seed 7");
        assert!(send("--size 16..200 --mixed --seed 7").0 == wire);
        assert!(send("--size 16..200 --mixed --seed 8").0 != wire);
        assert_eq!(report["sizes"], "16..200");
        assert!((100.0..116.0).contains(&report["bytes_mean"].as_f64().unwrap()), "{report}");
        let counts = report["count_by_bytes"].as_object().unwrap();
        let names: Vec<&String> = counts.keys().collect();
        assert_eq!(names, ["16..31", "32..63", "64..127", "128..255"]);
        assert_eq!(counts.values().map(|count| count.as_u64().unwrap()).sum::<u64>(), 1000);
        let mut messages = Messages::new(&parse("--size 16"));
        let masks: std::collections::BTreeSet<Vec<u8>> =
            (0..1000).map(|sequence| echoed(&mut messages, 0, sequence).1).collect();
        assert!(masks.len() > 990, "{}", masks.len());
    }
}
