//! A process that does what a test tells it, one line at a time: this same binary, started anew inside a cgroup.
//! Stands where an agent would stand on the path of a request.
//! INVARIANT: it makes its sockets itself, after it is in its cgroup; a refusal comes back as the errno that an agent would see.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// The cgroup that a puppet enters before it does anything else.
const CGROUP: &str = "SLUICE_TEST_CGROUP";
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const PATIENCE: Duration = Duration::from_secs(10);

/// The test's end of a puppet.
pub(crate) struct Puppet {
    /// None for one that another puppet bore; it ends when nobody holds its strings any more.
    child: Option<Child>,
    pid: u32,
    strings: BufReader<UnixStream>,
}

/// What a puppet answers: words, or an errno.
pub(crate) type Answer = Result<Vec<String>, i32>;

impl Puppet {
    /// Starts a process in a cgroup; in the test's own one where none is given.
    pub(crate) fn start(cgroup: Option<&Path>) -> Puppet {
        let (ours, theirs) = strings();
        let mut command = role(theirs);
        if let Some(cgroup) = cgroup {
            command.env(CGROUP, cgroup);
        }
        Puppet::spawn(command, ours)
    }

    /// Starts a process through another command, which ends where the program to start is to be named.
    pub(crate) fn through(mut command: Command) -> Puppet {
        let (ours, theirs) = strings();
        let role = role(theirs.try_clone().unwrap());
        command.arg(role.get_program()).args(role.get_args());
        command.stdin(theirs).stdout(Stdio::null());
        Puppet::spawn(command, ours)
    }

    fn spawn(mut command: Command, ours: BufReader<UnixStream>) -> Puppet {
        let child = command.spawn().unwrap();
        let mut puppet = Puppet {
            pid: child.id(),
            child: Some(child),
            strings: ours,
        };
        // An answer means that it is in its cgroup.
        puppet.ask("greet").unwrap();
        puppet
    }

    /// Starts a process, in the test's own cgroup, that enters `cgroup` and then bears another one, by fork and exec.
    pub(crate) fn start_and_bear(cgroup: &Path) -> (Puppet, Puppet) {
        Puppet::start_act_and_bear(cgroup, "greet")
    }

    /// The same, with something to do before.
    pub(crate) fn start_act_and_bear(cgroup: &Path, act: &str) -> (Puppet, Puppet) {
        let mut parent = Puppet::start(None);
        let (ours, theirs) = strings();
        parent.hand("take_strings", &[theirs.as_fd()]).unwrap();
        parent.ask(&format!("go {}", cgroup.display())).unwrap();
        parent.ask(act).unwrap();
        let pid = parent.ask("bear").unwrap()[0].parse().unwrap();
        let mut child = Puppet {
            child: None,
            pid,
            strings: ours,
        };
        child.ask("greet").unwrap();
        (parent, child)
    }

    /// Starts a process, in the test's own cgroup, that bears another one right into `cgroup`, where that executes a program
    /// first. What it does before is in `act`.
    pub(crate) fn start_and_bear_into(cgroup: &Path, act: &str) -> (Puppet, Puppet) {
        let mut parent = Puppet::start(None);
        let (ours, theirs) = strings();
        parent.hand("take_strings", &[theirs.as_fd()]).unwrap();
        parent.ask(act).unwrap();
        let bear = format!("bear_into {}", cgroup.display());
        let pid = parent.ask(&bear).unwrap()[0].parse().unwrap();
        let mut child = Puppet {
            child: None,
            pid,
            strings: ours,
        };
        child.ask("greet").unwrap();
        (parent, child)
    }

    /// Has it execute its program anew; it forgets all that it had.
    pub(crate) fn again(&mut self) {
        self.ask("again").unwrap();
        self.ask("greet").unwrap();
    }

    /// Waits for the signal that ends the process.
    pub(crate) fn signal(&mut self) -> Option<i32> {
        let child = self.child.as_mut().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.signal();
            }
            assert!(Instant::now() < deadline, "the puppet lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Moves the process into another cgroup; its sockets stay where they were born.
    pub(crate) fn enter(&self, cgroup: &Path) {
        fs::write(cgroup.join("cgroup.procs"), self.pid.to_string()).unwrap();
    }

    /// Sends one command and waits for its answer.
    pub(crate) fn ask(&mut self, command: &str) -> Answer {
        self.tell(command);
        self.answer()
    }

    /// Sends one command; [`Puppet::answer`] is still owed.
    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.strings.get_mut(), "{command}").unwrap();
    }

    /// Waits for the answer of an earlier [`Puppet::tell`].
    pub(crate) fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.strings
            .read_line(&mut line)
            .expect("the puppet answers in time");
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("ok") => Ok(words.collect()),
            Some("err") => Err(words.next().unwrap().parse().unwrap()),
            _ => panic!("the puppet is gone; it said {line:?}"),
        }
    }

    /// Connects by TCP: socket number, own address, peer as the workload sees it.
    pub(crate) fn connect(&mut self, to: &str) -> Result<(usize, SocketAddr, SocketAddr), i32> {
        let words = self.ask(&format!("connect {to}"))?;
        Ok((
            words[0].parse().unwrap(),
            words[1].parse().unwrap(),
            words[2].parse().unwrap(),
        ))
    }

    /// A UDP socket bound to an address: its number.
    pub(crate) fn udp(&mut self, at: &str) -> usize {
        self.ask(&format!("udp {at}")).unwrap()[0].parse().unwrap()
    }

    /// A TCP server on an address: its number and port.
    pub(crate) fn listen(&mut self, at: &str) -> (usize, u16) {
        let words = self.ask(&format!("listen {at}")).unwrap();
        (words[0].parse().unwrap(), words[1].parse().unwrap())
    }

    /// Sends one command and, when the puppet is ready for them, descriptors.
    pub(crate) fn hand(&mut self, command: &str, fds: &[BorrowedFd<'_>]) -> Answer {
        assert_eq!(self.ask(command), Ok(vec!["ready".to_owned()]));
        super::host::send_fds(self.socket(), fds).unwrap();
        self.answer()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// The socket that descriptors come through.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.strings.get_ref().as_fd()
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _already_dead = child.kill();
            let _already_reaped = child.wait();
        }
    }
}

fn strings() -> (BufReader<UnixStream>, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE * 3)).unwrap();
    (BufReader::new(ours), theirs.into())
}

/// This binary, as a process that does what it is told.
fn role(strings: OwnedFd) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--ignored",
            "--exact",
            "role",
            "--nocapture",
            "--test-threads=1",
        ])
        .env_remove(CGROUP)
        .stdin(strings)
        .stdout(Stdio::null());
    command
}

/// The puppet's side: reads commands from standard input, which is a socket, and answers on it.
pub(crate) fn obey() {
    if let Some(cgroup) = std::env::var_os(CGROUP) {
        fs::write(Path::new(&cgroup).join("cgroup.procs"), "0").unwrap();
    }
    let strings = UnixStream::from(rustix::io::dup(rustix::stdio::stdin()).unwrap());
    let mut puppet = Limbs::default();
    let mut answers = strings.try_clone().unwrap();
    for line in BufReader::new(strings).lines() {
        let Ok(line) = line else { break };
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match puppet.act(&words) {
            Ok(text) => format!("ok {text}\n"),
            Err(error) => format!("err {}\n", error.raw_os_error().unwrap_or(-1)),
        };
        if answers.write_all(answer.as_bytes()).is_err() {
            break;
        }
    }
}

#[derive(Default)]
struct Limbs {
    sockets: Vec<Option<Socket>>,
    /// Of a puppet that this one will bear.
    strings: Option<OwnedFd>,
    borne: Vec<Child>,
}

impl Limbs {
    fn act(&mut self, words: &[&str]) -> io::Result<String> {
        match words {
            ["greet"] => Ok(String::new()),
            ["connect", to] => self.connect(to, None),
            ["connect", to, "device", device] => self.connect(to, Some(device)),
            ["reuse", count, network, first, ports] => reuse(
                count.parse().unwrap(),
                network.parse().unwrap(),
                first.parse().unwrap(),
                ports.parse().unwrap(),
            ),
            ["burst", count, to] => burst(count.parse().unwrap(), to),
            ["upload", mebibytes, to] => upload(mebibytes.parse().unwrap(), to),
            ["listen", at] => self.listen(at),
            ["accept", index] => {
                let (socket, _) = self.socket(index).accept()?;
                Ok(format!("{} ", self.keep(socket)))
            }
            ["udp", at] => {
                let at: SocketAddr = at.parse().unwrap();
                let socket = make(at, Type::DGRAM)?;
                socket.bind(&at.into())?;
                let port = socket.local_addr()?.as_socket().unwrap().port();
                Ok(format!("{} {port}", self.keep(socket)))
            }
            ["connectwith", index, to] => {
                let to: SocketAddr = to.parse().unwrap();
                self.socket(index).connect(&to.into())?;
                Ok(String::new())
            }
            ["bindwith", index, at] => {
                let at: SocketAddr = at.parse().unwrap();
                self.socket(index).bind(&at.into())?;
                Ok(String::new())
            }
            ["listenwith", index] => self.socket(index).listen(16).map(|()| String::new()),
            ["udpconnect", index, to] => {
                let to: SocketAddr = to.parse().unwrap();
                self.socket(index).connect(&to.into())?;
                let peer = self.socket(index).peer_addr()?.as_socket().unwrap();
                Ok(peer.to_string())
            }
            ["option", index, level, name, value] => {
                let value = super::net::unhex(value);
                let (level, name) = (level.parse().unwrap(), name.parse().unwrap());
                super::net::set_option(self.socket(index), level, name, &value)
                    .map(|()| String::new())
            }
            ["sendwith", index, to, level, kind, data] => {
                let data = super::net::unhex(data);
                let kind = (level.parse().unwrap(), kind.parse().unwrap());
                super::net::send_with(self.socket(index), to.parse().unwrap(), kind, &data)
                    .map(|()| String::new())
            }
            ["tcp", family] => {
                let at: SocketAddr = match *family {
                    "4" => "0.0.0.0:0".parse().unwrap(),
                    _ => "[::]:0".parse().unwrap(),
                };
                make(at, Type::STREAM).map(|socket| self.keep(socket).to_string())
            }
            ["send", index, text] => self
                .socket(index)
                .send(text.as_bytes())
                .map(|sent| sent.to_string()),
            ["sendto", index, to, text] => {
                let to: SocketAddr = to.parse().unwrap();
                self.socket(index)
                    .send_to(text.as_bytes(), &to.into())
                    .map(|sent| sent.to_string())
            }
            ["recvfrom", index] => receive(self.socket(index)),
            ["read", index] => {
                let mut bytes = [0; 64];
                let count = self.socket(index).read(&mut bytes)?;
                Ok(String::from_utf8_lossy(&bytes[..count]).into_owned())
            }
            ["drain", index] => {
                let arrived = io::copy(self.socket(index), &mut io::sink())?;
                Ok(arrived.to_string())
            }
            ["fire", count, to] => {
                let to: SocketAddr = to.parse().unwrap();
                for _ in 0..count.parse().unwrap() {
                    // Closed at once.
                    make(to, Type::DGRAM)?.send_to(b"shot", &to.into())?;
                }
                Ok(String::new())
            }
            ["names", index] => super::net::names(self.socket(index)),
            ["listenanywhere"] => {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.listen(16)?;
                let port = socket.local_addr()?.as_socket().unwrap().port();
                Ok(format!("{} {port}", self.keep(socket)))
            }
            ["ports", from, to] => {
                // Of the calling thread's network namespace.
                fs::write(PORT_RANGE, format!("{from} {to}")).map(|()| String::new())
            }
            ["close", index] => {
                self.sockets[index.parse::<usize>().unwrap()] = None;
                Ok(String::new())
            }
            ["socket", family, kind, protocol] => {
                super::net::raw_socket(family, kind, protocol).map(|_closed| String::new())
            }
            ["keepsocket", family, kind, protocol] => {
                let socket = super::net::raw_socket(family, kind, protocol)?;
                Ok(self.keep(socket.into()).to_string())
            }
            ["bind", at] => {
                let at: SocketAddr = at.parse().unwrap();
                make(at, Type::STREAM)?
                    .bind(&at.into())
                    .map(|()| String::new())
            }
            ["new_netns"] => {
                // Sockets are made by this thread only.
                #[expect(
                    deprecated,
                    reason = "its unsafe successor guards descriptor tables, which are not unshared here"
                )]
                rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET)?;
                Ok(String::new())
            }
            ["room_for_storage", bytes] => {
                fs::write("/proc/sys/net/core/optmem_max", bytes).map(|()| String::new())
            }
            ["loopback_up"] => super::net::interface_up("lo").map(|()| String::new()),
            ["setuid", uid] => {
                let uid = rustix::thread::Uid::from_raw(uid.parse().unwrap());
                rustix::thread::set_thread_groups(&[])?;
                rustix::thread::set_thread_gid(rustix::thread::Gid::from_raw(uid.as_raw()))?;
                rustix::thread::set_thread_uid(uid)?;
                Ok(String::new())
            }
            ["take_socket"] => self.take_socket(),
            ["take_file"] => {
                super::host::say_ready()?;
                match super::host::receive_fds(rustix::stdio::stdin())?.as_slice() {
                    [_file] => Ok(String::new()),
                    _ => Err(io::ErrorKind::InvalidData.into()),
                }
            }
            ["unixlisten", kind, at] => {
                let socket = Socket::new(Domain::UNIX, unix_kind(kind), None)?;
                socket.bind(&SockAddr::unix(at)?)?;
                if *kind == "stream" {
                    socket.listen(16)?;
                }
                self.keep(socket);
                Ok(String::new())
            }
            ["unixconnect", kind, at] => {
                let socket = Socket::new(Domain::UNIX, unix_kind(kind), None)?;
                socket.connect(&SockAddr::unix(at)?)?;
                self.keep(socket);
                Ok(String::new())
            }
            ["take_fd_of", pid] => {
                let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
                let process =
                    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
                let flags = rustix::process::PidfdGetfdFlags::empty();
                rustix::process::pidfd_getfd(process, 0, flags)?;
                Ok(String::new())
            }
            ["first_bpf_program"] => super::net::first_bpf_program().map(|()| String::new()),
            ["give_socket", index] => {
                super::host::send_fds(rustix::stdio::stdin(), &[self.socket(index).as_fd()])
                    .map(|()| String::new())
            }
            ["go", cgroup] => {
                fs::write(Path::new(cgroup).join("cgroup.procs"), "0").map(|()| String::new())
            }
            ["move", pid, cgroup] => {
                fs::write(Path::new(cgroup).join("cgroup.procs"), pid).map(|()| String::new())
            }
            ["become", program] => Err(std::os::unix::process::CommandExt::exec(
                &mut Command::new(program),
            )),
            ["take_strings"] => {
                super::host::say_ready()?;
                self.strings = super::host::receive_fds(rustix::stdio::stdin())?.pop();
                Ok(String::new())
            }
            ["launch", cgroup, directory] => super::task::launch(cgroup, directory),
            ["renounce"] => {
                rustix::thread::set_no_new_privs(true)?;
                Ok(String::new())
            }
            ["bear"] => {
                let child = role(self.strings.take().unwrap()).spawn()?;
                let pid = child.id();
                self.borne.push(child);
                Ok(pid.to_string())
            }
            ["bear_into", cgroup] => {
                let strings = self.strings.take().unwrap();
                let child = role(strings.try_clone()?);
                super::task::bear_into(Path::new(cgroup), &child, &strings)
            }
            ["again"] => {
                let mut own = role(rustix::io::dup(rustix::stdio::stdin())?);
                // Before anything more is asked: what is read ahead here is lost.
                rustix::io::write(rustix::stdio::stdin(), b"ok\n")?;
                Err(std::os::unix::process::CommandExt::exec(&mut own))
            }
            ["clone_into", cgroup] => super::task::clone_into(Path::new(cgroup)),
            ["fork"] => super::task::fork_once(),
            ["ring", flags] => super::ring::open(flags.parse().unwrap()).map(|_| String::new()),
            ["ring_command"] => super::ring::command(),
            ["ring_personality"] => super::ring::personality(),
            ["listeners", cgroup] => super::host::give_listeners(Path::new(cgroup)),
            ["origin"] => super::host::read_origins(),
            _ => panic!("unknown command {words:?}"),
        }
    }

    fn connect(&mut self, to: &str, device: Option<&str>) -> io::Result<String> {
        let to: SocketAddr = to.parse().unwrap();
        let socket = make(to, Type::STREAM)?;
        if let Some(device) = device {
            socket.bind_device(Some(device.as_bytes()))?;
        }
        socket.connect_timeout(&to.into(), PATIENCE / 5)?;
        let (own, peer) = (socket.local_addr()?, socket.peer_addr()?);
        let (own, peer) = (own.as_socket().unwrap(), peer.as_socket().unwrap());
        Ok(format!("{} {own} {peer}", self.keep(socket)))
    }

    fn listen(&mut self, at: &str) -> io::Result<String> {
        let at: SocketAddr = at.parse().unwrap();
        let socket = make(at, Type::STREAM)?;
        socket.bind(&at.into())?;
        socket.listen(16)?;
        let port = socket.local_addr()?.as_socket().unwrap().port();
        Ok(format!("{} {port}", self.keep(socket)))
    }

    fn take_socket(&mut self) -> io::Result<String> {
        super::host::say_ready()?;
        let [fd] = super::host::receive_fds(rustix::stdio::stdin())?
            .try_into()
            .map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(self.keep(Socket::from(fd)).to_string())
    }

    fn keep(&mut self, socket: Socket) -> usize {
        self.sockets.push(Some(socket));
        self.sockets.len() - 1
    }

    fn socket(&mut self, index: &str) -> &mut Socket {
        self.sockets[index.parse::<usize>().unwrap()]
            .as_mut()
            .unwrap()
    }
}

fn unix_kind(kind: &str) -> Type {
    match kind {
        "stream" => Type::STREAM,
        _ => Type::DGRAM,
    }
}

fn make(at: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM {
        Protocol::TCP
    } else {
        Protocol::UDP
    };
    let socket = Socket::new(Domain::for_address(at), kind, Some(protocol))?;
    if at.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Many short connections, each to a port of its own: reset at once, which loses origins that are looked up late.
fn burst(count: u16, to: &str) -> io::Result<String> {
    let host: std::net::IpAddr = to.parse().unwrap();
    for port in 1000..1000 + count {
        let stream = TcpStream::connect((host, port))?;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    Ok(String::new())
}

/// Where the connection of this number of a [`reuse`] goes: no two of one network go to the same place.
pub(crate) fn numbered(network: Ipv4Addr, number: u32) -> SocketAddr {
    let host = Ipv4Addr::from_bits(network.to_bits() + number / 50_000);
    SocketAddr::new(host.into(), 1_000 + (number % 50_000) as u16)
}

/// Many short connections from few source ports, which others use at the same time: each is reset at once and its port used again.
fn reuse(count: u32, network: Ipv4Addr, first: u16, ports: u16) -> io::Result<String> {
    let (mut port, mut taken) = (0, 0);
    for number in 0..count {
        let to = numbered(network, number);
        loop {
            let socket = make(to, Type::STREAM)?;
            socket.set_reuse_address(true)?;
            socket.set_linger(Some(Duration::ZERO))?;
            port = (port + 1) % ports;
            let from = SocketAddr::from((Ipv4Addr::LOCALHOST, first + port));
            let connected = socket
                .bind(&from.into())
                .and_then(|()| socket.connect(&to.into()));
            match connected.as_ref().map_err(io::Error::raw_os_error) {
                Ok(()) => break,
                // The other one has it at this moment.
                Err(Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL)) => taken += 1,
                Err(_) => return connected.map(|()| String::new()),
            }
        }
    }
    Ok(taken.to_string())
}

/// Writes in pieces so large that the kernel makes segments of more than 64 KiB.
fn upload(mebibytes: usize, to: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(to.parse::<SocketAddr>().unwrap())?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let piece = vec![7; 4 << 20];
    for _ in 0..mebibytes / 4 {
        stream.write_all(&piece)?;
    }
    Ok(String::new())
}

fn receive(socket: &Socket) -> io::Result<String> {
    let socket = UdpSocket::from(socket.try_clone()?);
    let mut bytes = [0; 64];
    let (count, from) = socket.recv_from(&mut bytes)?;
    Ok(format!(
        "{from} {}",
        String::from_utf8_lossy(&bytes[..count])
    ))
}
