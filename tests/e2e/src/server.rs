//! Small servers on threads of the test. Each serves what the test asks for and ends with the
//! listener's last expected client or with the test's process.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread::{self, JoinHandle};

use crate::netns::SOON;
use crate::pattern;

/// Accepts one connection and lets `serve` have it; the stream has deadlines.
pub fn serve_one<T: Send + 'static>(
    listener: TcpListener,
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        serve(with_deadlines(stream))
    })
}

/// Sends back what every client sends, until it ends; then ends too.
pub fn echo(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            thread::spawn(move || {
                let mut stream = with_deadlines(stream);
                let mut chunk = vec![0; 64 * 1024];
                while let Ok(n @ 1..) = stream.read(&mut chunk) {
                    if stream.write_all(&chunk[..n]).is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown(Shutdown::Write);
            });
        }
    });
}

/// Sends every datagram back where it came from.
pub fn echo_udp(socket: UdpSocket) {
    thread::spawn(move || {
        let mut datagram = vec![0; 65_536];
        loop {
            if let Ok((n, from)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(&datagram[..n], from);
            }
        }
    });
}

/// Sends `length` bytes each way at once over two ends of one connection, ends both directions in
/// order and checks every byte.
#[track_caller]
pub fn exchange(client: TcpStream, server: TcpStream, length: usize) {
    let (client, server) = (with_deadlines(client), with_deadlines(server));
    thread::scope(|scope| {
        let up = scope.spawn(|| send_all(&client, 1, length));
        let down = scope.spawn(|| send_all(&server, 2, length));
        let at_server = scope.spawn(|| pattern::expect(&mut &server, 1, length));
        pattern::expect(&mut &client, 2, length);
        at_server.join().expect("the server got what the client sent");
        up.join().expect("the client could send");
        down.join().expect("the server could send");
    });
}

fn send_all(mut stream: &TcpStream, seed: u64, length: usize) {
    pattern::send(&mut stream, seed, length).expect("everything can be sent");
    stream.shutdown(Shutdown::Write).expect("a direction can be ended");
}

fn with_deadlines(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(SOON)).expect("a deadline for reads");
    stream.set_write_timeout(Some(SOON)).expect("a deadline for writes");
    stream
}
