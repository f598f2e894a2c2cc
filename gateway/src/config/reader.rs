//! Takes values out of a TOML text, remembers where each stood, and collects what is wrong.
//!
//! A [`Section`] is asked for its keys by name and type. A fault is noted at its place and `None`
//! is the answer, so that reading goes on and one run finds everything. When all keys have been
//! asked for, [`Section::finish`] refuses those that nobody asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Keys, SubjectIndex, written};
use super::warnings::Lines;
use super::{Fault, Faults};

/// Every key that was asked for, as `limits.head_bytes_max`, and what it may be if it is a number.
pub(super) type Asked = BTreeMap<String, Option<RangeInclusive<u64>>>;

/// Where something stands: a range of bytes of the text.
pub(super) type Place = Range<usize>;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// The text, and what was found in it so far.
pub(super) struct Reader<'t> {
    text: &'t str,
    found: RefCell<Vec<Found>>,
    asked: RefCell<Asked>,
    /// What they came to.
    keys: RefCell<Keys>,
    /// Where each of those that are written stands.
    lines: RefCell<Lines>,
}

struct Found {
    place: Place,
    message: String,
    kind: Kind,
}

/// Faults that are looked at: a file with more is no configuration, and each costs a walk of its text.
const FOUND_MAX: usize = 1000;

/// Faults that are told.
const FAULTS_MAX: usize = 100;

/// How sure we are of a fault where the text could not be parsed.
#[derive(PartialEq)]
enum Kind {
    /// The text is not TOML there.
    Syntax,
    /// The value itself is wrong.
    Value,
    /// Something else is missing or the same; may be an echo of a syntax fault elsewhere.
    Echo,
}

impl<'t> Reader<'t> {
    /// Parses `text` as far as it can be; syntax faults are noted.
    pub(super) fn parse(text: &'t str) -> (Reader<'t>, Spanned<DeTable<'t>>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let found = errors
            .iter()
            .take(FOUND_MAX)
            .map(|error| Found {
                place: error.span().unwrap_or(0..0),
                message: format!("not TOML: {}; see https://toml.io", error.message()),
                kind: Kind::Syntax,
            })
            .collect();
        let asked = RefCell::new(Asked::new());
        let keys = RefCell::new(Keys::default());
        let lines = RefCell::new(Lines::of(text));
        (Reader { text, found: RefCell::new(found), asked, keys, lines }, table)
    }

    /// The value at `place` is wrong.
    pub(super) fn fault(&self, place: &Place, message: impl Display) {
        self.note(place, message.to_string(), Kind::Value);
    }

    /// Something at `place` does not agree with something elsewhere. Not reported while there are
    /// syntax faults, which may have hidden the other one.
    pub(super) fn echo(&self, place: &Place, message: impl Display) {
        self.note(place, message.to_string(), Kind::Echo);
    }

    fn note(&self, place: &Place, message: String, kind: Kind) {
        if !self.is_full() {
            self.found.borrow_mut().push(Found { place: place.clone(), message, kind });
        }
    }

    fn is_full(&self) -> bool {
        self.found.borrow().len() >= FOUND_MAX
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_good(&self) -> bool {
        self.found.borrow().is_empty()
    }

    /// Every key that was asked for.
    pub(super) fn into_asked(self) -> Asked {
        self.asked.into_inner()
    }

    /// What every key came to; leaves nothing.
    pub(super) fn take_keys(&self) -> Keys {
        self.keys.take()
    }

    /// The line of every table and key that is written; leaves nothing.
    pub(super) fn take_lines(&self) -> Lines {
        self.lines.take()
    }

    /// What `[[key]]` say has no effect: the command line goes first.
    pub(super) fn forget_items(&self, key: &str) {
        self.keys.borrow_mut().forget_items(key);
        self.lines.borrow_mut().forget(&format!("{key}["));
    }

    /// What was found, in the order of the text.
    pub(super) fn faults(&self, name: &str) -> Faults {
        let mut found = self.found.borrow_mut();
        found.sort_by_key(|found| found.place.start);
        let line_of = |place: &Place| position(self.text, place.start).0;
        let broken: BTreeSet<usize> = found
            .iter()
            .filter(|found| found.kind == Kind::Syntax)
            .map(|found| line_of(&found.place))
            .collect();
        let mut list = Vec::new();
        for found in found.iter() {
            let (line, column) = position(self.text, found.place.start);
            let believed = match found.kind {
                Kind::Syntax => true,
                // What the parser made of a line that it could not read says nothing.
                Kind::Value => !broken.contains(&line),
                Kind::Echo => broken.is_empty(),
            };
            let fault = Fault { line, column, message: found.message.clone() };
            if believed && !list.contains(&fault) {
                list.push(fault);
            }
        }
        if list.len() > FAULTS_MAX {
            let more = if found.len() < FOUND_MAX { "" } else { "at least " };
            let message = format!(
                "{more}{} more; mend these first, or see whether this is the right file",
                list.len() - FAULTS_MAX
            );
            list.truncate(FAULTS_MAX);
            list.push(Fault { line: 0, column: 0, message });
        }
        Faults { name: name.to_owned(), list }
    }
}

/// Line and column of a byte, both from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// One table of the file, being read.
pub(super) struct Section<'r, 't> {
    reader: &'r Reader<'t>,
    /// As the operator knows it: `[limits]`.
    title: String,
    /// As the documentation lists its keys: `limits`, `backend.websocket`.
    scope: String,
    /// What [`Lines`] know it by: `limits`, `route[0]`, `backend.chat.upstream[1]`.
    path: String,
    place: Place,
    table: Option<&'r DeTable<'t>>,
    asked: Vec<&'static str>,
    subject: SubjectIndex,
}

impl<'r, 't> Section<'r, 't> {
    /// The whole file.
    pub(super) fn root(reader: &'r Reader<'t>, table: &'r DeTable<'t>) -> Section<'r, 't> {
        Section::new(reader, "the file", ("", String::new()), 0..0, Some(table), SubjectIndex::ROOT)
    }

    fn new(
        reader: &'r Reader<'t>,
        title: &str,
        (scope, path): (&str, String),
        place: Place,
        table: Option<&'r DeTable<'t>>,
        subject: SubjectIndex,
    ) -> Section<'r, 't> {
        if table.is_some() && !path.is_empty() {
            reader.lines.borrow_mut().note(path.clone(), place.start);
        }
        let (title, scope) = (title.to_owned(), scope.to_owned());
        Section { reader, title, scope, path, place, table, asked: Vec::new(), subject }
    }

    /// What [`Lines`] know a key or table of this one by.
    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Where the table begins.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// What further keys of this section are listed under.
    pub(super) fn set_scope(&mut self, scope: &str) {
        scope.clone_into(&mut self.scope);
    }

    /// Where the value of `key` stands, or the table where it is not written.
    pub(super) fn place_of(&self, key: &str) -> Place {
        let value = self.table.and_then(|table| table.get(key));
        value.map_or_else(|| self.place.clone(), Spanned::span)
    }

    /// Whether `key` is written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether `key` is written and is not an empty list or table.
    pub(super) fn has_items(&self, key: &str) -> bool {
        match self.table.and_then(|table| table.get(key)).map(Spanned::get_ref) {
            None => false,
            Some(DeValue::Array(array)) => !array.is_empty(),
            Some(DeValue::Table(table)) => !table.is_empty(),
            Some(_) => true,
        }
    }

    /// The string that `key` is, before it is read.
    pub(super) fn peek(&self, key: &str) -> Option<&str> {
        match self.table?.get(key)?.get_ref() {
            DeValue::String(text) => Some(text),
            _ => None,
        }
    }

    fn value(&mut self, key: &'static str) -> Option<&'r Spanned<DeValue<'t>>> {
        self.value_within(key, None)
    }

    fn value_within(
        &mut self,
        key: &'static str,
        range: Option<&RangeInclusive<u64>>,
    ) -> Option<&'r Spanned<DeValue<'t>>> {
        self.asked.push(key);
        if !self.scope.is_empty() {
            self.reader.asked.borrow_mut().insert(format!("{}.{key}", self.scope), range.cloned());
        }
        let value = self.table.and_then(|table| table.get(key));
        self.reader.keys.borrow_mut().note(self.subject, key, value.map(Spanned::get_ref));
        if let Some(value) = value {
            self.reader.lines.borrow_mut().note(self.path_of(key), value.span().start);
        }
        value
    }

    /// What `key` comes to, as the file would write it: where that is more than its text tells, and
    /// where it is not written. Of a default that nobody settles it can only be said that it was
    /// not written, so that writing it out counts as a change.
    pub(super) fn settle(&self, key: &'static str, value: impl Display) {
        self.reader.keys.borrow_mut().settle(self.subject, key, value.to_string());
    }

    /// The same for a list that is empty where it is not written.
    pub(super) fn settle_list(&self, key: &'static str) {
        if !self.has(key) {
            self.settle(key, "[]");
        }
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let is = value.get_ref().type_str();
        let article = if is.starts_with(['a', 'i']) { "an" } else { "a" };
        let message = format!("`{key}` is {article} {is}: it must be {wanted}");
        self.reader.fault(&value.span(), message);
    }

    /// `[key]`; a section without a table when it is not written, so that defaults apply.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'r, 't> {
        let (title, path) = (format!("[{key}]"), self.path_of(key));
        let value = self.value(key);
        let subject = self.reader.keys.borrow_mut().add_section(self.subject, key);
        match value {
            None => Section::new(self.reader, &title, (key, path), 0..0, None, subject),
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => {
                    let place = value.span();
                    Section::new(self.reader, &title, (key, path), place, Some(table), subject)
                }
                _ => {
                    self.wrong_type(key, value, &format!("a table; write it as {title}"));
                    Section::new(self.reader, &title, (key, path), value.span(), None, subject)
                }
            },
        }
    }

    /// `[[key]]`, each of them.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'r, 't>> {
        let title = format!("[[{key}]]");
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(key, value, &format!("a list of tables; write it as {title}"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in array.iter().enumerate() {
            match item.get_ref() {
                DeValue::Table(table) => {
                    let mut keys = self.reader.keys.borrow_mut();
                    let subject = keys.add_item(self.subject, key, table, index);
                    let path = format!("{}[{index}]", self.path_of(key));
                    sections.push(Section::new(
                        self.reader,
                        &title,
                        (key, path),
                        item.span(),
                        Some(table),
                        subject,
                    ));
                }
                _ => self.wrong_type(key, item, &format!("a table; write it as {title}")),
            }
        }
        sections
    }

    /// `[key.NAME]`, each of them under its name.
    pub(super) fn named(&mut self, key: &'static str) -> Vec<(Placed<String>, Section<'r, 't>)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Table(tables) = value.get_ref() else {
            self.wrong_type(key, value, &format!("a table of tables; write it as [{key}.NAME]"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (name, value) in tables.iter() {
            let title = format!("[{key}.{}]", name.get_ref());
            match value.get_ref() {
                DeValue::Table(table) => {
                    let mut keys = self.reader.keys.borrow_mut();
                    let subject = keys.add_named(self.subject, key, name.get_ref());
                    let (reader, place) = (self.reader, value.span());
                    let at = (key, format!("{}.{}", self.path_of(key), name.get_ref()));
                    let section = Section::new(reader, &title, at, place, Some(table), subject);
                    let name = Placed { value: name.get_ref().to_string(), place: name.span() };
                    sections.push((name, section));
                }
                _ => self.wrong_type(name.get_ref(), value, &format!("a table; write {title}")),
            }
        }
        sections
    }

    /// A string.
    pub(super) fn string(&mut self, key: &'static str) -> Option<Placed<String>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Placed { value: text.to_string(), place: value.span() }),
            _ => {
                self.wrong_type(key, value, "a string; put it in double quotes");
                None
            }
        }
    }

    /// A list of strings; `None` where it is not written, or is no list.
    pub(super) fn strings(&mut self, key: &'static str) -> Option<Vec<Placed<String>>> {
        let value = self.value(key)?;
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(key, value, "a list of strings; write [\"...\", \"...\"]");
            return None;
        };
        let mut strings = Vec::new();
        for item in array.iter() {
            match item.get_ref() {
                DeValue::String(text) => {
                    strings.push(Placed { value: text.to_string(), place: item.span() });
                }
                _ => self.wrong_type(key, item, "a list of strings; put each in double quotes"),
            }
        }
        Some(strings)
    }

    /// A string that has to be there.
    pub(super) fn required(&mut self, key: &'static str, example: &str) -> Option<Placed<String>> {
        if !self.has(key) {
            self.missing(key, example);
        }
        self.string(key)
    }

    fn missing(&self, key: &str, example: &str) {
        let message =
            format!("`{key}` is missing: {} needs it; add {key} = \"{example}\"", self.title);
        self.reader.echo(&self.place, message);
    }

    /// One of a few words, the first of which is the default.
    pub(super) fn word(&mut self, key: &'static str, words: &[&'static str]) -> &'static str {
        let Some(text) = self.string(key) else {
            self.settle(key, written(words[0]));
            return words[0];
        };
        let word = words.iter().find(|word| **word == text.value);
        word.copied().unwrap_or_else(|| {
            self.reader.fault(&text.place, not_one_of(key, &text.value, words));
            words[0]
        })
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else {
            self.settle(key, default);
            return default;
        };
        match value.get_ref() {
            DeValue::Boolean(boolean) => *boolean,
            _ => {
                self.wrong_type(key, value, "true or false, without quotes");
                default
            }
        }
    }

    /// A whole number within `range`; `None` where it is not written, or wrong.
    pub(super) fn integer(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Option<u64> {
        let value = self.value_within(key, Some(&range))?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type(key, value, "a whole number, without quotes or unit");
            return None;
        };
        // TOML allows 1_000_000; the parser has taken the underscores out.
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.and_then(|number| u64::try_from(number).ok());
        match number {
            Some(number) if range.contains(&number) => Some(number),
            _ => {
                let (low, high) = range.into_inner();
                let message = format!(
                    "`{key}` is {integer}: out of range; choose a number from {low} to {high}"
                );
                self.reader.fault(&value.span(), message);
                None
            }
        }
    }

    /// A whole number within `range`, or `default`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        let number = self.integer(key, range).unwrap_or(default);
        self.settle(key, number);
        number
    }

    /// A size or count in memory.
    pub(super) fn size(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: usize,
    ) -> usize {
        // Ranges end far below 2^32, and we only run where `usize` has 64 bits.
        self.number(key, range, default as u64) as usize
    }

    /// A duration in milliseconds.
    pub(super) fn milliseconds(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
        default: Duration,
    ) -> Duration {
        Duration::from_millis(self.number(key, range, default.as_millis() as u64))
    }

    /// Refuses the keys that nobody asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.table.into_iter().flatten() {
            let name: &str = key.get_ref();
            if self.asked.contains(&name) {
                continue;
            }
            if self.reader.is_full() {
                break;
            }
            let remedy = match closest(name, &self.asked) {
                Some(closest) => format!("did you mean `{closest}`?"),
                None => format!("it knows {}", list(&self.asked)),
            };
            let message = format!("unknown key `{name}`: {} has no such key; {remedy}", self.title);
            self.reader.fault(&key.span(), message);
        }
    }
}

/// The message for a word that is none of `words`.
pub(super) fn not_one_of(key: &str, text: &str, words: &[&str]) -> String {
    match closest(text, words) {
        Some(closest) => format!("`{key}` is \"{text}\": not known; did you mean \"{closest}\"?"),
        None => format!("`{key}` is \"{text}\": not known; choose one of {}", list(words)),
    }
}

/// `a`, `b`, `c`.
fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// The word that `text` is most likely a slip for.
pub(super) fn closest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    // Long texts are no slips, and the distance takes time quadratic in their length.
    if text.len() > 64 {
        return None;
    }
    let best = words.iter().map(|word| (distance(text, word), *word)).min()?;
    // One slip in every three letters still leaves most of the word.
    (best.0 <= (text.chars().count() / 3).max(1)).then_some(best.1)
}

/// Insertions, deletions, replacements and swaps of neighbours that make `b` of `a`, no letter
/// touched twice (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    // cost[i][j]: from the first i letters of `a` to the first j of `b`.
    let mut cost = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            cost[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let replaced = cost[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let best = replaced.min(cost[i - 1][j] + 1).min(cost[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { best.min(cost[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    cost[a.len()][b.len()]
}
