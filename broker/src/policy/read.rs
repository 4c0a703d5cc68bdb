//! From texts to a policy: parses every file, reads every section and rule, and then checks what only the whole
//! shows: names given twice, devices without a section, rules that can never match.

use std::collections::{BTreeSet, HashMap};

use toml::de::DeTable;
use xsk_client::wire::{InterfaceName, ZeroCopy};

use super::diagnostic::{Diagnostic, Findings, Place, PolicyError, Severity, Source};
use super::interface::{InterfaceSection, Pattern, QueueLockSetting, XdpSetting, read_sections, section_for};
use super::limits::{ReadLimits, read_limits};
use super::mistake::{Mistake, Section, nearest};
use super::names::Machine;
use super::queues::QueueRanges;
use super::rule::{Effect, ReadRule, Rule, read_rules};
use super::table::{Item, Table};
use super::{Loaded, Policy};

/// Makes a policy of texts, or says everything that is wrong with them.
pub(super) fn read_policy(
    sources: &[Source],
    machine: &mut dyn Machine,
    mut findings: Findings,
) -> Result<Loaded, PolicyError> {
    let mut parts = Parts::default();
    for (index, source) in sources.iter().enumerate() {
        read_file(index, source, machine, &mut parts, &mut findings);
    }
    let Parts {
        sections,
        rules,
        limits,
    } = parts;
    let interfaces = machine.interfaces();
    let here: Option<Vec<InterfaceName>> =
        interfaces.map(|names| names.iter().filter_map(|name| name.parse().ok()).collect());
    warn_of_sections(&sections, here.as_deref(), machine, &mut findings);
    let rules = check_whole(sources, rules, &sections, here.as_deref(), machine, &mut findings);

    let diagnostics = findings.into_diagnostics(sources);
    let is_error = |diagnostic: &Diagnostic| diagnostic.severity == Severity::Error;
    if diagnostics.iter().any(is_error) {
        return Err(PolicyError { diagnostics });
    }
    let files: Vec<_> = sources.iter().map(|source| source.path.clone()).collect();
    let policy = Policy {
        sections,
        rules,
        limits: limits.limits,
        files: files.clone(),
    };
    Ok(Loaded {
        policy,
        warnings: diagnostics,
        files,
    })
}

/// What was read of all files until now.
#[derive(Default)]
struct Parts {
    sections: Vec<InterfaceSection>,
    rules: Vec<ReadRule>,
    limits: ReadLimits,
}

fn read_file(
    index: usize,
    source: &Source,
    machine: &mut dyn Machine,
    parts: &mut Parts,
    findings: &mut Findings,
) {
    let (document, errors) = DeTable::parse_recoverable(&source.text);
    let place = Place {
        file: index,
        span: 0..0,
    };
    let mut top = Table::new(document.get_ref(), Section::Top, place);
    let key_of = |item: &Item<'_>| {
        let key = document.get_ref().keys().find(|key| key.get_ref() == item.key);
        key.map_or(item.place.span.clone(), toml::Spanned::span)
    };
    if let Some(mut item) = top.take("interface") {
        item.place.span = key_of(&item);
        read_sections(&item, source, &mut parts.sections, findings);
    }
    if let Some(mut item) = top.take("limits") {
        item.place.span = key_of(&item);
        read_limits(&item, source, &mut parts.limits, findings);
    }
    let mut in_file = Vec::new();
    for (key, section) in [("allow", Section::Allow), ("deny", Section::Deny)] {
        if let Some(mut item) = top.take(key) {
            item.place.span = key_of(&item);
            in_file.extend(read_rules(&item, section, machine, findings));
        }
    }
    top.finish(findings);
    in_file.sort_by_key(|rule| rule.place.span.start);
    parts.rules.extend(in_file);
    report_syntax(index, source, &errors, findings);
}

/// Reports what is no TOML, one mistake a line, and takes back what only follows from it: what was found in the
/// same line, and what seems to be missing.
fn report_syntax(index: usize, source: &Source, errors: &[toml::de::Error], findings: &mut Findings) {
    let mut lines = BTreeSet::new();
    if source.cut {
        lines.insert(source.line(source.text.len()));
    }
    let mut in_table_given_twice = false;
    for error in errors {
        let span = error.span().unwrap_or_default();
        let line = source.line(span.start);
        let (_, text) = source.line_text(line);
        let twice = error.message() == "duplicate key";
        let header = text.trim_start().starts_with('[');
        // The keys of a table that is there already are reported by its header.
        if twice && in_table_given_twice && !header {
            continue;
        }
        in_table_given_twice = twice && (header || in_table_given_twice);
        if lines.insert(line) {
            let mistake = syntax_mistake(text, error.message(), twice);
            findings.error(&Place { file: index, span }, mistake);
        }
    }
    if lines.is_empty() {
        return;
    }
    findings.retain_in(index, |span, finding| match &finding.mistake {
        Mistake::Syntax { .. }
        | Mistake::Unquoted { .. }
        | Mistake::UnquotedName { .. }
        | Mistake::RuleIsTable(_)
        | Mistake::NotUtf8 => true,
        Mistake::MissingKey { .. } | Mistake::MissingWho(_) => false,
        _ => !lines.contains(&source.line(span.start)),
    });
}

/// The parser's words, or better ones where it is plain what was meant.
fn syntax_mistake(line: &str, message: &str, twice: bool) -> Mistake {
    let line = line.split('#').next().unwrap_or_default().trim();
    if twice {
        let rule = [("[allow]", "allow"), ("[deny]", "deny")]
            .into_iter()
            .find(|(header, _)| *header == line);
        return match rule {
            Some((_, name)) => Mistake::RuleIsTable(name),
            None => Mistake::Syntax {
                message: "given twice".to_owned(),
            },
        };
    }
    let header = line
        .strip_prefix("[interface.")
        .and_then(|rest| rest.strip_suffix(']'));
    if let Some(name) = header.filter(|name| !name.contains(['"', '\''])) {
        let name = name.to_owned();
        return Mistake::UnquotedName { name };
    }
    unquoted_value(line).unwrap_or_else(|| Mistake::Syntax {
        message: message.to_owned(),
    })
}

fn unquoted_value(line: &str) -> Option<Mistake> {
    const TEXTS: [&str; 11] = [
        "xdp",
        "reserved",
        "queue-lock",
        "name",
        "user",
        "group",
        "interface",
        "queues",
        "sockets",
        "insert",
        "zero-copy",
    ];
    let (key, value) = line.split_once('=')?;
    let (key, value) = (nearest(key.trim(), &TEXTS)?, value.trim().to_owned());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_,.*".contains(c);
    let unquoted = !value.is_empty() && value.chars().all(plain);
    unquoted.then_some(Mistake::Unquoted { key, value })
}

/// Checks that need all files, and gives the rules that have no mistake.
fn check_whole(
    sources: &[Source],
    read: Vec<ReadRule>,
    sections: &[InterfaceSection],
    here: Option<&[InterfaceName]>,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) -> Vec<Rule> {
    let has_errors = findings.has_errors();
    let mut rules = Vec::new();
    let mut names: HashMap<String, String> = HashMap::new();
    for rule in read {
        let line_of = |place: &Place| match sources.get(place.file) {
            Some(source) => source.at(place.span.start),
            None => String::new(),
        };
        if let Some((name, place)) = rule.name {
            if let Some(first) = names.get(&name) {
                let first = first.clone();
                findings.error(&place, Mistake::DuplicateRule { name, first });
            } else {
                names.insert(name, line_of(&place));
            }
        }
        if let Some(mut whole) = rule.rule {
            whole.at = line_of(&rule.place);
            for (pattern, place) in whole.interfaces.iter().zip(&rule.interface_places) {
                warn_if_absent(pattern, place, here, findings);
                warn_if_beyond(&whole, pattern, place, machine, findings);
                // A section with a mistake is not among them: first things first.
                if !has_errors {
                    warn_if_useless(&whole, pattern, place, sections, findings);
                }
            }
            rules.push(whole);
        }
    }
    if !has_errors {
        warn_if_empty(&rules, sections, sources, findings);
    }
    rules
}

/// Warns of sections that mean nothing on this machine, or that it cannot keep.
fn warn_of_sections(
    sections: &[InterfaceSection],
    here: Option<&[InterfaceName]>,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) {
    for section in sections {
        warn_if_absent(&section.pattern, &section.place, here, findings);
        if section.settings.queue_lock == QueueLockSetting::Lsm && machine.has_bpf_lsm() == Some(false) {
            let name = section.pattern.written().to_owned();
            findings.warn(&section.place, Mistake::NoLsm(name));
        }
    }
}

/// Warns of an allow rule for queues that a device never has.
fn warn_if_beyond(
    rule: &Rule,
    pattern: &Pattern,
    place: &Place,
    machine: &mut dyn Machine,
    findings: &mut Findings,
) {
    let (Pattern::Exact(name), Effect::Allow(_)) = (pattern, &rule.effect) else {
        return;
    };
    if let Some(most) = machine.most_queues(name)
        && let Some(queue) = rule.queues.first_beyond(most)
    {
        let interface = name.to_string();
        findings.warn(
            place,
            Mistake::BeyondDevice {
                interface,
                queue,
                most,
            },
        );
    }
}

fn warn_if_absent(pattern: &Pattern, place: &Place, here: Option<&[InterfaceName]>, findings: &mut Findings) {
    let Some(here) = here else {
        return;
    };
    if here.iter().any(|name| pattern.matches(name)) {
        return;
    }
    findings.warn(
        place,
        match pattern {
            Pattern::Exact(name) => Mistake::NoSuchInterface(name.to_string()),
            Pattern::Glob { written, .. } => Mistake::NothingMatches(written.clone()),
        },
    );
}

/// Warns of an allow rule that names a device which is never touched, queues that are reserved there, or a mode that is
/// never to be had there.
fn warn_if_useless(
    rule: &Rule,
    pattern: &Pattern,
    place: &Place,
    sections: &[InterfaceSection],
    findings: &mut Findings,
) {
    let (Pattern::Exact(name), Effect::Allow(allowance)) = (pattern, &rule.effect) else {
        return;
    };
    match section_for(sections, name) {
        Some(section)
            if section.settings.xdp == XdpSetting::Generic && allowance.zero_copy == ZeroCopy::Required =>
        {
            findings.warn(place, Mistake::NeverZeroCopy(name.to_string()));
        }
        None => findings.warn(place, Mistake::NotListed(name.to_string())),
        Some(section) if section.settings.reserved.covers(&rule.queues) => {
            let (interface, queues) = (name.to_string(), rule.queues.to_string());
            findings.warn(place, Mistake::AllReserved { interface, queues });
        }
        Some(section) if rule.queues != QueueRanges::all() => {
            if let Some(queue) = rule.queues.first_common(&section.settings.reserved) {
                let interface = name.to_string();
                findings.warn(place, Mistake::SomeReserved { interface, queue });
            }
        }
        Some(_) => {}
    }
}

fn warn_if_empty(rules: &[Rule], sections: &[InterfaceSection], sources: &[Source], findings: &mut Findings) {
    let Some(main) = sources.first() else {
        return;
    };
    if !rules.iter().any(|rule| matches!(rule.effect, Effect::Allow(_))) {
        findings.file(Severity::Warning, &main.path, Mistake::NoAllow);
    }
    if sections.is_empty() {
        findings.file(Severity::Warning, &main.path, Mistake::NoInterface);
    }
}
