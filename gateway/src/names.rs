//! Names that clients give, of users and of rooms: what they may be made of, their one spelling, and how
//! they are printed.
//!
//! A name is an address. Two names that look alike must be one name, and a name that is printed must not
//! change the line it stands in. So a name has one spelling (Unicode's NFC), and characters that are
//! invisible, blank, unknown or move their neighbours are refused ([`clean`]) and escaped where text is
//! printed ([`Escaped`], [`escape_json`]). Letters of different scripts that look alike stay different.
//!
//! The rules are those of PRECIS: the characters of its FreeformClass (RFC 8264 §4.3), normalized by NFC as
//! in UsernameCasePreserved (RFC 8265 §3.4), with spaces where a Nickname has them (RFC 8266 §2.1). Three
//! rules are stricter. A space that RFC 8266 would map or strip is refused, so that a client is never known
//! by a name that it did not send. Joiners (CONTEXTJ) are refused in every context. So are the blanks that
//! Unicode counts as symbols, letters or marks.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use unicode_normalization::char::is_public_assigned;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// A spelling has at most so many times the bytes of its NFC form: 3.5 times is the longest known, of
/// U+1FBE U+0308 U+0301 for U+0390. What is longer is refused unread, which bounds the work.
const SPELLING_BYTES_FACTOR: usize = 4;

/// Why a name is refused, displayed as what follows "the name": `is empty`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It has no bytes.
    Empty,
    /// In its one spelling it has more bytes than these.
    TooLong(usize),
    /// Its first or last character is a space.
    SpaceAtEnd,
    /// It has two spaces side by side.
    SpacesInARow,
    /// It has a character that no name has.
    Refused(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self {
            NameError::Empty => return f.write_str("is empty"),
            NameError::TooLong(bytes_max) => return write!(f, "is longer than {bytes_max} bytes"),
            NameError::SpaceAtEnd => return f.write_str("begins or ends with a space"),
            NameError::SpacesInARow => return f.write_str("has two spaces in a row"),
            NameError::Refused(letter) => *letter,
        };
        let why = match unfit(letter) {
            Some(Unfit::Control) => "a control character",
            Some(Unfit::LineEnd) => "which ends a line",
            Some(Unfit::Direction) => "which turns the direction of text",
            Some(Unfit::Invisible) => "which is invisible",
            Some(Unfit::Space) => "a space other than U+0020",
            Some(Unfit::Blank) => "which looks like a space",
            Some(Unfit::Format) => "which changes how its neighbours look",
            Some(Unfit::Unknown) => "which Unicode has not assigned, or for private use",
            None => "a letter of old Hangul that is part of no syllable",
        };
        write!(f, "has U+{:04X}, {why}", u32::from(letter))
    }
}

impl std::error::Error for NameError {}

/// The one spelling of a name of at most `bytes_max` bytes, which only another spelling is copied for.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn clean<'a>(
    name: impl Into<Cow<'a, str>>,
    bytes_max: usize,
) -> Result<Cow<'a, str>, NameError> {
    let name = name.into();
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > bytes_max.saturating_mul(SPELLING_BYTES_FACTOR) {
        return Err(NameError::TooLong(bytes_max));
    }
    let refused = match name.is_ascii() {
        true => name.bytes().find(u8::is_ascii_control).map(char::from),
        false => name.chars().find(|letter| unfit(*letter).is_some()),
    };
    if let Some(letter) = refused {
        return Err(NameError::Refused(letter));
    }
    if name.starts_with(' ') || name.ends_with(' ') {
        return Err(NameError::SpaceAtEnd);
    }
    if name.contains("  ") {
        return Err(NameError::SpacesInARow);
    }
    let name = one_spelling(name);
    // Syllables were composed of theirs by now.
    if let Some(letter) = name.chars().find(|letter| is_old_hangul_jamo(*letter)) {
        return Err(NameError::Refused(letter));
    }
    if name.len() > bytes_max {
        return Err(NameError::TooLong(bytes_max));
    }
    Ok(name)
}

/// The one spelling (NFC) of a text, whatever else is in it; at most three times as long.
pub fn one_spelling<'a>(text: impl Into<Cow<'a, str>>) -> Cow<'a, str> {
    let text = text.into();
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return text;
    }
    text.nfc().collect::<String>().into()
}

/// The reason for which no name has a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfit {
    /// Cc.
    Control,
    /// Zl, Zp.
    LineEnd,
    /// Bidi_Control.
    Direction,
    /// Default_Ignorable_Code_Point without those.
    Invisible,
    /// Zs without U+0020.
    Space,
    /// Symbols, letters and marks whose glyph is empty.
    Blank,
    /// Cf without all above: above all prepended concatenation marks, whose glyph takes in what follows.
    Format,
    /// Cn and Co, noncharacters among them.
    Unknown,
}

/// `None`: a letter like others, or U+0020.
fn unfit(letter: char) -> Option<Unfit> {
    Some(match letter {
        ' '..='~' => return None,
        '\0'..='\u{1F}' | '\u{7F}'..='\u{9F}' => Unfit::Control,
        '\u{2028}' | '\u{2029}' => Unfit::LineEnd,
        '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
            Unfit::Direction
        }
        '\u{AD}'
        | '\u{34F}'
        | '\u{115F}'
        | '\u{1160}'
        | '\u{17B4}'
        | '\u{17B5}'
        | '\u{180B}'..='\u{180F}'
        | '\u{200B}'..='\u{200D}'
        | '\u{2060}'..='\u{2065}'
        | '\u{206A}'..='\u{206F}'
        | '\u{3164}'
        | '\u{FE00}'..='\u{FE0F}'
        | '\u{FEFF}'
        | '\u{FFA0}'
        | '\u{FFF0}'..='\u{FFF8}'
        | '\u{1BCA0}'..='\u{1BCA3}'
        | '\u{1D173}'..='\u{1D17A}'
        | '\u{E0000}'..='\u{E0FFF}' => Unfit::Invisible,
        '\u{A0}' | '\u{1680}' | '\u{2000}'..='\u{200A}' | '\u{202F}' | '\u{205F}' | '\u{3000}' => {
            Unfit::Space
        }
        // The Braille pattern without a dot, the filler of Khitan, the blanks of Egyptian hieroglyphs, and
        // the null notehead of music.
        '\u{2800}' | '\u{16FE4}' | '\u{13441}' | '\u{13442}' | '\u{1D159}' => Unfit::Blank,
        '\u{600}'..='\u{605}'
        | '\u{6DD}'
        | '\u{70F}'
        | '\u{890}'
        | '\u{891}'
        | '\u{8E2}'
        | '\u{FFF9}'..='\u{FFFB}'
        | '\u{110BD}'
        | '\u{110CD}'
        | '\u{13430}'..='\u{1343F}' => Unfit::Format,
        _ if is_public_assigned(letter) => return None,
        _ => Unfit::Unknown,
    })
}

/// OldHangulJamo (RFC 8264 §9.9): the letters that Hangul syllables are composed of.
fn is_old_hangul_jamo(letter: char) -> bool {
    matches!(letter, '\u{1100}'..='\u{11FF}' | '\u{A960}'..='\u{A97C}' | '\u{D7B0}'..='\u{D7FB}')
}

/// Text for a line of a terminal or a log: characters that no name has are displayed as `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match unfit(letter) {
                Some(_) => write!(f, "{}", letter.escape_unicode())?,
                None => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

/// JSON for a terminal: the same value, with those characters of its strings as `\u202e`. Those of ASCII
/// are written like that already, or stand between values.
pub fn escape_json(json: &str) -> Cow<'_, str> {
    let is_escaped = |letter: char| !letter.is_ascii() && unfit(letter).is_some();
    if !json.contains(is_escaped) {
        return json.into();
    }
    let mut out = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        if is_escaped(letter) {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                // Writing into a `String` cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(letter);
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: &str, want: Result<&str, &str>) {
        let got = clean(given, 12).map_err(|error| error.to_string());
        let got = got.as_deref().map_err(String::as_str);
        assert_eq!(got, want, "{}", given.escape_unicode());
        if let Ok(name) = want {
            assert_eq!(clean(name, 12).as_deref(), Ok(name), "it is its own spelling");
        }
    }

    #[test]
    fn names_and_their_one_spelling() {
        for (given, name) in [
            ("ann", "ann"),
            ("Ann Lee~!", "Ann Lee~!"),
            ("ann_0123456_", "ann_0123456_"),
            ("Zoë", "Zoë"),
            // Composed, decomposed, and with marks in another order.
            ("e\u{301}", "\u{e9}"),
            ("a\u{323}\u{302}", "\u{1ead}"),
            ("a\u{302}\u{323}", "\u{1ead}"),
            // A mark with nothing to join stays.
            ("x\u{301}", "x\u{301}"),
            // Hangul syllables out of their letters.
            ("\u{1112}\u{1161}\u{11ab}", "\u{d55c}"),
            // The signs for Kelvin, Ångström and Ohm are the letters.
            ("\u{212a}\u{212b}\u{2126}", "K\u{c5}\u{3a9}"),
            ("日本", "日本"),
            ("مريم", "مريم"),
            ("🦀", "🦀"),
            // NFC keeps what only looks alike or is of another width.
            ("\u{430}nn", "\u{430}nn"),
            ("ａnn", "ａnn"),
            ("ﬁ", "ﬁ"),
            ("é è", "é è"),
            // A letter of Hangul by itself, as keyboards write it.
            ("ㄱ", "ㄱ"),
        ] {
            check(given, Ok(name));
        }
    }

    #[test]
    fn what_no_name_has() {
        for (given, why) in [
            ("", "is empty"),
            ("a\0b", "has U+0000, a control character"),
            ("a\nb", "has U+000A, a control character"),
            ("\u{1b}[2J", "has U+001B, a control character"),
            ("a\u{7f}", "has U+007F, a control character"),
            ("é\u{9b}2J", "has U+009B, a control character"),
            ("a\u{2028}b", "has U+2028, which ends a line"),
            ("a\u{2029}b", "has U+2029, which ends a line"),
            ("\u{202e}nna", "has U+202E, which turns the direction of text"),
            ("a\u{2066}b", "has U+2066, which turns the direction of text"),
            ("a\u{2069}", "has U+2069, which turns the direction of text"),
            ("\u{200f}a", "has U+200F, which turns the direction of text"),
            ("\u{61c}a", "has U+061C, which turns the direction of text"),
            ("an\u{200b}n", "has U+200B, which is invisible"),
            ("\u{feff}ann", "has U+FEFF, which is invisible"),
            ("a\u{ad}nn", "has U+00AD, which is invisible"),
            ("a\u{34f}", "has U+034F, which is invisible"),
            ("\u{1160}", "has U+1160, which is invisible"),
            ("\u{3164}", "has U+3164, which is invisible"),
            ("\u{ffa0}", "has U+FFA0, which is invisible"),
            ("a\u{e0061}", "has U+E0061, which is invisible"),
            // Blanks and spaces.
            (" ", "begins or ends with a space"),
            (" ann", "begins or ends with a space"),
            ("ann ", "begins or ends with a space"),
            ("é ", "begins or ends with a space"),
            ("a  b", "has two spaces in a row"),
            ("\u{2800}", "has U+2800, which looks like a space"),
            ("a\u{1d159}", "has U+1D159, which looks like a space"),
            ("\u{a0}ann", "has U+00A0, a space other than U+0020"),
            ("a\u{3000}b", "has U+3000, a space other than U+0020"),
            ("a\u{2000}b", "has U+2000, a space other than U+0020"),
            ("a\u{205f}b", "has U+205F, a space other than U+0020"),
            ("\u{115f}", "has U+115F, which is invisible"),
            ("\u{600}12", "has U+0600, which changes how its neighbours look"),
            ("\u{fff9}a\u{fffa}b", "has U+FFF9, which changes how its neighbours look"),
            // Of private use, noncharacters, not assigned.
            ("\u{e000}", "has U+E000, which Unicode has not assigned, or for private use"),
            ("\u{10fffd}", "has U+10FFFD, which Unicode has not assigned, or for private use"),
            ("\u{fdd0}", "has U+FDD0, which Unicode has not assigned, or for private use"),
            ("\u{ffff}", "has U+FFFF, which Unicode has not assigned, or for private use"),
            ("\u{378}", "has U+0378, which Unicode has not assigned, or for private use"),
            // A leading consonant without its vowel.
            ("\u{1112}", "has U+1112, a letter of old Hangul that is part of no syllable"),
            ("\u{a960}", "has U+A960, a letter of old Hangul that is part of no syllable"),
            // The emoji of several parts, and those that a selector gives their colour.
            ("👩\u{200d}👧", "has U+200D, which is invisible"),
            ("❤\u{fe0f}", "has U+FE0F, which is invisible"),
        ] {
            check(given, Err(why));
        }
    }

    /// Unicode's own counts of what is listed here by hand.
    #[test]
    fn the_lists_are_whole() {
        let count = |wanted: &[Unfit]| {
            let all = ('\0'..=char::MAX).filter_map(unfit);
            all.filter(|it| wanted.contains(it)).count()
        };
        assert_eq!(count(&[Unfit::Control]), 65, "Cc");
        assert_eq!(count(&[Unfit::LineEnd]), 2, "Zl and Zp");
        // All of Bidi_Control (12) are Default_Ignorable_Code_Point (4,174).
        assert_eq!(count(&[Unfit::Direction]), 12);
        assert_eq!(count(&[Unfit::Direction, Unfit::Invisible]), 4174);
        assert_eq!(count(&[Unfit::Space]), 16, "Zs without U+0020");
        assert_eq!(count(&[Unfit::Format]), 170 - 138, "Cf, of which 138 are default ignorable");
        assert!(count(&[Unfit::Unknown]) > 6400 + 2 * 65_534, "Co alone");
    }

    #[test]
    fn lengths_are_of_the_one_spelling() {
        check("123456789012", Ok("123456789012"));
        check("1234567890123", Err("is longer than 12 bytes"));
        // Twelve letters are 36 bytes, and four are left.
        check(&"\u{212a}".repeat(12), Ok("KKKKKKKKKKKK"));
        check(&"\u{212a}".repeat(13), Err("is longer than 12 bytes"));
        check(
            &"\u{1fbe}\u{308}\u{301}".repeat(6),
            Ok("\u{390}\u{390}\u{390}\u{390}\u{390}\u{390}"),
        );
        // Two bytes become four: U+0344 is excluded from composition.
        check(&"\u{344}".repeat(3), Ok(&"\u{308}\u{301}".repeat(3)));
        check(&"\u{344}".repeat(4), Err("is longer than 12 bytes"));
        // What is too long in any spelling is refused for that, not read for what else it has.
        check(&"\0".repeat(49), Err("is longer than 12 bytes"));
        check(&"\0".repeat(48), Err("has U+0000, a control character"));
    }

    #[test]
    fn no_letter_becomes_one_that_is_refused() {
        for letter in ('\0'..=char::MAX).filter(|letter| unfit(*letter).is_none()) {
            let text = letter.to_string();
            let name = one_spelling(&*text);
            assert!(!name.contains(|it| unfit(it).is_some()), "{letter:?}");
            assert!(name.len() <= 3 * text.len(), "{letter:?}");
            assert!(text.len() <= SPELLING_BYTES_FACTOR * name.len(), "{letter:?}");
            assert_eq!(one_spelling(&*name), name, "{letter:?}");
        }
    }

    #[test]
    fn what_is_printed_stays_in_its_place() {
        for (text, line, json) in [
            ("ann ~é🦀", "ann ~é🦀", "ann ~é🦀"),
            ("a\u{202e}b", "a\\u{202e}b", "a\\u202eb"),
            ("\u{feff}", "\\u{feff}", "\\ufeff"),
            ("❤\u{fe0f}", "❤\\u{fe0f}", "❤\\ufe0f"),
            ("a\u{e0061}", "a\\u{e0061}", "a\\udb40\\udc61"),
            ("a\u{9b}b", "a\\u{9b}b", "a\\u009bb"),
            ("a\u{2028}b", "a\\u{2028}b", "a\\u2028b"),
            ("a\n\u{1b}[2J", "a\\u{a}\\u{1b}[2J", "a\n\u{1b}[2J"),
        ] {
            assert_eq!(Escaped(text).to_string(), line);
            assert_eq!(escape_json(text), json);
        }
        let value = serde_json::json!({ "user": "\u{202e}\n\u{e0061}", "é": [1, "\u{7f}"] });
        let text = value.to_string();
        let escaped = escape_json(&text);
        assert_ne!(escaped, text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }
}
