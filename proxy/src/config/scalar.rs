//! Single values: what each kind of value looks like, and what is said when it does not.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use tollgate_proto::nearest::nearest;

use super::document::Value;
use super::{ListenAddress, Upstream};

/// Longest path of a Unix socket on Linux, in bytes (`sun_path` less its final zero byte).
const UNIX_PATH_MAX: usize = 107;
/// Longest duration anyone means; more is a slip of units.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

pub(super) fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::Text(text) => Ok(text),
        Value::Bool(_) | Value::Integer(_) | Value::Float(_) => {
            Err(format!("{} where text belongs; put it in quotes", value.kind()))
        }
        other => Err(format!("{} where text belongs", other.kind())),
    }
}

pub(super) fn boolean(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(value) => Ok(*value),
        _ => Err("neither true nor false".to_owned()),
    }
}

/// `on` or `off`. A YAML parser may have made a truth value of it.
pub(super) fn on_or_off(value: &Value) -> Result<bool, String> {
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Text(text) if text == "on" => Ok(true),
        Value::Text(text) if text == "off" => Ok(false),
        _ => Err("neither on nor off".to_owned()),
    }
}

/// A whole number from `least` to `most`, both included.
pub(super) fn integer(value: &Value, least: u64, most: u64) -> Result<u64, String> {
    let wrong = || format!("not a whole number from {least} to {most}");
    match value {
        Value::Integer(number) => {
            u64::try_from(*number).ok().filter(|number| (least..=most).contains(number)).ok_or_else(wrong)
        }
        _ => Err(wrong()),
    }
}

/// `500ms`, `5s`, `2m` or `1h`, at most a day.
pub(super) fn duration(value: &Value) -> Result<Duration, String> {
    let text = match value {
        Value::Text(text) => text.as_str(),
        Value::Integer(number) => {
            return Err(format!("{number} has no unit; write {number}s or {number}ms"));
        }
        _ => {
            return Err(format!("{} where a duration belongs, such as 5s or 500ms", value.kind()));
        }
    };
    let wrong = || format!("\"{text}\" is not a duration; write a whole number and ms, s, m or h, such as 5s or 500ms");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| format!("\"{text}\" is longer than 24h"))
}

/// `1500`, `64KiB`, `16MiB` or `2GiB`; not 0.
pub(super) fn bytes(value: &Value) -> Result<u64, String> {
    let text = match value {
        Value::Text(text) => text.as_str(),
        Value::Integer(number) => {
            return u64::try_from(*number)
                .ok()
                .filter(|bytes| *bytes > 0)
                .ok_or_else(|| format!("{number} is no number of bytes"));
        }
        _ => return Err(format!("{} where a size belongs, such as 64KiB", value.kind())),
    };
    let wrong = || format!("\"{text}\" is not a size; write a whole number and KiB, MiB or GiB, such as 64KiB");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// `2` or `500m`, in thousandths of a CPU.
pub(super) fn cpu(value: &Value) -> Result<u32, String> {
    let wrong =
        || "not an amount of CPU; write a whole number of them, such as 2, or of thousandths, such as 500m".to_owned();
    let millis = match value {
        Value::Integer(number) => u32::try_from(*number).ok().and_then(|cpus| cpus.checked_mul(1000)),
        Value::Text(text) => text.strip_suffix('m').and_then(|millis| millis.parse().ok()),
        _ => None,
    };
    millis.filter(|millis| *millis > 0).ok_or_else(wrong)
}

/// A duration that must not be zero.
pub(super) fn positive_duration(value: &Value) -> Result<Duration, String> {
    match duration(value)? {
        Duration::ZERO => Err("must be longer than zero".to_owned()),
        duration => Ok(duration),
    }
}

pub(super) fn socket_address(value: &Value) -> Result<SocketAddr, String> {
    parse_socket_address(text(value)?)
}

fn parse_socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("\"{text}\" is not an address; write IP:PORT, such as 127.0.0.1:15001 or \"[::1]:15001\""))
}

pub(super) fn ip_address(value: &Value) -> Result<IpAddr, String> {
    let text = text(value)?;
    text.parse().map_err(|_| format!("\"{text}\" is not an IP address, such as 10.244.1.17 or fd00::17"))
}

/// An address (then a prefix of full length) or a prefix in CIDR form without host bits.
pub(super) fn prefix(value: &Value) -> Result<IpNet, String> {
    let text = text(value)?;
    let wrong = || format!("\"{text}\" is neither an IP address nor a prefix, such as 10.244.1.17 or fd00::/64");
    let net = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse::<IpNet>().map_err(|_| wrong())?,
    };
    if net != net.trunc() {
        return Err(format!("\"{text}\" has bits set after its prefix; write {}", net.trunc()));
    }
    match net.addr() {
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Err(format!("\"{text}\" is an IPv4 address in IPv6 form, which no peer has; write it as IPv4"))
        }
        _ => Ok(net),
    }
}

pub(super) fn upstream(value: &Value) -> Result<Upstream, String> {
    match text(value)? {
        "original_dst" => Ok(Upstream::OriginalDst),
        text => text.parse().map(Upstream::Fixed).map_err(|_| {
            format!("\"{text}\" is neither original_dst nor an IP:PORT, such as 127.0.0.1:8080; names are not resolved")
        }),
    }
}

/// One word of a closed list.
pub(super) fn word<T: Copy>(value: &Value, words: &[(&str, T)]) -> Result<T, String> {
    let text = text(value)?;
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*meaning);
    }
    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    match nearest(text, &known) {
        Some(word) => Err(format!("\"{text}\" is unknown; did you mean \"{word}\"?")),
        None => Err(format!("\"{text}\" is none of {}", known.join(", "))),
    }
}

/// `unix:PATH` or `IP:PORT`.
pub(super) fn listen_address(value: &Value) -> Result<ListenAddress, String> {
    text(value)?.parse().map_err(|error: ParseAddressError| error.to_string())
}

/// `none`, `unix:PATH` or `IP:PORT`.
/// The path of a Unix socket; nothing needs to be there yet.
pub(super) fn socket_path(value: &Value) -> Result<PathBuf, String> {
    // The kernel's limit, see unix(7), without the final zero.
    const MOST: usize = 107;
    match text(value)? {
        "" => Err("empty; write the path of a Unix socket".to_owned()),
        path if path.len() > MOST => {
            Err(format!("{} bytes long; paths of Unix sockets have at most {MOST}", path.len()))
        }
        path => Ok(PathBuf::from(path)),
    }
}

pub(super) fn optional_listen_address(value: &Value) -> Result<Option<ListenAddress>, String> {
    match text(value)? {
        "none" => Ok(None),
        _ => listen_address(value).map(Some),
    }
}

/// `none` or `IP:PORT`.
pub(super) fn optional_socket_address(value: &Value) -> Result<Option<SocketAddr>, String> {
    match text(value)? {
        "none" => Ok(None),
        _ => socket_address(value).map(Some),
    }
}

/// Why a text is no [`ListenAddress`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseAddressError(String);

impl FromStr for ListenAddress {
    type Err = ParseAddressError;

    /// Reads `unix:PATH` or `IP:PORT`.
    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let Some(path) = text.strip_prefix("unix:") else {
            return text.parse().map(Self::Tcp).map_err(|_| {
                ParseAddressError(format!(
                    "\"{text}\" is not an address; write unix:PATH or IP:PORT, such as unix:run/admin.sock or \
                     127.0.0.1:9901"
                ))
            });
        };
        // `unix:///run/x` is how gRPC spells an absolute path.
        let path = match path.strip_prefix("//") {
            Some(absolute) if absolute.starts_with('/') => absolute,
            _ => path,
        };
        match path.len() {
            0 => Err(ParseAddressError("\"unix:\" has no path; write unix:PATH".to_owned())),
            1..=UNIX_PATH_MAX => Ok(Self::Unix(PathBuf::from(path))),
            length => Err(ParseAddressError(format!(
                "the path has {length} bytes and Linux allows {UNIX_PATH_MAX} for a Unix socket; choose a shorter one"
            ))),
        }
    }
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
