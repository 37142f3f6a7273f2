//! Replaces what identifies a machine or a person by pseudonyms, numbered in order of appearance.
//!
//! Two rules: an identifier that this machine states elsewhere (host name, user names, serial numbers of DMI) is replaced
//! wherever it occurs, and what has the form of an identifier (UUID, MAC address, mail address, long serial number) is
//! replaced in any case. Invariant: the same identifier has the same pseudonym throughout a bundle.

use std::collections::BTreeMap;

/// Words that the kernel and its drivers write on machines of any name; a host or user of that name is not identified by them.
const KERNEL_WORDS: &[&str] = &[
    "amd",
    "amdgpu",
    "average",
    "battery",
    "bus",
    "card",
    "class",
    "core",
    "cpu",
    "cpuinfo",
    "device",
    "devices",
    "dram",
    "driver",
    "drm",
    "energy",
    "event",
    "event_source",
    "events",
    "format",
    "gpu",
    "host",
    "hwmon",
    "input",
    "intel",
    "kernel",
    "linux",
    "localdomain",
    "localhost",
    "mac",
    "module",
    "msr",
    "name",
    "nvidia",
    "package",
    "pci",
    "platform",
    "power",
    "power_supply",
    "powercap",
    "proc",
    "psys",
    "rapl",
    "root",
    "serial",
    "soc",
    "sys",
    "system",
    "topology",
    "type",
    "uncore",
    "usb",
    "user",
    "uuid",
    "virtual",
];

/// What vendors write in place of a serial number.
const PLACEHOLDERS: &[&str] = &[
    "default string",
    "n/a",
    "none",
    "not applicable",
    "not available",
    "not specified",
    "o.e.m.",
    "system serial number",
    "to be filled by o.e.m.",
    "unknown",
];

/// Shorter serial numbers identify no machine, and would hide parts of other words.
const MIN_SERIAL_LENGTH: usize = 4;

/// Shorter names are replaced only where they are whole words.
const MIN_INNER_LENGTH: usize = 4;

/// Kinds of identifiers, by which the pseudonyms are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum IdentifierKind {
    Host,
    User,
    Serial,
    Uuid,
    Mac,
}

impl IdentifierKind {
    const fn prefix(self) -> &'static str {
        match self {
            IdentifierKind::Host => "host",
            IdentifierKind::User => "user",
            IdentifierKind::Serial => "serial",
            IdentifierKind::Uuid => "uuid",
            IdentifierKind::Mac => "mac",
        }
    }
}

/// How strictly a text is searched for the form of a serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextOrigin {
    /// The kernel, a driver or a model name: only long hexadecimal numbers are serial numbers.
    Kernel,
    /// Firmware or a user: any long word with several digits is one.
    Free,
}

/// The bytes of a hexadecimal number with an even number of digits.
fn hexadecimal_bytes(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| Some(c.to_digit(16)? as u8)).collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

/// The pseudonyms of a bundle.
#[derive(Debug, Default)]
pub struct Pseudonyms {
    /// Lower-case spellings of known identifiers, the longest first.
    known: Vec<(String, IdentifierKind)>,
    numbers: BTreeMap<(IdentifierKind, String), usize>,
}

impl Pseudonyms {
    /// Adds an identifier that is to be replaced wherever it occurs.
    pub fn add_known(&mut self, kind: IdentifierKind, text: &str) {
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0').to_lowercase();
        let mut signs = text.chars().filter(|c| c.is_alphanumeric());
        let first = signs.next();
        let is_constant = signs.all(|c| Some(c) == first);
        let is_unusable = KERNEL_WORDS.contains(&text.as_str())
            || match kind {
                IdentifierKind::Host | IdentifierKind::User => {
                    text.len() < MIN_INNER_LENGTH && text.bytes().all(|byte| byte.is_ascii_digit())
                }
                _ => text.len() < MIN_SERIAL_LENGTH || is_constant || PLACEHOLDERS.contains(&text.as_str()),
            };
        if text.is_empty() || text == "(none)" || is_unusable {
            return;
        }
        // Names of devices and domains are derived from these texts with other separators.
        let parts: Vec<&str> =
            text.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty()).collect();
        for spelling in [text.clone(), parts.join("-"), parts.join("_"), parts.concat()] {
            if !spelling.is_empty() && !self.known.iter().any(|(known, _)| *known == spelling) {
                self.known.push((spelling, kind));
            }
        }
        self.known.sort_by_key(|(known, _)| std::cmp::Reverse(known.len()));
    }

    /// Whether a table of bytes contains a known identifier: as text, or a hexadecimal one as a number of either byte order.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        let lower = bytes.to_ascii_lowercase();
        let holds = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
        self.known.iter().filter(|(known, _)| known.len() >= MIN_INNER_LENGTH).any(|(known, _)| {
            let number = hexadecimal_bytes(known).filter(|number| number.len() >= MIN_INNER_LENGTH);
            holds(&lower, known.as_bytes())
                || number.is_some_and(|number| {
                    let reversed: Vec<u8> = number.iter().rev().copied().collect();
                    holds(bytes, &number) || holds(bytes, &reversed)
                })
        })
    }

    /// The pseudonym of a text that is an identifier as a whole.
    pub fn replace_whole(&mut self, kind: IdentifierKind, text: &str) -> String {
        let mut key = text.to_lowercase();
        key.retain(char::is_alphanumeric);
        let next = self.numbers.keys().filter(|(other, _)| *other == kind).count() + 1;
        let number = *self.numbers.entry((kind, key)).or_insert(next);
        format!("{}-{number}", kind.prefix())
    }

    /// `text` with pseudonyms in place of identifiers.
    pub fn replace_in(&mut self, text: &str, origin: TextOrigin) -> String {
        let mut out = String::with_capacity(text.len());
        let (mut rest, mut before) = (text, None);
        while let Some(next) = rest.chars().next() {
            let length = match self.identifier_at(rest, before, origin) {
                Some((length, kind)) => {
                    out += &self.replace_whole(kind, &rest[..length]);
                    length
                }
                None => {
                    out.push(next);
                    next.len_utf8()
                }
            };
            before = rest[..length].chars().next_back();
            rest = &rest[length..];
        }
        out
    }

    /// Length and kind of the identifier at the start of `text`, which follows `before`.
    fn identifier_at(
        &self,
        text: &str,
        before: Option<char>,
        origin: TextOrigin,
    ) -> Option<(usize, IdentifierKind)> {
        let at_word_start = !before.is_some_and(char::is_alphanumeric);
        for (known, kind) in &self.known {
            let Some(length) = prefix_length(text, known) else { continue };
            let is_word = at_word_start && !text[length..].starts_with(char::is_alphanumeric);
            if is_word || known.chars().count() >= MIN_INNER_LENGTH {
                return Some((length, *kind));
            }
        }
        if !at_word_start {
            return None;
        }
        let shaped = [
            (hex_groups_length(text, &[8, 4, 4, 4, 12]), IdentifierKind::Uuid),
            (hex_groups_length(text, &[2; 8]), IdentifierKind::Serial),
            (hex_groups_length(text, &[2; 6]), IdentifierKind::Mac),
            (mail_length(text), IdentifierKind::User),
        ];
        if let Some(identifier) = shaped.into_iter().find_map(|(length, kind)| Some((length?, kind))) {
            return Some(identifier);
        }
        let length = text.find(|c: char| !c.is_alphanumeric()).unwrap_or(text.len());
        Some((length, serial_kind(&text[..length], origin)?))
    }
}

/// Length of the start of `text` that equals `lower` apart from case.
fn prefix_length(text: &str, lower: &str) -> Option<usize> {
    let mut lower = lower.chars();
    let mut expected = lower.next();
    for (at, c) in text.char_indices() {
        if expected.is_none() {
            return Some(at);
        }
        for small in c.to_lowercase() {
            if expected != Some(small) {
                return None;
            }
            expected = lower.next();
        }
    }
    expected.is_none().then_some(text.len())
}

/// Length of groups of hexadecimal digits of these lengths, with one separator throughout.
fn hex_groups_length(text: &str, groups: &[usize]) -> Option<usize> {
    let bytes = text.as_bytes();
    let separator = *bytes.get(*groups.first()?)?;
    if !matches!(separator, b':' | b'-' | b'_' | b'.') {
        return None;
    }
    let mut at = 0;
    for (nth, length) in groups.iter().enumerate() {
        if nth > 0 {
            if bytes.get(at) != Some(&separator) {
                return None;
            }
            at += 1;
        }
        if !bytes.get(at..at + length)?.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        at += length;
    }
    let continues = bytes.get(at).is_some_and(u8::is_ascii_alphanumeric);
    (!continues).then_some(at)
}

/// Length of `name@host`.
fn mail_length(text: &str) -> Option<usize> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    let name = text.find(|c| !is_part(c)).filter(|at| *at > 0 && text[*at..].starts_with('@'))?;
    let host = &text[name + 1..];
    let length = host.find(|c| !is_part(c)).unwrap_or(host.len());
    (length > 0).then_some(name + 1 + length)
}

/// Whether a word has the form of a serial number.
fn serial_kind(word: &str, origin: TextOrigin) -> Option<IdentifierKind> {
    let hex = word.strip_prefix("0x").unwrap_or(word);
    let count = hex.chars().filter(char::is_ascii_digit).count();
    let is_hex = hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    match hex.chars().count() {
        32 if is_hex => Some(IdentifierKind::Uuid),
        12 if is_hex && count > 0 => Some(IdentifierKind::Mac),
        12.. if is_hex && count > 0 => Some(IdentifierKind::Serial),
        8.. if origin == TextOrigin::Free && count >= 3 => Some(IdentifierKind::Serial),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(text: &str) -> String {
        let mut pseudonyms = Pseudonyms::default();
        pseudonyms.add_known(IdentifierKind::Host, "wonder-land\n");
        pseudonyms.add_known(IdentifierKind::User, "alice");
        pseudonyms.add_known(IdentifierKind::User, "bob");
        pseudonyms.add_known(IdentifierKind::User, "core");
        pseudonyms.add_known(IdentifierKind::Serial, "Default string");
        pseudonyms.replace_in(text, TextOrigin::Free)
    }

    #[test]
    fn known_identifiers_are_replaced_in_every_spelling() {
        assert_eq!(replaced("Rail of ALICE, aliceslaptop"), "Rail of user-1, user-1slaptop");
        assert_eq!(replaced("WONDER_LAND wonderland wonder-land"), "host-1 host-1 host-1");
        assert_eq!(replaced("bob bobbin"), "user-1 bobbin", "a short name is replaced as a word");
        assert_eq!(replaced("core Default string"), "core Default string");
    }

    #[test]
    fn what_has_the_form_of_an_identifier_is_replaced() {
        let uuid = "GPU-123e4567-e89b-12d3-a456-426614174000 123E4567-E89B-12D3-A456-426614174000";
        assert_eq!(replaced(uuid), "GPU-uuid-1 uuid-1");
        assert_eq!(replaced("hid-aa:bb:cc:dd:ee:0f-battery AABBCCDDEE0F"), "hid-mac-1-battery mac-1");
        assert_eq!(replaced("00-11-22-33-44-55-66-77"), "serial-1");
        assert_eq!(replaced("0123456789abcdef0123456789abcdef"), "uuid-1");
        assert_eq!(replaced("eve@example.org, PSU AB12CD34"), "user-1, PSU serial-1");
        assert_eq!(replaced("0x1122334455667788"), "serial-1");
    }

    #[test]
    fn names_of_devices_and_rails_stay() {
        for kept in [
            "0000:03:00.0",
            "VDD_CPU_GPU_CV",
            "intel-rapl:0:1",
            "ina3221",
            "Grace Power Socket 0",
            "é – 熱量",
        ] {
            assert_eq!(replaced(kept), kept);
        }
        let model = "Intel(R) Xeon(R) CPU E5-2690v4, 20XWCTO1WW, INTC1041:00";
        assert_eq!(Pseudonyms::default().replace_in(model, TextOrigin::Kernel), model);
    }
}
