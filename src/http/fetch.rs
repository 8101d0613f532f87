//! Pictures from addresses, where `--allow-image-urls` permits them.
//!
//! Follows A1111's options `api_enable_requests` and `api_useragent`. Its `api_forbid_local_requests` looks
//! a name up, checks the address, and lets the HTTP library look it up again; a name that changes in between,
//! or a redirect, leads into the local network. Here the check is part of the look-up that the connection
//! uses, for every hop, and no option switches it off.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

use crate::api::{ApiError, PictureFetcher};
use crate::config::Options;

const HOPS: u32 = 5;
const TIMEOUT: Duration = Duration::from_secs(20);

/// Fetches pictures, or refuses every address.
#[derive(Debug)]
pub struct Fetcher {
    allowed: bool,
    max_bytes: u64,
}

impl Fetcher {
    /// `allowed` is false: every address is refused. Longer answers than `max_bytes` are refused too.
    #[must_use]
    pub fn new(allowed: bool, max_bytes: u64) -> Self {
        Self { allowed, max_bytes }
    }
}

impl PictureFetcher for Fetcher {
    fn fetch(&self, url: &str, options: &Options) -> Result<Vec<u8>, ApiError> {
        if !options.bool("api_enable_requests") {
            return Err(ApiError::http(500, "Requests not allowed"));
        }
        if !self.allowed {
            return Err(ApiError::http(500, "Request to local resource not allowed"));
        }
        let bytes = get(
            url,
            options.text("api_useragent"),
            self.max_bytes,
            PublicOnly::default(),
        );
        bytes.map_err(|error| {
            tracing::warn!(%error, "a picture's address");
            match error {
                ureq::Error::Other(cause) if cause.is::<NotPublic>() => {
                    ApiError::http(500, "Request to local resource not allowed")
                }
                _ => ApiError::http(500, "Invalid image url"),
            }
        })
    }
}

fn get(
    url: &str,
    user_agent: &str,
    max_bytes: u64,
    resolver: impl Resolver,
) -> Result<Vec<u8>, ureq::Error> {
    let mut config = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        .max_redirects(HOPS)
        // A proxy would look names up itself.
        .proxy(None);
    if !user_agent.is_empty() {
        config = config.user_agent(user_agent);
    }
    let agent = ureq::Agent::with_parts(config.build(), DefaultConnector::default(), resolver);
    let mut answer = agent.get(url).call()?;
    answer
        .body_mut()
        .with_config()
        .limit(max_bytes)
        .read_to_vec()
}

/// A name led to an address that is not on the public Internet.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a public address")]
struct NotPublic(IpAddr);

/// Looks names up and refuses those of which any address is not public.
#[derive(Debug, Default)]
struct PublicOnly {
    inner: DefaultResolver,
}

impl Resolver for PublicOnly {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = self.inner.resolve(uri, config, timeout)?;
        match addresses.iter().find(|address| !is_public(address.ip())) {
            Some(address) => Err(ureq::Error::Other(Box::new(NotPublic(address.ip())))),
            None => Ok(addresses),
        }
    }
}

/// Whether an address belongs to the public Internet (IANA's special-purpose registries).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocols = (a, b, c) == (192, 0, 0);
    let relay = (a, b, c) == (192, 88, 99);
    let benchmark = a == 198 && (b & 0xfe) == 18;
    let own_network = a == 0;
    let reserved = a >= 240;
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_documentation()
        || shared
        || protocols
        || relay
        || benchmark
        || own_network
        || reserved)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inner) = embedded_v4(address) {
        return is_public_v4(inner);
    }
    let [first, second, ..] = address.segments();
    // Global unicast is 2000::/3; within it Teredo, benchmarks, ORCHID and documentation are not hosts.
    let global = (first & 0xe000) == 0x2000;
    let special = first == 0x2001 && (second < 0x200 || second == 0xdb8);
    let documentation = first == 0x3fff && second < 0x1000;
    global && !special && !documentation
}

/// The IPv4 address that an IPv6 address leads to: mapped, compatible, NAT64, 6to4.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match (a, b, c, d, e, f) {
        (0, 0, 0, 0, 0, 0xffff | 0) | (0x64, 0xff9b, 0, 0, 0, 0) => Some(of(g, h)),
        (0x2002, ..) => Some(of(b, c)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    #[test]
    fn public_addresses_are_told_from_all_others() {
        for public in [
            "8.8.8.8",
            "1.1.1.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "2002:808:808::1",
        ] {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
        for other in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "::127.0.0.1",
            "2001::1",
        ] {
            assert!(!is_public(other.parse().expect("an address")), "{other}");
        }
    }

    #[test]
    fn nothing_is_asked_unless_the_flag_and_the_option_permit_it() {
        let mut options = Options::default();
        options.set("api_enable_requests", true.into());
        let closed = Fetcher::new(false, 1000);
        let error = closed.fetch("http://8.8.8.8/", &options).unwrap_err();
        assert!(error.to_string().contains("local resource"));
        options.set("api_enable_requests", false.into());
        let error = Fetcher::new(true, 1000)
            .fetch("http://8.8.8.8/", &options)
            .unwrap_err();
        assert!(error.to_string().contains("Requests not allowed"));
    }

    #[test]
    fn local_addresses_are_refused_however_they_are_written() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let mut options = Options::default();
        options.set("api_enable_requests", true.into());
        let open = Fetcher::new(true, 1000);
        for host in [
            "127.0.0.1",
            "localhost",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "127.1",
            "0x7f.1",
            "2130706433",
        ] {
            let error = open
                .fetch(&format!("http://{host}:{port}/"), &options)
                .unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains("local resource") || text.contains("Invalid image url"),
                "{host}: {text}"
            );
        }
        listener.set_nonblocking(true).expect("set");
        assert!(listener.accept().is_err(), "somebody connected");
    }

    /// Lets the first hop through and looks at every later one, as a redirect from a public host would be.
    #[derive(Debug, Default)]
    struct FirstHopFree {
        asked: std::sync::atomic::AtomicUsize,
        rest: PublicOnly,
    }

    impl Resolver for FirstHopFree {
        fn resolve(
            &self,
            uri: &Uri,
            config: &ureq::config::Config,
            timeout: NextTimeout,
        ) -> Result<ResolvedSocketAddrs, ureq::Error> {
            let hop = self
                .asked
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if hop == 0 {
                return self.rest.inner.resolve(uri, config, timeout);
            }
            self.rest.resolve(uri, config, timeout)
        }
    }

    #[test]
    fn a_redirect_into_the_local_network_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the first hop");
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let location = format!("http://localhost:{port}/secret");
            let answer = format!(
                "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).expect("answered");
            listener.set_nonblocking(true).expect("set");
            std::thread::sleep(Duration::from_millis(100));
            listener.accept().is_ok()
        });
        let error = get(
            &format!("http://127.0.0.1:{port}/"),
            "",
            1000,
            FirstHopFree::default(),
        );
        assert!(matches!(error, Err(ureq::Error::Other(cause)) if cause.is::<NotPublic>()));
        assert!(
            !answering.join().expect("joined"),
            "the second hop was asked"
        );
    }
}
