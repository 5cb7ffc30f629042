//! NBD URIs, both ways.

use std::path::PathBuf;

use proptest::prelude::*;

use crate::uri::{Address, Uri, UriError};

fn tcp(host: &str, port: Option<u16>, export_name: &str) -> Uri {
    Uri { address: Address::Tcp { host: host.to_owned(), port }, export_name: export_name.to_owned() }
}

fn unix(path: &str, export_name: &str) -> Uri {
    Uri { address: Address::Unix { path: PathBuf::from(path) }, export_name: export_name.to_owned() }
}

fn parsed(text: &str) -> Result<Uri, UriError> {
    text.parse()
}

#[test]
fn uris_are_written_as_the_specification_shows_them() {
    let cases = [
        (tcp("127.0.0.1", Some(10809), "vol1"), "nbd://127.0.0.1:10809/vol1"),
        (tcp("example.com", None, ""), "nbd://example.com/"),
        (tcp("::1", Some(10810), "a/b"), "nbd://[::1]:10810/a/b"),
        (tcp("localhost", None, "/rooted"), "nbd://localhost//rooted"),
        (tcp("localhost", None, "a b?c#d%ü"), "nbd://localhost/a%20b%3Fc%23d%25%C3%BC"),
        (unix("/run/rok.sock", "vol1"), "nbd+unix:///vol1?socket=/run/rok.sock"),
        (unix("/tmp/a b&c", ""), "nbd+unix:///?socket=/tmp/a%20b%26c"),
    ];
    for (uri, text) in cases {
        assert_eq!(uri.to_string(), text);
        assert_eq!(parsed(text), Ok(uri));
    }
}

#[test]
fn port_defaults_to_the_registered_one() {
    for text in ["nbd://localhost", "nbd://localhost/", "nbd://localhost:/", "NBD://localhost:10809"] {
        let uri = parsed(text).expect("a URI");
        assert_eq!((uri.address.tcp_port(), uri.export_name.as_str()), (Some(10809), ""));
    }
    assert_eq!(unix("/s", "").address.tcp_port(), None);
}

#[test]
fn socket_is_found_among_other_parameters() {
    let uri = parsed("nbd+unix:///vol1?timeout=3&socket=%2Frun%2Fs+1&more#part");
    assert_eq!(uri, Ok(unix("/run/s+1", "vol1")));
}

#[test]
fn other_schemes_are_refused() {
    for text in ["nbds://localhost/", "nbds+unix:///?socket=/s", "http://localhost/", "vol1", ""] {
        assert!(matches!(parsed(text), Err(UriError::Scheme(_))), "{text}");
    }
}

#[test]
fn malformed_addresses_are_refused() {
    for text in [
        "nbd:localhost",
        "nbd:///vol1",
        "nbd://:10809/",
        "nbd://localhost:port/",
        "nbd://localhost:+1/",
        "nbd://localhost:65536/",
        "nbd://[::1/",
        "nbd://[::1]x/",
        "nbd://%00/",
        "nbd+unix://host/vol1?socket=/s",
    ] {
        assert!(matches!(parsed(text), Err(UriError::Authority(_))), "{text}");
    }
}

#[test]
fn unix_uri_without_a_socket_is_refused() {
    for text in ["nbd+unix:///vol1", "nbd+unix:///vol1?socket=", "nbd+unix:///?sock=/s", "nbd+unix:///?socket=%00"] {
        assert_eq!(parsed(text), Err(UriError::NoSocket));
    }
}

#[test]
fn malformed_escapes_are_refused() {
    for text in ["nbd://h/%", "nbd://h/%2", "nbd://h/%zz", "nbd://h/%+1", "nbd+unix:///?socket=/%4"] {
        assert_eq!(parsed(text), Err(UriError::Escape));
    }
}

#[test]
fn names_that_the_protocol_cannot_carry_are_refused() {
    for name in ["%ff".to_owned(), "a%00".to_owned(), "n".repeat(4097)] {
        assert_eq!(parsed(&format!("nbd://h/{name}")), Err(UriError::Name));
    }
}

proptest! {
    #[test]
    fn every_name_and_path_survives_the_way_through_a_uri(
        name in "[^\0]{0,40}",
        path in "/[^\0]{0,40}",
        host in "[a-z0-9.-]{1,20}|[0-9a-f:]{2,20}|fe80::1%eth0",
        port: Option<u16>,
    ) {
        for uri in [tcp(&host, port, &name), unix(&path, &name)] {
            prop_assert_eq!(parsed(&uri.to_string()), Ok(uri));
        }
    }

    #[test]
    fn garbage_never_panics_the_uri_parser(text in "(nbd(\\+unix)?:)?(//)?.{0,60}") {
        if let Ok(uri) = parsed(&text) {
            prop_assert_eq!(parsed(&uri.to_string()), Ok(uri));
        }
    }
}
