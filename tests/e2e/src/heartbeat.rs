//! A machine's traffic while its network's daemon is killed. The machine sends datagrams outside, ten
//! times a second and more, and each says how many answers have come to it and whether its TCP
//! connection has been reset. So what arrives here tells when both ways work again.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::netns::{Netns, SOON};
use crate::server::serve_one;

const PORT: u16 = 7007;
const SINK: u16 = 7008;

/// Datagrams and their answers before traffic counts as flowing.
const FLOWING: u64 = 5;

/// The end outside.
#[derive(Debug)]
pub struct Heartbeat {
    socket: UdpSocket,
    answers: u64,
}

/// What a datagram says.
#[derive(Clone, Copy, Debug, Default)]
struct Beat {
    /// The answers that the machine has had.
    answered: u64,
    reset: bool,
}

/// How long after the daemon was killed things were seen to work.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// A datagram sent afterwards has come to the machine, and its word of that has come back.
    pub traffic: Duration,
    /// The connection of before has been reset.
    pub reset: Duration,
}

impl Heartbeat {
    /// Listens at an address of `outside`.
    #[track_caller]
    pub fn listen(outside: &Netns, address: std::net::IpAddr) -> Self {
        let socket = outside.udp(SocketAddr::from((address, PORT)));
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a deadline");
        // Its connection stays as it is: the machine sends on one that works.
        serve_one(outside.listen((address, SINK)), |mut stream| {
            stream.set_read_timeout(None).expect("a deadline");
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        });
        Self { socket, answers: 0 }
    }

    /// What the machine's shell has to do, with busybox and socat; it goes on in the background.
    pub fn script(address: std::net::IpAddr) -> String {
        let tcp = format!(
            "while echo data; do sleep 0.05; done | socat -u - TCP:{address}:{SINK}; echo >/tmp/reset"
        );
        let beat = "echo $(wc -l </tmp/answers) $([ -e /tmp/reset ] && echo reset)";
        let udp = format!(
            ": >/tmp/answers; while {beat}; do sleep 0.05; done | \
             socat - UDP:{address}:{PORT} >>/tmp/answers"
        );
        format!("({tcp}) >/dev/null 2>&1 </dev/null & ({udp}) >/dev/null 2>&1 </dev/null & :")
    }

    /// Waits until traffic flows, kills the daemon by `kill`, which is to return once that is dead, and
    /// measures from before.
    #[track_caller]
    pub fn outage(&mut self, kill: impl FnOnce()) -> Outage {
        let flowing = self.await_beat("traffic", |beat| beat.answered >= FLOWING);
        assert!(!flowing.reset, "the connection did not last until the daemon was killed");
        let killed = Instant::now();
        kill();
        // Nothing was answered meanwhile: more answers than these have come by another daemon.
        let before = self.answers;
        self.await_beat("traffic by another daemon", |beat| beat.answered > before);
        let traffic = killed.elapsed();
        self.await_beat("the end of the connection", |beat| beat.reset);
        Outage { traffic, reset: killed.elapsed() }
    }

    #[track_caller]
    fn await_beat(&mut self, what: &str, passes: impl Fn(&Beat) -> bool) -> Beat {
        let deadline = Instant::now() + SOON;
        let mut datagram = [0; 64];
        loop {
            assert!(Instant::now() < deadline, "{what} did not come within {SOON:?}");
            match self.socket.recv_from(&mut datagram) {
                Ok((n, from)) => {
                    let text = String::from_utf8_lossy(&datagram[..n]).into_owned();
                    // A connected socket that is gone refuses it: the datagram was from before.
                    if self.socket.send_to(b"answer\n", from).is_ok() {
                        self.answers += 1;
                    }
                    let beat = beat(&text);
                    if passes(&beat) {
                        return beat;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => panic!("{what}: {e}"),
            }
        }
    }
}

#[track_caller]
fn beat(text: &str) -> Beat {
    // Two that were written at once are one datagram: the last is the newest.
    let line = text.lines().next_back().unwrap_or_default();
    let mut words = line.split_whitespace();
    let answered = words.next().and_then(|word| word.parse().ok());
    let answered = answered.unwrap_or_else(|| panic!("no heartbeat: {text:?}"));
    Beat { answered, reset: words.next() == Some("reset") }
}
