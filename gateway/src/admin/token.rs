//! What has to be shown to use the interface over TCP: a token out of a file (RFC 6750).

use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use subtle::ConstantTimeEq;

use crate::regular_file::{self, unreadable};

/// Shorter ones could be guessed: 16 characters of base64 are 96 bits.
const BYTES_MIN: usize = 16;

/// More than this in a file is something else than a token.
const BYTES_MAX: usize = 1024;

/// How a token is made, for messages.
const ADVICE: &str = "write one: (umask 077; head -c 24 /dev/urandom | base64 > FILE)";

/// A token that is good enough.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl Token {
    /// Reads the token in the file at `path`. White space around it is none of it.
    ///
    /// # Errors
    ///
    /// What is wrong with the file or the token, and what to do; never what it holds.
    pub fn read(path: &Path) -> Result<Token, String> {
        let Some(mut file) = regular_file::open(path)? else {
            return Err(format!("not a file; {ADVICE}"));
        };
        let mode = file.metadata().map_err(|error| unreadable(&error))?.permissions().mode();
        if mode & 0o006 != 0 {
            return Err(format!(
                "anybody on this machine may read or write it (mode {:04o}); chmod o-rw it, and \
                 write another one, as this one may be known",
                mode & 0o7777
            ));
        }
        let mut bytes = Vec::new();
        let limit = BYTES_MAX as u64 + 1;
        Read::by_ref(&mut file)
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| unreadable(&error))?;
        Token::parse(&bytes)
    }

    /// The token in `bytes`.
    ///
    /// # Errors
    ///
    /// As [`Token::read`].
    pub fn parse(bytes: &[u8]) -> Result<Token, String> {
        let token = bytes.trim_ascii();
        if bytes.len() > BYTES_MAX {
            return Err(format!("holds more than {BYTES_MAX} bytes, which is no token; {ADVICE}"));
        }
        if token.is_empty() {
            return Err(format!("holds no token; {ADVICE}"));
        }
        if token.len() < BYTES_MIN {
            let len = token.len();
            return Err(format!(
                "holds a token of {len} bytes, which could be guessed: at least {BYTES_MIN}; {ADVICE}"
            ));
        }
        // What a header can carry as one word.
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(format!(
                "holds more than one word, or what is not ASCII: a token is one line of letters, \
                 digits and signs; {ADVICE}"
            ));
        }
        Ok(Token(token.into()))
    }

    /// Whether `shown` is it. How long this takes tells nothing about what it is.
    pub fn is(&self, shown: &[u8]) -> bool {
        self.0.ct_eq(shown).into()
    }

    /// What it is.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Tells one token from another, and not what they are.
    pub fn fingerprint(&self) -> String {
        sha1_smol::Sha1::from(&self.0).digest().to_string()
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        self.is(&other.0)
    }
}

impl Eq for Token {}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn what_is_a_token() {
        let long = "x".repeat(BYTES_MAX);
        for good in ["0123456789abcdef", " \n0123456789abcdef\r\n", &long] {
            let token = Token::parse(good.as_bytes()).expect("a token");
            assert!(token.is(good.trim().as_bytes()));
            assert!(
                !token.is(b"") && !token.is(b"0123456789abcdeF") && !token.is(b"0123456789abcde")
            );
        }
        for (bad, why) in [
            (&b""[..], "holds no token"),
            (b" \n\t", "holds no token"),
            (b"0123456789abcde\n", "holds a token of 15 bytes"),
            (b"0123456789 abcdef", "holds more than one word"),
            (b"0123456789\nabcdef", "holds more than one word"),
            ("0123456789abcdef\u{e4}".as_bytes(), "not ASCII"),
            (&[b'x'; BYTES_MAX + 1], "holds more than 1024 bytes"),
        ] {
            let error = Token::parse(bad).expect_err("no token");
            assert!(error.contains(why) && error.contains("/dev/urandom"), "{error}");
            assert!(!error.contains("0123456789"), "{error}");
        }
    }

    #[test]
    fn nothing_shows_it() {
        let token = Token::parse(b"0123456789abcdef").expect("a token");
        let other = Token::parse(b"0123456789abcdeg").expect("a token");
        assert_eq!(format!("{token:?}"), "Token");
        assert!(
            !token.fingerprint().contains("0123") && token.fingerprint() != other.fingerprint()
        );
        assert!(token != other && token == token.clone());
    }

    #[test]
    fn files_that_are_no_good() {
        let path = std::env::temp_dir().join(format!("penstock-token-{}", std::process::id()));
        let missing = Token::read(&path).expect_err("no file");
        assert!(missing.starts_with("cannot be read: No such file"), "{missing}");
        fs::write(&path, "0123456789abcdef\n").expect("a scratch file");
        for (mode, good) in
            [(0o600, true), (0o640, true), (0o440, true), (0o644, false), (0o602, false)]
        {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("it is ours");
            match Token::read(&path) {
                Ok(token) => assert!(good && token.is(b"0123456789abcdef"), "{mode:o}"),
                Err(why) => assert!(!good && why.contains(&format!("(mode {mode:04o})")), "{why}"),
            }
        }
        fs::remove_file(&path).expect("it is ours");
        let directory = Token::read(&std::env::temp_dir()).expect_err("no file");
        assert!(directory.starts_with("not a file"), "{directory}");
    }
}
