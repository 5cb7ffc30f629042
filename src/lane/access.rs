//! Who may open an export: networks, users of this machine, and subjects of certificates.
//!
//! An export without rules is open to whoever reaches a listener. With rules, a client must meet one of each kind that
//! applies to it: its network and its certificate's subject over TCP, its user or group over a unix socket. A client to
//! which none of the rules applies is refused.

use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Whom a rule lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowRule {
    /// TCP clients of a network.
    Network(IpNet),
    /// Processes of a user, over a unix socket.
    User(u32),
    /// Processes of a group, over a unix socket. Their primary group counts.
    Group(u32),
    /// Clients with a certificate whose common name or DNS name is this.
    Subject(String),
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRule(String);

impl fmt::Display for BadRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:?} says nobody; write a network like 10.0.0.0/8 or an address, uid:NUMBER, gid:NUMBER or subject:NAME",
            self.0
        )
    }
}

impl std::error::Error for BadRule {}

impl FromStr for AllowRule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        let bad = || BadRule(text.to_owned());
        if let Some(number) = text.strip_prefix("uid:") {
            return number.parse().map(Self::User).map_err(|_| bad());
        }
        if let Some(number) = text.strip_prefix("gid:") {
            return number.parse().map(Self::Group).map_err(|_| bad());
        }
        if let Some(name) = text.strip_prefix("subject:") {
            return if name.is_empty() { Err(bad()) } else { Ok(Self::Subject(name.to_owned())) };
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        text.parse::<IpNet>().map(|network| Self::Network(network.trunc())).map_err(|_| bad())
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(formatter),
            Self::User(id) => write!(formatter, "uid:{id}"),
            Self::Group(id) => write!(formatter, "gid:{id}"),
            Self::Subject(name) => write!(formatter, "subject:{name}"),
        }
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// On this machine: what the kernel says of its process.
    Unix { user: u32, group: u32 },
    /// At an address.
    Tcp(IpAddr),
    /// The kernel did not tell; no rule applies.
    Unknown,
}

/// A client as rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub origin: Origin,
    /// Names in its certificate, if it has one that was verified.
    pub subjects: Vec<String>,
}

/// Whether the rules of an export let a client in.
pub(super) fn is_allowed(rules: &[AllowRule], peer: &Peer) -> bool {
    if rules.is_empty() {
        return true;
    }
    let are_met = |is_of_kind: &dyn Fn(&AllowRule) -> bool, is_met: &dyn Fn(&AllowRule) -> bool| {
        let mut of_kind = rules.iter().filter(|rule| is_of_kind(rule)).peekable();
        of_kind.peek().is_some().then(|| of_kind.any(is_met))
    };
    let place = match peer.origin {
        Origin::Unix { user, group } => {
            are_met(&|rule| matches!(rule, AllowRule::User(_) | AllowRule::Group(_)), &|rule| match rule {
                AllowRule::User(id) => *id == user,
                AllowRule::Group(id) => *id == group,
                AllowRule::Network(_) | AllowRule::Subject(_) => false,
            })
        }
        // An IPv4 address in the clothes of IPv6 is what it is.
        Origin::Tcp(address) => are_met(
            &|rule| matches!(rule, AllowRule::Network(_)),
            &|rule| matches!(rule, AllowRule::Network(network) if network.contains(&address.to_canonical())),
        ),
        Origin::Unknown => None,
    };
    let subject = are_met(
        &|rule| matches!(rule, AllowRule::Subject(_)),
        &|rule| matches!(rule, AllowRule::Subject(name) if peer.subjects.contains(name)),
    );
    match (place, subject) {
        (Some(place), Some(subject)) => place && subject,
        (Some(is_met), None) | (None, Some(is_met)) => is_met,
        (None, None) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> Vec<AllowRule> {
        texts.iter().map(|text| text.parse().expect("a rule")).collect()
    }

    fn tcp(address: &str, subjects: &[&str]) -> Peer {
        let subjects = subjects.iter().map(|name| (*name).to_owned()).collect();
        Peer { origin: Origin::Tcp(address.parse().expect("an address")), subjects }
    }

    fn unix(user: u32, group: u32) -> Peer {
        Peer { origin: Origin::Unix { user, group }, subjects: Vec::new() }
    }

    #[test]
    fn without_rules_everybody_is_let_in() {
        assert!(is_allowed(&[], &tcp("1.2.3.4", &[])));
        assert!(is_allowed(&[], &unix(1, 1)));
    }

    /// nbd-server compared addresses as texts: 10.0.0.1 let 10.0.0.10 in (CVE-2013-6410).
    #[test]
    fn networks_are_compared_by_their_bits() {
        let one = rules(&["10.0.0.1"]);
        assert!(is_allowed(&one, &tcp("10.0.0.1", &[])));
        assert!(!is_allowed(&one, &tcp("10.0.0.10", &[])));
        let many = rules(&["10.0.0.0/8", "fd00::/8"]);
        assert!(is_allowed(&many, &tcp("10.255.0.1", &[])) && is_allowed(&many, &tcp("fd12::1", &[])));
        assert!(!is_allowed(&many, &tcp("11.0.0.1", &[])) && !is_allowed(&many, &tcp("fe80::1", &[])));
        assert!(is_allowed(&many, &tcp("::ffff:10.1.2.3", &[])), "an IPv4 client of an IPv6 socket");
    }

    #[test]
    fn users_and_groups_are_for_unix_clients() {
        let both = rules(&["uid:1000", "gid:50"]);
        assert!(is_allowed(&both, &unix(1000, 1)) && is_allowed(&both, &unix(1, 50)));
        assert!(!is_allowed(&both, &unix(50, 1000)));
        assert!(!is_allowed(&both, &tcp("127.0.0.1", &[])), "no rule applies to it");
    }

    #[test]
    fn network_and_subject_must_both_be_met() {
        let both = rules(&["10.0.0.0/8", "subject:hv1", "subject:hv2"]);
        assert!(is_allowed(&both, &tcp("10.0.0.1", &["hv2"])));
        assert!(!is_allowed(&both, &tcp("10.0.0.1", &[])));
        assert!(!is_allowed(&both, &tcp("10.0.0.1", &["hv3"])));
        assert!(!is_allowed(&both, &tcp("11.0.0.1", &["hv1"])));
    }

    #[test]
    fn subject_alone_decides_wherever_the_client_is() {
        let one = rules(&["subject:hv1"]);
        assert!(is_allowed(&one, &tcp("1.2.3.4", &["other", "hv1"])));
        assert!(!is_allowed(&one, &tcp("1.2.3.4", &["HV1", "hv1.evil"])));
        assert!(!is_allowed(&one, &Peer { origin: Origin::Unknown, subjects: Vec::new() }));
    }

    #[test]
    fn rules_are_written_as_they_are_read() {
        for text in ["10.0.0.0/8", "fd00::/8", "10.0.0.1/32", "uid:0", "gid:100", "subject:hv1.lab"] {
            assert_eq!(text.parse::<AllowRule>().expect("a rule").to_string(), text);
        }
        assert_eq!("10.1.2.3/8".parse::<AllowRule>().expect("a rule").to_string(), "10.0.0.0/8");
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_is() {
        for text in ["", "10.0.0.0/33", "10.0.0", "uid:", "uid:-1", "uid:x", "gid:4294967296", "subject:", "hv1"] {
            let error = text.parse::<AllowRule>().expect_err("it is none").to_string();
            assert!(error.contains(&format!("{text:?}")) && error.contains("subject:NAME"), "{error}");
        }
    }
}
