//! Upstreams' names, asked for by the confined proxy process of a whole instance: seccomp and Landlock leave it the way.
//! Each test runs a daemon and a name server of its own, on loopback.
//! Invariant: what the name server was asked is told by the name server.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

use vm_tests::instance::Instance;

const NAME: &str = "api.pay.example";
/// The type of a question for an IPv4 address (RFC 1035 section 3.2.2).
const A: u16 = 1;

/// Names and types that were asked for.
type Asked = Arc<Mutex<Vec<(String, u16)>>>;

/// Says 10.0.0.9 to whoever asks for an IPv4 address, and nothing else: where it is, and what it was asked.
fn name_server() -> (SocketAddr, Asked) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            let (name, kind, end) = read(&question[..length]);
            let answers = u16::from(kind == A);
            // RFC 1035 section 4.1: recursion desired and available, no error, the question again.
            let mut answer = [&question[..2], &[0x81, 0x80, 0, 1]].concat();
            answer.extend(answers.to_be_bytes());
            answer.extend([0; 4]);
            answer.extend(&question[12..end]);
            if kind == A {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 9]);
            }
            log.lock().unwrap().push((name, kind));
            socket.send_to(&answer, from).unwrap();
        }
    });
    (at, asked)
}

/// The name and type of a question, and where it ends.
fn read(message: &[u8]) -> (String, u16, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while message[at] != 0 {
        let end = at + 1 + usize::from(message[at]);
        labels.push(String::from_utf8_lossy(&message[at + 1..end]).to_lowercase());
        at = end;
    }
    let kind = u16::from_be_bytes([message[at + 1], message[at + 2]]);
    (labels.join("."), kind, at + 5)
}

#[test]
fn the_confined_proxy_asks_the_operators_name_servers_and_checks_what_they_say() {
    let (at, asked) = name_server();
    let mut instance = Instance::new().unwrap();
    let settings = format!("[proxy]\nuser = \"65534\"\nnameservers = [\"{at}\"]\n");
    instance.configure("config.toml", &settings).unwrap();
    let agent = format!(
        "tenant = \"acme\"\nname = \"support\"\nowner = \"olga\"\nstage = \"write\"\n\n\
         [[connections]]\nname = \"pay\"\nconnector = \"generic-http\"\nhosts = [\"{NAME}:80\"]\n"
    );
    instance.configure("agents.d/support.toml", &agent).unwrap();
    instance.start().unwrap();
    assert_eq!(*asked.lock().unwrap(), [], "before anybody calls");

    let url = format!("http://{NAME}/");
    let refused = instance
        .run("acme/support", &["curl", "-sS", &url])
        .unwrap();
    let asked = asked.lock().unwrap().clone();
    assert!(
        asked.contains(&(NAME.to_owned(), A)),
        "{asked:?}: {refused}\n{}",
        instance.log_tail()
    );
    assert!(asked.iter().all(|(name, _)| name == NAME), "{asked:?}");
    assert!(
        refused.stdout.contains("upstream_address"),
        "{refused}\n{}",
        instance.log_tail()
    );
    instance.stop().unwrap();
}
