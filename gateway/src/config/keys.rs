//! What every key of a file came to, and how two files differ, in their own words.
//!
//! The reader notes each key it is asked for, so a new key takes part without a line here. Items
//! are known again by what they are for, not by their place in the file.

use std::collections::{HashMap, HashSet};
use std::fmt;

use toml::de::{DeTable, DeValue};

use crate::names::Escaped;
use crate::route::{HostPattern, PathPattern};
use crate::upstream::UpstreamUrl;

/// Characters of one value in a line of a log; the rest is cut off there, not in the comparison.
const VALUE_CHARS_MAX: usize = 200;

/// What makes the value of a key a secret, which is compared and never shown.
const SECRETS: [&str; 7] =
    ["secret", "token", "password", "passphrase", "credential", "private_key", "api_key"];

/// All keys of one file.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Keys {
    subjects: Vec<Subject>,
}

/// A table of the file in [`Keys`].
#[derive(Clone, Copy)]
pub(super) struct SubjectIndex(usize);

impl SubjectIndex {
    pub(super) const ROOT: SubjectIndex = SubjectIndex(0);
}

/// A table of the file.
#[derive(Clone, PartialEq, Eq)]
struct Subject {
    /// `limits`, `backend "app"`, `backend "app": upstream ws://10.0.0.7:3000`.
    title: String,
    /// What stands before one of its keys: `limits.`, `backend "app": `.
    prefix: String,
    /// The key of its table.
    table: &'static str,
    /// The one it is part of.
    parent: usize,
    /// Whether it is one of several, or part of such a one.
    is_item: bool,
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    key: &'static str,
    /// `None`: it is not written, and what it is then nobody has said.
    value: Option<Box<str>>,
    is_written: bool,
}

/// Files that come to the same are equal, whether a default is written out or not.
impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.key == other.key && self.value == other.value
    }
}

impl Eq for Entry {}

/// Nothing of what it holds: a secret might be among it.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys of {} tables", self.subjects.len())
    }
}

/// One difference between two configurations, displayed as a line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table it is in: `limits`, `backend "app"`.
    pub section: String,
    /// The key; `None`: the table itself came or went.
    pub key: Option<&'static str>,
    /// Before: as the file has it, without secrets; `None`: not written, and without a default.
    pub from: Option<String>,
    /// After.
    pub to: Option<String>,
    text: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Escaped(&self.text).fmt(f)
    }
}

impl Default for Keys {
    fn default() -> Keys {
        let (title, prefix) = (String::new(), String::new());
        let root =
            Subject { title, prefix, table: "", parent: 0, is_item: false, entries: Vec::new() };
        Keys { subjects: vec![root] }
    }
}

impl Keys {
    /// `[key]`, or `key` as a table within another.
    pub(super) fn add_section(&mut self, parent: SubjectIndex, key: &'static str) -> SubjectIndex {
        let Subject { prefix, is_item, .. } = &self.subjects[parent.0];
        let title = format!("{prefix}{key}");
        let (prefix, is_item) = (format!("{title}."), *is_item);
        self.add(Subject { title, prefix, table: key, parent: parent.0, is_item, entries: vec![] })
    }

    /// `[key.NAME]`.
    pub(super) fn add_named(
        &mut self,
        parent: SubjectIndex,
        key: &'static str,
        name: &str,
    ) -> SubjectIndex {
        self.add_one_of(parent, key, &written(name))
    }

    /// One of `[[key]]`, the `index`-th.
    pub(super) fn add_item(
        &mut self,
        parent: SubjectIndex,
        key: &'static str,
        table: &DeTable<'_>,
        index: usize,
    ) -> SubjectIndex {
        let identity = identity(key, table).unwrap_or_else(|| format!("#{}", index + 1));
        self.add_one_of(parent, key, &identity)
    }

    fn add_one_of(
        &mut self,
        parent: SubjectIndex,
        key: &'static str,
        identity: &str,
    ) -> SubjectIndex {
        let Subject { prefix, is_item, .. } = &self.subjects[parent.0];
        let title = format!("{prefix}{key} {identity}");
        // One colon a line is enough.
        let prefix = if *is_item { format!("{title} ") } else { format!("{title}: ") };
        let parent = parent.0;
        self.add(Subject { title, prefix, table: key, parent, is_item: true, entries: Vec::new() })
    }

    fn add(&mut self, subject: Subject) -> SubjectIndex {
        self.subjects.push(subject);
        SubjectIndex(self.subjects.len() - 1)
    }

    /// What the file says of `key`. Tables are subjects of their own.
    pub(super) fn note(
        &mut self,
        subject: SubjectIndex,
        key: &'static str,
        value: Option<&DeValue<'_>>,
    ) {
        if !value.is_some_and(is_of_tables) {
            let (value, is_written) = (value.map(|value| show(value).into()), value.is_some());
            self.set(subject, Entry { key, value, is_written });
        }
    }

    /// What `key` comes to.
    pub(super) fn settle(&mut self, subject: SubjectIndex, key: &'static str, value: String) {
        let known = self.subjects[subject.0].entries.iter().find(|entry| entry.key == key);
        let is_written = known.is_some_and(|entry| entry.is_written);
        self.set(subject, Entry { key, value: Some(value.into()), is_written });
    }

    fn set(&mut self, subject: SubjectIndex, entry: Entry) {
        let subject = &mut self.subjects[subject.0];
        // They are in the title, however they are spelt.
        if subject.table == "route" && ["host", "path", "subprotocol"].contains(&entry.key) {
            return;
        }
        match subject.entries.iter_mut().find(|known| known.key == entry.key) {
            Some(known) => *known = entry,
            None => subject.entries.push(entry),
        }
    }

    /// Forgets what each `[[table]]` says.
    pub(super) fn forget_items(&mut self, table: &str) {
        for subject in self.subjects.iter_mut().filter(|subject| subject.table == table) {
            // Its place stays, as others are known by theirs.
            table.clone_into(&mut subject.title);
            subject.is_item = false;
            subject.entries.clear();
        }
    }

    /// How `new` differs from this, in the order of `new`; then what is gone.
    pub(super) fn changes(&self, new: &Keys) -> Vec<Change> {
        let (before, after) = (self.by_title(), new.by_title());
        let mut changes = Vec::new();
        for subject in &new.subjects {
            match before.get(subject.title.as_str()) {
                Some(old) => old.compare(subject, &mut changes),
                None if before.contains_key(new.subjects[subject.parent].title.as_str()) => {
                    changes.extend(subject.whole("added"));
                }
                // Its parent is new, which says it all.
                None => {}
            }
        }
        for subject in &self.subjects {
            let is_gone = !after.contains_key(subject.title.as_str());
            if is_gone && after.contains_key(self.subjects[subject.parent].title.as_str()) {
                changes.extend(subject.whole("removed"));
            }
        }
        changes
    }

    fn by_title(&self) -> HashMap<&str, &Subject> {
        self.subjects.iter().map(|subject| (subject.title.as_str(), subject)).collect()
    }
}

impl Subject {
    fn compare(&self, new: &Subject, changes: &mut Vec<Change>) {
        let mut seen = HashSet::new();
        for entry in new.entries.iter().chain(&self.entries) {
            if !seen.insert(entry.key) {
                continue;
            }
            let find = |subject: &Subject| -> Option<Entry> {
                subject.entries.iter().find(|other| other.key == entry.key).cloned()
            };
            let (old, new) = (find(self), find(new));
            let written = |entry: &Option<Entry>| entry.as_ref().is_some_and(|it| it.is_written);
            let is_written = written(&old) || written(&new);
            // One that is asked for in one of the two only belongs to a kind that has changed. In
            // an item, what neither writes follows from elsewhere, and that change has its line.
            let of_both = old.is_some() && new.is_some();
            let (old, new) = (old.and_then(|it| it.value), new.and_then(|it| it.value));
            if old == new || (!is_written && (self.is_item || !of_both)) {
                continue;
            }
            changes.push(self.changed(entry.key, old.as_deref(), new.as_deref()));
        }
    }

    fn changed(&self, key: &'static str, from: Option<&str>, to: Option<&str>) -> Change {
        let is_secret = [from, to].into_iter().flatten().any(|value| is_secret(key, value));
        let name = format!("{}{key}", self.prefix);
        let shown = |value: Option<&str>| {
            value.filter(|_| !is_secret).map(|value| {
                match value.char_indices().nth(VALUE_CHARS_MAX) {
                    Some((end, _)) => format!("{}…", &value[..end]),
                    None => value.to_owned(),
                }
            })
        };
        let (from, to) = (shown(from), shown(to));
        let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "not set".to_owned());
        let text = match is_secret {
            true => format!("{name} changed"),
            false => format!("{name} {} -> {}", word(&from), word(&to)),
        };
        Change { section: self.title.clone(), key: Some(key), from, to, text }
    }

    /// That it came or went, if it is something that does.
    fn whole(&self, what: &str) -> Option<Change> {
        let text = format!("{} {what}", self.title);
        let section = self.title.clone();
        let is_one_of = self.is_item && !self.prefix.ends_with('.');
        is_one_of.then_some(Change { section, key: None, from: None, to: None, text })
    }
}

/// Whether `key` is not to be shown. Numbers are no secrets: they count, or limit.
fn is_secret(key: &str, value: &str) -> bool {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    !is_number && SECRETS.iter().any(|secret| key.contains(secret))
}

/// By what an item of `[[key]]` is known again.
fn identity(key: &str, table: &DeTable<'_>) -> Option<String> {
    let text = |key: &str| match table.get(key)?.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        _ => None,
    };
    match key {
        "route" => {
            // The same pattern can be spelt in several ways; a faulty one stays as it is.
            let host = match text("host") {
                None => String::new(),
                Some(host) => match host.parse::<HostPattern>() {
                    Ok(pattern) => pattern.to_string(),
                    Err(_) => host,
                },
            };
            let path = text("path").unwrap_or_else(|| "/*".to_owned());
            let path = match path.parse::<PathPattern>() {
                Ok(pattern) => pattern.to_string(),
                Err(_) => path,
            };
            let subprotocol = text("subprotocol").map(|name| format!(" with {name}"));
            Some(format!("{host}{path}{}", subprotocol.unwrap_or_default()))
        }
        "upstream" => {
            let url = text("url")?;
            Some(url.parse::<UpstreamUrl>().map_or(url, |url| url.to_string()))
        }
        "listener" => text("name").or_else(|| text("address")).map(|name| written(&name)),
        _ => text("name").map(|name| written(&name)),
    }
}

/// `text` as the file would write it, on one line.
pub(super) fn written(text: &str) -> String {
    format!("{text:?}")
}

fn is_of_tables(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => true,
        DeValue::Array(array) => array.iter().any(|item| is_of_tables(item.get_ref())),
        _ => false,
    }
}

/// `value` on one line; values that mean the same look the same.
fn show(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => written(text),
        DeValue::Integer(integer) => {
            let number = i128::from_str_radix(integer.as_str(), integer.radix());
            number.map_or_else(|_| integer.to_string(), |number| number.to_string())
        }
        DeValue::Float(float) => float.to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Array(array) => {
            let items: Vec<String> = array.iter().map(|item| show(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        // A subject of its own.
        DeValue::Table(_) => String::new(),
    }
}
