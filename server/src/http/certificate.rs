//! The names in a client certificate.
//!
//! In: the DER of a certificate that the TLS handshake has verified. Out: its subject common name, DNS names and URIs.
//! Invariant: nothing outside the input is read, and nothing is copied but names; at most [`NAMES_MAX`] of at most
//! [`NAME_LEN_MAX`] bytes. What does not parse has no names. Only printable ASCII counts: a name that could be mistaken
//! for another in a rule or a log is none.
//! Not here: trust (rustls and webpki), and what a name may read (`access/`).
//!
//! X.690 for the encoding, RFC 5280 section 4.1 for the fields.

/// Names of one certificate that are looked at.
const NAMES_MAX: usize = 64;
const NAME_LEN_MAX: usize = 255;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const EXPLICIT_VERSION: u8 = 0xa0;
const EXPLICIT_EXTENSIONS: u8 = 0xa3;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const SAN_DNS: u8 = 0x82;
const SAN_URI: u8 = 0x86;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Every name, each once.
pub fn names(der: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    // Stops at the first thing that makes no sense; what came before it was verified as part of the whole.
    let _ = collect(der, &mut out);
    out
}

fn collect(der: &[u8], out: &mut Vec<String>) -> Option<()> {
    let (certificate, _) = expect(der, SEQUENCE)?;
    let (mut rest, _) = expect(certificate, SEQUENCE)?;
    if let Some((_, after)) = expect(rest, EXPLICIT_VERSION) {
        rest = after;
    }
    // Serial number, signature algorithm, issuer, validity.
    for _ in 0..4 {
        rest = element(rest)?.2;
    }
    let (subject, after) = expect(rest, SEQUENCE)?;
    common_names(subject, out);
    // The public key, and two optional identifiers that nobody uses.
    rest = element(after)?.2;
    while let Some((tag, value, after)) = element(rest) {
        if tag == EXPLICIT_EXTENSIONS {
            return alternative_names(value, out);
        }
        rest = after;
    }
    None
}

fn common_names(mut subject: &[u8], out: &mut Vec<String>) {
    while let Some((set, after)) = expect(subject, SET) {
        subject = after;
        let attribute = expect(set, SEQUENCE).and_then(|(a, _)| expect(a, OID));
        if let Some((COMMON_NAME, value)) = attribute
            && let Some((UTF8_STRING | PRINTABLE_STRING, name, _)) = element(value)
        {
            add(name, out);
        }
    }
}

fn alternative_names(extensions: &[u8], out: &mut Vec<String>) -> Option<()> {
    let (mut extensions, _) = expect(extensions, SEQUENCE)?;
    while let Some((extension, after)) = expect(extensions, SEQUENCE) {
        extensions = after;
        let (oid, mut rest) = expect(extension, OID)?;
        if oid != SUBJECT_ALT_NAME {
            continue;
        }
        // A flag may say that the extension is critical.
        while let Some((tag, value, after)) = element(rest) {
            rest = after;
            if tag != OCTET_STRING {
                continue;
            }
            let (mut general, _) = expect(value, SEQUENCE)?;
            while let Some((tag, name, after)) = element(general) {
                general = after;
                if matches!(tag, SAN_DNS | SAN_URI) {
                    add(name, out);
                }
            }
        }
    }
    Some(())
}

fn add(name: &[u8], out: &mut Vec<String>) {
    let printable = name.iter().all(|b| b.is_ascii_graphic() || *b == b' ');
    if out.len() == NAMES_MAX || name.is_empty() || name.len() > NAME_LEN_MAX || !printable {
        return;
    }
    let name = String::from_utf8_lossy(name).into_owned();
    if !out.contains(&name) {
        out.push(name);
    }
}

/// Value of an element with `tag`, and what follows it.
fn expect(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, value, after) = element(der)?;
    (found == tag).then_some((value, after))
}

/// Tag and value of the first element, and what follows it. Tags of one byte and lengths of at most four are all that
/// certificates have.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (len, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            let len = len.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            (usize::try_from(len).ok()?, rest)
        }
        _ => return None,
    };
    let (value, after) = rest.split_at_checked(len)?;
    Some((tag, value, after))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(cn: Option<&str>, sans: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "nodes");
        if let Some(cn) = cn {
            params.distinguished_name.push(DnType::CommonName, cn);
        }
        params.subject_alt_names = sans;
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    #[test]
    fn common_name_dns_and_uri() {
        let uri = SanType::URI("spiffe://cluster/node/1".try_into().unwrap());
        let ip = SanType::IpAddress([127, 0, 0, 1].into());
        let der = certificate(Some("system:node:a"), vec![dns("a.example"), uri, ip, dns("a.example")]);
        assert_eq!(names(&der), ["system:node:a", "a.example", "spiffe://cluster/node/1"]);
        assert_eq!(names(&certificate(Some("only"), vec![])), ["only"]);
        assert_eq!(names(&certificate(None, vec![dns("b.example")])), ["b.example"]);
    }

    #[test]
    fn names_that_could_deceive_are_none() {
        for evil in ["", "a\nb", "nödë", "a\u{202e}b", &"x".repeat(256)] {
            assert_eq!(
                names(&certificate(Some(evil), vec![])),
                Vec::<String>::new(),
                "{evil:?}"
            );
        }
        let many = (0..100).map(|i| dns(&format!("n{i}.example"))).collect();
        assert_eq!(names(&certificate(None, many)).len(), NAMES_MAX);
    }

    #[test]
    fn broken_ones_end_quietly() {
        let der = certificate(Some("cn"), vec![dns("a.example")]);
        for len in 0..der.len() {
            names(&der[..len]);
        }
        for at in 0..der.len() {
            let mut other = der.clone();
            other[at] ^= 0xff;
            assert!(names(&other).len() <= NAMES_MAX);
        }
    }
}
