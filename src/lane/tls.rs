//! TLS of NBD connections: certificates, and the records of one connection.
//!
//! A [`TlsStream`] does no I/O: received bytes go in and come out as requests, replies go in and come out as records. It
//! belongs to one thread at a time: to the thread of handshakes until an export is chosen, then to the lane.

use crate::error::{Error, ErrorKind, Result};
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Files of the directory, named as qemu, nbdkit and libnbd do.
const CA_FILE: &str = "ca-cert.pem";
const CERTIFICATE_FILE: &str = "server-cert.pem";
const KEY_FILE: &str = "server-key.pem";

/// What tells a file from the one that was there before: inode, length and time of the last change.
type Stamp = Option<(u64, u64, i64, i64)>;

struct Loaded {
    stamps: [Stamp; 3],
    config: Arc<ServerConfig>,
}

/// The certificates of a server. Files that are replaced are read again for the next connection.
pub struct TlsAuthority {
    directory: PathBuf,
    loaded: Mutex<Loaded>,
}

impl TlsAuthority {
    /// Reads `server-cert.pem` and `server-key.pem`. If there is a `ca-cert.pem`, each client must have a certificate that
    /// it vouches for.
    ///
    /// # Errors
    /// The file that is missing or not understood, by name.
    pub fn open(directory: &Path) -> Result<Self> {
        let loaded = Mutex::new(load(directory)?);
        Ok(Self { directory: directory.to_path_buf(), loaded })
    }

    /// The server's side of a new connection.
    pub(super) fn accept(&self) -> Result<TlsStream> {
        let mut loaded = self.loaded.lock();
        if loaded.stamps != stamps(&self.directory) {
            match load(&self.directory) {
                Ok(new) => {
                    tracing::info!(directory = %self.directory.display(), "certificates were read again");
                    *loaded = new;
                }
                // They may be in the middle of being replaced.
                Err(error) => tracing::warn!(%error, "new certificates are not used"),
            }
        }
        let connection = ServerConnection::new(Arc::clone(&loaded.config))
            .map_err(|error| Error::new(ErrorKind::Other, "A TLS connection cannot begin").with_source(error))?;
        Ok(TlsStream::new(connection))
    }
}

fn stamps(directory: &Path) -> [Stamp; 3] {
    [CA_FILE, CERTIFICATE_FILE, KEY_FILE].map(|name| {
        let metadata = fs::metadata(directory.join(name)).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    })
}

fn load(directory: &Path) -> Result<Loaded> {
    let stamps = stamps(directory);
    let unusable = |name: &str, error: &dyn std::fmt::Display| {
        let message = format!("{} cannot be used for TLS: {error}", directory.join(name).display());
        Error::new(ErrorKind::Usage, message).with_hint(
            "The directory of --tls-dir needs server-cert.pem and server-key.pem, and ca-cert.pem to verify clients",
        )
    };
    let certificates = |name: &str| -> Result<Vec<CertificateDer<'static>>> {
        let read = CertificateDer::pem_file_iter(directory.join(name)).and_then(Iterator::collect);
        let found: Vec<_> = read.map_err(|error| unusable(name, &error))?;
        if found.is_empty() { Err(unusable(name, &"it has no certificate")) } else { Ok(found) }
    };
    let chain = certificates(CERTIFICATE_FILE)?;
    let key = PrivateKeyDer::from_pem_file(directory.join(KEY_FILE)).map_err(|error| unusable(KEY_FILE, &error))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(CERTIFICATE_FILE, &error))?;
    let builder = if stamps[0].is_some() {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(CA_FILE)? {
            roots.add(certificate).map_err(|error| unusable(CA_FILE, &error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        builder.with_client_cert_verifier(verifier.map_err(|error| unusable(CA_FILE, &error))?)
    } else {
        builder.with_no_client_auth()
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| unusable(KEY_FILE, &error))?;
    Ok(Loaded { stamps, config: Arc::new(config) })
}

/// The records of one connection.
pub(super) struct TlsStream {
    connection: ServerConnection,
    /// What was decrypted and not taken yet; bounded by what is received at once.
    pub plain: Vec<u8>,
    /// The client has said that it sends nothing more.
    pub is_closed: bool,
    has_said_goodbye: bool,
}

impl TlsStream {
    fn new(mut connection: ServerConnection) -> Self {
        // What is sent is bounded by the requests of the connection.
        connection.set_buffer_limit(None);
        Self { connection, plain: Vec::new(), is_closed: false, has_said_goodbye: false }
    }

    /// Whether the client is not verified yet.
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Decrypts what was received, all of it.
    ///
    /// # Errors
    /// If it breaks a rule of TLS; what is to be sent says so.
    pub(super) fn receive(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.connection.read_tls(&mut bytes)? == 0 {
                break;
            }
            let state = self.connection.process_new_packets().map_err(io::Error::other)?;
            let (start, len) = (self.plain.len(), state.plaintext_bytes_to_read());
            self.plain.resize(start + len, 0);
            self.connection.reader().read_exact(&mut self.plain[start..])?;
            self.is_closed |= state.peer_has_closed();
        }
        Ok(())
    }

    /// Encrypts what is to be sent; [`Self::take_output`] has it.
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.connection.writer().write_all(bytes).expect("there is no limit");
    }

    /// Whether there is something to send.
    pub(super) fn has_output(&self) -> bool {
        self.connection.wants_write()
    }

    /// Appends all that is to be sent.
    pub(super) fn take_output(&mut self, output: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(output).expect("memory takes it");
        }
    }

    /// Says that nothing more is sent, once.
    pub(super) fn say_goodbye(&mut self) {
        if !std::mem::replace(&mut self.has_said_goodbye, true) {
            self.connection.send_close_notify();
        }
    }

    /// Common names and DNS names in the client's certificate, which was verified.
    pub(super) fn subjects(&self) -> Vec<String> {
        let certificate = self.connection.peer_certificates().and_then(<[_]>::first);
        let Some(Ok((_, certificate))) = certificate.map(|der| X509Certificate::from_der(der)) else {
            return Vec::new();
        };
        let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let mut names: Vec<String> = common.map(str::to_owned).collect();
        if let Ok(Some(alternative)) = certificate.subject_alternative_name() {
            names.extend(alternative.value.general_names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            }));
        }
        names
    }
}
