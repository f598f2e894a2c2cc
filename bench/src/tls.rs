//! TLS 1.2 and 1.3, as bytes and values: what is received goes in, what is to be sent comes out,
//! and the sockets stay the engine's.
//!
//! The one home of rustls. Its unbuffered connection is used, for it keeps no memory for bytes
//! while nothing is under way; its provider is ring, which builds in seconds with a C compiler
//! alone, where aws-lc-rs takes minutes: bulk encryption of both is the same hardware's.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use clap::ValueEnum;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConfig, ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
    UnbufferedClientConnection,
};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{
    DigitallySignedStruct, HandshakeKind, NamedGroup, RootCertStore, SignatureScheme,
    SupportedProtocolVersion,
};

/// What the command line says about TLS.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes<'a> {
    /// Trust these authorities (PEM), not the system's.
    pub(crate) authorities: Option<&'a Path>,
    /// Trust whatever certificate is shown.
    pub(crate) insecure: bool,
    /// Resume sessions of earlier connections to the same target.
    pub(crate) resume: bool,
    /// The one version to speak; the newest that the server knows when not given.
    pub(crate) version: Option<Version>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Version {
    #[value(name = "1.2")]
    V12,
    #[value(name = "1.3")]
    V13,
}

/// How connections to one server are secured; what they resume is shared by all of them.
#[derive(Clone, Debug)]
pub(crate) struct Security {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Where systems keep the certificates of the authorities they trust.
const SYSTEM_AUTHORITIES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

impl Security {
    /// Prepares for a server of this name or address, as it stands in the URL without its port.
    pub(crate) fn new(host: &str, wishes: &Wishes<'_>) -> io::Result<Security> {
        let refuse = |what: String| io::Error::other(what);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|error| refuse(format!("{host}: no name for a certificate: {error}")))?;
        let provider = Arc::new(ring::default_provider());
        let versions: &[&SupportedProtocolVersion] = match wishes.version {
            Some(Version::V12) => &[&rustls::version::TLS12],
            Some(Version::V13) => &[&rustls::version::TLS13],
            None => rustls::ALL_VERSIONS,
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|error| refuse(format!("TLS: {error}")))?;
        let mut config = if wishes.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Credulous(provider)))
        } else {
            builder.with_root_certificates(read_authorities(wishes.authorities)?)
        }
        .with_no_client_auth();
        // RFC 6455 is an upgrade of HTTP/1.1; a server that prefers h2 must not choose that.
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = if wishes.resume {
            Resumption::store(Arc::new(Sessions::default()))
        } else {
            Resumption::disabled()
        };
        Ok(Security { config: Arc::new(config), name })
    }
}

/// Reads the certificates that a server's has to be signed by.
fn read_authorities(path: Option<&Path>) -> io::Result<RootCertStore> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => {
            SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or_else(
                || io::Error::other("this system has no list of authorities: name one by --tls-ca"),
            )?
        }
    };
    let refuse = |what: String| io::Error::other(format!("{}: {what}", path.display()));
    let pem = fs::read(&path).map_err(|error| refuse(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| refuse(error.to_string()))?;
        // A system's list may hold some that are not understood; the others will do.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(refuse("no certificate of an authority in it".into()));
    }
    Ok(roots)
}

/// One client's side of a secured connection.
pub(crate) struct Tls {
    connection: UnbufferedClientConnection,
    /// What has arrived and could not be used yet: less than a record, or the records of an
    /// unfinished handshake message, which rustls bounds to 64 KiB.
    incoming: Vec<u8>,
    /// What goes out with the next send.
    pub(crate) outgoing: Vec<u8>,
    /// The server has said that it sends no more.
    pub(crate) is_over: bool,
}

/// What a record may add to its content: header 5 bytes, a nonce of 8 with TLS 1.2, the content
/// type with TLS 1.3, a tag of 16.
const RECORD_OVERHEAD: usize = 32;
const RECORD_CONTENT_MAX: usize = 16 * 1024;

impl Tls {
    /// Begins: the first bytes of the handshake are in `outgoing`.
    pub(crate) fn new(security: &Security) -> Result<Tls, String> {
        let config = Arc::clone(&security.config);
        let connection = UnbufferedClientConnection::new(config, security.name.clone())
            .map_err(|error| error.to_string())?;
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        let mut tls = Tls { connection, incoming, outgoing, is_over: false };
        tls.on_received(&mut [], &mut Vec::new())?;
        Ok(tls)
    }

    /// Whether the handshake is done.
    pub(crate) fn is_open(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Whether the session of an earlier connection was resumed. Known once the handshake is done.
    pub(crate) fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Takes bytes from the wire, which are changed; appends what they mean to `plain`, and what
    /// has to be answered to `outgoing`.
    pub(crate) fn on_received(
        &mut self,
        bytes: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), String> {
        if self.incoming.is_empty() {
            let used = self.process(bytes, plain)?;
            self.incoming.extend_from_slice(&bytes[used..]);
        } else {
            let mut whole = std::mem::take(&mut self.incoming);
            whole.extend_from_slice(bytes);
            let used = self.process(&mut whole, plain)?;
            // Emptied, it keeps no memory: an idle client has to be small.
            if used < whole.len() {
                whole.drain(..used);
                self.incoming = whole;
            }
        }
        Ok(())
    }

    /// Encrypts `plain` to the end of `outgoing`. The handshake has to be done.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Result<(), String> {
        let records = plain.len().div_ceil(RECORD_CONTENT_MAX);
        let sealed_max = plain.len() + records * RECORD_OVERHEAD;
        loop {
            // With what is unfinished: the connection remembers how far it has looked at it.
            let status = self.connection.process_tls_records(&mut self.incoming);
            match status.state.map_err(|error| error.to_string())? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return append(&mut self.outgoing, sealed_max, |out| {
                        traffic.encrypt(plain, out).map_err(|error| match error {
                            EncryptError::InsufficientSize(size) => Ok(size),
                            other => Err(other.to_string()),
                        })
                    });
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(&mut self.outgoing, 0, |out| encode(&mut data, out))?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                state => return Err(format!("nothing can be sent: {state:?}")),
            }
        }
    }

    /// Goes through the records at the front of `bytes`; says how much of it is done with.
    fn process(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>) -> Result<usize, String> {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.connection.process_tls_records(&mut bytes[used..]);
            let mut is_done = false;
            match state.map_err(|error| error.to_string())? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|error| error.to_string())?;
                        discard += record.discard;
                        plain.extend_from_slice(record.payload);
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    append(&mut self.outgoing, 0, |out| encode(&mut data, out))?;
                }
                // It follows right behind: a send takes all there is.
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::PeerClosed => self.is_over = true,
                ConnectionState::BlockedHandshake
                | ConnectionState::WriteTraffic(_)
                | ConnectionState::Closed => is_done = true,
                state => return Err(format!("an unknown state: {state:?}")),
            }
            used += discard;
            if is_done {
                return Ok(used);
            }
        }
    }
}

fn encode<Data>(
    data: &mut rustls::unbuffered::EncodeTlsData<'_, Data>,
    out: &mut [u8],
) -> Result<usize, Result<InsufficientSizeError, String>> {
    data.encode(out).map_err(|error| match error {
        EncodeError::InsufficientSize(size) => Ok(size),
        other => Err(other.to_string()),
    })
}

/// Has `write` fill the end of `out`, with `room` at first and then with what it asks for.
fn append(
    out: &mut Vec<u8>,
    mut room: usize,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, Result<InsufficientSizeError, String>>,
) -> Result<(), String> {
    let start = out.len();
    // It says what it needs, so the second time it fits.
    for _ in 0..2 {
        out.resize(start + room, 0);
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(Ok(InsufficientSizeError { required_size })) => room = required_size,
            Err(Err(error)) => return Err(error),
        }
    }
    Err("records that grow while they are written".into())
}

/// What can be resumed of one server. A ticket of TLS 1.3 is used once (RFC 8446, appendix C.4);
/// rustls' own store keeps eight, too few for clients that open by the hundred.
#[derive(Debug, Default)]
struct Sessions(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    group: Option<NamedGroup>,
    session: Option<Tls12ClientSessionValue>,
    /// The newest last; at most `TICKETS_MAX`, the oldest goes.
    tickets: VecDeque<Tls13ClientSessionValue>,
}

const TICKETS_MAX: usize = 4096;

impl Sessions {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nobody panics with it in hand")
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, _server: ServerName<'static>, group: NamedGroup) {
        self.kept().group = Some(group);
    }

    fn kx_hint(&self, _server: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept().group
    }

    fn set_tls12_session(&self, _server: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.kept().session = Some(value);
    }

    fn tls12_session(&self, _server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept().session.clone()
    }

    fn remove_tls12_session(&self, _server: &ServerName<'static>) {
        self.kept().session = None;
    }

    fn insert_tls13_ticket(&self, _server: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if kept.tickets.len() == TICKETS_MAX {
            kept.tickets.pop_front();
        }
        kept.tickets.push_back(value);
    }

    fn take_tls13_ticket(&self, _server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().tickets.pop_back()
    }
}

/// Believes every certificate; the signatures are checked all the same, as their time is part of
/// what a handshake costs.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
