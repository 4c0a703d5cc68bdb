//! Strict reading of TOML tables: each key is asked for once, what was not asked for is a mistake, and a wrong
//! value is reported where it stands.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Findings, Place};
use super::mistake::{Mistake, Section};

/// At most this many entries in a list of names.
const MAX_LIST: usize = 256;

/// A table whose keys are being read.
#[derive(Debug)]
pub(super) struct Table<'t> {
    entries: &'t DeTable<'t>,
    section: Section,
    /// Where mistakes about what is missing are shown.
    pub(super) place: Place,
    known: Vec<&'static str>,
    ignored: Vec<&'t str>,
}

impl<'t> Table<'t> {
    pub(super) fn new(entries: &'t DeTable<'t>, section: Section, place: Place) -> Self {
        Self {
            entries,
            section,
            place,
            known: Vec::new(),
            ignored: Vec::new(),
        }
    }

    /// Keys that have been reported already.
    pub(super) fn ignoring(mut self, ignored: Vec<&'t str>) -> Self {
        self.ignored = ignored;
        self
    }

    /// The value of a key, which is a known one from now on.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Item<'t>> {
        self.known.push(key);
        let (_, value) = self.entries.get_key_value(key)?;
        Some(Item::new(key, value, self.place.file))
    }

    /// The value of a key without which the table makes no sense.
    pub(super) fn require(
        &mut self,
        key: &'static str,
        example: &'static str,
        findings: &mut Findings,
    ) -> Option<Item<'t>> {
        let item = self.take(key);
        if item.is_none() {
            let section = self.section;
            findings.error(
                &self.place,
                Mistake::MissingKey {
                    section,
                    key,
                    example,
                },
            );
        }
        item
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self, findings: &mut Findings) {
        for key in self.entries.keys() {
            let place = Place {
                file: self.place.file,
                span: key.span(),
            };
            let name = key.get_ref().as_ref();
            if !self.known.contains(&name) && !self.ignored.contains(&name) {
                let mistake = Mistake::UnknownKey {
                    section: self.section,
                    key: name.to_owned(),
                    known: self.known.clone(),
                };
                findings.error(&place, mistake);
            }
        }
    }
}

/// A value, its key and its place.
#[derive(Debug)]
pub(super) struct Item<'t> {
    pub(super) key: &'static str,
    pub(super) place: Place,
    pub(super) value: &'t DeValue<'t>,
}

impl<'t> Item<'t> {
    pub(super) fn new(key: &'static str, value: &'t Spanned<DeValue<'t>>, file: usize) -> Self {
        let place = Place {
            file,
            span: value.span(),
        };
        Self {
            key,
            place,
            value: value.get_ref(),
        }
    }

    pub(super) fn text(&self, findings: &mut Findings) -> Option<&'t str> {
        let text = self.value.as_str();
        if text.is_none() {
            let write = match self.value {
                DeValue::Integer(number) => Some(format!("{} = \"{}\"", self.key, number.as_str())),
                _ => None,
            };
            self.wrong("a string", write, findings);
        }
        text
    }

    pub(super) fn boolean(&self, findings: &mut Findings) -> Option<bool> {
        let boolean = self.value.as_bool();
        if boolean.is_none() {
            let write = match self.value.as_str() {
                Some(text @ ("true" | "false")) => Some(format!("{} = {text}", self.key)),
                _ => None,
            };
            self.wrong("true or false", write, findings);
        }
        boolean
    }

    /// An integer with bounds.
    pub(super) fn number(&self, min: u32, max: u32, findings: &mut Findings) -> Option<u32> {
        let number = self.number64(min.into(), max.into(), findings)?;
        u32::try_from(number).ok()
    }

    /// The same for what may be above 2^32.
    pub(super) fn number64(&self, min: u64, max: u64, findings: &mut Findings) -> Option<u64> {
        let Some(written) = self.value.as_integer() else {
            let digits = |text: &&str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let text = self.value.as_str().filter(digits);
            let write = text.map(|text| format!("{} = {text}", self.key));
            self.wrong("an integer", write, findings);
            return None;
        };
        let number = u64::from_str_radix(written.as_str(), written.radix()).ok();
        let number = number.filter(|number| (min..=max).contains(number));
        if number.is_none() {
            let mistake = Mistake::OutOfRange {
                key: self.key,
                value: written.as_str().to_owned(),
                min,
                max,
            };
            findings.error(&self.place, mistake);
        }
        number
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(&self, words: &[(&'static str, T)], findings: &mut Findings) -> Option<T> {
        let text = self.text(findings)?;
        let word = words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if word.is_none() {
            let mistake = Mistake::UnknownWord {
                key: self.key,
                word: text.to_owned(),
                known: words.iter().map(|(word, _)| *word).collect(),
            };
            findings.error(&self.place, mistake);
        }
        word
    }

    pub(super) fn table(&self, section: Section, findings: &mut Findings) -> Option<Table<'t>> {
        match self.value.as_table() {
            Some(entries) => Some(Table::new(entries, section, self.place.clone())),
            None => {
                self.wrong("a table", None, findings);
                None
            }
        }
    }

    /// The entries of a list, or the one value that stands in the place of a list. Never empty.
    pub(super) fn entries(&self, findings: &mut Findings) -> Option<Vec<Self>> {
        let Some(list) = self.value.as_array() else {
            return Some(vec![Self {
                key: self.key,
                place: self.place.clone(),
                value: self.value,
            }]);
        };
        let mistake = match list.len() {
            0 => Mistake::EmptyList(self.key),
            1..=MAX_LIST => {
                let item = |value| Self::new(self.key, value, self.place.file);
                return Some(list.iter().map(item).collect());
            }
            _ => Mistake::TooMany(self.key, MAX_LIST),
        };
        findings.error(&self.place, mistake);
        None
    }

    /// Reports that the value is of another type.
    pub(super) fn wrong(&self, expected: &'static str, write: Option<String>, findings: &mut Findings) {
        let found = match self.value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let key = self.key.to_owned();
        findings.error(
            &self.place,
            Mistake::WrongType {
                key,
                expected,
                found,
                write,
            },
        );
    }
}
