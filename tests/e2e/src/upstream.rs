//! A nameserver that does as the test says, however wrong, and remembers what it was asked.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::dns_client::{Transport, receive, send};
use crate::dns_message::{A, AAAA, Message, NOERROR, NXDOMAIN, answer};
use crate::netns::{Netns, SOON};

/// Serves at port 53 of one address, as long as the test's process lives.
#[derive(Debug)]
pub struct Upstream {
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A query as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub message: Vec<u8>,
    pub query: Message,
    pub transport: Transport,
    pub from: SocketAddr,
}

impl Asked {
    /// The name in lower case, without the dot of the root.
    pub fn name(&self) -> String {
        self.query.question.first().map_or_else(String::new, |(name, ..)| name.to_lowercase())
    }

    pub fn kind(&self) -> u16 {
        self.query.question.first().map_or(0, |&(_, kind, _)| kind)
    }

    /// An answer with this IPv4 address; to a question for anything else, one with nothing.
    pub fn with(&self, address: [u8; 4], ttl: u32) -> Vec<u8> {
        match self.kind() {
            A => answer(&self.message, NOERROR, ttl, &[address.to_vec()]),
            _ => answer(&self.message, NOERROR, ttl, &[]),
        }
    }

    /// An answer that is nothing but a code.
    pub fn code(&self, rcode: u16) -> Vec<u8> {
        answer(&self.message, rcode, 0, &[])
    }
}

impl Upstream {
    /// Sends whatever messages `behave` makes of a query. Each query has a thread of its own, so
    /// that one may take its time.
    #[track_caller]
    pub fn serve(
        netns: &Netns,
        at: IpAddr,
        behave: impl Fn(&Asked) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let behave = Arc::new(behave);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (udp, tcp) = (netns.udp((at, 53)), netns.listen((at, 53)));
        udp.set_read_timeout(None).expect("a socket option");
        let udp = Arc::new(udp);
        let upstream = Self { asked: Arc::clone(&asked) };
        let remember = move |message: &[u8], transport, from| {
            // What is malformed is no question, and is not answered.
            let query = Message::decode(message).ok().filter(|query| !query.question.is_empty())?;
            let one = Asked { message: message.to_vec(), query, transport, from };
            asked.lock().expect("no thread panics with it").push(one.clone());
            Some(one)
        };
        let (over_udp, over_tcp) = (Arc::clone(&behave), behave);
        let remember_tcp = remember.clone();
        thread::spawn(move || {
            let mut message = vec![0; 65_536];
            while let Ok((length, from)) = udp.recv_from(&mut message) {
                let Some(asked) = remember(&message[..length], Transport::Udp, from) else {
                    continue;
                };
                let (behave, udp) = (Arc::clone(&over_udp), Arc::clone(&udp));
                thread::spawn(move || {
                    for reply in behave(&asked) {
                        let _ = udp.send_to(&reply, from);
                    }
                });
            }
        });
        thread::spawn(move || {
            for stream in tcp.incoming().filter_map(Result::ok) {
                let (behave, remember) = (Arc::clone(&over_tcp), remember_tcp.clone());
                thread::spawn(move || serve_stream(stream, &*behave, remember));
            }
        });
        upstream
    }

    /// Answers every name with this IPv4 address and `missing.*` with NXDOMAIN, for 60 seconds.
    #[track_caller]
    pub fn of(netns: &Netns, at: IpAddr, address: [u8; 4]) -> Self {
        Self::serve(netns, at, move |asked| {
            let missing = asked.name().starts_with("missing.");
            vec![if missing { asked.code(NXDOMAIN) } else { asked.with(address, 60) }]
        })
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no thread panics with it").clone()
    }

    /// How often it was asked for the addresses of a name.
    pub fn count(&self, name: &str) -> usize {
        let address = |asked: &&Asked| matches!(asked.kind(), A | AAAA) && asked.name() == name;
        self.asked().iter().filter(address).count()
    }
}

fn serve_stream(
    mut stream: TcpStream,
    behave: impl Fn(&Asked) -> Vec<Vec<u8>>,
    remember: impl Fn(&[u8], Transport, SocketAddr) -> Option<Asked>,
) -> Option<()> {
    stream.set_read_timeout(Some(SOON)).ok()?;
    let from = stream.peer_addr().ok()?;
    loop {
        let message = receive(&mut stream).ok()?;
        for reply in behave(&remember(&message, Transport::Tcp, from)?) {
            send(&mut stream, &reply).ok()?;
        }
    }
}
